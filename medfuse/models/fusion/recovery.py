"""A token for every absent modality, predicted from the present ones."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from medfuse.models.fusion.blocks import Block

_MEMORY = 4  # tokens


class Recovery(nn.Module):
    """Summaries of the visible modalities, a mask token for every other one, and memory tokens to all summaries.

    Trained by hiding some of a patient's modalities and predicting their detached, normalised summaries. Modalities
    that are really absent have no target, and present ones are never replaced.

    Args:
        modalities: names of the M modalities.
        width: D.
        heads: attention heads.
        dropout: in the layer.

    References:
        Woo et al. (2023), Towards good practices for missing modality robust action recognition (ActionMAE), AAAI.
        NOTE[DIFF]: one layer that sees mask tokens instead of an encoder and a decoder; targets detached; the number
        kept is drawn per patient; kept modalities stay as they are; the prediction reads all of a patient's modalities,
        and hiding for the recovery loss is a pass of its own.
    """

    def __init__(self, modalities: Sequence[str], *, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.memory = nn.Parameter(torch.randn(_MEMORY, width) * width**-0.5)
        self.hidden = nn.Parameter(torch.randn(width) * width**-0.5)
        self.modality = nn.Parameter(torch.randn(len(modalities), width) * width**-0.5)
        self.block = Block(width, heads=heads, ratio=2, dropout=dropout)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, width)
        self.mark = nn.Parameter(torch.randn(width) * width**-0.5)

    def forward(self, summaries: Tensor, visible: Tensor) -> Tensor:
        """(B, M, D) summaries, read where ``visible`` (B, M), to (B, M, D)."""
        n = len(visible)
        slots = torch.where(visible[..., None], summaries, self.hidden) + self.modality
        x = torch.cat([self.memory.expand(n, -1, -1), slots], dim=1)
        mixed = self.block(x, visible.new_ones(x.shape[:2]))[:, _MEMORY:]
        found: Tensor = self.out(self.norm(mixed))
        return found

    def tokens(self, summaries: Tensor, present: Tensor) -> Tensor:
        """(B, M, D) what stands for absent modalities: the recovered summary with a mark that says so."""
        found: Tensor = self(summaries, present) + self.mark
        return found

    def errors(self, summaries: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Hide some present modalities of every patient, at random, and predict them: for training alone.

        Returns:
            Mean squared error (B, M), 0 where nothing was hidden, and what was hidden (B, M).
        """
        target = functional.layer_norm(summaries.detach(), summaries.shape[2:])
        visible = kept_at_random(present)
        hidden = present & ~visible
        found = self(summaries.detach(), visible)
        return torch.where(hidden, (found - target).square().mean(-1), 0.0), hidden


def kept_at_random(present: Tensor) -> Tensor:
    """(B, M) of each patient's k present modalities 1 to k, the number drawn uniformly, then which.

    Draws from torch's global generator of the device, as dropout does.
    """
    draws = torch.rand((present.shape[0], present.shape[1] + 1), device=present.device)
    count = present.sum(1)
    kept = torch.minimum((draws[:, 0] * count).long() + 1, count)
    rank = torch.where(present, draws[:, 1:], 2.0).argsort(dim=1).argsort(dim=1)
    return present & (rank < kept[:, None])
