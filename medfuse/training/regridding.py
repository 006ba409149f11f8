"""Members whose time grids differ, on one grid: each learned its own from the event times of its own patients."""

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from medfuse.errors import ModelError
from medfuse.models import HeadSettings
from medfuse.training.member import Member


def common_grids(members: Sequence[Member]) -> list[Member]:
    """The members, each outcome's grid with the edges of all of them up to the earliest last edge.

    No curve is promised beyond what every member has seen. Intervals are parted at a constant hazard rate, exactly for
    the population (state 0); what a state adds to the logit stays. Members of equal grids come back as they are.

    Raises:
        ModelError: grids without an edge in common time.
    """
    found = list(members)
    for outcome, head in members[0].heads.items():
        grids = [member.heads[outcome].time_grid for member in members]
        if all(grid == head.time_grid for grid in grids):
            continue
        last = min(grid[-1] for grid in grids if grid)
        edges = tuple(sorted({edge for grid in grids for edge in grid if edge <= last}))
        if not all(grids) or not edges:
            msg = f"merge: expected a time grid of every member for {outcome}, found one without; train it again"
            raise ModelError(msg)
        found = [_on(member, outcome, edges) for member in found]
    return found


def _on(member: Member, outcome: str, edges: tuple[float, ...]) -> Member:
    """A member with one outcome on a finer (and perhaps shorter) grid."""
    head = member.heads[outcome]
    where = f"heads.{list(member.heads).index(outcome)}."  # each run numbers outcomes in the order of its own card
    old = torch.tensor((0.0, *head.time_grid), dtype=torch.float64)
    new = torch.tensor((0.0, *edges), dtype=torch.float64)
    index = torch.searchsorted(old[1:], new[1:])  # the old interval that holds each new one
    share = new.diff() / old.diff()[index]
    prior = tuple(_part(torch.tensor(head.prior, dtype=torch.float64)[index], share).tolist()) if head.prior else ()
    heads: dict[str, HeadSettings] = dict(member.heads)
    heads[outcome] = dataclasses.replace(head, time_grid=edges, prior=prior)
    return dataclasses.replace(member, heads=heads, state=_state(member.state, where, index=index, share=share))


def _state(state: Mapping[str, Tensor], where: str, *, index: Tensor, share: Tensor) -> dict[str, Tensor]:
    """Weights with those of one head per new interval; a head without a level per interval has nothing to part."""
    found = dict(state)
    level = state.get(f"{where}level")
    if level is None:
        return found
    found[f"{where}level"] = _part(level.double()[index], share).to(level.dtype)
    for key, tensor in state.items():
        if key.startswith(where) and tensor.ndim == 2 and len(tensor) == len(level) > 1:  # a row per interval
            found[key] = tensor[index]
    return found


def _part(logit: Tensor, share: Tensor) -> Tensor:
    """Logit of the hazard 1 - (1 - h)^share in a part of an interval whose hazard is h."""
    free = share * torch.nn.functional.logsigmoid(-logit)  # log of being free of the event over the part
    return torch.log(-torch.expm1(free)) - free
