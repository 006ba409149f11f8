"""Genes to pathway tokens: one small network per pathway, all pathways in two batched products."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from medfuse.batch import ModalityShape
from medfuse.errors import ConfigError
from medfuse.models.attention import GatedPooling
from medfuse.models.encoders.base import Encoder, Path, activation, require_layout
from medfuse.models.settings import check_count, check_rate
from medfuse.types import Layout


class PathwayEncoder(Encoder):
    """Pathway token = W2 act(W1 x[genes of the pathway] + b1) + b2, with weights of its own.

    Pathways have different sizes: their genes are gathered with padding to the largest, where padding enters as 0.
    A pathway of which no gene was measured is masked for that patient. Genes outside all pathways are not read.

    Args:
        shape: of the modality, layout ``columns``.
        width: D.
        pathways: names of genes (features) per pathway; default: those of the card's GMT file. Genes that are not in
            the data are left out.
        hidden: width of each pathway's hidden layer.
        dropout: after the hidden layer.
        input_dropout: on the genes.
        activation: ``gelu``, ``relu``, ``elu`` or ``tanh``.
        tokens: 0 keeps one token per pathway; else gated attention pools them to this many.
        least_genes: pathways with fewer measured genes are left out, and listed in ``notes``.

    Pathways stand in the order of their names, whatever the order they were given in.

    Raises:
        ConfigError: no pathways, or none with enough genes in the data.

    References:
        Jaume et al. (2024), Modeling dense multimodal interactions (SurvPath), section 3.2 (pathway tokens).
        NOTE[DIFF]: a hidden layer of 16 with GELU and a linear output instead of two self-normalising layers of 256
        (ELU, alpha dropout), whose 24 million weights are ten times the rest of a model; small pathways are left out.
    """

    layouts: ClassVar[tuple[Layout, ...]] = ("columns",)

    def __init__(
        self,
        *,
        shape: ModalityShape,
        width: int,
        pathways: Mapping[str, Sequence[str]] | None = None,
        hidden: int = 16,
        dropout: float = 0.3,
        input_dropout: float = 0.2,
        activation: str = "gelu",
        tokens: int = 0,
        least_genes: int = 3,
    ) -> None:
        super().__init__()
        require_layout("pathway", shape.layout, self.layouts)
        given = shape.pathways if pathways is None else pathways
        self.pathway_names, index, mask = _gather_table(given, shape, check_count("least_genes", least_genes))
        self.left_out = tuple(sorted(set(given) - set(self.pathway_names)))
        if self.left_out:
            listed = ", ".join(self.left_out[:20]) + (" ..." if len(self.left_out) > 20 else "")
            self.notes = (f"{len(self.left_out)} pathways with fewer than {least_genes} genes left out: {listed}",)
        check_count("hidden", hidden)
        self.index: Tensor
        self.real: Tensor
        self.register_buffer("index", index, persistent=False)  # (N, L)
        self.register_buffer("real", mask, persistent=False)  # (N, L)
        number, longest = index.shape
        bound = mask.sum(1, keepdim=True).float()[..., None] ** -0.5  # fan-in of each pathway
        self.inner = nn.Parameter((torch.rand(number, longest, hidden) * 2 - 1) * bound * mask[..., None])
        self.inner_bias = nn.Parameter(torch.zeros(number, hidden))
        self.outer = nn.Parameter((torch.rand(number, hidden, width) * 2 - 1) * hidden**-0.5)
        self.outer_bias = nn.Parameter(torch.randn(number, width) * width**-0.5)
        self.input_dropout = nn.Dropout(check_rate("input_dropout", input_dropout))
        self.dropout = nn.Dropout(check_rate("dropout", dropout))
        self.activation = _activation(activation)
        check_count("tokens", tokens, least=0)
        self.pool = GatedPooling(width, tokens=tokens, hidden=width) if tokens else None

    def forward(self, tokens: Tensor, token_mask: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, p, 2) to (B, number of pathways or K, D)."""
        return self._encode(*self._gather(tokens, token_mask))

    def path(self, tokens: Tensor, token_mask: Tensor, position: Tensor) -> Path:
        """Every gene of every pathway from its mean in train, 0; pathways of which no gene was measured stay out."""
        genes, mask = self._gather(tokens, token_mask)
        return Path(
            empty=torch.zeros_like(genes),
            full=genes,
            encode=lambda found: self._encode(found, mask),
            unit="edge",
            start="measured genes at their train mean",
            index=self.index,
            names=self.pathway_names,
        )

    def _gather(self, tokens: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, L) genes of the pathways, and (B, N) which pathways have any."""
        value, flag = tokens[..., 0], tokens[..., 1]
        genes = self.input_dropout(value * flag)[:, self.index] * self.real
        return genes, ((flag[:, self.index] > 0) & self.real).any(-1) & token_mask.any(1, keepdim=True)

    def _encode(self, genes: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        inner = torch.einsum("bnl,nlh->bnh", genes, self.inner) + self.inner_bias
        hidden = self.dropout(self.activation(inner))
        encoded = torch.einsum("bnh,nhd->bnd", hidden, self.outer) + self.outer_bias
        if self.pool is None:
            return encoded, mask
        pooled, _ = self.pool(encoded, mask)
        return pooled, mask.any(1, keepdim=True).expand(-1, pooled.shape[1])


_activation = activation  # the option of the same name hides it


def _gather_table(
    pathways: Mapping[str, Sequence[str]], shape: ModalityShape, least: int
) -> tuple[tuple[str, ...], Tensor, Tensor]:
    """Names, padded feature indices (N, L) and their mask, of the pathways with enough features in the data."""
    if not pathways:
        msg = (
            'encoder "pathway": expected gene sets, found none; name a GMT file as gmt of the modality in the card, or '
            "give the option pathways"
        )
        raise ConfigError(msg)
    place = {name: i for i, name in enumerate(shape.names)}
    if len(place) != shape.features:
        msg = (
            f'encoder "pathway": expected {shape.features} distinct feature names, found {len(place)}; '
            "pathways are looked up by gene name"
        )
        raise ConfigError(msg)
    rows = {name: sorted({place[gene] for gene in genes if gene in place}) for name, genes in sorted(pathways.items())}
    rows = {name: members for name, members in rows.items() if len(members) >= least}
    if not rows:
        msg = (
            f'encoder "pathway": expected pathways with at least {least} genes of this modality, found none among '
            f"{len(pathways)}; do both use the same kind of gene names?"
        )
        raise ConfigError(msg)
    longest = max(len(members) for members in rows.values())
    index = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for row, members in enumerate(rows.values()):
        index[row, : len(members)] = torch.tensor(members)
        mask[row, : len(members)] = True
    return tuple(rows), index, mask
