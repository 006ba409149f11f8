"""How a member is fitted."""

import math
from dataclasses import dataclass
from typing import Literal

from medfuse.errors import ConfigError

Precision = Literal["auto", "32-true", "bf16-mixed"]


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Settings of one fit; the defaults suit cohorts of 150 to 1,500 patients.

    Attributes:
        epochs: most epochs; the learning rate schedule spans them.
        batch_size: patients per optimiser step; an epoch is cut into equal batches of about this size.
        lr: peak learning rate of AdamW.
        weight_decay: decoupled weight decay, on matrices only (not on biases, gains and other vectors).
        schedule: ``cosine`` decays to zero over ``epochs``, ``constant`` does not.
        warmup: part of all steps over which the learning rate rises linearly.
        patience: epochs without improvement on ``tuning`` before stopping; 0 = run all epochs.
        select_by: the weights kept are those with the best tuning ``loss`` or ``score``, or of the ``last`` epoch.
        most_tokens: in training, tokens of a bag (tiles of a slide) that a step reads, drawn anew each time; 0 = all.
            Evaluation reads every token.
        clip: largest gradient norm; 0 = no clipping.
        accumulate: micro-batches per optimiser step; exact for the loss of each outcome, a mean over its observed
            patients, but for ``cox``, whose risk sets are those of a micro-batch. Readouts and penalties of a fusion
            are means over each micro-batch, too.
        modality_dropout: hide whole modalities in training.
        keep_all: probability that a patient keeps every modality.
        presence: ``balanced`` hides modalities of training patients further, until who has them no longer goes with
            the outcome (:mod:`medfuse.training.presence`).
        balance: ``agm`` modulates gradients so that no modality runs ahead (:mod:`medfuse.training.balance`), at the
            cost of a pass through the fusion per subset of the modalities. It reaches no modality of ``stacked``.
        balance_alpha: strength of ``agm``.
        ema: decay of an exponential moving average of the weights, which is then what is selected; 0 = off.
        precision: ``auto`` is bf16-mixed on CUDA and 32-true elsewhere.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        threads: CPU threads during the fit, one being the fastest for small models; 0 = leave as they are.
        deterministic: CUDA only: deterministic algorithms, at some cost of speed.
        checkpoint_every: epochs between checkpoints; 0 = none at ends of epochs.
        checkpoint_seconds: seconds between checkpoints, taken after any step; 0 = none by the clock.

    Raises:
        ConfigError: for a value outside its range.
    """

    epochs: int = 60
    batch_size: int = 64
    lr: float = 1e-3
    weight_decay: float = 1e-2
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: float = 0.05
    patience: int = 15
    select_by: Literal["loss", "score", "last"] = "loss"
    most_tokens: int = 0
    clip: float = 1.0
    accumulate: int = 1
    modality_dropout: bool = True
    keep_all: float = 0.3
    presence: Literal["as_is", "balanced"] = "as_is"
    balance: Literal["none", "agm"] = "none"
    balance_alpha: float = 1.0
    ema: float = 0.0
    precision: Precision = "auto"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: int = 1
    deterministic: bool = False
    checkpoint_every: int = 0
    checkpoint_seconds: float = 30.0

    def __post_init__(self) -> None:
        at_least = {"epochs": 1, "batch_size": 1, "accumulate": 1, "patience": 0, "threads": 0, "checkpoint_every": 0}
        at_least["most_tokens"] = 0
        low = {name: bound for name, bound in at_least.items() if getattr(self, name) < bound}
        names = ("lr", "weight_decay", "warmup", "clip", "checkpoint_seconds", "balance_alpha")
        bad = {name for name in names if not 0 <= getattr(self, name) < math.inf}
        bad |= {name for name in ("warmup", "keep_all", "ema") if not 0 <= getattr(self, name) <= 1}
        if low or bad or self.lr == 0 or self.ema == 1:
            found = ", ".join(sorted({*low, *bad} or {"lr" if self.lr == 0 else "ema"}))
            msg = (
                f"train: out of range: {found}; expected epochs, batch_size, accumulate >= 1, lr > 0, ema in [0, 1), "
                "warmup and keep_all in [0, 1], and the others >= 0"
            )
            raise ConfigError(msg)
        choices = {
            "schedule": ("cosine", "constant"),
            "select_by": ("loss", "score", "last"),
            "presence": ("as_is", "balanced"),
            "balance": ("none", "agm"),
            "precision": ("auto", "32-true", "bf16-mixed"),
            "device": ("auto", "cpu", "cuda", "mps"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                msg = f'train.{name}: expected one of {", ".join(known)}, found "{getattr(self, name)}"'
                raise ConfigError(msg)


def learning_rate(settings: TrainSettings, *, step: int, steps: int) -> float:
    """Learning rate of optimiser step ``step`` (from 0) of ``steps``."""
    warm = round(settings.warmup * steps)
    if step < warm:
        return settings.lr * (step + 1) / (warm + 1)
    if settings.schedule == "constant":
        return settings.lr
    return settings.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
