"""A 1-D residual network on raw ECG windows, trained with the rest of the model."""

from torch import Tensor, nn

from medfuse.batch import ModalityShape
from medfuse.models.encoders.items import ItemEncoder, global_mean, groups_of
from medfuse.models.settings import check_count, check_rate


class EcgResnetEncoder(ItemEncoder):
    """Raw windows (leads, samples) through residual blocks of 1-D convolutions to one vector each, then a pooling.

    A stem halves the frequency, every block halves it again and doubles the filters up to ``most_filters``:

        y = act(norm(conv(x)));  out = act(shortcut(x) + norm(conv(dropout(y))))

    Norms are GroupNorm: batch statistics would let a patient's neighbours change his result.

    Args:
        shape: of the modality, items (leads, samples), from the extractor ``windows``.
        width: D.
        blocks: residual blocks.
        filters: of the stem.
        most_filters: no block has more.
        kernel: taps of the convolutions, odd.
        pooling, tokens: as in ``bag``, over the windows of a patient.
        dropout: between the convolutions of a block and before the projection.

    References:
        He et al. (2016), Deep residual learning for image recognition, eqs 1, 2; Ribeiro et al. (2020), Automatic
        diagnosis of the 12-lead ECG using a deep neural network, Nature Communications 11:1760, figure 3 (wide kernels,
        subsampling in every block, dropout inside); Wu and He (2018), Group normalization, eqs 1-7.
    """

    name, axes, extractor = "ecg_resnet", 2, "windows"

    def __init__(
        self,
        *,
        shape: ModalityShape,
        width: int,
        blocks: int = 3,
        filters: int = 16,
        most_filters: int = 64,
        kernel: int = 9,
        pooling: str = "attention",
        tokens: int = 1,
        dropout: float = 0.2,
    ) -> None:
        check_count("blocks", blocks)
        sizes = [min(filters * 2**k, most_filters) for k in range(check_count("filters", filters) and blocks + 1)]
        check_count("most_filters", most_filters, least=filters)
        super().__init__(shape=shape, width=width, out=sizes[-1], pooling=pooling, tokens=tokens, dropout=dropout)
        taps = check_count("kernel", kernel, least=3) // 2 * 2 + 1
        self.stem = nn.Sequential(
            nn.Conv1d(shape.item[0], sizes[0], taps, stride=2, padding=taps // 2, bias=False),
            nn.GroupNorm(groups_of(sizes[0]), sizes[0]),
            nn.ReLU(),
        )
        rate = check_rate("dropout", dropout)
        self.blocks = nn.Sequential(*(_Block(sizes[k], sizes[k + 1], taps=taps, dropout=rate) for k in range(blocks)))

    def network(self, items: Tensor) -> Tensor:
        """(N, leads, samples) to (N, filters of the last block)."""
        return global_mean(self.blocks(self.stem(items)))


class _Block(nn.Module):
    """Two convolutions and a shortcut; the first halves the frequency."""

    def __init__(self, inputs: int, outputs: int, *, taps: int, dropout: float) -> None:
        super().__init__()
        pad = taps // 2
        self.first = nn.Conv1d(inputs, outputs, taps, stride=2, padding=pad, bias=False)
        self.second = nn.Conv1d(outputs, outputs, taps, padding=pad, bias=False)
        self.norms = nn.ModuleList([nn.GroupNorm(groups_of(outputs), outputs) for _ in range(2)])
        self.shortcut = nn.Conv1d(inputs, outputs, 1, stride=2, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, S) to (N, outputs, S / 2, rounded up)."""
        inner = self.dropout(self.act(self.norms[0](self.first(x))))
        out: Tensor = self.act(self.shortcut(x) + self.norms[1](self.second(inner)))
        return out
