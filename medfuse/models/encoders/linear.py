"""All columns at once through a small perceptron: the encoder of wide tables such as expression profiles."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from medfuse.batch import ModalityShape
from medfuse.models.encoders.base import ACTIVATIONS, Encoder, activation, require_layout
from medfuse.models.settings import check_choice, check_count, check_rate
from medfuse.types import Layout


class LinearEncoder(Encoder):
    """p standardised features -> ``layers`` hidden layers -> K tokens.

    A missing cell is 0; features that ever miss in train also enter as a flag, so that missing differs from average.

    Args:
        shape: of the modality, layout ``columns``.
        width: D.
        tokens: K.
        hidden: width of the hidden layers.
        layers: number of hidden layers; 0 is one linear map, the best for hundreds of patients
            with thousands of columns.
        dropout: after each hidden layer.
        input_dropout: on the features; keeps a few of thousands of columns from carrying the fit.
        activation: ``gelu``, ``relu``, ``elu`` or ``tanh``.
        flags: missing flags as inputs.
    """

    layouts: ClassVar[tuple[Layout, ...]] = ("columns",)

    def __init__(
        self,
        *,
        shape: ModalityShape,
        width: int,
        tokens: int = 1,
        hidden: int = 64,
        layers: int = 0,
        dropout: float = 0.5,
        input_dropout: float = 0.5,
        activation: str = "gelu",
        flags: bool = True,
    ) -> None:
        super().__init__()
        require_layout("linear", shape.layout, self.layouts)
        self.tokens = check_count("tokens", tokens)
        flagged = range(shape.features) if shape.missing_features is None else shape.missing_features
        self.flagged: Tensor
        self.register_buffer(
            "flagged", torch.tensor(list(flagged) if flags else [], dtype=torch.int64), persistent=False
        )
        self.input_dropout = nn.Dropout(check_rate("input_dropout", input_dropout))
        self.body = perceptron(
            shape.features + len(self.flagged),
            width * tokens,
            hidden=check_count("hidden", hidden),
            layers=check_count("layers", layers, least=0),
            dropout=check_rate("dropout", dropout),
            nonlinearity=activation,
        )

    def forward(self, tokens: Tensor, token_mask: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, p, 2) to (B, K, D)."""
        value, flag = tokens[..., 0], tokens[..., 1]
        x = self.input_dropout(value * flag)
        if len(self.flagged):
            x = torch.cat([x, 1.0 - flag.index_select(1, self.flagged)], dim=1)
        encoded: Tensor = self.body(x).unflatten(-1, (self.tokens, -1))
        return encoded, token_mask.any(1, keepdim=True).expand(-1, self.tokens)


def perceptron(
    inputs: int, outputs: int, *, hidden: int, layers: int, dropout: float, nonlinearity: str
) -> nn.Sequential:
    """``layers`` hidden layers (linear, nonlinearity, dropout) and a linear output."""
    check_choice("activation", nonlinearity, tuple(ACTIVATIONS))  # also where no layer uses it
    parts: list[nn.Module] = []
    for _ in range(layers):
        parts += [nn.Linear(inputs, hidden), activation(nonlinearity), nn.Dropout(dropout)]
        inputs = hidden
    return nn.Sequential(*parts, nn.Linear(inputs, outputs))
