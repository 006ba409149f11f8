"""Members of the fusion ``lego`` that were trained apart, as one member: no training, no patients, no labels."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from medfuse.errors import ModelError
from medfuse.models import HeadSettings, ModelSettings, encoder_options
from medfuse.training.member import Member
from medfuse.training.regridding import common_grids

Array = NDArray[np.float64]
_LEAST_ANGLE = 1e-4
_LEAST_WEIGHT = 1e-3
_ROUNDS = 50


def spherical_mean(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Weighted mean of directions on the sphere, times the weighted mean of the norms; each tensor is one vector.

    Two tensors give the usual spherical interpolation. Directions that (nearly) coincide or are (nearly) opposite, and
    zeros, are averaged on the straight line. Where all the weight is on one tensor, it is the result.

    Args:
        tensors: of one shape.
        weights: as many, >= 0, with a sum of 1.

    References:
        Shoemake (1985), Animating rotation with quaternion curves; Buss, Fillmore (2001), Spherical averages, section
        4 (more than two).
    """
    flat = torch.stack([t.double().flatten() for t in tensors])
    weight = torch.tensor(weights, dtype=torch.float64)
    if float(weight.max()) == 1.0 or all(torch.equal(t, tensors[0]) for t in tensors):
        return tensors[int(weight.argmax())].clone()
    norm = flat.norm(dim=1)
    straight = weight @ flat
    if float(norm.min()) == 0.0:
        return straight.to(tensors[0].dtype).view_as(tensors[0])
    unit = flat / norm[:, None]
    angles = (unit @ unit.T).clamp(-1, 1).arccos()
    off = angles[~torch.eye(len(unit), dtype=torch.bool)]
    if float(off.max()) < _LEAST_ANGLE or float(off.max()) > math.pi - _LEAST_ANGLE:
        return straight.to(tensors[0].dtype).view_as(tensors[0])
    mean = functional.normalize(weight @ unit, dim=0)
    for _ in range(_ROUNDS):  # from the plane that touches the sphere at the mean, back onto it
        cosine = (unit @ mean).clamp(-1, 1)
        away = unit - cosine[:, None] * mean
        step = weight @ (away * (cosine.arccos() / away.norm(dim=1).clamp(min=1e-12))[:, None])
        length = float(step.norm())
        if length < 1e-12:
            break
        mean = functional.normalize(math.cos(length) * mean + math.sin(length) / length * step, dim=0)
    found: Tensor = (mean * (weight @ norm)).to(tensors[0].dtype).view_as(tensors[0])
    return found


def tuning_weights(members: Sequence[Member]) -> list[float]:
    """Weights by how much each member's tuning score exceeded chance, at least 0.001; equal where one has no score.

    Chance is 0.5 for survival and classes and 0 for values, whose score is explained variance.
    """
    scores = [m.history[m.best_epoch - 1]["tuning_score"] if m.history and m.best_epoch else None for m in members]
    known = [score for score in scores if score is not None and math.isfinite(score)]
    if len(known) < len(members):
        return [1 / len(members)] * len(members)
    heads = [[head.kind for head in member.heads.values()] for member in members]
    chance = [sum(kind != "continuous" for kind in kinds) / (2 * len(kinds)) for kinds in heads]
    merit = [max(score - c, _LEAST_WEIGHT) for score, c in zip(known, chance, strict=True)]
    return [m / sum(merit) for m in merit]


def balanced_weights(
    members: Sequence[Member],
    links: Sequence[Mapping[str, Array] | None],
    *,
    judges: Sequence[Sequence[Member]] = (),
) -> list[float]:
    """:func:`tuning_weights` over the spread of what each member says of patients it never saw.

    Networks that stopped at different times differ in the scale of their logits by factors; a mean of the logits would
    listen to the loudest.

    Args:
        members: to merge.
        links: per member and outcome (n, L), on the link scale; where one is None, tuning weights are all there is.
        judges: the same members of other inner folds, whose mean tuning weights count then: weights from a fold's own
            tuning patients would flatter the merged network in every score on these. Default the members themselves.
    """
    merit = [float(m) for m in np.mean([tuning_weights(one) for one in (judges or [members])], axis=0)]
    spreads = [_spread(one) for one in links if one is not None]
    if len(spreads) < len(members) or min(spreads) <= 0:
        return merit
    return [m / s for m, s in zip(merit, spreads, strict=True)]


