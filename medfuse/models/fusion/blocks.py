"""What several fusions are built of: attention layers and the late residual."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medfuse.models.attention import MultiHeadAttention, masked_mean
from medfuse.models.packing import Packing
from medfuse.models.settings import check_count, check_rate


class Block(nn.Module):
    """Pre-norm transformer layer.

    Args:
        width: D.
        heads: attention heads.
        ratio: width of the feed-forward layer in units of D.
        dropout: on both residual branches.
    """

    def __init__(self, width: int, *, heads: int, ratio: int, dropout: float) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = MultiHeadAttention(width, heads=heads)
        self.norm_feed = nn.LayerNorm(width)
        self.feed = feed_forward(width, ratio=ratio, dropout=dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, tokens: Tensor, mask: Tensor, *, queries: int | None = None, bias: Tensor | None = None
    ) -> Tensor:
        """Tokens (B, T, D) to (B, T, D), or to the first ``queries`` of them only; ``bias`` (B, T) as of attention."""
        normed = self.norm_attention(tokens)
        return self._add(tokens[:, :queries], self.attention(normed[:, :queries], normed, mask, bias))

    def packed(self, tokens: Tensor, packing: Packing, *, first: bool = False, bias: Tensor | None = None) -> Tensor:
        """Packed tokens (N, D) to (N, D), or to the first of each patient (B, D) only; ``bias`` (N,)."""
        normed = self.norm_attention(tokens)
        asked, kept = (normed[packing.first], tokens[packing.first]) if first else (normed, tokens)
        return self._add(kept, self.attention.packed(asked, normed, packing.groups, bias))

    def _add(self, kept: Tensor, read: Tensor) -> Tensor:
        kept = kept + self.dropout(read)
        out: Tensor = kept + self.dropout(self.feed(self.norm_feed(kept)))
        return out


class CrossBlock(nn.Module):
    """Pre-norm cross-attention and feed-forward layer: queries read given tokens and a learned null token.

    The null token keeps the keys from being empty, and lets a query leave a modality of one token unread: with a single
    key the weight would be 1 whatever the query says.

    Args:
        width: D.
        heads: attention heads.
        ratio: width of the feed-forward layer in units of D.
        dropout: on both residual branches.
    """

    def __init__(self, width: int, *, heads: int, ratio: int, dropout: float) -> None:
        super().__init__()
        self.null = nn.Parameter(torch.randn(width) * width**-0.5)
        self.norm_query = nn.LayerNorm(width)
        self.attention = MultiHeadAttention(width, heads=heads)
        self.norm_feed = nn.LayerNorm(width)
        self.feed = feed_forward(width, ratio=ratio, dropout=dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """Queries (B, Q, D) and normalised keys (B, T, D) with their mask (B, T) to (B, Q, D)."""
        n = len(keys)
        keys = torch.cat([self.null.to(keys.dtype).expand(n, 1, -1), keys], dim=1)
        mask = torch.cat([mask.new_ones(n, 1), mask], dim=1)
        read = queries + self.dropout(self.attention(self.norm_query(queries), keys, mask))
        out: Tensor = read + self.dropout(self.feed(self.norm_feed(read)))
        return out


def feed_forward(width: int, *, ratio: int, dropout: float) -> nn.Sequential:
    """D -> ratio D -> D, with GELU and dropout between."""
    inner = width * check_count("ratio", ratio)
    return nn.Sequential(
        nn.Linear(width, inner), nn.GELU(), nn.Dropout(check_rate("dropout", dropout)), nn.Linear(inner, width)
    )


def late_maps(modalities: Sequence[str], width: int) -> nn.ModuleList:
    """A linear map per modality, for :func:`late_residual`."""
    return nn.ModuleList([nn.Linear(width, width) for _ in modalities])


def late_residual(own: nn.ModuleList, tokens: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
    """(B, M, D) linear map of each modality's mean token; no number of an absent modality may be used."""
    return torch.stack([m(masked_mean(t, mask)) for m, t, mask in zip(own, tokens, masks, strict=True)], dim=1)


def late_mean(each: Tensor, seen: Tensor) -> Tensor:
    """(B, D) mean of ``each`` (B, M, D) over the modalities that are ``seen`` (B, M); zeros where there is none."""
    total = torch.where(seen[..., None], each, 0.0).sum(1)
    return total / seen.sum(1, keepdim=True).clamp(min=1)
