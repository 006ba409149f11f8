"""Masked attention and masked averages: the one place where a mask is turned into what torch wants.

A mask is True where a token is real. A row without any real token gives zeros, never NaN.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from medfuse.errors import ConfigError
from medfuse.models.settings import check_count


def masked_softmax(scores: Tensor, mask: Tensor, *, dim: int = -1) -> Tensor:
    """Softmax over the real entries; masked ones get an exact 0, and so does a row without real entries.

    Args:
        scores: (...) finite.
        mask: bool, broadcastable to ``scores``.
        dim: dimension to normalise.
    """
    low = torch.finfo(scores.dtype).min
    weights = functional.softmax(scores.masked_fill(~mask, low), dim=dim)
    return weights.masked_fill(~mask, 0.0)


def masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean (B, D) of the real tokens; zeros where there is none.

    Args:
        tokens: (B, T, D) finite.
        mask: (B, T) bool.
    """
    weights = mask.to(tokens.dtype)
    return torch.einsum("bt,btd->bd", weights, tokens) / weights.sum(1, keepdim=True).clamp(min=1.0)


class MultiHeadAttention(nn.Module):
    """Attention of queries over keys with a key mask. Each row needs at least one real key.

    Args:
        width: D, divisible by ``heads``.
        heads: number of heads.

    References:
        Vaswani et al. (2017), Attention is all you need, eq. 1.
    """

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        check_count("heads", heads)
        if width % heads:
            msg = f"heads: expected a divisor of the width {width}, found {heads}"
            raise ConfigError(msg)
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)  # a bias of the keys shifts all scores alike
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, queries: Tensor, keys: Tensor, mask: Tensor, bias: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            queries: (B, Q, D).
            keys: (B, T, D), finite everywhere.
            mask: (B, T) bool, True where a key is real.
            bias: (B, T) added to the scores of each key before the softmax, finite.

        Returns:
            (B, Q, D).
        """

        def split(x: Tensor) -> Tensor:
            return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)  # (B, H, T, D/H)

        asked, held, read = split(self.query(queries)), split(self.key(keys)), split(self.value(keys))
        seen = mask if bias is None else bias.to(asked.dtype).masked_fill(~mask, -torch.inf)
        mixed = functional.scaled_dot_product_attention(asked, held, read, attn_mask=seen[:, None, None, :])
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out

    def packed(
        self, queries: Tensor, keys: Tensor, groups: Sequence[tuple[int, int]], bias: Tensor | None = None
    ) -> Tensor:
        """Attend within patients whose tokens lie one after another without padding.

        Args:
            queries: (N, D) all tokens, or (B, D) one per patient.
            keys: (N, D).
            groups: of a :class:`medfuse.models.packing.Packing`.
            bias: (N,) added to the scores of each key.

        Returns:
            As ``queries``.
        """
        patients = sum(count for count, _ in groups)
        each = [1 if len(queries) == patients else length for _, length in groups]

        def split(x: Tensor, lengths: Sequence[int]) -> list[Tensor]:
            sizes = [count * length for (count, _), length in zip(groups, lengths, strict=True)]
            return [
                part.view(count, length, self.heads, -1).transpose(1, 2)
                for part, (count, _), length in zip(torch.split(x, sizes), groups, lengths, strict=True)
            ]

        lengths = [length for _, length in groups]
        asked = split(self.query(queries), each)
        added: list[Tensor | None] = [None] * len(groups)
        if bias is not None:
            sizes = [count * length for count, length in groups]
            parts = torch.split(bias.to(asked[0].dtype), sizes)
            added = [part.view(count, 1, 1, length) for part, (count, length) in zip(parts, groups, strict=True)]
        mixed = [
            functional.scaled_dot_product_attention(q, k, v, attn_mask=b).transpose(1, 2).flatten(2).flatten(0, 1)
            for q, k, v, b in zip(
                asked, split(self.key(keys), lengths), split(self.value(keys), lengths), added, strict=True
            )
        ]
        out: Tensor = self.out(torch.cat(mixed))
        return out


class GatedPooling(nn.Module):
    """K weighted means of a bag of tokens; the weights come from gated attention. Order of the bag does not matter.

    Args:
        width: D of the tokens.
        tokens: K.
        hidden: width of the gate.

    References:
        Ilse, Tomczak, Welling (2018), Attention-based deep multiple instance learning, eq. 9.
    """

    def __init__(self, width: int, *, tokens: int, hidden: int) -> None:
        super().__init__()
        self.content = nn.Linear(width, hidden)
        self.gate = nn.Linear(width, hidden)
        self.score = nn.Linear(hidden, tokens, bias=False)

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Pool.

        Args:
            tokens: (B, T, D) finite.
            mask: (B, T) bool.

        Returns:
            Pooled tokens (B, K, D) and the weights (B, K, T), each row of which sums to 1 (0 for an empty bag).
        """
        scores = self.score(torch.tanh(self.content(tokens)) * torch.sigmoid(self.gate(tokens)))
        weights = masked_softmax(scores.transpose(1, 2), mask[:, None, :])
        return weights @ tokens, weights
