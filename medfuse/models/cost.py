"""What a network costs: its parameters, and the arithmetic of one prediction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from medfuse.batch import Batch
from medfuse.models.model import MultimodalModel


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one network.

    Attributes:
        parameters: numbers that training may change.
        flops: floating-point operations of one prediction, mean over the patients of a batch as they stand: a product
            and a sum count as two. Matrix products, convolutions and attention are counted; what is done number by
            number (norms, activations) and Fourier transforms are not.
    """

    parameters: int
    flops: float


def cost(model: MultimodalModel, batch: Batch) -> Cost:
    """Count parameters, and the arithmetic of predicting a batch; the model is in evaluation afterwards.

    Raises:
        ModelError: when the batch has other modalities than the model.
    """
    with FlopCounter() as counter:
        model.eval().predict(batch)
    return Cost(parameters=sum(p.numel() for p in model.parameters()), flops=counter.total / max(1, len(batch)))


class FlopCounter(TorchDispatchMode):
    """Adds up in ``total`` what torch's own formulas say of every operation that runs.

    torch's ``FlopCounterMode`` also follows modules, which fails without gradients where a learned start goes into one.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # of torch
        self.total = 0

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401  # an operation of torch
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401  # what the operation returns
        del types
        given = dict(kwargs or {})
        out = func(*args, **given)
        packet = func._overloadpacket
        if packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:  # torch has formulas for GPUs alone
            query, key, value = (t.shape for t in args[:3])  # (B, H, Q, D), (B, H, T, D), (B, H, T, D')
            self.total += 2 * query.numel() * key[2] + 2 * query[:3].numel() * value[2:].numel()
        elif packet in flop_registry:
            self.total += int(flop_registry[packet](*args, **given, out_val=out))
        return out
