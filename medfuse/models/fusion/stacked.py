"""Every modality learns by itself; on top, a combination with weights >= 0 that cannot reach into them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from medfuse.models.attention import masked_mean, masked_softmax
from medfuse.models.fusion.base import Fused, Fusion, Readout
from medfuse.models.settings import check_rate


class StackedFusion(Fusion):
    """Own state s_m of each modality, trained by its own readout alone; prediction = sum_m w_m head(g_k s_m).

    w is a softmax of one number per modality over those present, and the gain g_k > 0 one number per count k of
    present modalities: a mean of several sources is too timid, which the gain corrects. No gradient of the combined
    prediction reaches encoders or states. The last state is a learned one for patients without any modality.

    The weights are learned on the patients that the modalities were fitted on. The ensemble's ``unimodal`` variant
    (``medfuse.training.ensemble``) weighs networks of single modalities by predictions of patients they never saw, and
    recalibrates them; that is stacking proper, and the one to prefer.

    Args:
        modalities: names of the M modalities.
        width: D.
        dropout: on the mean tokens.

    References:
        Breiman (1996), Stacked regressions (weights >= 0).
        NOTE[DIFF]: weights of the present modalities add up to 1, and are not fitted to out-of-fold predictions.
    """

    def __init__(self, *, modalities: Sequence[str], width: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in modalities])
        self.dropout = nn.Dropout(check_rate("dropout", dropout))
        self.own = nn.ModuleList([nn.Linear(width, width) for _ in modalities])
        self.preference = nn.Parameter(torch.zeros(len(modalities)))
        self.gain = nn.Parameter(torch.full((len(modalities),), 1.0).expm1().log())  # softplus of it is 1
        self.nobody = nn.Parameter(torch.zeros(width))

    def forward(self, tokens: Sequence[Tensor], masks: Sequence[Tensor], present: Tensor) -> Fused:
        """M + 1 states per patient; in training also each modality's own state as a readout."""
        own = [
            body(self.dropout(norm(masked_mean(t, mask))))
            for body, norm, t, mask in zip(self.own, self.norms, tokens, masks, strict=True)
        ]
        count = present.sum(1)
        gain = functional.softplus(self.gain)[(count - 1).clamp(min=0)]  # (B,)
        nobody = self.nobody.expand(len(present), -1)
        kept = [state.detach() if self.training else state for state in own]  # explanations need the gradients
        states = torch.stack([*(gain[:, None] * state for state in kept), nobody], dim=1)
        weights = masked_softmax(self.preference.expand_as(present), present)
        readouts = [
            Readout(states=state, included=there, weight=1.0 / len(own))
            for state, there in zip(own, present.unbind(1), strict=True)
            if self.training
        ]
        return Fused(
            states=states,
            weights=torch.cat([weights, (count == 0)[:, None].to(weights.dtype)], dim=1),
            readouts=tuple(readouts),
        )
