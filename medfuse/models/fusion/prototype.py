"""Prototypes of risk levels pick the telling instances of each modality and speak as a product of experts."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from medfuse.batch import TargetTensors
from medfuse.errors import ConfigError
from medfuse.losses import classification_loss
from medfuse.models.attention import masked_mean
from medfuse.models.encoders.linear import perceptron
from medfuse.models.fusion.base import Fused, Fusion
from medfuse.models.fusion.blocks import Block
from medfuse.models.information import Dependence
from medfuse.models.prototype_block import Opinion, PrototypeBlock, product_of_experts
from medfuse.models.prototypes import TEMPERATURE, RiskLevels, level_loss, train_digest
from medfuse.models.settings import check_choice, check_count, check_rate

WEIGHTS = {"prototype": 0.1, "level": 0.01, "bound": 0.0003, "disentangle": 0.01}

_ORACLE = (
    "fusion prototype with positive oracle: training feeds the true level of risk to the model, as in the paper, so "
    "training losses flatter it and new patients get another pass than it was trained with; inferred reads no label"
)


class PrototypeFusion(Fusion):
    """Prototypical information bottleneck and disentangling, label-free unless told otherwise.

    Per modality: instances z, prototypes N(mu_j, sigma_j^2) of the levels j of risk, similarity A_ij = cos(z_i, mu_j).
    The ``keep`` part of a bag with the highest max_j A_ij is selected. pi = softmax_j(mean of the best A_ij / tau) says
    which prototype describes the patient: mu = sum_j pi_j mu_j. A product of experts over the modalities that are
    there, with a standard normal prior, makes one token G of them. One layer shared by all streams lets each modality
    attend to itself and G to everything; the means of the streams and G are concatenated to the state.

    Args:
        modalities: names of the M modalities.
        width: D.
        levels: R levels of risk of the leading outcome, fitted on train.
        keep: part of a bag's instances that is selected, rounded up.
        positive: ``inferred`` (pi), ``argmax`` (its largest entry), or, as in the paper, ``oracle``: training steps
            are told the levels that the label leaves possible, everything afterwards infers pi. With a warning: the
            state that the heads learn from holds the answer, which nobody tells them of a new patient.
        temperature: tau of pi.
        dropout: in all parts.
        weights: of the terms of the loss: ``prototype`` (best instances near their level's prototype and far from the
            others), ``level`` (a prototype tells its own level), ``bound`` (KL to the standard normal, the bottleneck)
            and ``disentangle`` (mutual information between the streams). Those not named keep their default.

    References:
        Zhang et al. (2024), Prototypical information bottlenecking and disentangling for multimodal cancer survival
        prediction, eqs 5-17; docs/fusion/prototype.md lists the departures.
    """

    def __init__(
        self,
        *,
        modalities: Sequence[str],
        width: int,
        levels: int = 4,
        keep: float = 0.5,
        positive: str = "inferred",
        temperature: float = TEMPERATURE,
        dropout: float = 0.2,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        _check(keep=keep, positive=positive, temperature=temperature, weights=weights or {})
        check_rate("dropout", dropout)
        self.keep, self.temperature = keep, 0.0 if positive == "argmax" else temperature
        self.weights = {**WEIGHTS, **(weights or {})}
        self.oracle = positive == "oracle"
        self.notes = (_ORACLE,) if self.oracle else ()
        self.risk = RiskLevels(check_count("levels", levels, least=2))
        self.fitted: Tensor
        self.register_buffer("fitted", torch.zeros(32, dtype=torch.uint8))  # SHA-256 of what begin has read
        count = len(modalities)
        self.blocks = nn.ModuleList([PrototypeBlock(width, levels=levels, dropout=dropout) for _ in modalities])
        self.shared = Block(width, heads=_heads(width), ratio=1, dropout=dropout)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(count + 1)])
        self.body = perceptron(
            (count + 1) * width + count, width, hidden=width, layers=1, dropout=dropout, nonlinearity="gelu"
        )
        self.teller = nn.Linear(width, levels) if self.weights["level"] else None
        # Stream m from all other streams, and last G from all streams.
        pairs = [(count - 1) * width] * (count if count > 1 else 0) + [count * width]
        self.apart = nn.ModuleList(
            [Dependence(n, width, hidden=width) for n in (pairs if self.weights["disentangle"] else ())]
        )

    def begin(
        self,
        tokens: Sequence[Tensor],
        masks: Sequence[Tensor],
        present: Tensor,
        targets: Mapping[str, TargetTensors],
        everyone: Mapping[str, TargetTensors],
    ) -> None:
        """Fit the levels, centre the instances and seed the prototypes on training patients."""
        self.risk.fit(everyone)
        known = self.risk.of(targets)
        share = present.new_zeros(len(present), self.risk.levels, dtype=torch.float32)
        if known is not None:
            share = torch.where(known[1][:, None], known[0], 0.0)
        for block, token, mask in zip(self.prototypes, tokens, masks, strict=True):
            block.begin(token, mask, share)
        self.fitted.copy_(train_digest(list(tokens), list(masks), present, everyone))

    @property
    def prototypes(self) -> list[PrototypeBlock]:
        """Those of each modality."""
        return cast(list[PrototypeBlock], list(self.blocks))

    def opinions(self, tokens: Sequence[Tensor], masks: Sequence[Tensor], told: Tensor | None = None) -> list[Opinion]:
        """What each modality's prototypes say; ``told`` as in :class:`PrototypeBlock`."""
        return [
            block(t, mask, self.risk.used, keep=self.keep, temperature=self.temperature, told=told)
            for block, t, mask in zip(self.prototypes, tokens, masks, strict=True)
        ]

    def forward(self, tokens: Sequence[Tensor], masks: Sequence[Tensor], present: Tensor) -> Fused:
        """One state per patient."""
        return self._fused(masks, present, self.opinions(tokens, masks))

    def told(
        self, tokens: Sequence[Tensor], masks: Sequence[Tensor], present: Tensor, targets: Mapping[str, TargetTensors]
    ) -> Fused:
        """As ``forward``; with ``positive: oracle`` the levels of the patients are not inferred."""
        known = self.risk.of(targets) if self.oracle else None
        share = None if known is None else torch.where(known[1][:, None], known[0], 0.0)
        return self._fused(masks, present, self.opinions(tokens, masks, share))

    def _fused(self, masks: Sequence[Tensor], present: Tensor, said: Sequence[Opinion]) -> Fused:
        mean, variance = product_of_experts(
            torch.stack([o.mean for o in said], 1), torch.stack([o.variance for o in said], 1), present
        )
        if self.training:
            mean = mean + variance.sqrt() * torch.randn_like(mean)
        own = [masked_mean(self._own(o), o.mask) for o in said]  # zeros where absent
        everything = torch.cat([mean[:, None], *(o.chosen for o in said)], dim=1)
        seen = torch.cat([present.new_ones(len(present), 1), *(o.mask for o in said)], dim=1)
        together = self.shared(everything, seen, queries=1)[:, 0]
        streams = [norm(stream) for norm, stream in zip(self.norms, [*own, together], strict=True)]
        shown = [torch.where(present[:, m, None], s, 0.0) for m, s in enumerate(streams[:-1])]
        state = self.body(torch.cat([*shown, streams[-1], present.to(together.dtype)], dim=1))[:, None]
        parts = {"present": present, "streams": torch.stack([*own, together], dim=1)}
        parts |= {f"level.{m}": o.level for m, o in enumerate(said)}
        parts |= {f"similarity.{m}": o.similarity for m, o in enumerate(said)}
        parts |= {f"real.{m}": mask for m, mask in enumerate(masks)}
        parts |= {f"selected.{m}": o.token.masked_fill(~o.mask, -1) for m, o in enumerate(said)}
        return Fused(states=state, weights=torch.ones_like(state[..., 0]), parts=parts)

    def _own(self, said: Opinion) -> Tensor:
        """Selected instances after attending to each other alone; a patient without any attends to a zero."""
        mask = said.mask.clone()
        mask[:, 0] |= ~said.mask.any(1)
        attended: Tensor = self.shared(said.chosen, mask)
        return attended

    def penalties(self, fused: Fused, targets: Mapping[str, TargetTensors]) -> dict[str, Tensor]:
        """The terms that ``weights`` names, each a mean over patients, or over prototypes."""
        found = {"bound": self._bound()}
        known = self.risk.of(targets)
        if known is not None:
            found["prototype"] = self._prototype(fused.parts, *known)
        if self.teller is not None:
            found["level"] = self._level(self.teller)
        if len(self.apart):
            found["disentangle"] = self._disentangle(fused.parts)
        return {name: self.weights[name] * term for name, term in found.items()}

    def _prototype(self, parts: Mapping[str, Tensor], share: Tensor, known: Tensor) -> Tensor:
        """Best instances near the prototypes of the patient's levels rather than those of the others."""
        terms = []
        for m in range(len(self.blocks)):
            rows = known & parts["present"][:, m]
            terms.append(level_loss(parts[f"level.{m}"], share, rows=rows, used=self.risk.used))
        return torch.stack(terms).sum()

    def _level(self, teller: nn.Module) -> Tensor:
        """Cross entropy of a sample of every prototype against its own level."""
        levels = torch.arange(self.risk.levels, device=self.risk.used.device)
        terms = []
        for block in self.prototypes:
            drawn = block.mean + block.spread * torch.randn_like(block.mean)
            terms.append(classification_loss(teller(drawn), levels, observed=self.risk.used))
        return torch.stack(terms).sum()

    def _bound(self) -> Tensor:
        """KL(N(mu_j, sigma_j^2) || N(0, 1)), sum over D, mean over prototypes, sum over modalities."""
        terms = []
        for block in self.prototypes:
            variance = block.spread.square()
            kl = 0.5 * (variance + block.mean.square() - 1.0 - variance.log())
            terms.append((kl.sum(1) * self.risk.used).sum() / self.risk.used.sum().clamp(min=1))
        return torch.stack(terms).sum()

    def _disentangle(self, parts: Mapping[str, Tensor]) -> Tensor:
        """What streams say of each other: estimators take a step of their own, and the model lowers their bounds."""
        streams = functional.layer_norm(parts["streams"], parts["streams"].shape[-1:])
        count = len(self.blocks)
        present = parts["present"]
        shown = torch.where(present[..., None], streams[:, :count], 0.0)
        total = streams.new_zeros(())
        for number, estimator in enumerate(cast(list[Dependence], list(self.apart))):
            last = number == len(self.apart) - 1
            others = [m for m in range(count) if last or m != number]
            rows = present[:, others].any(1) if last else present[:, others].any(1) & present[:, number]
            x, y = shown[:, others].flatten(1), streams[:, count if last else number]
            total = total + estimator.fit_loss(x, y, rows) + estimator.bound(x, y, rows)
        return total


def _heads(width: int) -> int:
    """Four heads where the width allows it, as in the paper."""
    return next(heads for heads in (4, 2, 1) if width % heads == 0)


def _check(*, keep: float, positive: str, temperature: float, weights: Mapping[str, float]) -> None:
    check_choice("positive", positive, ("inferred", "argmax", "oracle"))
    if not isinstance(keep, int | float) or not 0 < keep <= 1 or not temperature > 0:
        msg = f"prototype: expected keep in (0, 1] and temperature > 0, found {keep} and {temperature}"
        raise ConfigError(msg)
    for name, weight in weights.items():
        check_choice("weights", name, tuple(WEIGHTS))
        if not isinstance(weight, int | float) or not weight >= 0:
            msg = f"weights.{name}: expected a number >= 0, found {weight}"
            raise ConfigError(msg)
