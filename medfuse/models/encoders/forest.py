"""A forest of small trees with soft splits: what a random forest says, as a differentiable function."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from medfuse.batch import ModalityShape
from medfuse.errors import ConfigError
from medfuse.models.encoders.base import Encoder, require_layout
from medfuse.models.settings import check_count, check_weight
from medfuse.types import Layout


class ForestEncoder(Encoder):
    """Features of one modality -> mean over T trees of the leaves' values, one token of width D.

    A tree of depth d has its 2^d - 1 splits and 2^d leaves at fixed places. At a split a patient goes right with
    probability sigmoid((x - threshold) / softness) and left with the rest; what a tree says is the mean of its leaves,
    weighted by the probabilities of the ways to them. ``medfuse.training.forests`` grows the trees and fills in
    splits and leaves before anything else is fitted; gradients do not change them. Until then they are random.

    A missing cell is 0, the mean of train, and has a flag, as for the encoder ``linear``. A bag is the mean of its
    tokens, per identity where tokens have one.

    Args:
        shape: of the modality; not raw items.
        width: D, numbers that a leaf holds.
        trees: T.
        depth: d.
        softness: of splits, in standard deviations of their features.

    References:
        Breiman (2001), Random forests; Biau, Scornet, Welbl (2019), Neural random forests, section 3, for trees as
        layers of soft splits. NOTE[DIFF]: nothing is trained further.
    """

    layouts: ClassVar[tuple[Layout, ...]] = ("columns", "vectors")
    idle = ("threshold", "leaf")

    def __init__(
        self, *, shape: ModalityShape, width: int, trees: int = 34, depth: int = 6, softness: float = 0.02
    ) -> None:
        super().__init__()
        require_layout("forest", shape.layout, self.layouts)
        self.layouts = (shape.layout,)  # type: ignore[misc]  # of the one that is built
        self.columns = shape.layout == "columns"
        self.identities = max(1, len(shape.identities))
        self.depth, self.softness = check_count("depth", depth), check_weight("softness", softness)
        if not self.softness:
            msg = "softness: expected a number above 0, found 0; take 1e-6 for splits that are as good as hard"
            raise ConfigError(msg)
        self.flagged: Tensor
        missing = range(shape.features) if shape.missing_features is None else shape.missing_features
        self.register_buffer(
            "flagged", torch.tensor(list(missing) if self.columns else [], dtype=torch.int64), persistent=False
        )
        inputs = shape.features + len(self.flagged) if self.columns else self.identities * shape.features
        splits, count = 2**self.depth - 1, check_count("trees", trees)
        self.feature: Tensor
        self.register_buffer("feature", torch.randint(inputs, (count, splits)))
        self.threshold = nn.Parameter(torch.randn(count, splits), requires_grad=False)
        self.leaf = nn.Parameter(torch.randn(count, splits + 1, width), requires_grad=False)

    def inputs(self, tokens: Tensor, token_mask: Tensor, position: Tensor) -> Tensor:
        """(B, q) what splits look at; arguments as for :meth:`forward`."""
        if self.columns:
            value, flag = tokens[..., 0], tokens[..., 1]
            return torch.cat([value * flag, 1.0 - flag.index_select(1, self.flagged)], dim=1)
        which = position[..., 0].long() if self.identities > 1 else torch.zeros_like(token_mask, dtype=torch.int64)
        own = nn.functional.one_hot(which, self.identities).to(tokens.dtype) * token_mask[..., None]  # (B, T, I)
        total = torch.einsum("bti,btf->bif", own, tokens)
        return (total / own.sum(1).clamp(min=1.0)[..., None]).flatten(1)

    def forward(self, tokens: Tensor, token_mask: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """One token (B, 1, D)."""
        x = self.inputs(tokens, token_mask, position)
        right = torch.sigmoid((x[:, self.feature] - self.threshold) / self.softness)  # (B, T, splits)
        way = torch.ones_like(right[..., :1])
        for level in range(self.depth):
            here = right[..., 2**level - 1 : 2 ** (level + 1) - 1]
            way = torch.stack([way * (1 - here), way * here], dim=-1).flatten(2)
        said = torch.einsum("btl,tld->bd", way, self.leaf) / len(self.leaf)
        return said[:, None], token_mask.any(1, keepdim=True)
