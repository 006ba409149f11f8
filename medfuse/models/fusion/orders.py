"""Orders in which modalities are read one after another: drawn in training, averaged over in evaluation."""

import itertools
from collections.abc import Sequence

import torch

from medfuse.errors import ConfigError, nearest

Order = tuple[int, ...]
SHUFFLED = "shuffled"
_ALL_UP_TO = 3  # modalities; 3! = 6 orders, 4! = 24 would cost more than training


def balanced_orders(m: int) -> tuple[Order, ...]:
    """All orders of up to 3 things; above, the m rotations of 0..m-1 and the m rotations of m-1..0.

    In either set every thing stands equally often at every place, and of every two each comes first equally often.
    """
    if m <= _ALL_UP_TO:
        return tuple(itertools.permutations(range(m)))
    forward = tuple(tuple((k + i) % m for i in range(m)) for k in range(m))
    return (*forward, *(order[::-1] for order in forward))


def draw_order(m: int) -> Order:
    """One order, drawn uniformly from torch's global generator, as dropout is: for training alone.

    That generator is seeded by the fit and saved in its checkpoints; one of the module's own would not be.
    """
    return tuple(int(i) for i in torch.randperm(m))


def fixed_order(order: str | Sequence[str], modalities: Sequence[str]) -> Order | None:
    """Places of the modalities in the named order; None for ``shuffled``.

    A network of one modality has one order, whatever the recipe of the joint network names.

    Raises:
        ConfigError: the names are not those of the modalities, each once.
    """
    if order == SHUFFLED:
        return None
    if len(modalities) == 1:
        return (0,)
    names = [order] if isinstance(order, str) else [str(name) for name in order]
    for name in names:
        if name not in modalities:
            msg = (
                f'order: expected "{SHUFFLED}" or names of the modalities, found "{name}"; {nearest(name, modalities)}'
            )
            raise ConfigError(msg)
    if sorted(names) != sorted(modalities):
        msg = f"order: expected each of {', '.join(modalities)} once, found {', '.join(names)}"
        raise ConfigError(msg)
    return tuple(list(modalities).index(name) for name in names)