def _spread(links: Mapping[str, Array]) -> float:
    """Root mean square deviation between patients, geometric mean over outcomes."""
    each = [float(np.sqrt(((link - link.mean(axis=0)) ** 2).mean())) for link in links.values()]
    return float(np.prod(each) ** (1 / len(each)))


def merge_members(members: Sequence[Member], *, weights: Sequence[float] | None = None) -> Member:
    """Merge members of the fusion ``lego``, each of which reads modalities of its own.

    Every block keeps its weights. Heads are merged: matrices W by their spherical mean, constants by their mean. So
    that blocks whose heads read different directions can share one head, the latent of block m is multiplied by
    R_m = 1 + W^+ (W_m - W), which makes W R_m = W_m: with ``domain: none`` the merged logit is the weighted mean of the
    members' logits over what a patient has, and that of a patient without any modality the mean of what all members
    say of him. Copies of a block are merged to that block, R = 1. Members of different patients have different time
    grids, which :func:`medfuse.training.regridding.common_grids` makes one.

    With ``combine`` stack or weave the merger means nothing before it is trained together: that it will be is the
    caller's to see to (``FoldSettings``); :func:`medfuse.merging.merge_members` refuses it.

    Args:
        members: two or more, with disjoint modalities, the same fusion and width, and the same outcomes in any order
            (the result has the first member's).
        weights: >= 0, need not sum to 1; default: :func:`tuning_weights`.

    Raises:
        ModelError: members that cannot be put together, or weights that are none.
    """
    if len(members) < 2:
        msg = f"merge: expected two or more members, found {len(members)}"
        raise ModelError(msg)
    for member in members[1:]:
        _require_alike(members[0], member)
    members = common_grids(members)
    names = [name for member in members for name in member.shapes]
    if len(set(names)) < len(names):
        msg = f"merge: expected members of different modalities, found {', '.join(sorted(names))}; drop one of a pair"
        raise ModelError(msg)
    share = _normalised(tuning_weights(members) if weights is None else weights, count=len(members))
    first = members[0]
    heads = _merged_heads(members, share)
    return dataclasses.replace(
        first,
        preprocessing={name: p for member in members for name, p in member.preprocessing.items()},
        shapes={name: shape for member in members for name, shape in member.shapes.items()},
        settings=_merged_settings(members),
        heads=heads,
        state=_merged_state(members, share, heads=heads),
        history=(),
        best_epoch=0,
        expert="",
    )


def _normalised(weights: Sequence[float], *, count: int) -> list[float]:
    total = sum(weights)
    if len(weights) != count or not all(w >= 0 and math.isfinite(w) for w in weights) or not total > 0:
        msg = f"merge: expected {count} weights >= 0, not all 0, found {list(weights)}"
        raise ModelError(msg)
    return [w / total for w in weights]


def _require_alike(first: Member, other: Member) -> None:
    for member in (first, other):
        if member.settings.fusion.get("name") != "lego":
            name = member.settings.fusion.get("name")
            msg = f"merge: expected members with fusion lego, found {name}; train with model.fusion.name=lego"
            raise ModelError(msg)
    same = {
        "fusion": (dict(first.settings.fusion), dict(other.settings.fusion)),
        "width": (first.settings.width, other.settings.width),
        "outcomes": (_read(first.heads), _read(other.heads)),
    }
    for what, (one, two) in same.items():
        if one != two:
            msg = f"merge: expected members of the same {what}, found different ones; train them with one recipe"
            raise ModelError(msg)


