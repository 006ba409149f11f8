"""Likelihoods as plain functions of tensors.

``event`` is True when the event happened. Each loss is a mean, and an exact zero that is tied to the graph when there
is nothing to average, so that a batch without events trains on.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from medfuse.errors import ModelError
from medfuse.running_sum import running_sum

Ties = Literal["efron", "breslow"]

# exp(-650) is still a normal float64. Log hazards further apart than this are treated as this far apart.
_LARGEST_GAP = 650.0
_NO_CLASS = -100  # a label that cross_entropy leaves out


@dataclass(frozen=True, kw_only=True)
class RiskSets:
    """Who is at risk when whom dies: all that Cox's likelihood needs of events and times, latest time first.

    No size depends on values, so that making and using it never makes the CPU wait for a GPU.

    Attributes:
        order: (n,) patients by falling time.
        group: (n,) tied time that each stands in, 0 = latest.
        last: (n,) place in ``order`` of the last one at risk with each.
        event: (n,) bool, in ``order``.
        held: (n,) bool, False for who left before the first death: no risk set holds them.
        share: (n,) part of the tied deaths that Efron takes out of the risk set of each death; None for Breslow.
    """

    order: Tensor
    group: Tensor
    last: Tensor
    event: Tensor
    held: Tensor
    share: Tensor | None


def risk_sets(event: Tensor, time: Tensor, *, ties: Ties = "efron") -> RiskSets:
    """Sort patients once, for many evaluations of ``cox_loss`` on the same ones in the same order.

    Args:
        event: (n,) bool, n >= 1.
        time: (n,) any unit; equal numbers are ties.
        ties: ``efron`` or ``breslow``.

    Raises:
        ModelError: on shapes that disagree, no patients, or unknown ties.
    """
    if event.ndim != 1 or event.shape != time.shape or not len(time):
        msg = f"risk_sets: expected event and time (n >= 1,), found {tuple(event.shape)}, {tuple(time.shape)}"
        raise ModelError(msg)
    if ties not in ("efron", "breslow"):
        msg = f'cox_loss: expected ties "efron" or "breslow", found "{ties}"'
        raise ModelError(msg)
    falling, order = torch.sort(time, descending=True)
    group = torch.zeros_like(order)
    torch.cumsum(falling[1:] != falling[:-1], 0, out=group[1:])
    died, share = event.bool()[order], None
    end = torch.zeros_like(order).index_add_(0, group, torch.ones_like(order)).cumsum_(0) - 1  # (n,) of each group
    if ties == "efron":
        deaths = died.cumsum(0)  # so far, in order
        until = deaths.index_select(0, end)
        before = torch.cat([until.new_zeros(1), until[:-1]])
        rank = deaths - 1 - before.index_select(0, group)
        share = rank / (until - before).double().index_select(0, group)
        share.masked_fill_(~died, 0.0)
    last = end.index_select(0, group)
    place = torch.arange(len(order), device=order.device)
    held = place <= torch.where(died, last, -1).max()
    return RiskSets(order=order, group=group, last=last, event=died, held=held, share=share)


class _CoxPartialLikelihood(torch.autograd.Function):
    """Mean negative log partial likelihood with its analytic gradient, in O(n) time and memory after the sort."""

    @staticmethod
    def forward(ctx: Any, log_hazard: Tensor, sets: RiskSets) -> Tensor:  # noqa: ANN401
        eta = log_hazard.detach().double().index_select(0, sets.order).masked_fill_(~sets.held, -torch.inf)
        eta -= eta.max().clamp(min=torch.finfo(eta.dtype).min)  # nobody is held without a death
        weight = eta.clamp(min=-_LARGEST_GAP).exp_()  # (n,), the largest is 1
        died = sets.event.to(weight.dtype)

        def per_time(values: Tensor) -> Tensor:
            return torch.zeros_like(weight).index_add_(0, sets.group, values)

        def of_own_time(values: Tensor) -> Tensor:
            return values.index_select(0, sets.group)

        risk = running_sum(weight, 0).index_select(0, sets.last)
        if sets.share is not None:
            risk.addcmul_(sets.share, of_own_time(per_time(weight * died)), value=-1.0)
        inverse = died / risk
        gradient = of_own_time(running_sum(per_time(inverse).flip(0), 0).flip(0))
        if sets.share is not None:
            gradient.addcmul_(died, of_own_time(per_time(sets.share * inverse)), value=-1.0)
        scale = 1.0 / died.sum().clamp(min=1.0)
        back = torch.empty_like(log_hazard)
        back[sets.order] = gradient.mul_(weight).sub_(died).mul_(scale).to(log_hazard.dtype)
        ctx.save_for_backward(back)
        loss = (risk.log_().sub_(eta).masked_fill_(~sets.event, 0.0)).sum() * scale
        return loss.to(log_hazard.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        (gradient,) = ctx.saved_tensors
        return gradient * grad[0], None


def cox_loss(
    log_hazard: Tensor,
    event: Tensor,
    time: Tensor,
    *,
    ties: Ties = "efron",
    sets: RiskSets | None = None,
    observed: Tensor | None = None,
) -> Tensor:
    """Negative log partial likelihood of Cox's model, divided by the number of events.

    Sums run in float64 from the latest time on, shifted by the largest log hazard: nothing overflows at any shift, and
    log hazards up to 650 apart are exact.

    Args:
        log_hazard: (n,) higher = earlier event.
        event: (n,) bool, True when it happened.
        time: (n,) any unit; equal numbers are ties.
        ties: ``efron`` or ``breslow``.
        sets: ``risk_sets(event, time, ties=ties)`` when it is known already; then ``ties`` is not read.
        observed: (n,) bool, who counts; what else stands of the others is not read. Default all. Not with ``sets``.

    Returns:
        Scalar of the dtype of ``log_hazard``; an exact zero tied to the graph without events.

    Raises:
        ModelError: on shapes that disagree, unknown ties, or ``observed`` beside ``sets``.

    References:
        Cox (1975), Partial likelihood, eq. 2; Breslow (1974), eq. 2; Efron (1977), The efficiency of Cox's likelihood
        function for censored data, section 4.
    """
    if log_hazard.ndim != 1 or event.shape != log_hazard.shape or time.shape != log_hazard.shape:
        msg = (
            "cox_loss: expected three tensors (n,), found "
            f"{tuple(log_hazard.shape)}, {tuple(event.shape)}, {tuple(time.shape)}"
        )
        raise ModelError(msg)
    if not len(log_hazard):
        return log_hazard.sum()
    if observed is not None and sets is not None:
        msg = "cox_loss: expected observed or sets, found both; make the risk sets of those who are observed"
        raise ModelError(msg)
    if observed is not None:  # one of whom nothing is known is one who left before everybody else
        event, time = event & observed, torch.where(observed, time, -torch.inf)
    if log_hazard.device.type == "mps":  # it has no float64
        log_hazard, event, time, sets = log_hazard.cpu(), event.cpu(), time.cpu(), None
    sets = risk_sets(event, time, ties=ties) if sets is None else sets
    if len(sets.order) != len(log_hazard):
        msg = f"cox_loss: expected risk sets of {len(log_hazard)} patients, found {len(sets.order)}"
        raise ModelError(msg)
    loss: Tensor = _CoxPartialLikelihood.apply(log_hazard, sets)  # type: ignore[no-untyped-call]
    return loss


def interval_exposure(event: Tensor, time: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Where patients lived and died on a grid of intervals (edge k-1, edge k].

    Args:
        event: (n,) bool.
        time: (n,) days.
        edges: (K,) increasing right edges; the first interval starts at 0.

    Returns:
        survived: (n, K) part of each interval that was survived, in [0, 1]. The interval of the event counts as 0.
        died: (n, K) 1 in the interval of the event. An event past the last edge died nowhere: it survived the grid.
    """
    lived, died = _lived_and_died(event, time, edges)
    return lived * (1.0 - died), died


