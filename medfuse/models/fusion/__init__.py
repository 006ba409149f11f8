"""Fusions: tokens of all modalities to states of the patient. To add one: a file here and a row in ``FUSIONS``."""

from medfuse.models.fusion.base import Fused, Fusion, Readout
from medfuse.models.fusion.concat import ConcatFusion
from medfuse.models.fusion.late import LateFusion
from medfuse.models.fusion.lego import LegoFusion
from medfuse.models.fusion.prototype import PrototypeFusion
from medfuse.models.fusion.prototype_additive import AdditivePrototypeFusion
from medfuse.models.fusion.transformer import TransformerFusion

FUSIONS: dict[str, type[Fusion]] = {
    "concat": ConcatFusion,
    "late": LateFusion,
    "lego": LegoFusion,
    "prototype": PrototypeFusion,
    "prototype_additive": AdditivePrototypeFusion,
    "transformer": TransformerFusion,
}

__all__ = [
    "FUSIONS",
    "AdditivePrototypeFusion",
    "ConcatFusion",
    "Fused",
    "Fusion",
    "LateFusion",
    "LegoFusion",
    "PrototypeFusion",
    "Readout",
    "TransformerFusion",
]
