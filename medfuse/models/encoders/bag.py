"""Feature vectors: few named ones (stains) stay tokens, many anonymous ones (tiles) are pooled by attention."""

from typing import ClassVar

from torch import Tensor, nn

from medfuse.batch import ModalityShape
from medfuse.models.attention import GatedPooling, masked_mean
from medfuse.models.encoders.base import Encoder, require_layout
from medfuse.models.encoders.linear import perceptron
from medfuse.models.settings import check_choice, check_count, check_rate
from medfuse.types import Layout


class BagEncoder(Encoder):
    """Each vector through one shared perceptron, plus an embedding of its identity, then a pooling.

    The order of the vectors does not matter, and coordinates are not read.

    Args:
        shape: of the modality, layout ``vectors``.
        width: D.
        pooling: ``attention`` (gated, to ``tokens``), ``mean`` (to one) or ``none`` (every vector stays a token).
            Default: ``none`` with identities, else ``attention``.
        tokens: K of ``attention``.
        hidden: width of the hidden layers and of the gate.
        layers: hidden layers of the perceptron; 0 is one linear map.
        dropout: after each hidden layer.
        input_dropout: on the stored features.
        activation: ``gelu``, ``relu``, ``elu`` or ``tanh``.
    """

    layouts: ClassVar[tuple[Layout, ...]] = ("vectors",)

    def __init__(
        self,
        *,
        shape: ModalityShape,
        width: int,
        pooling: str | None = None,
        tokens: int = 1,
        hidden: int = 64,
        layers: int = 1,
        dropout: float = 0.3,
        input_dropout: float = 0.2,
        activation: str = "gelu",
    ) -> None:
        super().__init__()
        require_layout("bag", shape.layout, self.layouts)
        chosen = pooling or ("none" if shape.identities else "attention")
        self.pooling = check_choice("pooling", chosen, ("attention", "mean", "none"))
        self.input_dropout = nn.Dropout(check_rate("input_dropout", input_dropout))
        self.body = perceptron(
            shape.features,
            width,
            hidden=check_count("hidden", hidden),
            layers=check_count("layers", layers, least=0),
            dropout=check_rate("dropout", dropout),
            nonlinearity=activation,
        )
        self.identity = nn.Embedding(len(shape.identities), width) if shape.identities else None
        if self.identity is not None:
            nn.init.normal_(self.identity.weight, std=width**-0.5)
        count = check_count("tokens", tokens)
        self.pool = GatedPooling(width, tokens=count, hidden=hidden) if self.pooling == "attention" else None

    def forward(self, tokens: Tensor, token_mask: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, T, F) to (B, K, D)."""
        encoded: Tensor = self.body(self.input_dropout(tokens))
        if self.identity is not None:
            encoded = encoded + self.identity(position[..., 0].long())
        there = token_mask.any(1, keepdim=True)
        if self.pool is not None:
            pooled, _ = self.pool(encoded, token_mask)
            return pooled, there.expand(-1, pooled.shape[1])
        if self.pooling == "mean":
            return masked_mean(encoded, token_mask)[:, None], there
        return encoded, token_mask
