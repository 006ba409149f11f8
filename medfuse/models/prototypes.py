"""What models of prototypes share: levels of risk, selection of instances, k-means, and proof of what was fitted."""

import hashlib
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from medfuse.batch import TargetTensors
from medfuse.errors import ConfigError
from medfuse.losses import discrete_hazard_prior
from medfuse.models.attention import masked_mean
from medfuse.running_sum import running_sum

_TINY = 1e-6
TEMPERATURE = 0.1  # of cosines, wherever levels are told apart


def leading_outcome(targets: Mapping[str, TargetTensors]) -> TargetTensors | None:
    """The outcome that levels of risk come from: the first of survival, else the first of classes, else the first."""
    for kinds in (("survival",), ("binary", "multiclass"), ("continuous",)):
        for target in targets.values():
            if target.kind in kinds:
                return target
    return None


class RiskLevels(nn.Module):
    """R levels of risk, fitted on training patients: intervals of event time, intervals of a value, or the classes.

    Args:
        levels: R. Fewer are used when there are fewer classes or fewer different event times.

    NOTE[DIFF]: Zhang et al. (2024, PIBD) have a level per time bin x censoring, from quantiles of all patients. Here
    edges are quantiles of train event times; a censored patient belongs to the levels he may still reach, in
    proportion to what the population has there, and no level means "censored".
    """

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels
        self.edges: Tensor
        self.mass: Tensor
        self.register_buffer("edges", torch.zeros(levels - 1))
        self.register_buffer("mass", torch.full((levels,), 1 / levels))  # share of the population per level

    @property
    def used(self) -> Tensor:
        """(R,) bool, False for levels that no training patient can have."""
        return self.mass > 0

    def fit(self, targets: Mapping[str, TargetTensors]) -> None:
        """Fit to training patients.

        Raises:
            ConfigError: more classes than levels.
        """
        target = leading_outcome(targets)
        if target is None or not bool(target.observed.any()):
            return
        seen = target.observed
        if target.label is not None:
            count = torch.bincount(target.label[seen])
            if len(count) > self.levels:
                msg = f"model.fusion.levels: expected at least the {len(count)} classes, found {self.levels}"
                raise ConfigError(msg)
            self.mass.copy_(functional.pad(count, (0, self.levels - len(count))) / count.sum())
            return
        if target.time is not None and target.event is not None:
            time, event = target.time[seen].double(), target.event[seen]
            values = time[event]
        else:
            time, event = None, None
            values = target.value[seen].double() if target.value is not None else seen.new_zeros(0).double()
        if not len(values):
            return
        wanted = torch.arange(1, self.levels, dtype=torch.float64, device=values.device) / self.levels
        edges = torch.unique(torch.quantile(values, wanted))
        edges = edges[edges < values.max()]
        if time is not None and event is not None and len(edges):
            survival = torch.sigmoid(-discrete_hazard_prior(event, time, edges).double()).cumprod(0)
        else:
            survival = torch.stack([(values > edge).double().mean() for edge in edges]) if len(edges) else edges
        reached = torch.cat([survival.new_ones(1), survival, survival.new_zeros(1)])
        spare = self.levels - 1 - len(edges)
        self.edges.copy_(functional.pad(edges, (0, spare), value=torch.finfo(torch.float32).max))
        self.mass.copy_(functional.pad(reached[:-1] - reached[1:], (0, spare)))

    def of(self, targets: Mapping[str, TargetTensors]) -> tuple[Tensor, Tensor] | None:
        """Share (B, R) of each level a patient may have, rows sum to 1, and (B,) whether anything is known of him."""
        target = leading_outcome(targets)
        if target is None:
            return None
        if target.label is not None:
            return self._one(target.label.clamp(max=self.levels - 1)), target.observed
        value = target.time if target.time is not None else target.value
        if value is None:
            return None
        level = torch.searchsorted(self.edges, value.to(self.edges.dtype).contiguous())
        share = self._one(level)
        if target.event is not None:
            share = torch.where(target.event[:, None], share, self._still_possible(value, level))
        return share, target.observed

    def _one(self, level: Tensor) -> Tensor:
        return (level[:, None] == torch.arange(self.levels, device=level.device)).to(self.mass.dtype)

    def _still_possible(self, time: Tensor, level: Tensor) -> Tensor:
        """(B, R) shares of a patient censored at ``time``, of whose own level only the rest is left."""
        right = functional.pad(self.edges, (0, 1), value=torch.inf)[level]
        left = functional.pad(self.edges, (1, 0), value=0.0)[level]
        rest = torch.where(right.isinf(), 1.0, (right - time) / (right - left).clamp(min=_TINY)).clamp(0.0, 1.0)
        later = torch.arange(self.levels, device=level.device) > level[:, None]
        share = self.mass * (later + self._one(level) * rest[:, None])
        total = share.sum(1, keepdim=True)
        return torch.where(total > 0, share / total.clamp(min=_TINY), self._one(level))


def top_count(mask: Tensor, keep: float) -> Tensor:
    """(B,) ceil(keep x real instances): how many of each bag are selected."""
    # In float64, as the largest count is computed: 200 x 0.3 is a little more than 60 in float32, and would make 61.
    return torch.ceil(mask.sum(1).double() * keep - _TINY).long()


