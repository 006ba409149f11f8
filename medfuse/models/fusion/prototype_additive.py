"""Each prototype adds its own term to every logit, so that contributions are exact."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from medfuse.batch import TargetTensors
from medfuse.errors import ConfigError
from medfuse.models.fusion.base import Fused, Fusion
from medfuse.models.prototype_block import PrototypeBlock
from medfuse.models.prototypes import RiskLevels, cosine, level_loss, top_mean, train_digest
from medfuse.models.settings import check_choice, check_count, check_rate, check_weight

WEIGHTS = {"prototype": 0.1, "apart": 0.1}
_NEAREST = 0.5


class AdditiveBlock(nn.Module):
    """N prototypes per level of risk of one modality, and what each adds to the state.

    Args:
        width: D.
        levels: R.
        each: N prototypes per level.
        dropout: inside the encoder of instances.
    """

    def __init__(self, width: int, *, levels: int, each: int, dropout: float) -> None:
        super().__init__()
        self.store = PrototypeBlock(width, levels=levels * each, dropout=dropout)
        self.store.register_parameter("raw_spread", None)  # these prototypes are points
        self.value = nn.Parameter(torch.randn(levels * each, width) * width**-0.5)

    @property
    def mean(self) -> Tensor:
        """(R N, D) prototypes."""
        return self.store.mean

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """(B, T, R N) similarity of every instance with every prototype."""
        return cosine(self.store.instances(tokens), self.store.mean)


class AdditivePrototypeFusion(Fusion):
    """state = sum over present modalities m and prototypes n of a_mn v_mn, a_mn = mean of the best cosines of a bag.

    Heads are linear, so logit = constant + sum_mn a_mn (w . v_mn): one number per prototype, and a modality that is
    taken away takes exactly its own terms with it. :func:`terms` gives them.

    Args:
        modalities: names of the M modalities.
        width: D.
        levels: R levels of risk of the leading outcome, fitted on train.
        each: N prototypes per level.
        keep: part of a bag's instances that a prototype's cosine is the mean of, rounded up.
        dropout: in the encoders of instances.
        weights: of the terms of the loss: ``prototype`` (near a prototype of the own level, far from those of the
            others) and ``apart`` (cosine of two prototypes of a modality above 0.5).

    References:
        The idea of several prototypes per class that any subset of modalities may serve: Multimodal prototypes for
        open-world segmentation (IJCV 2024). NOTE[DIFF]: survival levels instead of classes of pixels; the terms are
        not normalised over the modalities that are there, so that removing one changes no other.
    """

    def __init__(
        self,
        *,
        modalities: Sequence[str],
        width: int,
        levels: int = 4,
        each: int = 2,
        keep: float = 0.2,
        dropout: float = 0.2,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(keep, int | float) or not 0 < keep <= 1:
            msg = f"prototype_additive: expected keep in (0, 1], found {keep}"
            raise ConfigError(msg)
        for name, weight in (weights or {}).items():
            check_choice("weights", name, tuple(WEIGHTS))
            check_weight(f"weights.{name}", weight)
        self.keep, self.weights = keep, {**WEIGHTS, **(weights or {})}
        self.risk = RiskLevels(check_count("levels", levels, least=2))
        self.each = check_count("each", each)
        self.fitted: Tensor
        self.register_buffer("fitted", torch.zeros(32, dtype=torch.uint8))  # SHA-256 of what begin has read
        rate = check_rate("dropout", dropout)
        self.blocks = nn.ModuleList([AdditiveBlock(width, levels=levels, each=each, dropout=rate) for _ in modalities])

    def begin(
        self,
        tokens: Sequence[Tensor],
        masks: Sequence[Tensor],
        present: Tensor,
        targets: Mapping[str, TargetTensors],
        everyone: Mapping[str, TargetTensors],
    ) -> None:
        """Fit the levels, centre the instances and seed the prototypes on training patients."""
        self.risk.fit(everyone)
        known = self.risk.of(targets)
        share = present.new_zeros(len(present), self.risk.levels, dtype=torch.float32)
        if known is not None:
            share = torch.where(known[1][:, None], known[0], 0.0)
        for block, token, mask in zip(self.prototypes, tokens, masks, strict=True):
            # Patients of a level are dealt out to its prototypes, so that these start apart.
            dealt = functional.one_hot(torch.arange(len(share), device=share.device) % self.each, self.each)
            block.store.begin(token, mask, (share[:, :, None] * dealt[:, None]).flatten(1))
        self.fitted.copy_(train_digest(list(tokens), list(masks), present, everyone))

    def forward(self, tokens: Sequence[Tensor], masks: Sequence[Tensor], present: Tensor) -> Fused:
        """One state per patient; ``parts["activation"]`` (B, M, R N) are the a_mn, zeros where absent."""
        similar = [block(token, mask) for block, token, mask in zip(self.prototypes, tokens, masks, strict=True)]
        activation = torch.stack([top_mean(s, m, keep=self.keep) for s, m in zip(similar, masks, strict=True)], 1)
        activation = torch.where(present[..., None], activation, 0.0)
        state = torch.einsum("bmn,mnd->bd", activation, self.values())[:, None]
        parts = {"present": present, "activation": activation}
        parts |= {f"similarity.{m}": s for m, s in enumerate(similar)}
        parts |= {f"real.{m}": mask for m, mask in enumerate(masks)}
        return Fused(states=state, weights=torch.ones_like(state[..., 0]), parts=parts)

    @property
    def prototypes(self) -> list[AdditiveBlock]:
        """Those of each modality."""
        return cast(list[AdditiveBlock], list(self.blocks))

    def values(self) -> Tensor:
        """(M, R N, D) what each prototype adds to the state when its activation is 1."""
        return torch.stack([block.value for block in self.prototypes])

    def penalties(self, fused: Fused, targets: Mapping[str, TargetTensors]) -> dict[str, Tensor]:
        """The terms that ``weights`` names."""
        found = {"apart": torch.stack([_too_near(block.mean) for block in self.prototypes]).sum()}
        known = self.risk.of(targets)
        if known is not None:
            share, seen = known
            activation = fused.parts["activation"]
            best = activation.reshape(*activation.shape[:2], self.risk.levels, self.each).amax(3)  # (B, M, R)
            rows = fused.parts["present"] & seen[:, None]
            each = [level_loss(best[:, m], share, rows=rows[:, m], used=self.risk.used) for m in range(best.shape[1])]
            found["prototype"] = torch.stack(each).sum()
        return {name: self.weights[name] * term for name, term in found.items()}


def _too_near(prototypes: Tensor) -> Tensor:
    """Mean over pairs of prototypes of how far their cosine exceeds 0.5."""
    unit = functional.normalize(prototypes, dim=1)
    pairs = torch.triu_indices(len(unit), len(unit), offset=1, device=unit.device)
    return ((unit @ unit.T)[pairs[0], pairs[1]] - _NEAREST).clamp(min=0).mean()
