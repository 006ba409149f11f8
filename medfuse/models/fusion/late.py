"""Late fusion: every modality predicts for itself, and the predictions of those present are averaged."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medfuse.models.attention import masked_mean, masked_softmax
from medfuse.models.fusion.base import Fused, Fusion
from medfuse.models.settings import check_choice, check_rate


class LateFusion(Fusion):
    """One state per modality, its mean token normalised; the last state is a learned one for patients without any.

    Args:
        modalities: names of the M modalities.
        width: D.
        weighting: ``equal`` over the present modalities, or ``learned``: a softmax of one number per modality.
        dropout: on the states.
        norm: normalise the states; without it a state is the mean token as the encoder gives it.
    """

    def __init__(
        self,
        *,
        modalities: Sequence[str],
        width: int,
        weighting: str = "equal",
        dropout: float = 0.1,
        norm: bool = True,
    ) -> None:
        super().__init__()
        check_choice("weighting", weighting, ("equal", "learned"))
        self.norms = nn.ModuleList([nn.LayerNorm(width) if norm else nn.Identity() for _ in modalities])
        self.dropout = nn.Dropout(check_rate("dropout", dropout))
        self.nobody = nn.Parameter(torch.zeros(width))
        self.preference: Tensor | None
        if weighting == "learned":
            self.preference = nn.Parameter(torch.zeros(len(modalities)))
        else:
            self.register_parameter("preference", None)

    def forward(self, tokens: Sequence[Tensor], masks: Sequence[Tensor], present: Tensor) -> Fused:
        """M + 1 states per patient."""
        own = [norm(masked_mean(t, mask)) for norm, t, mask in zip(self.norms, tokens, masks, strict=True)]
        states = torch.stack([*(self.dropout(state) for state in own), self.nobody.expand_as(own[0])], dim=1)
        scores = torch.zeros_like(present, dtype=states.dtype)
        if self.preference is not None:
            scores = scores + self.preference
        weights = masked_softmax(scores, present)
        alone = ~present.any(1, keepdim=True)
        return Fused(states=states, weights=torch.cat([weights, alone.to(weights.dtype)], dim=1))
