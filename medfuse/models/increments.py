"""What each modality adds to a prediction, read off the steps of a sequential fusion."""

import torch
from torch import Tensor

from medfuse.batch import Batch
from medfuse.errors import ModelError
from medfuse.models.fusion import SequentialFusion
from medfuse.models.model import MultimodalModel


@torch.no_grad()
def increments(model: MultimodalModel, batch: Batch, outcome: str) -> Tensor:
    """What each modality adds to an outcome's logits, averaged over the orders of reading: (B, M, number of logits).

    Exact: the increments of a patient add up to logits(all present) - logits(none), and those of an absent modality
    are 0. With up to three modalities the orders are all orders, as in Shapley values; those ask besides that the state
    after a set does not depend on the order in which the set was read, which training with shuffled orders approaches.

    Args:
        model: with a ``sequential`` fusion, in evaluation.
        batch: B patients.
        outcome: whose head decodes.

    Raises:
        ModelError: another fusion, a model in training (one order is no average), or no such outcome.
    """
    fusion = model.fusion
    if not isinstance(fusion, SequentialFusion) or model.training:
        mode = "training" if model.training else "evaluation"
        msg = f"increments: expected a sequential fusion in evaluation, found {type(fusion).__name__} in {mode}"
        raise ModelError(msg)
    decode = model.head(outcome)
    steps = decode(model.fuse(batch).parts["path"]).diff(dim=2)  # (B, O, M, L)
    total = torch.zeros_like(steps[:, 0])
    for row, order in enumerate(fusion.orders):
        total[:, list(order)] += steps[:, row]
    return total / len(fusion.orders)