def _lived_and_died(event: Tensor, time: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """As ``interval_exposure``, but with the part of the interval of the event that was lived."""
    left = torch.cat([edges.new_zeros(1), edges[:-1]])
    last = len(edges) - 1
    lived = (time[:, None] - left).div_(edges - left).clamp_(0.0, 1.0)
    interval = torch.searchsorted(edges, time.contiguous())  # first edge >= time
    inside = event & (interval <= last)
    died = torch.zeros_like(lived).scatter_(1, interval.clamp_(max=last)[:, None], inside[:, None].to(lived.dtype))
    return lived, died


def discrete_hazard_loss(
    logits: Tensor, event: Tensor, time: Tensor, edges: Tensor, *, observed: Tensor | None = None
) -> Tensor:
    """Mean negative log likelihood of discrete hazards, with a constant hazard inside each interval.

    A patient who dies in interval k contributes h_k prod_{j<k} (1 - h_j); one who is censored after the part f of it,
    (1 - h_k)^f prod_{j<k} (1 - h_j). In log space: no clamp, no overflow.

    NOTE[DIFF]: the usual rule lets a patient who is censored in interval k survive all of it, which lifts the curves.

    Args:
        logits: (n, K), logit of the hazard of each interval.
        event: (n,) bool.
        time: (n,) days.
        edges: (K,) right edges in days, increasing, the first above 0.
        observed: (n,) bool, who counts; event and time of the others are not read. Default all.

    Returns:
        Scalar float32 (float64 for float64 logits); an exact zero tied to the graph where nobody counts.

    Raises:
        ModelError: when the number of logits and edges differ.

    References:
        Tutz, Schmid (2016), Modeling discrete time-to-event data, eq. 3.12; Kvamme, Borgan (2021), Continuous and
        discrete-time survival prediction with neural networks, eq. 7 and section 2.2 (constant hazard interpolation).
    """
    if logits.ndim != 2 or logits.shape[1] != len(edges):
        msg = f"discrete_hazard_loss: expected logits (n, {len(edges)}), found {tuple(logits.shape)}"
        raise ModelError(msg)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    event, time, edges = event.bool(), time.to(wide.dtype), edges.to(wide.dtype)
    if observed is not None:  # one of whom nothing is known is one who was lost at time 0
        event, time = event & observed, torch.where(observed, time, 0.0)
    lived, died = _lived_and_died(event, time, edges)
    # -log h (died) or -log(1 - h) from the logit, in one pass; the interval of the event has weight 1
    weight = torch.maximum(lived, died)
    return functional.binary_cross_entropy_with_logits(wide, died, weight, reduction="sum") / _count(wide, observed)


def _count(rows: Tensor, observed: Tensor | None) -> Tensor | int:
    """How many rows count, at least 1."""
    return max(len(rows), 1) if observed is None else observed.sum().clamp(min=1)


def discrete_hazard_prior(event: Tensor, time: Tensor, edges: Tensor) -> Tensor:
    """Logits (K,) of the hazards of a population, which minimise ``discrete_hazard_loss`` without features.

    Half an event at the mean hazard is added to each interval, so that one without events stays finite.

    Args:
        event: (n,) bool.
        time: (n,) days.
        edges: (K,) right edges in days.
    """
    survived, died = interval_exposure(event.bool(), time.double(), edges.double())
    deaths, trials = died.sum(0), (died + survived).sum(0)
    overall = (deaths.sum() / trials.sum().clamp(min=1e-12)).clamp(1e-6, 1 - 1e-6)
    return torch.logit((deaths + 0.5 * overall) / (trials + 0.5)).float()


def classification_loss(logits: Tensor, label: Tensor, *, observed: Tensor | None = None) -> Tensor:
    """Mean cross entropy.

    Args:
        logits: (n, C) with C >= 2 classes.
        label: (n,) int64 class index.
        observed: (n,) bool, who counts; labels of the others are not read. Default all.

    Returns:
        Scalar; an exact zero tied to the graph where nobody counts.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    if observed is not None:
        label = torch.where(observed, label, _NO_CLASS)
    total = functional.cross_entropy(wide, label, ignore_index=_NO_CLASS, reduction="sum")
    return total / _count(wide, observed)


def regression_loss(prediction: Tensor, value: Tensor, *, observed: Tensor | None = None) -> Tensor:
    """Mean squared error, (n,) each in the same unit, of those observed (default all); as above where nobody counts."""
    wide = prediction if prediction.dtype == torch.float64 else prediction.float()
    gap = wide - value.to(wide.dtype)
    if observed is not None:
        gap = torch.where(observed, gap, 0.0)
    return gap.square().sum() / _count(wide, observed)
