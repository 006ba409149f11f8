"""The prototypes of one modality, and how those of several speak together."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from medfuse.models.attention import masked_softmax
from medfuse.models.prototypes import cosine, level_directions, select, top_mean

_LEAST_SPREAD = 1e-2


class Opinion(NamedTuple):
    """What the prototypes of one modality say of B patients.

    Attributes:
        instances: (B, T, D) encoded instances.
        similarity: (B, T, R) of every instance with every prototype.
        level: (B, R) mean similarity of the best instances per level.
        chosen: (B, k, D) selected instances, and
        mask: (B, k) which of them are real.
        token: (B, k) where they stood.
        mean: (B, D) and
        variance: (B, D) of the patient's prototype.
    """

    instances: Tensor
    similarity: Tensor
    level: Tensor
    chosen: Tensor
    mask: Tensor
    token: Tensor
    mean: Tensor
    variance: Tensor


class PrototypeBlock(nn.Module):
    """R Gaussian prototypes of one modality, one per level of risk.

    Args:
        width: D.
        levels: R.
        dropout: inside the encoder of instances.
    """

    def __init__(self, width: int, *, levels: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        last = nn.Linear(width, width, bias=False)
        nn.init.normal_(last.weight, std=0.1 * width**-0.5)  # an instance starts as the token itself
        self.encode = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout), last)
        self.centre = nn.Parameter(torch.zeros(width))
        self.mean = nn.Parameter(functional.normalize(torch.randn(levels, width), dim=1))
        self.raw_spread = nn.Parameter(torch.full((levels, width), 0.54))  # softplus gives 1

    @property
    def spread(self) -> Tensor:
        """(R, D) standard deviations of the prototypes."""
        return functional.softplus(self.raw_spread) + _LEAST_SPREAD

    def instances(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T, D) to instances (B, T, D)."""
        normed = self.norm(tokens)
        encoded: Tensor = normed + self.encode(normed) - self.centre
        return encoded

    def begin(self, tokens: Tensor, mask: Tensor, share: Tensor) -> None:
        """Centre the instances of train on 0, and point each prototype at its level."""
        found = self.instances(tokens)
        if bool(mask.any()):
            self.centre.add_(found[mask].mean(0))
        self.mean.copy_(level_directions(found, mask, share))

    def forward(
        self,
        tokens: Tensor,
        mask: Tensor,
        used: Tensor,
        *,
        keep: float,
        temperature: float,
        told: Tensor | None = None,
    ) -> Opinion:
        """Opinion on B patients from tokens (B, T, D), mask (B, T) and the levels in use (R,).

        ``told`` (B, R) are shares of the levels for patients of whom these need not be inferred, zeros for the others.
        In full precision under autocast, too: which instance is the best, and the variance of a mixture, are small
        differences of large numbers.
        """
        with torch.autocast(tokens.device.type, enabled=False):
            return self._opinion(tokens.float(), mask, used, keep=keep, temperature=temperature, told=told)

    def _opinion(
        self, tokens: Tensor, mask: Tensor, used: Tensor, *, keep: float, temperature: float, told: Tensor | None
    ) -> Opinion:
        found = self.instances(tokens)
        similarity = cosine(found, self.mean)
        level = top_mean(similarity, mask, keep=keep)
        best = similarity.masked_fill(~used, -2.0).amax(2)
        index, kept = select(best, mask, keep=keep)
        chosen = found.gather(1, index[..., None].expand(-1, -1, found.shape[2]))
        weight = masked_softmax(level / temperature, used.expand_as(level)) if temperature else _hardest(level, used)
        if told is not None:
            weight = torch.where(told.any(1, keepdim=True), told, weight)
        mean = weight @ self.mean
        # The variance of the mixture: a patient between two levels is described less surely.
        variance = weight @ (self.spread.square() + self.mean.square()) - mean.square()
        return Opinion(found, similarity, level, chosen, kept, index, mean, variance.clamp(min=_LEAST_SPREAD**2))


def _hardest(level: Tensor, used: Tensor) -> Tensor:
    """(B, R) one for the level with the highest similarity."""
    return functional.one_hot(level.masked_fill(~used, -2.0).argmax(1), level.shape[1]).to(level.dtype)


def product_of_experts(mean: Tensor, variance: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (B, D) of the product of the experts that are there and a standard normal prior.

    An absent expert has precision 0. Without any, the prior is what is left.

    Args:
        mean: (B, M, D).
        variance: (B, M, D), above 0.
        present: (B, M) bool.
    """
    precision = torch.where(present[..., None], 1.0 / variance, 0.0)
    total = 1.0 + precision.sum(1)
    return torch.where(present[..., None], precision * mean, 0.0).sum(1) / total, 1.0 / total
