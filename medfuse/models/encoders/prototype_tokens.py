"""A bag of any size as C tokens: how much of each kind of instance it has, and how its own differ from train."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from medfuse.batch import ModalityShape
from medfuse.models.encoders.base import Encoder, Path, require_layout
from medfuse.models.prototypes import digest, kmeans
from medfuse.models.settings import check_count, check_rate
from medfuse.types import Layout

_STEP = 4096  # instances of a bag that are looked at together
_SAMPLE = 100_000
_FLOOR = 1e-3


class PrototypeTokensEncoder(Encoder):
    """Summary of a bag by one EM step of a Gaussian mixture that starts at the prototypes of train.

    With prototypes m_c, variances v (per feature, shared by all prototypes) and shares w_c of the train instances, and
    q_ic = softmax_c(log w_c - |x_i - m_c|^2 / 2v):

        n_c = sum_i q_ic          weight_c = (n_c + w_c) / (n + 1)
        mean_c = (m_c + sum_i q_ic x_i) / (1 + n_c)
        variance_c = (v + m_c^2 + sum_i q_ic x_i^2) / (1 + n_c) - mean_c^2

    so that one train-like instance stands behind every prototype and an empty one gives the population. Token c is a
    linear map of [log(weight_c / w_c), (mean_c - m_c) / sqrt v, log(variance_c / v)] plus an embedding of c. The
    summary has no parameters: nothing of the size of the bag is kept for the backward pass.

    Args:
        shape: of the modality, layout ``vectors``.
        width: D.
        prototypes: C.
        dropout: on what is summarised.

    References:
        Song et al. (2024), Morphological prototyping for unsupervised slide representation learning (PANTHER), section
        3; Song et al. (2024), Multimodal prototyping for cancer survival prediction (MMP). NOTE[DIFF]: the start has
        the variance within the clusters of train rather than 1; means and variances enter as differences to train.
    """

    layouts: ClassVar[tuple[Layout, ...]] = ("vectors",)

    def __init__(self, *, shape: ModalityShape, width: int, prototypes: int = 16, dropout: float = 0.2) -> None:
        super().__init__()
        require_layout("prototype_tokens", shape.layout, self.layouts)
        count = check_count("prototypes", prototypes, least=2)
        self.means: Tensor
        self.variance: Tensor
        self.share: Tensor
        self.fitted: Tensor
        self.register_buffer("means", torch.randn(count, shape.features))
        self.register_buffer("variance", torch.ones(shape.features))
        self.register_buffer("share", torch.full((count,), 1 / count))
        self.register_buffer("fitted", torch.zeros(32, dtype=torch.uint8))  # SHA-256 of what begin has read
        self.dropout = nn.Dropout(check_rate("dropout", dropout))
        self.out = nn.Linear(2 * shape.features + 1, width)
        self.kind = nn.Parameter(torch.randn(count, width) * width**-0.5)

    def begin(self, tokens: Tensor, token_mask: Tensor, position: Tensor) -> None:
        """Fit prototypes, their variance and their shares to at most 100,000 instances of train."""
        del position
        found = tokens[token_mask].float()
        if not len(found):
            return
        if len(found) > _SAMPLE:
            found = found[torch.randperm(len(found), device=found.device)[:_SAMPLE]]
        means, nearest = kmeans(found, count=len(self.means))
        self.means.copy_(means)
        self.variance.copy_((found - means[nearest]).square().mean(0).clamp(min=_FLOOR))
        count = torch.bincount(nearest, minlength=len(means)).float() + 1.0
        self.share.copy_(count / count.sum())
        self.fitted.copy_(digest(tokens, token_mask))

    def summary(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weights (B, C), means (B, C, F) and variances (B, C, F) of bags (B, T, F); train's where nothing is real.

        ``mask`` may hold how much of each instance is there, between 0 and 1.
        """
        towards = self.means / self.variance
        # What |x|^2 / 2v would add is the same for all prototypes.
        level = self.share.log() - 0.5 * (self.means * towards).sum(1)
        n = tokens.new_zeros(len(tokens), len(self.means))
        first = tokens.new_zeros(*n.shape, tokens.shape[2])
        second = torch.zeros_like(first)
        for start in range(0, tokens.shape[1], _STEP):
            real = mask[:, start : start + _STEP]
            rows = real.any(1).nonzero()[:, 0]  # those of short bags have nothing here
            if not len(rows):
                continue
            x, real = tokens[:, start : start + _STEP], real[rows]
            x = x if len(rows) == len(x) else x[rows]
            q = ((x @ towards.T + level).softmax(2) * real[..., None]).transpose(1, 2)  # (B', C, T')
            n = n.index_add(0, rows, q.sum(2))
            first = first.index_add(0, rows, q @ x)
            second = second.index_add(0, rows, q @ x.square())
        mean = (self.means + first) / (1.0 + n[..., None])
        square = (self.variance + self.means.square() + second) / (1.0 + n[..., None])
        weight = (n + self.share) / (mask.sum(1, keepdim=True) + 1.0)
        return weight, mean, torch.maximum(square - mean.square(), _FLOOR * self.variance)

    def forward(self, tokens: Tensor, token_mask: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, T, F) to (B, C, D)."""
        del position
        # Without parameters before it, the summary needs a graph only where somebody asks for gradients of the input.
        wanted = tokens.requires_grad or token_mask.requires_grad
        with torch.set_grad_enabled(wanted and torch.is_grad_enabled()):
            with torch.autocast(tokens.device.type, enabled=False):
                weight, mean, variance = self.summary(tokens.float(), token_mask)
            parts = [
                (weight / self.share).log()[..., None],
                (mean - self.means) / self.variance.sqrt(),
                (variance / self.variance).log(),
            ]
            described = torch.cat(parts, dim=2)
        encoded: Tensor = self.out(self.dropout(described)) + self.kind
        return encoded, token_mask.any(1, keepdim=True).expand(-1, len(self.means))

    def path(self, tokens: Tensor, token_mask: Tensor, position: Tensor) -> Path:
        """How much of every instance there is, from 0: the empty bag, which is the population, to 1."""
        there = token_mask.any(1, keepdim=True).expand(-1, len(self.means))
        full = token_mask.to(tokens.dtype)
        return Path(
            empty=torch.zeros_like(full),
            full=full,
            encode=lambda amount: (self(tokens, amount, position)[0], there),
            unit="token",
            start="an empty bag",
            count=full.sum(1).clamp(min=1.0),
        )
