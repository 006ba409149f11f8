"""The value of a coalition as a differentiable function of what each member of a fold says.

The ensemble is linear on the link scale: its link is a constant plus a sum of c_k(S) link_k(S), so that contributions
of members add up with the weights c_k. Only the reading at a horizon between grid points is not linear.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medfuse.errors import ConfigError, nearest
from medfuse.explain.coalitions import replicates_of
from medfuse.sample import ModalityData
from medfuse.training.fold import CHOSEN, FoldModel, reads
from medfuse.training.patterns import pattern_number
from medfuse.training.shown import Shown, member_links
from medfuse.types import PatientId

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Readout:
    """How the links of members become one number per coalition, as :class:`medfuse.training.ensemble.Ensemble` says.

    Attributes:
        outcome: its name.
        kind: its kind.
        coefficient: (members, r) c_k of each row; 0 where the member has no say.
        base: (r, L) what the ensemble says besides.
        replicates: members of each replicate.
        times: (L,) days of a survival outcome.
        horizon: days of a survival outcome.
        label: class of a multi-class outcome.
        scale: (r, L or 1) slopes by which the pattern of each row is recalibrated.
        shift: (r, L or 1) their levels.
    """

    outcome: str
    kind: str
    coefficient: Tensor
    base: Tensor
    replicates: tuple[tuple[int, ...], ...]
    times: Array | None
    horizon: float | None
    label: int | None
    scale: Tensor
    shift: Tensor

    def combined(self, links: Mapping[int, Tensor]) -> Tensor:
        """(r, L) link of the ensemble, of all members' links (r, L or 1)."""
        total = self.base
        for k, link in links.items():
            total = total + self.coefficient[k][:, None] * link
        return total

    def value(self, combined: Tensor) -> Tensor:
        """(r,) log cumulative hazard at the horizon, log odds, log probability of the class, or value."""
        link = self.shift + self.scale * combined
        if self.kind == "binary":
            link = link[:, 1:] - link[:, :1]
        if self.kind == "multiclass":
            link = link - link.mean(dim=1, keepdim=True)
        if self.times is None or self.horizon is None:
            return link[:, int(self.label or 0)]
        return _at(link.cummax(dim=1).values, self.times, self.horizon)

    def slope(self, combined: Tensor) -> Tensor:
        """(r, L) derivative of :meth:`value`."""
        with torch.enable_grad():
            free = combined.detach().requires_grad_()
            (found,) = torch.autograd.grad(self.value(free).sum(), free)
        return found

    def select(self, rows: Tensor) -> "Readout":
        """The same of other rows."""
        return Readout(
            outcome=self.outcome,
            kind=self.kind,
            coefficient=self.coefficient[:, rows],
            base=self.base[rows],
            replicates=self.replicates,
            times=self.times,
            horizon=self.horizon,
            label=self.label,
            scale=self.scale[rows],
            shift=self.shift[rows],
        )


def _at(values: Tensor, times: Array, horizon: float) -> Tensor:
    """Log cumulative hazards (r, L) at one time; as :func:`medfuse.explain.coalitions.interpolate`, with gradients."""
    right = min(int(np.searchsorted(times, horizon)), len(times) - 1)
    start = float(times[right - 1]) if right else 0.0
    part = min((horizon - start) / (float(times[right]) - start), 1.0)
    if part == 1.0:
        return values[:, right]
    risk = -torch.expm1(-values.clamp(max=50.0).exp())
    before = risk[:, right - 1] if right else torch.zeros_like(risk[:, 0])
    at = before * (1 - part) + risk[:, right] * part
    return (-torch.log1p(-at.clamp(max=1 - 1e-16))).log()


