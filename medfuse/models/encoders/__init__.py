"""Encoders: tokens of a modality to tokens of the model. To add one: a file here and a row in ``ENCODERS``."""

from medfuse.batch import ModalityShape
from medfuse.models.encoders.bag import BagEncoder
from medfuse.models.encoders.base import Encoder
from medfuse.models.encoders.linear import LinearEncoder
from medfuse.models.encoders.pathway import PathwayEncoder
from medfuse.models.encoders.prototype_tokens import PrototypeTokensEncoder
from medfuse.models.encoders.table import TableEncoder

ENCODERS: dict[str, type[Encoder]] = {
    "table": TableEncoder,
    "linear": LinearEncoder,
    "bag": BagEncoder,
    "pathway": PathwayEncoder,
    "prototype_tokens": PrototypeTokensEncoder,
}

_MOST_COLUMN_TOKENS = 8


def default_encoder(shape: ModalityShape) -> str:
    """Encoder of a modality whose recipe names none: column tokens while they are few."""
    if shape.layout == "vectors":
        return "bag"
    return "table" if shape.columns <= _MOST_COLUMN_TOKENS else "linear"


__all__ = [
    "ENCODERS",
    "BagEncoder",
    "Encoder",
    "LinearEncoder",
    "PathwayEncoder",
    "PrototypeTokensEncoder",
    "TableEncoder",
    "default_encoder",
]
