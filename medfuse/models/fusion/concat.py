"""Early fusion: modality summaries side by side, zeros where one is absent, with flags that say so."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medfuse.models.attention import masked_mean
from medfuse.models.encoders.linear import perceptron
from medfuse.models.fusion.base import Fused, Fusion
from medfuse.models.settings import check_count, check_rate


class ConcatFusion(Fusion):
    """[mean token per modality or zeros; presence flags] -> perceptron -> one state.

    Args:
        modalities: names of the M modalities.
        width: D.
        hidden: width of the hidden layer (default D).
        dropout: on the summaries and after the hidden layer.
        activation: ``gelu``, ``relu``, ``elu`` or ``tanh``.
    """

    def __init__(
        self,
        *,
        modalities: Sequence[str],
        width: int,
        hidden: int | None = None,
        dropout: float = 0.3,
        activation: str = "gelu",
    ) -> None:
        super().__init__()
        check_rate("dropout", dropout)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in modalities])
        self.dropout = nn.Dropout(dropout)
        inner = check_count("hidden", width if hidden is None else hidden)
        self.body = perceptron(
            len(modalities) * (width + 1), width, hidden=inner, layers=1, dropout=dropout, nonlinearity=activation
        )

    def forward(self, tokens: Sequence[Tensor], masks: Sequence[Tensor], present: Tensor) -> Fused:
        """One state per patient."""
        parts = [
            torch.where(there[:, None], self.dropout(norm(masked_mean(token, mask))), 0.0)
            for norm, token, mask, there in zip(self.norms, tokens, masks, present.unbind(1), strict=True)
        ]
        flags = present.to(parts[0].dtype)
        state = self.body(torch.cat([*parts, flags], dim=1))[:, None]
        return Fused(states=state, weights=torch.ones_like(state[..., 0]))
