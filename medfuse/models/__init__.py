"""Models: encoders -> fusion -> heads. They know tensors only."""

from medfuse.batch import ModalityShape
from medfuse.models.encoders import ENCODERS, Encoder, default_encoder, encoder_options
from medfuse.models.fusion import FUSIONS, Fused, Fusion, Readout
from medfuse.models.heads import HEADS, Head, default_head
from medfuse.models.increments import increments
from medfuse.models.model import MultimodalModel, build_model
from medfuse.models.settings import HeadSettings, ModelSettings

__all__ = [
    "ENCODERS",
    "FUSIONS",
    "HEADS",
    "Encoder",
    "Fused",
    "Fusion",
    "Head",
    "HeadSettings",
    "ModalityShape",
    "ModelSettings",
    "MultimodalModel",
    "Readout",
    "build_model",
    "default_encoder",
    "default_head",
    "encoder_options",
    "increments",
]