def _read(heads: Mapping[str, HeadSettings]) -> dict[str, tuple[object, ...]]:
    """What heads must have in common; what they learned of their own patients may differ."""
    return {name: (h.kind, h.name, dict(h.options), h.n_classes) for name, h in heads.items()}


def _merged_settings(members: Sequence[Member]) -> ModelSettings:
    encoders = {name: encoder_options(m.settings, name, shape) for m in members for name, shape in m.shapes.items()}
    return dataclasses.replace(members[0].settings, encoders=encoders)


def _merged_heads(members: Sequence[Member], share: Sequence[float]) -> dict[str, HeadSettings]:
    """The first member's heads, with the weighted mean of what they learned of a value's mean and scale."""

    def mean(name: str, field: str) -> float:
        return float(sum(w * getattr(m.heads[name], field) for m, w in zip(members, share, strict=True)))

    return {
        name: dataclasses.replace(head, mean=mean(name, "mean"), scale=mean(name, "scale"))
        for name, head in members[0].heads.items()
    }


def _head_states(member: Member, heads: Mapping[str, HeadSettings]) -> dict[str, Tensor]:
    """Weights of a member's heads, by name in the merged state, in the units of the merged heads."""
    found = {}
    for number, (outcome, head) in enumerate(heads.items()):
        own = member.heads[outcome]
        where = f"heads.{list(member.heads).index(outcome)}."  # each run numbers outcomes in the order of its own card
        for key, tensor in member.state.items():
            if key.startswith(where):
                tensor = tensor * (own.scale / head.scale)
                if key.endswith("bias") and head.kind == "continuous":
                    tensor = tensor + (own.mean - head.mean) / head.scale
                found[f"heads.{number}.{key.removeprefix(where)}"] = tensor
    return found


def _merged_state(
    members: Sequence[Member], share: Sequence[float], *, heads: Mapping[str, HeadSettings]
) -> dict[str, Tensor]:
    each = [_head_states(member, heads) for member in members]
    state: dict[str, Tensor] = {}
    for key, tensor in each[0].items():
        parts = [own[key] for own in each]
        if tensor.ndim >= 2:
            state[key] = spherical_mean(parts, share)
        else:
            state[key] = sum((w * part for w, part in zip(share, parts, strict=True)), torch.zeros_like(tensor))
    matrices = [key for key, tensor in state.items() if tensor.ndim == 2]
    common = torch.cat([state[key] for key in matrices]).double()
    back, place, blocks = torch.linalg.pinv(common), 0, list[Tensor]()
    nobody = torch.zeros(common.shape[1], dtype=torch.float64)
    for member, own, weight in zip(members, each, share, strict=True):
        apart = torch.cat([own[key] for key in matrices]).double() - common
        turn = torch.eye(common.shape[1], dtype=torch.float64) + back @ apart
        for key, tensor in member.state.items():
            part, number, rest = _place(key)
            if not rest:
                continue
            moved = (
                (turn @ tensor.double()).to(tensor.dtype)
                if (part, rest) == ("fusion.blocks", "turn.weight")
                else tensor
            )
            state[f"{part}.{number + place}.{rest}"] = moved.clone()
        blocks.append(weight * member.state["fusion.share"])
        # The heads read it as they read a block's latent: without the turn, the mean of two bases would mean nothing.
        nobody += weight * (turn @ member.state["fusion.nobody"].double())
        place += len(member.shapes)
    state["fusion.share"] = torch.cat(blocks)
    state["fusion.nobody"] = nobody.to(members[0].state["fusion.nobody"].dtype)
    return state


def _place(key: str) -> tuple[str, int, str]:
    """What a weight of the state belongs to when it is one modality's: the list, the modality's number, the rest."""
    for part in ("encoders", "fusion.blocks"):
        if key.startswith(f"{part}."):
            number, _, rest = key.removeprefix(f"{part}.").partition(".")
            return part, int(number), rest
    return "", 0, ""
