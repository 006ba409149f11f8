"""Fit one member: one visible loop on Lightning Fabric, with early stopping and exact resume."""

import copy
import dataclasses
import functools
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from medfuse.batch import Batch, cap_tokens, drop_modalities
from medfuse.errors import ModelError
from medfuse.files import json_bytes
from medfuse.training.balance import Balancer
from medfuse.training.checkpoint import Checkpoint, CheckpointFolder
from medfuse.training.device import enough_memory, full_precision, make_fabric, own_global_state
from medfuse.training.patients import Patients, data_sha256
from medfuse.training.presence import balance, hide
from medfuse.training.score import tuning_score
from medfuse.training.settings import TrainSettings, learning_rate

if TYPE_CHECKING:
    from medfuse.models import MultimodalModel

_NAMED = 64


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a fit stands, for progress bars and tracking.

    Attributes:
        step: optimiser steps done.
        steps: optimiser steps if no early stop comes.
        record: the row of the history when an epoch has just ended, else None.
    """

    step: int
    steps: int
    record: dict[str, float | None] | None = None


@dataclass(frozen=True, kw_only=True)
class FittedMember:
    """A fitted model.

    Attributes:
        state: weights of the selected epoch, on the CPU.
        history: per epoch: epoch, train_loss, tuning_loss, tuning_score, lr, gradient_norm, seconds; ``kept.MODALITY``
            with ``presence: balanced``, ``strength.MODALITY`` and ``factor.MODALITY`` with ``balance: agm``.
        best_epoch: the selected epoch, from 1; 0 = the weights it went on from, which no epoch made better.
        tuning_loss: at the selected epoch; None without tuning patients.
        tuning_score: at the selected epoch; None when undefined.
    """

    state: dict[str, Tensor]
    history: tuple[dict[str, float | None], ...]
    best_epoch: int
    tuning_loss: float | None
    tuning_score: float | None


@dataclass(kw_only=True)
class _Loop:
    """All that changes during a fit; a checkpoint is exactly this."""

    model: "MultimodalModel"
    optimizer: torch.optim.Optimizer
    average: "MultimodalModel | None"
    order_draws: torch.Generator
    hide_draws: torch.Generator
    device: torch.device
    presence_draws: torch.Generator
    parameters: list[nn.Parameter]  # of the model, found once: looking for them takes as long as a small layer
    keep: Tensor | None = None  # (n, M) chance of each present modality to be kept, with ``presence: balanced``
    kept: dict[str, float] = field(default_factory=dict)
    balancer: Balancer | None = None
    epoch: int = 0
    step: int = 0
    micro: int = 1
    lr: float = 0.0
    order: Tensor | None = None
    losses: list[Tensor] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)
    history: list[dict[str, float | None]] = field(default_factory=list)
    start: list[float | None] | None = None  # tuning loss and score of the weights it went on from
    best: dict[str, Tensor] | None = None
    best_epoch: int = 0
    best_value: float | None = None

    def begin_epoch(self, n: int) -> Tensor:
        """The order of the patients in this epoch: drawn, or the one drawn before the process was killed."""
        if self.order is None:
            self.order = torch.randperm(n, generator=self.order_draws)
        return self.order

    @property
    def selected(self) -> "MultimodalModel":
        """The weights that are evaluated: the moving average where there is one."""
        return self.model if self.average is None else self.average

    def checkpoint(self) -> Checkpoint:
        """Everything, as tensors and JSON."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        if self.average is not None:
            tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in (self.best or {}).items()}
        for i, entry in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{k}": v for k, v in entry.items()}
        tensors |= {"draws.order": self.order_draws.get_state(), "draws.hide": self.hide_draws.get_state()}
        tensors |= {"draws.presence": self.presence_draws.get_state(), "draws.torch": torch.get_rng_state()}
        if self.balancer is not None:
            tensors |= {"balance.sums": self.balancer.sums, "draws.balance": self.balancer.draws.get_state()}
        if self.device.type == "cuda":
            tensors["draws.cuda"] = torch.cuda.get_rng_state(self.device)
        if self.order is not None:
            tensors["order"] = self.order
        if self.losses:
            tensors |= {"losses": torch.stack(self.losses), "norms": torch.stack(self.norms)}
        names = ("epoch", "step", "micro", "lr", "history", "start", "best_epoch", "best_value")
        return Checkpoint(tensors=tensors, state={name: getattr(self, name) for name in names})

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take over a checkpoint of the same fit."""
        tensors = checkpoint.tensors

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        if self.average is not None:
            self.average.load_state_dict(part("average."))
        self.best = {k: v.to(self.device) for k, v in part("best.").items()} or None
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in part("optimizer.").items():
            index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.order_draws.set_state(tensors["draws.order"])
        self.hide_draws.set_state(tensors["draws.hide"])
        self.presence_draws.set_state(tensors["draws.presence"])
        if self.balancer is not None:
            self.balancer.sums = tensors["balance.sums"]
            self.balancer.draws.set_state(tensors["draws.balance"])
        torch.set_rng_state(tensors["draws.torch"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["draws.cuda"], self.device)
        self.order = tensors.get("order")
        self.losses = list(tensors["losses"].to(self.device)) if "losses" in tensors else []
        self.norms = list(tensors["norms"].to(self.device)) if "norms" in tensors else []
        for name, value in checkpoint.state.items():
            setattr(self, name, value)


class _Saver:
    """Decides when to write a checkpoint; writes none without a folder."""

    def __init__(self, folder: CheckpointFolder | None, settings: TrainSettings) -> None:
        self.folder, self.settings = folder, settings
        self.saved = time.perf_counter()

    def after_step(self, loop: _Loop) -> None:
        """Save when the clock says so."""
        if self.folder is not None and 0 < self.settings.checkpoint_seconds <= time.perf_counter() - self.saved:
            self.folder.save(loop.checkpoint())
            self.saved = time.perf_counter()

    def after_epoch(self, loop: _Loop) -> None:
        """Save after every so many epochs."""
        every = self.settings.checkpoint_every
        if self.folder is not None and every and loop.epoch % every == 0:
            self.folder.save(loop.checkpoint())
            self.saved = time.perf_counter()


def fit_member(
    train: Batch | Patients,
    tuning: Batch | Patients | None,
    *,
    build: Callable[[], "MultimodalModel"],
    settings: TrainSettings,
    seed: int,
    workdir: Path | None = None,
    watch: Callable[[Progress], None] = lambda progress: None,
) -> FittedMember:
    """Fit one model on ``train``, keep the weights that are best on ``tuning``.

    The same inputs on the same machine type, versions and number of threads give bit-identical weights on a CPU, also
    when the process was killed and run again with the same ``workdir``. The caller's random state is left alone.

    Args:
        train: all training patients; minibatches are cut from it on the device, or read from disk one step ahead.
        tuning: patients for early stopping; None, or no known outcome among them, keeps the last epoch.
        build: makes the model; called once, under the seeded generator.
        settings: see :class:`TrainSettings`.
        seed: of initialisation, dropout, order and modality dropout.
        workdir: folder for checkpoints, this fit's own; None = no checkpoints.
        watch: called after every optimiser step and every epoch, for progress and tracking.

    Returns:
        The selected weights and the history.

    Raises:
        ModelError: at the first training step whose loss or gradient is not finite, with the ids of its patients; a GPU
            without the memory for a single patient beside the batch, or for the tuning patients.
        StoreError: when ``workdir`` holds checkpoints of other settings or data.
    """
    if len(train) == 0:
        msg = "train: expected patients, found none; check the split"
        raise ModelError(msg)
    tuning = tuning if tuning is not None and _can_tune(tuning) else None
    fabric = make_fabric(settings)
    with own_global_state(settings, device=fabric.device, seed=seed), enough_memory("training"):
        loop = _start(fabric, build, train=train, settings=settings, seed=seed)
        saver = _resume(loop, workdir, settings=settings, seed=seed, data=(train, tuning))
        train = train.to(fabric.device)
        tuning = None if tuning is None else tuning.to(fabric.device)
        if tuning is not None and loop.step == 0 and loop.model.begun:
            _judge_start(loop, tuning, settings=settings)
        batches = math.ceil(len(train) / settings.batch_size)
        steps = batches * settings.epochs
        while loop.epoch < settings.epochs and not _out_of_patience(loop, settings):
            started = time.perf_counter()
            order = loop.begin_epoch(len(train))
            rest = order.tensor_split(batches)[len(loop.losses) :]
            for rows, batch in zip(rest, _batches(train, rest, loop=loop, settings=settings, seed=seed), strict=True):
                if loop.keep is not None:
                    batch = hide(batch, loop.keep[rows], generator=loop.presence_draws)
                if settings.modality_dropout:
                    batch = drop_modalities(batch, generator=loop.hide_draws, keep_all=settings.keep_all)
                _optimise(
                    fabric, loop, batch, lr=learning_rate(settings, step=loop.step, steps=steps), settings=settings
                )
                watch(Progress(step=loop.step, steps=steps))
                saver.after_step(loop)
            _check_finite(loop, train.patient_ids)
            record = _close_epoch(loop, tuning, settings=settings, started=started)
            watch(Progress(step=loop.step, steps=steps, record=record))
            saver.after_epoch(loop)
    return _finish(loop)


def _batches(
    train: Batch | Patients, rest: Sequence[Tensor], *, loop: _Loop, settings: TrainSettings, seed: int
) -> Iterator[Batch]:
    """The batches of the steps that are left of an epoch; those from disk are read while the step before them runs."""
    first = loop.step

    def read(number: int) -> Batch:
        # Draws of their own at every step, so that a fit that goes on draws the same tokens.
        own = (seed * 2 + 2**33) * 2**20 + first + number
        if isinstance(train, Patients):
            return train.select(rest[number], most_tokens=settings.most_tokens, seed=own)
        batch = train.select(rest[number])
        draws = torch.Generator().manual_seed(own)
        for name in loop.model.bags if settings.most_tokens else ():
            batch = cap_tokens(batch, name, limit=settings.most_tokens, generator=draws)
        return batch

    if isinstance(train, Batch):
        yield from (read(number) for number in range(len(rest)))
        return
    with ThreadPoolExecutor(max_workers=1) as reader:
        ahead = reader.submit(read, 0)
        for number in range(len(rest)):
            batch = ahead.result()
            if number + 1 < len(rest):
                ahead = reader.submit(read, number + 1)
            yield batch


def _can_tune(tuning: Batch | Patients) -> bool:
    """Whether any outcome says something: a known event, label or value."""
    return any(
        bool((target.observed if target.event is None else target.observed & target.event).any())
        for target in tuning.targets.values()
    )


def _start(
    fabric: Fabric,
    build: Callable[[], "MultimodalModel"],
    *,
    train: Batch | Patients,
    settings: TrainSettings,
    seed: int,
) -> _Loop:
    model = build()
    if isinstance(train, Batch):
        model.begin(train)
    else:  # bags of some patients, but outcomes of all: a rare class need not be among some
        model.begin(train.beginning(seed=seed), targets=train.targets)
    model = model.to(fabric.device)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, fused=fabric.device.type in ("cpu", "cuda"))
    balanced, several = settings.presence == "balanced", len(train.modalities) > 1
    keep = balance(train.present, train.targets) if balanced and several else None
    return _Loop(
        model=model,
        optimizer=optimizer,
        average=copy.deepcopy(model) if settings.ema else None,
        # Streams of their own: hiding a modality must not change the order of the patients.
        order_draws=torch.Generator().manual_seed(seed * 2 + 1),
        hide_draws=torch.Generator().manual_seed(seed * 2 + 2),
        device=fabric.device,
        presence_draws=torch.Generator().manual_seed(seed * 2 + 2**32),
        parameters=list(model.parameters()),
        keep=keep,
        kept={} if keep is None else _kept(train, keep),
        balancer=Balancer(
            modalities=train.modalities,
            alpha=settings.balance_alpha,
            draws=torch.Generator().manual_seed(seed * 2 + 2**32 + 1),
        )
        if settings.balance == "agm" and several
        else None,
        micro=settings.accumulate,
    )


def _kept(train: Batch | Patients, keep: Tensor) -> dict[str, float]:
    """Share of the training patients who have a modality and are shown with it, on average over the epochs."""
    had = train.present.cpu()
    return {
        f"kept.{name}": float(keep[had[:, column], column].mean()) if bool(had[:, column].any()) else 1.0
        for column, name in enumerate(train.modalities)
    }


def _resume(
    loop: _Loop,
    workdir: Path | None,
    *,
    settings: TrainSettings,
    seed: int,
    data: tuple[Batch | Patients, Batch | Patients | None],
) -> _Saver:
    """Open the checkpoints of this fit, and go on from the newest sound one."""
    if workdir is None:
        return _Saver(None, settings)
    harmless = ("checkpoint_every", "checkpoint_seconds", "device", "threads")
    parts = {
        "settings": {k: v for k, v in dataclasses.asdict(settings).items() if k not in harmless},
        "seed": seed,
        "device": loop.device.type,
        "shapes": {name: list(value.shape) for name, value in loop.model.state_dict().items()},
        "data": [data_sha256(patients) for patients in data],
    }
    folder = CheckpointFolder(workdir, fingerprint=hashlib.sha256(json_bytes(parts)).hexdigest())
    checkpoint = folder.newest()
    if checkpoint is not None:
        loop.restore(checkpoint)
    return _Saver(folder, settings)


def _optimise(fabric: Fabric, loop: _Loop, batch: Batch, *, lr: float, settings: TrainSettings) -> None:
    """One optimiser step; when memory runs out, the same step again in twice as many micro-batches.

    Which is the same but for rounding and what :class:`TrainSettings` says of ``accumulate``.
    """
    loop.lr = lr
    for group in loop.optimizer.param_groups:
        group["lr"] = lr
    if not loop.model.training:  # a walk over all modules
        loop.model.train()
    counted = None if loop.balancer is None else loop.balancer.sums
    while True:
        for parameter in loop.parameters:
            parameter.grad = None
        try:
            loss = _backward(fabric, loop, batch)
            break
        except torch.OutOfMemoryError:
            if loop.micro >= len(batch):
                raise  # not even one patient at a time fits beside the batch
            loop.micro *= 2
            if loop.balancer is not None and counted is not None:
                loop.balancer.sums = counted  # the strengths of this step are found again
    parameters = [p for p in loop.parameters if p.grad is not None]
    # A norm that is not finite is found at the end of the epoch: asking here would wait for the device at every step.
    norm = nn.utils.clip_grad_norm_(parameters, settings.clip or math.inf)
    loop.optimizer.step()
    loop.step += 1
    loop.losses.append(loss)
    loop.norms.append(norm.detach())
    if loop.average is not None:
        weight = 1 - min(settings.ema, (1 + loop.step) / (10 + loop.step))  # the first steps are forgotten fast
        _move_average(loop.average, loop.model, weight=weight)


def _backward(fabric: Fabric, loop: _Loop, batch: Batch) -> Tensor:
    """Gradients of the loss, summed over ``loop.micro`` micro-batches; returns that loss, detached, on the device."""
    total = torch.zeros((), device=loop.device)
    loss_of = loop.model.loss if loop.balancer is None else functools.partial(loop.balancer.loss, loop.model)
    for rows in torch.arange(len(batch)).tensor_split(min(loop.micro, len(batch))):
        with fabric.autocast():
            loss = loss_of(batch) if len(rows) == len(batch) else loss_of(batch.select(rows), of=batch)
        fabric.backward(loss)
        total += loss.detach()
    return total


@torch.no_grad()
def _move_average(average: nn.Module, model: nn.Module, *, weight: float) -> None:
    for mean, now in zip(average.parameters(), model.parameters(), strict=True):
        mean.lerp_(now, weight)
    for kept, latest in zip(average.buffers(), model.buffers(), strict=True):
        kept.copy_(latest)


@torch.no_grad()
def _evaluate(model: "MultimodalModel", tuning: Batch | Patients) -> tuple[float | None, float | None]:
    """Loss and score on the tuning patients, in full precision; None where undefined."""
    model.eval()
    with full_precision():
        said = [model(batch) for batch in ([tuning] if isinstance(tuning, Batch) else tuning.batches())]
    logits = {name: torch.cat([one[name] for one in said]) for name in model.outcomes}
    predicted = {
        name: {key: value.double().cpu().numpy() for key, value in outputs.items()}
        for name, outputs in model.predictions(logits).items()
    }
    loss, score = float(model.loss_of(logits, tuning.targets)), tuning_score(predicted, tuning.targets)
    return loss if math.isfinite(loss) else None, score if math.isfinite(score) else None


def _check_finite(loop: _Loop, patient_ids: Sequence[str]) -> None:
    """Look at the losses and gradient norms of the epoch, and name the patients of the first bad batch."""
    losses, norms = torch.stack(loop.losses).cpu(), torch.stack(loop.norms).cpu()
    bad = (~(losses.isfinite() & norms.isfinite())).nonzero()
    if len(bad):
        first = int(bad[0])
        what = "gradient" if losses[first].isfinite() else "loss"
        rows = loop.begin_epoch(len(patient_ids)).tensor_split(len(losses))[first]
        msg = (
            f"training: expected a finite {what}, found NaN or infinity in epoch {loop.epoch + 1}, batch {first + 1}, "
            f"patients {', '.join(patient_ids[int(i)] for i in rows[:_NAMED])}; look at their inputs, or lower train.lr"
        )
        raise ModelError(msg)


def _close_epoch(
    loop: _Loop, tuning: Batch | Patients | None, *, settings: TrainSettings, started: float
) -> dict[str, float | None]:
    """Evaluate, write the history, keep the weights when they are the best so far."""
    loss, score = (None, None) if tuning is None else _evaluate(loop.selected, tuning)
    loop.epoch += 1
    record: dict[str, float | None] = {
        "epoch": loop.epoch,
        "train_loss": float(torch.stack(loop.losses).mean()),
        "tuning_loss": loss,
        "tuning_score": score,
        "lr": loop.lr,
        "gradient_norm": float(torch.stack(loop.norms).mean()),
        "seconds": time.perf_counter() - started,
        **loop.kept,
        **({} if loop.balancer is None else loop.balancer.close_epoch()),
    }
    loop.history.append(record)
    loop.order, loop.losses, loop.norms = None, [], []
    value = _value(loss, score, settings)
    last = tuning is None or settings.select_by == "last"
    if last or (value is not None and (loop.best_value is None or value > loop.best_value)):
        _keep(loop, value)
    return record


def _judge_start(loop: _Loop, tuning: Batch | Patients, *, settings: TrainSettings) -> None:
    """The weights that a fit goes on from (merged networks) are a candidate as those of any epoch are."""
    loss, score = _evaluate(loop.selected, tuning)
    value = _value(loss, score, settings)
    if settings.select_by != "last" and value is not None:
        loop.start = [loss, score]
        _keep(loop, value)


def _value(loss: float | None, score: float | None, settings: TrainSettings) -> float | None:
    """What is to be as large as possible: the score where asked for and known, else the negative loss."""
    if settings.select_by == "score" and score is not None:
        return score
    return None if loss is None else -loss


def _keep(loop: _Loop, value: float | None) -> None:
    loop.best_value, loop.best_epoch = value, loop.epoch
    loop.best = {k: v.detach().clone() for k, v in loop.selected.state_dict().items()}


def _out_of_patience(loop: _Loop, settings: TrainSettings) -> bool:
    return 0 < settings.patience <= loop.epoch - loop.best_epoch


def _finish(loop: _Loop) -> FittedMember:
    if loop.best is None:
        msg = "training: expected a finite loss on the tuning patients, found none in any epoch; lower train.lr"
        raise ModelError(msg)
    best = loop.history[loop.best_epoch - 1]
    loss, score = (best["tuning_loss"], best["tuning_score"]) if loop.best_epoch else loop.start or (None, None)
    return FittedMember(
        state={k: v.cpu() for k, v in loop.best.items()},
        history=tuple(loop.history),
        best_epoch=loop.best_epoch,
        tuning_loss=loss,
        tuning_score=score,
    )
