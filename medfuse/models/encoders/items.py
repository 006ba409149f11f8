"""Encoders that are trained on raw items (windows, patches): one network for all items, then gated attention.

The network sees each real item by itself; padding and absent modalities never reach it.
"""

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from medfuse.batch import ModalityShape
from medfuse.errors import ConfigError
from medfuse.models.attention import GatedPooling
from medfuse.models.encoders.base import Encoder, require_layout
from medfuse.models.settings import check_choice, check_count, check_rate
from medfuse.types import Layout


class ItemEncoder(Encoder):
    """Items x_i of shape (C, ...) to h_i = W f(x_i) + b + identity, and these to tokens.

    Args:
        shape: of the modality: layout ``vectors`` with ``item``.
        width: D.
        out: numbers that :meth:`network` gives per item.
        pooling: ``attention`` (gated, to ``tokens``) or ``none`` (every item stays a token).
        tokens: K of ``attention``.
        dropout: on f(x_i).

    Attributes:
        name: of the encoder, for messages.
        axes: that an item has, channels included.
        extractor: that makes such items.

    Raises:
        ConfigError: a modality whose features are no raw items, or items of other axes.
    """

    layouts: ClassVar[tuple[Layout, ...]] = ("vectors",)
    name: ClassVar[str]
    axes: ClassVar[int]
    extractor: ClassVar[str]

    def __init__(
        self, *, shape: ModalityShape, width: int, out: int, pooling: str, tokens: int, dropout: float
    ) -> None:
        super().__init__()
        require_layout(self.name, shape.layout, self.layouts)
        if len(shape.item) != self.axes:
            what = f"items {shape.item}" if shape.item else "features of an extractor"
            msg = (
                f'encoder "{self.name}": expected raw items of {self.axes} axes, found {what}; set the extractor '
                f"{self.extractor} in the card, or take the encoder bag"
            )
            raise ConfigError(msg)
        self.item = shape.item
        self.pooling = check_choice("pooling", pooling, ("attention", "none"))
        self.dropout = nn.Dropout(check_rate("dropout", dropout))
        self.project = nn.Linear(out, width)
        self.identity = nn.Embedding(len(shape.identities), width) if shape.identities else None
        if self.identity is not None:
            nn.init.normal_(self.identity.weight, std=width**-0.5)
        count = check_count("tokens", tokens)
        self.pool = GatedPooling(width, tokens=count, hidden=width) if pooling == "attention" else None

    @abstractmethod
    def network(self, items: Tensor) -> Tensor:
        """(N, C, ...) items to (N, out), each item by itself; N >= 1."""

    def forward(self, tokens: Tensor, token_mask: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, T, F) to (B, K, D), or (B, T, D) without pooling."""
        real = tokens[token_mask]  # (N, F), in the order of the batch
        width = self.project.out_features
        encoded = tokens.new_zeros((*token_mask.shape, width))
        if len(real):
            found = self.project(self.dropout(self.network(real.view(-1, *self.item))))
            if self.identity is not None:
                found = found + self.identity(position[..., 0][token_mask].long())
            encoded = encoded.to(found.dtype).index_put((token_mask,), found)
        if self.pool is None:
            return encoded, token_mask
        pooled, _ = self.pool(encoded, token_mask)
        return pooled, token_mask.any(1, keepdim=True).expand(-1, pooled.shape[1])


def groups_of(channels: int, *, most: int = 8) -> int:
    """Groups of a GroupNorm: the largest divisor of the channels up to ``most`` that leaves two or more in each."""
    return max(g for g in range(1, most + 1) if channels % g == 0 and (channels // g > 1 or g == 1))


def global_mean(maps: Tensor) -> Tensor:
    """(N, C) means over all places of (N, C, ...)."""
    return torch.flatten(maps, 2).mean(2)