def make_readout(
    fold: FoldModel,
    keep: NDArray[np.bool_],
    *,
    outcome: str | None = None,
    horizon: float | None = None,
    label: int | None = None,
) -> Readout:
    """The readout of rows that show the modalities ``keep`` (r, M), by the chosen model.

    Args:
        fold: of :func:`medfuse.training.load_fold`.
        keep: modalities shown.
        outcome: default the fold's first.
        horizon: days, of a survival outcome.
        label: class of a multi-class outcome.

    Raises:
        ConfigError: no such outcome, or a horizon or class that the outcome lacks or needs.
    """
    outcome = next(iter(fold.ensembles)) if outcome is None else outcome
    if outcome not in fold.ensembles:
        msg = f"explain: no outcome {outcome!r}; {nearest(outcome, fold.ensembles)}"
        raise ConfigError(msg)
    ensemble = fold.ensembles[outcome][CHOSEN]
    head = fold.members[0].heads[outcome]
    if head.kind == "survival":
        last = 0.0 if ensemble.times is None else float(ensemble.times[-1])
        if horizon is None or not 0 < horizon <= last * (1 + 1e-9):
            msg = f"explain: expected a horizon within 0 and {last:g} days, found {horizon}"
            raise ConfigError(msg)
    elif horizon is not None:
        msg = f"explain: outcome {outcome!r} has no times; leave the horizon out"
        raise ConfigError(msg)
    if (label is not None) != (head.kind == "multiclass") or (label is not None and not 0 <= label < head.n_classes):
        msg = f"explain: expected a class of a multi-class outcome and only of one, found {label} for {outcome!r}"
        raise ConfigError(msg)
    has = reads(fold.experts, fold.modalities, keep)  # (E, r)
    groups = replicates_of(fold.members)
    coefficient = np.zeros((len(fold.members), len(keep)))
    for group in groups:
        for k in group:
            expert = int(ensemble.expert_of[k])
            beside = sum(int(ensemble.expert_of[j]) == expert for j in group)
            scale = ensemble.slope * ensemble.weight[expert] / (ensemble.spread[k] * beside * len(groups))
            coefficient[k] += scale * has[expert]
    base = ensemble.level - coefficient.T @ ensemble.centre  # (r, L)
    how, number = ensemble.patterns, pattern_number(keep)
    scale = np.ones((len(keep), 1)) if how is None else how.slope[number]
    shift = np.zeros((len(keep), 1)) if how is None else how.level[number]
    return Readout(
        outcome=outcome,
        kind=head.kind,
        coefficient=torch.from_numpy(coefficient),
        base=torch.from_numpy(np.asarray(base, dtype=np.float64)),
        replicates=tuple(tuple(group) for group in groups),
        times=ensemble.times,
        horizon=horizon,
        label=label,
        scale=torch.from_numpy(scale),
        shift=torch.from_numpy(shift),
    )


def readout_links(
    fold: FoldModel,
    data: Mapping[str, ModalityData],
    ids: Sequence[PatientId],
    *,
    patient: NDArray[np.int64],
    keep: NDArray[np.bool_],
    outcome: str,
) -> dict[int, Tensor]:
    """(r, L) links of every member for rows that show the modalities ``keep`` (r, M) of the patients ``patient`` (r,).

    Args:
        fold: whose members speak.
        data: modalities.
        ids: n patients.
        patient: index into ``ids`` of each row.
        keep: modalities shown.
        outcome: one of the fold's.
    """
    found = member_links(
        dict(enumerate(fold.members)),
        data,
        ids,
        modalities=fold.modalities,
        shown=Shown(patient=patient.astype(np.intp), keep=keep),
        outcomes=(outcome,),
    )
    return {k: torch.from_numpy(link[outcome]) for k, link in found.items()}


def share_of(number: Sequence[int] | NDArray[np.int64], size: int) -> Array:
    """Shapley weights |S|! (size - |S| - 1)! / size! of coalitions of the others that have ``number`` members."""
    from math import factorial

    return np.array([factorial(int(s)) * factorial(size - int(s) - 1) / factorial(size) for s in number])
