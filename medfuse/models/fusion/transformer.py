"""Tokens of all present modalities attend to each other; a patient token that is always there collects the state."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from medfuse.batch import TargetTensors
from medfuse.models.attention import masked_mean
from medfuse.models.fusion.base import Fused, Fusion, Readout
from medfuse.models.fusion.blocks import Block, late_maps, late_mean, late_residual
from medfuse.models.fusion.recovery import Recovery
from medfuse.models.packing import pack
from medfuse.models.settings import check_count, check_rate, check_weight


class TransformerFusion(Fusion):
    """Pre-norm transformer over the normalised tokens of all modalities plus an embedding of the modality.

    The patient token keeps attention from being masked everywhere, and is the state of a patient without any modality.
    The last layer computes the patient token alone.

    Args:
        modalities: names of the M modalities.
        width: D, divisible by ``heads``.
        depth: layers.
        heads: attention heads.
        ratio: width of the feed-forward layers in units of D.
        dropout: on residual branches and in the feed-forward layers.
        token_dropout: on the tokens as they enter.
        residual: add to the patient token the mean over the present modalities of a linear map of each one's mean
            token: a late fusion beside the attention, which small cohorts fit first.
        unimodal_aux: weight of the mean loss of a readout of each modality alone (0.3 to 1; 0 = none), which keeps a
            strong modality from silencing the others.
        recovery: weight of the loss that trains :class:`Recovery`, whose token then stands for each absent modality
            (1 in the paper; 0 = no such tokens).
        packed: compute real tokens alone, none of absent modalities or padding; the result is the same.
        even: where there are several modalities, the scores of the n real tokens of one are log n smaller, so that each
            has the same share of attention until something else is learned: a bag of eight tokens does not outvote a
            table of one, and a modality whose tokens are all repeated says the same.

    References:
        Vaswani et al. (2017), Attention is all you need; Xiong et al. (2020), On layer normalization in the
        transformer architecture, section 3 (pre-norm).
        ``even``: Bolya et al. (2023), Token merging, eq. 1 (log sizes added to scores), with the opposite sign.
        NOTE[DIFF]: ``unimodal_aux`` is off by default, since each modality has a network of its own in the ensemble.
    """

    def __init__(  # noqa: PLR0913  # options of a recipe
        self,
        *,
        modalities: Sequence[str],
        width: int,
        depth: int = 2,
        heads: int = 4,
        ratio: int = 2,
        dropout: float = 0.2,
        token_dropout: float = 0.1,
        residual: bool = False,
        unimodal_aux: float = 0.0,
        recovery: float = 0.0,
        packed: bool = False,
        even: bool = False,
    ) -> None:
        super().__init__()
        check_count("depth", depth)
        check_count("ratio", ratio)
        check_rate("dropout", dropout)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in modalities])
        self.modality = nn.Parameter(torch.randn(len(modalities), width) * width**-0.5)
        self.patient = nn.Parameter(torch.randn(width) * width**-0.5)
        self.token_dropout = nn.Dropout(check_rate("token_dropout", token_dropout))
        self.blocks = nn.ModuleList([Block(width, heads=heads, ratio=ratio, dropout=dropout) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.unimodal_aux = check_weight("unimodal_aux", unimodal_aux)
        self.alone = late_maps(modalities if unimodal_aux else (), width)
        self.recovery_weight = check_weight("recovery", recovery)
        self.recovery: Recovery | None = None
        if recovery:
            self.recovery = Recovery(modalities, width=width, heads=heads, dropout=dropout)
        self.packed = packed
        self.even = even and len(modalities) > 1  # of one modality there is nothing to weigh
        self.own = late_maps(modalities if residual else (), width)

    def forward(self, tokens: Sequence[Tensor], masks: Sequence[Tensor], present: Tensor) -> Fused:
        """One state per patient."""
        n = len(present)
        normed = [norm(token) for norm, token in zip(self.norms, tokens, strict=True)]
        entered = [self.token_dropout(token) + own for token, own in zip(normed, self.modality, strict=True)]
        seen, parts = list(masks), dict[str, Tensor]()
        if self.recovery is not None:
            summaries = torch.stack([masked_mean(t, mask) for t, mask in zip(normed, masks, strict=True)], dim=1)
            entered.append(self.recovery.tokens(summaries, present) + self.modality)
            seen += torch.split(~present, 1, dim=1)
            if self.training:
                parts["error"], parts["hidden"] = self.recovery.errors(summaries, present)
        x = torch.cat([self.patient.expand(n, 1, -1), *entered], dim=1)
        mask = torch.cat([present.new_ones(n, 1), *seen], dim=1)
        state = self.norm(self._attend(x, mask, even_shares(seen) if self.even else None))
        if len(self.own):
            state = state + late_mean(late_residual(self.own, tokens, masks), present)
        return Fused(
            states=state[:, None],
            weights=torch.ones_like(state[:, :1]),
            readouts=self._alone(normed, masks, present),
            parts=parts,
        )

    def _attend(self, x: Tensor, mask: Tensor, bias: Tensor | None) -> Tensor:
        """The patient token, first of ``x`` (B, T, D), after all layers: (B, D)."""
        *early, last = [cast(Block, block) for block in self.blocks]
        if self.packed:
            packing = pack(mask)
            x = packing.take(x)
            bias = None if bias is None else packing.take(bias[..., None])[:, 0]
            for block in early:
                x = block.packed(x, packing, bias=bias)
            return last.packed(x, packing, first=True, bias=bias)[packing.back]
        for block in early:
            x = block(x, mask, bias=bias)
        out: Tensor = last(x, mask, queries=1, bias=bias)[:, 0]
        return out

    def _alone(self, normed: Sequence[Tensor], masks: Sequence[Tensor], present: Tensor) -> tuple[Readout, ...]:
        """Every modality's linear map of its mean token, as a prediction of its own."""
        if not self.training or not len(self.alone):
            return ()
        return tuple(
            Readout(states=alone(masked_mean(token, mask)), included=there, weight=self.unimodal_aux / len(self.alone))
            for alone, token, mask, there in zip(self.alone, normed, masks, present.unbind(1), strict=True)
        )

    def penalties(self, fused: Fused, targets: Mapping[str, TargetTensors]) -> dict[str, Tensor]:
        """``recovery``: mean squared error of the hidden modalities, over (patient, hidden modality) pairs."""
        del targets
        if "error" not in fused.parts:
            return {}
        error, hidden = fused.parts["error"], fused.parts["hidden"]
        return {"recovery": self.recovery_weight * error.sum() / hidden.sum().clamp(min=1)}


def even_shares(masks: Sequence[Tensor]) -> Tensor:
    """(B, 1 + sum T) minus log n for each of the n real tokens of a modality, 0 for the patient token, which is first.

    Args:
        masks: per modality (B, T), True where a token is real.
    """
    parts = [-mask.sum(1, keepdim=True).clamp(min=1).log().expand_as(mask) for mask in masks]
    return torch.cat([parts[0].new_zeros(len(parts[0]), 1), *parts], dim=1)
