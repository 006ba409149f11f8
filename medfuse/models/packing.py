"""Tokens of a batch without its padding: only real tokens lie one after another, patients of equal length together."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Where the N real tokens of B patients are.

    Attributes:
        index: (N,) places in the flattened (B T), patients in the order of their lengths.
        first: (B,) places in the packed array of the first token of each patient, in that order.
        back: (B,) brings rows in that order back into the order of the batch.
        groups: (number of patients, their length) of each run of patients of equal length; attention in a group
            needs no mask. There are at most as many as there are lengths.
    """

    index: Tensor
    first: Tensor
    back: Tensor
    groups: tuple[tuple[int, int], ...]

    def take(self, tokens: Tensor) -> Tensor:
        """(B, T, D) to the packed (N, D)."""
        return tokens.flatten(0, 1).index_select(0, self.index)


def pack(mask: Tensor) -> Packing:
    """The packing of a mask (B, T) in which every patient has a real token."""
    lengths = mask.sum(1)
    order = lengths.argsort(stable=True)
    rows, columns = mask[order].nonzero(as_tuple=True)
    ordered = lengths[order]
    length, count = torch.unique_consecutive(ordered, return_counts=True)
    return Packing(
        index=order[rows] * mask.shape[1] + columns,
        first=ordered.cumsum(0) - ordered,
        back=order.argsort(),
        groups=tuple(zip(count.tolist(), length.tolist(), strict=True)),
    )
