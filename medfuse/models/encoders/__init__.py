"""Encoders: tokens of a modality to tokens of the model. To add one: a file here and a row in ``ENCODERS``."""

from typing import Any

from medfuse.batch import ModalityShape
from medfuse.models.encoders.bag import BagEncoder
from medfuse.models.encoders.base import Encoder
from medfuse.models.encoders.ecg_resnet import EcgResnetEncoder
from medfuse.models.encoders.forest import ForestEncoder
from medfuse.models.encoders.linear import LinearEncoder
from medfuse.models.encoders.pathway import PathwayEncoder
from medfuse.models.encoders.prototype_tokens import PrototypeTokensEncoder
from medfuse.models.encoders.table import TableEncoder
from medfuse.models.encoders.volume_resnet import VolumeResnetEncoder
from medfuse.models.settings import ModelSettings

ENCODERS: dict[str, type[Encoder]] = {
    "table": TableEncoder,
    "linear": LinearEncoder,
    "bag": BagEncoder,
    "pathway": PathwayEncoder,
    "prototype_tokens": PrototypeTokensEncoder,
    "ecg_resnet": EcgResnetEncoder,
    "volume_resnet": VolumeResnetEncoder,
}

# Fitted to the outcomes of training patients, whom they therefore flatter: for members of one modality that are made
# without a gradient step (training.forests), and in no recipe's slot.
ALONE: dict[str, type[Encoder]] = {"forest": ForestEncoder}

_MOST_COLUMN_TOKENS = 8
DEFAULTS = ("table", "linear", "bag", "ecg_resnet", "volume_resnet")


def default_encoder(shape: ModalityShape) -> str:
    """Encoder of a modality whose recipe names none: column tokens while they are few, raw items by their axes."""
    if shape.layout == "vectors":
        return {2: "ecg_resnet", 4: "volume_resnet"}.get(len(shape.item), "bag")
    return "table" if shape.columns <= _MOST_COLUMN_TOKENS else "linear"


def encoder_options(settings: ModelSettings, modality: str, shape: ModalityShape) -> dict[str, Any]:
    """Name and options of a modality's encoder: its own, else those that replace its default, else its default."""
    default = default_encoder(shape)
    return {"name": default, **settings.encoders.get(modality, settings.defaults.get(default, {}))}


__all__ = [
    "ALONE",
    "DEFAULTS",
    "ENCODERS",
    "BagEncoder",
    "EcgResnetEncoder",
    "Encoder",
    "ForestEncoder",
    "LinearEncoder",
    "PathwayEncoder",
    "PrototypeTokensEncoder",
    "TableEncoder",
    "VolumeResnetEncoder",
    "default_encoder",
    "encoder_options",
]
