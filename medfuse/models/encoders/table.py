"""One token per column of a table; a missing cell is a state of its own."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from medfuse.batch import ModalityShape
from medfuse.models.encoders.base import Encoder, Path, require_layout
from medfuse.models.settings import check_rate
from medfuse.types import Layout


class TableEncoder(Encoder):
    """Token of column c = sum over its features j of x_j W_j, plus b_c; plus m_c instead of the sum when it is missing.

    A column that is never missing in train keeps m_c near 0 (its mean) unless ``column_dropout`` trains it.

    Args:
        shape: of the modality, layout ``columns``.
        width: D.
        column_dropout: in training, rate at which an observed column is shown as missing.
        dropout: in training, dropout on the tokens.

    References:
        Gorishniy et al. (2021), Revisiting deep learning models for tabular data, section 3.3 (feature tokenizer).
        NOTE[DIFF]: the state for missing cells is ours.
    """

    layouts: ClassVar[tuple[Layout, ...]] = ("columns",)

    def __init__(self, *, shape: ModalityShape, width: int, column_dropout: float = 0.1, dropout: float = 0.0) -> None:
        super().__init__()
        require_layout("table", shape.layout, self.layouts)
        self.column_dropout = check_rate("column_dropout", column_dropout)
        self.dropout = nn.Dropout(check_rate("dropout", dropout))
        member = functional.one_hot(torch.tensor(shape.column_of_feature), shape.columns).T.float()
        self.member: Tensor
        self.register_buffer("member", member, persistent=False)  # (C, p)
        bound = width**-0.5
        self.weight = nn.Parameter(torch.empty(shape.features, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(shape.columns, width).uniform_(-bound, bound))
        self.missing = nn.Parameter(torch.zeros(shape.columns, width))

    def forward(self, tokens: Tensor, token_mask: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, p, 2) to (B, C, D)."""
        value, flag = tokens[..., 0], tokens[..., 1]
        observed = flag @ self.member.T > 0  # (B, C)
        if self.training and self.column_dropout:
            observed = observed & (torch.rand_like(value[:, :1].expand_as(observed)) >= self.column_dropout)
        sums = torch.einsum("cp,bpd->bcd", self.member, value[..., None] * self.weight)
        encoded = self.bias + torch.where(observed[..., None], sums, self.missing)
        there = token_mask.any(1, keepdim=True).expand(-1, len(self.member))
        return self.dropout(encoded), there

    def path(self, tokens: Tensor, token_mask: Tensor, position: Tensor) -> Path:
        """Every column's token from that of a missing cell to its own: a line between two states that train has."""
        full, there = self(tokens, token_mask, position)
        empty, _ = self(torch.zeros_like(tokens), token_mask, position)
        return Path(
            empty=empty, full=full, encode=lambda found: (found, there), unit="column", start="all cells missing"
        )
