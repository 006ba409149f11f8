"""Likelihoods as plain functions of tensors.

``event`` is True when the event happened. Each loss is a mean, and an exact zero that is tied to the graph when there
is nothing to average, so that a batch without events trains on.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from medfuse.errors import ModelError

Ties = Literal["efron", "breslow"]

# exp(-650) is still a normal float64. Log hazards further apart than this are treated as this far apart.
_LARGEST_GAP = 650.0


class _CoxPartialLikelihood(torch.autograd.Function):
    """Mean negative log partial likelihood with its analytic gradient, O(n log n) time and O(n) memory."""

    @staticmethod
    def forward(ctx: Any, log_hazard: Tensor, event: Tensor, time: Tensor, efron: bool) -> Tensor:  # noqa: ANN401, FBT001
        n = len(log_hazard)
        sorted_time, order = torch.sort(time, descending=True)
        eta = log_hazard.detach().double()
        eta = (eta - eta.max())[order]
        died = event[order]
        weight = torch.exp(eta.clamp(min=-_LARGEST_GAP))  # (n,), the largest is 1
        group = torch.zeros(n, dtype=torch.int64, device=time.device)  # index of the tied time, latest first
        torch.cumsum(sorted_time[1:] != sorted_time[:-1], 0, out=group[1:])
        events = torch.nonzero(died).squeeze(1)
        group_of_event, weight_of_event = group[events], weight[events]
        at_risk = torch.zeros_like(weight).index_add_(0, group, weight).cumsum_(0)  # (groups..., unused tail)
        risk = at_risk[group_of_event]
        count = torch.bincount(group_of_event, minlength=n)
        share = torch.zeros_like(weight_of_event)
        if efron:
            rank = torch.arange(len(events), device=time.device) - (count.cumsum(0) - count)[group_of_event]
            share = rank.double() / count[group_of_event]
            dying = torch.zeros_like(weight).index_add_(0, group_of_event, weight_of_event)
            risk = risk - share * dying[group_of_event]
        inverse = 1.0 / risk
        total = torch.zeros_like(weight).index_add_(0, group_of_event, inverse)
        gradient = weight * total.flip(0).cumsum(0).flip(0)[group]
        lost = torch.zeros_like(weight).index_add_(0, group_of_event, share * inverse)[group_of_event]
        gradient[events] -= 1.0 + weight_of_event * lost
        scale = 1.0 / max(len(events), 1)
        back = torch.empty_like(log_hazard)
        back[order] = (gradient * scale).to(log_hazard.dtype)
        ctx.save_for_backward(back)
        return ((torch.log(risk) - eta[events]).sum() * scale).to(log_hazard.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, None, None, None]:  # noqa: ANN401
        (gradient,) = ctx.saved_tensors
        return gradient * grad[0], None, None, None


def cox_loss(log_hazard: Tensor, event: Tensor, time: Tensor, *, ties: Ties = "efron") -> Tensor:
    """Negative log partial likelihood of Cox's model, divided by the number of events.

    Sums run in float64 from the latest time on, shifted by the largest log hazard: nothing overflows at any shift, and
    log hazards up to 650 apart are exact.

    Args:
        log_hazard: (n,) higher = earlier event.
        event: (n,) bool, True when it happened.
        time: (n,) any unit; equal numbers are ties.
        ties: ``efron`` or ``breslow``.

    Returns:
        Scalar of the dtype of ``log_hazard``; an exact zero tied to the graph without events.

    Raises:
        ModelError: on shapes that disagree or unknown ties.

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
    if ties not in ("efron", "breslow"):
        msg = f'cox_loss: expected ties "efron" or "breslow", found "{ties}"'
        raise ModelError(msg)
    if not len(log_hazard):
        return log_hazard.sum()
    loss: Tensor = _CoxPartialLikelihood.apply(log_hazard, event.bool(), time, ties == "efron")  # type: ignore[no-untyped-call]
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
    left = torch.cat([edges.new_zeros(1), edges[:-1]])
    last = len(edges) - 1
    lived = ((time[:, None] - left) / (edges - left)).clamp(0.0, 1.0)
    interval = torch.searchsorted(edges, time.contiguous())  # first edge >= time
    inside = event & (interval <= last)
    died = torch.zeros_like(lived).scatter_(1, interval.clamp(max=last)[:, None], inside[:, None].to(lived.dtype))
    return lived * (1.0 - died), died


def discrete_hazard_loss(logits: Tensor, event: Tensor, time: Tensor, edges: Tensor) -> Tensor:
    """Mean negative log likelihood of discrete hazards, with a constant hazard inside each interval.

    A patient who dies in interval k contributes h_k prod_{j<k} (1 - h_j); one who is censored after the part f of it,
    (1 - h_k)^f prod_{j<k} (1 - h_j). In log space: no clamp, no overflow.

    NOTE[DIFF]: the usual rule lets a patient who is censored in interval k survive all of it, which lifts the curves.

    Args:
        logits: (n, K), logit of the hazard of each interval.
        event: (n,) bool.
        time: (n,) days.
        edges: (K,) right edges in days, increasing, the first above 0.

    Returns:
        Scalar float32 (float64 for float64 logits); an exact zero tied to the graph for n = 0.

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
    if not len(wide):
        return wide.sum()
    edges = edges.to(wide.dtype)
    survived, died = interval_exposure(event.bool(), time.to(wide.dtype), edges)
    # -log(1 - h) = softplus(z), and -log h = softplus(z) - z
    return ((survived + died) * functional.softplus(wide) - died * wide).sum() / len(wide)


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


def classification_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Mean cross entropy.

    Args:
        logits: (n, C) with C >= 2 classes.
        label: (n,) int64 class index.

    Returns:
        Scalar; an exact zero tied to the graph for n = 0.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return functional.cross_entropy(wide, label) if len(wide) else wide.sum()


def regression_loss(prediction: Tensor, value: Tensor) -> Tensor:
    """Mean squared error, (n,) each in the same unit; an exact zero tied to the graph for n = 0."""
    wide = prediction if prediction.dtype == torch.float64 else prediction.float()
    return functional.mse_loss(wide, value.to(wide.dtype)) if len(wide) else wide.sum()
