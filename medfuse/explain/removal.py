"""Exact removal of units: every subset of them as players (Owen's value), or each one left out."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medfuse.explain.reader import Reader, Rows
from medfuse.explain.readout import Readout
from medfuse.games import shapley

Array = NDArray[np.float64]
MOST_UNITS = 8


def removed(
    readers: Sequence[Reader],
    readout: Readout,
    fixed: dict[int, Tensor],
    *,
    rows: Rows,
    ends: tuple[Array, Array],
    groups: Sequence[NDArray[np.int64]],
) -> tuple[Array, Array, Array]:
    """Contributions of units by removing them.

    Args:
        readers: members that read the modality.
        readout: of the rows.
        fixed: (r, L) links of the other members.
        rows: coalitions.
        ends: (r,) values without the modality, and with all of it.
        groups: per patient, the unit of each token or column.

    Returns:
        (R, n, units) by replicate, to first order around the whole; (n, units); (r,) values where no unit is left.
    """
    owned = [np.unique(group) for group in groups]
    width = 1 + max(int(units.max()) for units in owned)
    count = max(len(units) for units in owned)
    exact = count <= MOST_UNITS
    # (subsets, units by their place in a patient's own list)
    kept = (np.arange(1 << count)[:, None] >> np.arange(count)) & 1 if exact else 1 - np.eye(count, dtype=np.int64)
    values, members, nothing = [], list[dict[int, Tensor]](), np.zeros(len(rows.patient), dtype=bool)
    for subset in kept:
        shown = [np.isin(group, units[subset[: len(units)] > 0]) for group, units in zip(groups, owned, strict=True)]
        links = _links(readers, shown)
        value = readout.value(readout.combined({**fixed, **links})).numpy()
        if readers[0].preprocessing.layout == "vectors":  # a bag without instances is an absent one
            nothing = ~np.array([s.any() for s in shown])[rows.patient]
            value = np.where(nothing, ends[0], value)
        values.append(value)
        members.append(links)
    game = np.stack(values)  # (subsets, r)
    mean = _spread(_shared(game, ends[1], exact=exact), rows, owned, width)
    whole = _links(readers, [np.ones(len(group), dtype=bool) for group in groups])
    slope = readout.slope(readout.combined({**fixed, **whole}))
    each = []
    for group in readout.replicates:
        linear = np.stack([_linear(readout, links, slope, group) for links in members])
        each.append(_spread(_shared(linear, _linear(readout, whole, slope, group), exact=exact), rows, owned, width))
    return np.stack(each), mean, game[0] if exact else ends[0]


def _linear(readout: Readout, links: dict[int, Tensor], slope: Tensor, group: Sequence[int]) -> Array:
    """(r,) what the members of a replicate say, as if they were all."""
    total = torch.zeros(len(slope), dtype=slope.dtype)
    for k in group:
        if k in links:
            total += len(readout.replicates) * readout.coefficient[k] * (slope * links[k]).sum(1)
    return total.numpy()


def _shared(game: Array, whole: Array, *, exact: bool) -> Array:
    """(units, r)."""
    return shapley(game) if exact else whole - game


def _spread(found: Array, rows: Rows, owned: Sequence[NDArray[np.int64]], width: int) -> Array:
    """(n, width) Shapley-weighted sums over the rows (units, r) of each patient, at the units that it has."""
    out = np.zeros((len(owned), width))
    for place, value in enumerate(found):
        total = np.bincount(rows.patient, weights=rows.share * value, minlength=len(owned))
        for row, units in enumerate(owned):
            if place < len(units):
                out[row, units[place]] = total[row]
    return out


@torch.no_grad()
def _links(readers: Sequence[Reader], shown: Sequence[NDArray[np.bool_]]) -> dict[int, Tensor]:
    """(r, L) links of every reader when only some tokens or columns are there."""
    found = {}
    for reader in readers:
        tokens, mask, position = reader.inputs
        if reader.preprocessing.layout == "columns":
            seen = torch.from_numpy(np.stack(shown)[:, reader.preprocessing.source])
            encoded = reader.encoder(tokens * seen[..., None], mask, position)
        else:
            seen = torch.zeros_like(mask)
            for row, one in enumerate(shown):
                seen[row, : len(one)] = torch.from_numpy(one)
            encoded = reader.encoder(torch.where((mask & seen)[..., None], tokens, 0.0), mask & seen, position)
        found[reader.number] = reader.links(*encoded)[reader.back]
    return found
