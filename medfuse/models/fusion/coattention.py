"""The tokens of one modality (pathways) and those of the others (tiles) read each other; tiles do not read tiles."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medfuse.errors import ConfigError, nearest
from medfuse.models.attention import masked_mean
from medfuse.models.encoders.linear import perceptron
from medfuse.models.fusion.base import Fused, Fusion
from medfuse.models.fusion.blocks import CrossBlock, late_maps, late_mean, late_residual
from medfuse.models.settings import check_choice, check_count, check_rate


class CoattentionFusion(Fusion):
    """Query tokens g (pathways) read g and the other tokens h (tiles); h reads g; no h reads an h.

    All tokens are normalised and carry an embedding of their modality. The state is a perceptron of the mean token of
    each modality (0 where absent) and of presence flags. The cost is |g| (|g| + 2 |h|). A learned null token stands
    among the keys: where the query modality is absent h reads that, and where the others are g reads itself.

    Args:
        modalities: names of the M modalities.
        width: D, divisible by ``heads``.
        query: the modality whose tokens are g (default the first), or several. A network of one modality takes that.
        scheme: ``survpath``, both directions, or ``mcat``: g reads h alone, and h stays as it is.
        depth: layers.
        heads: attention heads.
        dropout: on residual branches, in the feed-forward layers, on the means.
        token_dropout: on the tokens as they enter.
        residual: add to the state the mean over the present modalities of a linear map of each one's mean token.

    References:
        Jaume et al. (2024), Modeling dense multimodal interactions between biological pathways and histology for
        survival prediction (SurvPath), CVPR; Chen et al. (2021), Multimodal co-attention transformer
        for survival prediction in gigapixel whole slide images (MCAT), ICCV.
        NOTE[DIFF]: pre-norm residual layers with a null token and several heads; masks; presence per patient; more
        than two modalities; in ``mcat`` means instead of transformers and gated pooling after the attention.
    """

    def __init__(
        self,
        *,
        modalities: Sequence[str],
        width: int,
        query: str | Sequence[str] | None = None,
        scheme: str = "survpath",
        depth: int = 1,
        heads: int = 4,
        dropout: float = 0.2,
        token_dropout: float = 0.1,
        residual: bool = False,
    ) -> None:
        super().__init__()
        check_count("depth", depth)
        check_rate("dropout", dropout)
        self.asks = asking(query, modalities)
        self.both = check_choice("scheme", scheme, ("survpath", "mcat")) == "survpath"
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in modalities])
        self.modality = nn.Parameter(torch.randn(len(modalities), width) * width**-0.5)
        self.token_dropout = nn.Dropout(check_rate("token_dropout", token_dropout))

        def layers(number: int) -> nn.ModuleList:
            return nn.ModuleList([CrossBlock(width, heads=heads, ratio=2, dropout=dropout) for _ in range(number)])

        self.alone = all(self.asks)
        self.forth = layers(depth)
        self.back = layers(depth if self.both and not self.alone else 0)
        self.norm_keys = nn.ModuleList([nn.LayerNorm(width) for _ in range(depth)])
        self.after = nn.ModuleList([nn.LayerNorm(width) for _ in modalities])
        self.dropout = nn.Dropout(dropout)
        self.body = perceptron(
            len(modalities) * (width + 1), width, hidden=width, layers=1, dropout=dropout, nonlinearity="gelu"
        )
        self.own = late_maps(modalities if residual else (), width)

    def forward(self, tokens: Sequence[Tensor], masks: Sequence[Tensor], present: Tensor) -> Fused:
        """One state per patient."""
        entered = [
            self.token_dropout(norm(token)) + own
            for norm, token, own in zip(self.norms, tokens, self.modality, strict=True)
        ]
        mixed = self._attend(entered, masks)
        parts = [
            torch.where(there[:, None], self.dropout(norm(masked_mean(token, mask))), 0.0)
            for norm, token, mask, there in zip(self.after, mixed, masks, present.unbind(1), strict=True)
        ]
        state = self.body(torch.cat([*parts, present.to(parts[0].dtype)], dim=1))
        if len(self.own):
            state = state + late_mean(late_residual(self.own, tokens, masks), present)
        return Fused(states=state[:, None], weights=torch.ones_like(state[:, :1]))

    def _attend(self, tokens: Sequence[Tensor], masks: Sequence[Tensor]) -> list[Tensor]:
        """Tokens of every modality after the layers, in the order in which they came."""
        order = sorted(range(len(tokens)), key=lambda m: not self.asks[m])  # those that ask first
        lengths = [tokens[m].shape[1] for m in order]
        split = sum(length for length, m in zip(lengths, order, strict=True) if self.asks[m])
        x = torch.cat([tokens[m] for m in order], dim=1)
        mask = torch.cat([masks[m] for m in order], dim=1)
        first = 0 if self.both or self.alone else split  # where the keys of the asking tokens begin
        for layer, (forth, norm) in enumerate(zip(self.forth, self.norm_keys, strict=True)):
            keys = norm(x)
            asking = forth(x[:, :split], keys[:, first:], mask[:, first:])
            others = x[:, split:]
            if len(self.back):
                others = self.back[layer](others, keys[:, :split], mask[:, :split])
            x = torch.cat([asking, others], dim=1)
        parts = dict(zip(order, torch.split(x, lengths, dim=1), strict=True))
        return [parts[m] for m in range(len(tokens))]


def asking(query: str | Sequence[str] | None, modalities: Sequence[str]) -> list[bool]:
    """Which modalities' tokens ask: the named, the first where none is named, the only one where there is one.

    Raises:
        ConfigError: a name that is no modality, or none in a list.
    """
    if query is None or len(modalities) == 1:
        return [m == 0 for m in range(len(modalities))]
    names = [query] if isinstance(query, str) else [str(name) for name in query]
    for name in names or [""]:
        if name not in modalities:
            msg = f'query: expected names of modalities, found "{name}"; {nearest(name, modalities)}'
            raise ConfigError(msg)
    return [name in names for name in modalities]
