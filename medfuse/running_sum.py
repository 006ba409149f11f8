"""Running sums that come out the same each time where torch is asked for that."""

import torch
from torch import Tensor


def running_sum(values: Tensor, dim: int) -> Tensor:
    """Sums of all values up to each, along ``dim``, as ``torch.cumsum``; floating point.

    CUDA's ``cumsum`` adds in no fixed order, and torch refuses it under ``torch.use_deterministic_algorithms``. There,
    sums are made by doubling (Hillis and Steele 1986, CACM 29:1170-1183): log2(n) additions of shifted copies.
    """
    if not torch.are_deterministic_algorithms_enabled():
        return values.cumsum(dim)
    shift, size = 1, values.shape[dim]
    while shift < size:
        earlier = torch.zeros_like(values.narrow(dim, 0, shift))
        values = values + torch.cat([earlier, values.narrow(dim, 0, size - shift)], dim)
        shift *= 2
    return values