def select(score: Tensor, mask: Tensor, *, keep: float) -> tuple[Tensor, Tensor]:
    """The best-scored instances of each bag, each at most once.

    Args:
        score: (B, T).
        mask: (B, T) bool.
        keep: part of a bag's real instances, rounded up.

    Returns:
        Indices (B, k) in falling order of the score, and (B, k) which of them are selected; k suits the largest bag.
    """
    count = top_count(mask, keep)
    most = min(mask.shape[1], max(1, math.ceil(mask.shape[1] * keep - _TINY)))
    index = score.masked_fill(~mask, torch.finfo(score.dtype).min).topk(most, dim=1).indices
    return index, torch.arange(most, device=mask.device) < count[:, None]


def top_mean(similarity: Tensor, mask: Tensor, *, keep: float) -> Tensor:
    """(B, R) mean of the best ``keep`` of a bag's similarities (B, T, R), per prototype; zeros for an empty bag."""
    count = top_count(mask, keep)
    most = min(mask.shape[1], max(1, math.ceil(mask.shape[1] * keep - _TINY)))
    low = torch.finfo(similarity.dtype).min
    best = similarity.masked_fill(~mask[..., None], low).topk(most, dim=1).values  # (B, k, R)
    chosen = (torch.arange(most, device=mask.device) < count[:, None])[..., None]
    return torch.where(chosen, best, 0.0).sum(1) / count[:, None].clamp(min=1)


def level_loss(level: Tensor, share: Tensor, *, rows: Tensor, used: Tensor) -> Tensor:
    """Cross entropy of softmax(level / 0.1) against the levels a patient may have, mean over ``rows``.

    Args:
        level: (B, R) similarity of a bag's best instances with the prototypes.
        share: (B, R).
        rows: (B,) bool, who counts.
        used: (R,) bool.

    NOTE[DIFF]: Zhang et al. (2024), eq. 8, take the similarity to the own prototype minus the mean of the others. That
    difference rewards the prototype of a level with more than 1/R of the patients for being near to every instance
    whatsoever, and the selection then follows it; a cross entropy does not.
    """
    said = functional.log_softmax((level / TEMPERATURE).masked_fill(~used, torch.finfo(level.dtype).min), dim=1)
    each = -(share * torch.where(used, said, 0.0)).sum(1)
    return (each * rows).sum() / rows.sum().clamp(min=1)


def cosine(instances: Tensor, prototypes: Tensor) -> Tensor:
    """(B, T, R) cosine similarity of instances (B, T, D) and prototypes (R, D)."""
    return functional.normalize(instances, dim=-1) @ functional.normalize(prototypes, dim=-1).T


def level_directions(instances: Tensor, mask: Tensor, share: Tensor) -> Tensor:
    """(R, D) unit vectors from the mean training patient to the mean patient of each level; random where there is none.

    Args:
        instances: (B, T, D).
        mask: (B, T) bool.
        share: (B, R) of each level, zeros for patients who do not count.
    """
    there = mask.any(1)
    mean, weight = masked_mean(instances, mask)[there], share[there]
    random = functional.normalize(torch.randn(share.shape[1], instances.shape[-1], device=instances.device), dim=1)
    if not len(mean):
        return random
    levels = weight.T @ mean / weight.sum(0)[:, None].clamp(min=_TINY)
    away = torch.where(weight.sum(0)[:, None] > 0, levels - mean.mean(0), 0.0)
    # A little of a random direction keeps prototypes apart where the levels coincide.
    return functional.normalize(functional.normalize(away, dim=1) + 0.1 * random, dim=1)


def kmeans(points: Tensor, *, count: int, rounds: int = 25) -> tuple[Tensor, Tensor]:
    """K-means from a k-means++ start under torch's seeded generator.

    Args:
        points: (n, F), n >= 1.
        count: C centres; with fewer different points some coincide.
        rounds: at most.

    Returns:
        Centres (C, F) and the nearest one of each point (n,).

    References:
        Arthur, Vassilvitskii (2007), k-means++; Lloyd (1982).
    """
    chosen = [points[int(torch.randint(len(points), ()))]]
    gap = torch.full((len(points),), torch.inf, device=points.device)
    for _ in range(count - 1):
        gap = torch.minimum(gap, (points - chosen[-1]).square().sum(1))
        # A drawn place on the line of all squared distances: numbers of any count, which multinomial does not take.
        line = running_sum(gap.double(), 0)
        place = torch.rand((), device=points.device, dtype=torch.float64) * line[-1]
        chosen.append(points[int(torch.searchsorted(line, place).clamp(max=len(points) - 1))])
    centres = torch.stack(chosen)
    nearest = _nearest(points, centres)
    for _ in range(rounds):
        size = torch.bincount(nearest, minlength=count).to(points.dtype)[:, None]
        total = torch.zeros_like(centres).index_add(0, nearest, points)
        centres = torch.where(size > 0, total / size.clamp(min=1), centres)
        moved = _nearest(points, centres)
        if torch.equal(moved, nearest):
            break
        nearest = moved
    return centres, nearest


def _nearest(points: Tensor, centres: Tensor) -> Tensor:
    return (0.5 * centres.square().sum(1) - points @ centres.T).argmin(1)


def digest(*tensors: Tensor) -> Tensor:
    """(32,) uint8 SHA-256 of the values, types and shapes of tensors."""
    said = hashlib.sha256()
    for tensor in tensors:
        said.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        said.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return torch.frombuffer(bytearray(said.digest()), dtype=torch.uint8)


def train_digest(
    tokens: list[Tensor], masks: list[Tensor], present: Tensor, targets: Mapping[str, TargetTensors]
) -> Tensor:
    """(32,) uint8 SHA-256 of everything that a fit before the first step has read."""
    labels = [tensor for target in targets.values() for tensor in target.tensors().values()]
    return digest(*tokens, *masks, present, *labels)
