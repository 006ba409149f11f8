"""Exact contributions: what each prototype of ``prototype_additive`` adds to the logits of an outcome."""

from dataclasses import dataclass

import torch
from torch import Tensor

from medfuse.batch import Batch
from medfuse.errors import ModelError
from medfuse.models.fusion.prototype_additive import AdditivePrototypeFusion
from medfuse.models.model import MultimodalModel


@dataclass(frozen=True, kw_only=True)
class Terms:
    """Logits of B patients, taken apart without a rest.

    Attributes:
        constant: (L,) logits of a patient without any modality.
        terms: (B, M, N, L) what each prototype of each modality adds; exact zeros for an absent modality.
    """

    constant: Tensor
    terms: Tensor

    @property
    def logits(self) -> Tensor:
        """(B, L) the sum of everything."""
        return self.constant + self.terms.sum((1, 2))

    @property
    def modality(self) -> Tensor:
        """(B, M, L) the sum over a modality's prototypes: what the logit loses when it is taken away."""
        return self.terms.sum(2)


@torch.no_grad()
def terms(model: MultimodalModel, batch: Batch, *, outcome: str) -> Terms:
    """Take the logits of one outcome apart.

    Raises:
        ModelError: another fusion, or no such outcome.
    """
    _additive(model)
    return terms_of(model, model.eval().fuse(batch).parts["activation"], outcome=outcome)


@torch.no_grad()
def terms_of(model: MultimodalModel, activation: Tensor, *, outcome: str) -> Terms:
    """The same of activations (B, M, N) that are known.

    Raises:
        ModelError: another fusion, or no such outcome.
    """
    values, head = _additive(model).values(), model.head(outcome)
    constant = head(torch.zeros_like(values[0, 0]))
    return Terms(constant=constant, terms=activation[..., None] * (head(values) - constant))


def _additive(model: MultimodalModel) -> AdditivePrototypeFusion:
    fusion = model.fusion
    if not isinstance(fusion, AdditivePrototypeFusion):
        msg = f"terms: expected fusion prototype_additive, found {type(fusion).__name__}; others have Shapley values"
        raise ModelError(msg)
    return fusion
