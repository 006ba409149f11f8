"""Fusions: tokens of all modalities to states of the patient. To add one: a file here and a row in ``FUSIONS``."""

from medfuse.models.fusion.base import Fused, Fusion, Readout
from medfuse.models.fusion.cascade import CascadeFusion
from medfuse.models.fusion.coattention import CoattentionFusion
from medfuse.models.fusion.concat import ConcatFusion
from medfuse.models.fusion.late import LateFusion
from medfuse.models.fusion.latent import LatentFusion
from medfuse.models.fusion.lego import LegoFusion
from medfuse.models.fusion.prime import PrimeFusion
from medfuse.models.fusion.prototype import PrototypeFusion
from medfuse.models.fusion.prototype_additive import AdditivePrototypeFusion
from medfuse.models.fusion.sequential import SequentialFusion
from medfuse.models.fusion.stacked import StackedFusion
from medfuse.models.fusion.transformer import TransformerFusion

FUSIONS: dict[str, type[Fusion]] = {
    "cascade": CascadeFusion,
    "coattention": CoattentionFusion,
    "concat": ConcatFusion,
    "latent": LatentFusion,
    "late": LateFusion,
    "prime": PrimeFusion,
    "sequential": SequentialFusion,
    "stacked": StackedFusion,
    "lego": LegoFusion,
    "prototype": PrototypeFusion,
    "prototype_additive": AdditivePrototypeFusion,
    "transformer": TransformerFusion,
}

__all__ = [
    "FUSIONS",
    "AdditivePrototypeFusion",
    "CascadeFusion",
    "CoattentionFusion",
    "ConcatFusion",
    "Fused",
    "Fusion",
    "LateFusion",
    "LatentFusion",
    "LegoFusion",
    "PrimeFusion",
    "PrototypeFusion",
    "Readout",
    "SequentialFusion",
    "StackedFusion",
    "TransformerFusion",
]
