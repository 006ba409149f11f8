"""MONAI's 3-D residual network on raw volume patches, trained with the rest of the model."""

from collections.abc import Sequence

from torch import Tensor, nn

from medfuse.batch import ModalityShape
from medfuse.errors import ConfigError
from medfuse.models.encoders.items import ItemEncoder, global_mean, groups_of
from medfuse.models.settings import check_count


class VolumeResnetEncoder(ItemEncoder):
    """Raw patches (C, I, J, K) through MONAI's residual blocks to one vector each, then a pooling.

    Norms are GroupNorm: batch statistics would let a patient's neighbours change his result. ``monai`` is imported when
    the encoder is built.

    Args:
        shape: of the modality, items (C, I, J, K), from the extractor ``patches``.
        width: D.
        layers: residual blocks of the four stages (``[1, 1, 1, 1]`` is a ResNet-10, ``[2, 2, 2, 2]`` a ResNet-18).
        filters: of the first stage; each stage doubles them.
        kernel: voxels of the first convolution, odd.
        stride: of the first convolution; 1 for patches of 32 voxels or fewer.
        pooling, tokens: as in ``bag``, over the patches of a patient.
        dropout: before the projection.

    References:
        He et al. (2016), Deep residual learning for image recognition; Hara et al. (2018), Can spatiotemporal 3D CNNs
        retrace the history of 2D CNNs and ImageNet?; Cardoso et al. (2022), MONAI; Wu and He (2018), Group
        normalization.
    """

    name, axes, extractor = "volume_resnet", 4, "patches"

    def __init__(
        self,
        *,
        shape: ModalityShape,
        width: int,
        layers: Sequence[int] = (1, 1, 1, 1),
        filters: int = 16,
        kernel: int = 3,
        stride: int = 1,
        pooling: str = "attention",
        tokens: int = 1,
        dropout: float = 0.2,
    ) -> None:
        if len(layers) != 4:
            msg = f"layers: expected four numbers of blocks, such as [1, 1, 1, 1], found {layers!r}"
            raise ConfigError(msg)
        blocks = [check_count("layers", count) for count in layers]
        sizes = [check_count("filters", filters, least=2) * 2**k for k in range(4)]
        super().__init__(shape=shape, width=width, out=sizes[-1], pooling=pooling, tokens=tokens, dropout=dropout)
        self.body = _stages(blocks, sizes, channels=shape.item[0], kernel=check_count("kernel", kernel), stride=stride)

    def network(self, items: Tensor) -> Tensor:
        """(N, C, I, J, K) to (N, filters of the last stage)."""
        return global_mean(self.body(items))


def _stages(blocks: list[int], sizes: list[int], *, channels: int, kernel: int, stride: int) -> nn.Module:
    """A stem and four stages of MONAI's blocks.

    They are put together here because ``monai.networks.nets.ResNet`` (1.6.1) gives its ``norm`` to the stem alone and
    batch norms to its stages.
    """
    from monai.networks.nets.resnet import ResNetBlock

    taps, step = kernel // 2 * 2 + 1, check_count("stride", stride)
    parts: list[nn.Module] = [
        nn.Conv3d(channels, sizes[0], taps, stride=step, padding=taps // 2, bias=False),
        nn.GroupNorm(groups_of(sizes[0]), sizes[0]),
        nn.ReLU(),
    ]
    inputs = sizes[0]
    for stage, (count, size) in enumerate(zip(blocks, sizes, strict=True)):
        norm = ("group", {"num_groups": groups_of(size)})
        for number in range(count):
            halve = stage > 0 and number == 0
            shortcut: nn.Module | None = None
            if halve:
                shortcut = nn.Sequential(
                    nn.Conv3d(inputs, size, 1, stride=2, bias=False), nn.GroupNorm(groups_of(size), size)
                )
            parts.append(
                ResNetBlock(inputs, size, spatial_dims=3, stride=2 if halve else 1, downsample=shortcut, norm=norm)
            )
            inputs = size
    return nn.Sequential(*parts)
