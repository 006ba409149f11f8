"""Integrated gradients of the value of coalitions, from a modality that says nothing to a patient's own.

Sundararajan, Taly, Yan (2017), Axiomatic attribution for deep networks, eq. 1, along the line that each encoder names
(:class:`medfuse.models.encoders.base.Path`), and summed over coalitions with their Shapley weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medfuse.explain.reader import Reader, Rows
from medfuse.explain.readout import Readout
from medfuse.models.encoders.base import Path

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Line:
    """A reader with its path, and what its inputs count for in the units asked for."""

    reader: Reader
    path: Path
    to_units: Callable[[Array], Array]  # (B, U or N, L) of the inputs to (B, units)
    wide: bool = False  # the features of each token are kept apart: (B, T, F)


@torch.no_grad()
def start_values(lines: Sequence[Line], readout: Readout, fixed: dict[int, Tensor]) -> Array:
    """(r,) values at the empty ends."""
    links = {**fixed, **{line.reader.number: _links(line, 0.0) for line in lines}}
    return readout.value(readout.combined(links)).numpy()


def _links(line: Line, t: float) -> Tensor:
    """(r, L) links of a reader at t."""
    path = line.path
    there = path.empty + path.at(t)[0] * (path.full - path.empty)
    return line.reader.links(*path.encode(there))[line.reader.back]


def integrate(lines: Sequence[Line], readout: Readout, fixed: dict[int, Tensor], *, rows: Rows, nodes: int) -> Array:
    """(R, n, units) contributions by replicate, whose mean is the attribution.

    Args:
        lines: of all members that read the modality.
        readout: of the rows.
        fixed: (r, L) links of the members that do not read it.
        rows: coalitions.
        nodes: of Gauss-Legendre quadrature.
    """
    at, weight = np.polynomial.legendre.leggauss(nodes)
    at, weight = (at + 1) / 2, weight / 2
    share = torch.from_numpy(rows.share)
    total: dict[int, Array] = {}
    for t, w in zip(at.tolist(), weight.tolist(), strict=True):
        with torch.no_grad():
            links = {**fixed, **{line.reader.number: _links(line, t) for line in lines}}
        slope = readout.slope(readout.combined(links)) * share[:, None]  # (r, L)
        for line in lines:
            k = line.reader.number
            towards = slope * readout.coefficient[k][:, None]
            if links[k].shape[1] == 1:
                towards = towards.sum(1, keepdim=True)
            own = torch.zeros(len(line.reader.patient), towards.shape[1], dtype=towards.dtype)
            own.index_add_(0, line.reader.back, towards)
            found = w * _gradient(line, t, own)
            total[k] = found if k not in total else total[k] + found
    each = {line.reader.number: line.to_units(total[line.reader.number]) for line in lines}
    blank = np.zeros_like(next(iter(each.values())))
    count = len(readout.replicates)
    return np.stack([count * sum((each[k] for k in group if k in each), blank) for group in readout.replicates])


def _gradient(line: Line, t: float, towards: Tensor) -> Array:
    """(B, U) or (B, N, L): what the inputs at t add, towards a weighting (q, L) of the links."""
    path = line.path
    far, speed = path.at(t)
    change = path.full - path.empty
    there = (path.empty + far * change).detach().requires_grad_()
    link = line.reader.links(*path.encode(there))
    found = (link * towards).sum() + 0.0 * there.sum()  # a fusion may not read the modality at all
    (slope,) = torch.autograd.grad(found, there)
    found = slope.double() * (speed * change)
    return (found if path.unit == "edge" or found.ndim == 2 or line.wide else found.sum(-1)).numpy()
