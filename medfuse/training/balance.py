"""Adaptive gradient modulation: modalities that run ahead of their own habit learn more slowly, laggards faster.

Let f(S) be the logits when only the modalities in S are visible, and phi_m the Shapley value of modality m, so that
f(all) = f(none) + sum_m phi_m. The strength s_m is the mean negative log-likelihood of f(none) + phi_m over those who
have m (small = strong), its lead r_m = exp((mean_j s_j - s_m) M / (M - 1)), tau_m the same of the running means of the
epoch, and the gradient through phi_m is multiplied by kappa_m = exp(alpha (tau_m - r_m)). No output changes.

References:
    Li et al. (2023), Boosting multi-modal model performance with adaptive gradient modulation, eqs. 3 to 8.
    NOTE[DIFF]: f(none) is the population's logit, not zero, or every branch of a survival model would be judged by a
    share of the baseline hazard. NOTE[DIFF]: the muted passes carry gradient and share the full pass's dropout; without
    a gradient they would turn the method into a change of the learning rate, and with other dropout a modality that a
    patient lacks would seem to say something. With more than three modalities phi is that of two orders, one random
    and its reverse, which sum exactly as well.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import permutations
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from medfuse.batch import Batch

if TYPE_CHECKING:
    from medfuse.models import MultimodalModel

Logits = Mapping[str, Tensor]
EXACT = 3  # modalities up to which every order is taken
_CAP = 3.0  # of the exponents: a factor of 20


@dataclass(kw_only=True)
class Balancer:
    """What adaptive gradient modulation keeps between steps.

    Attributes:
        modalities: M names.
        alpha: strength of the modulation; 0 changes nothing.
        draws: order of the modalities where not all orders are taken.
        sums: (3, M) of the epoch so far: strengths, factors, and the number of steps that had the modality.
    """

    modalities: tuple[str, ...]
    alpha: float
    draws: torch.Generator
    sums: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.sums = torch.zeros(3, len(self.modalities), dtype=torch.float64)

    def loss(self, model: "MultimodalModel", batch: Batch) -> Tensor:
        """The model's training loss, with the same value and modulated gradients."""
        before = _random_state(batch.device)

        def adjust(logits: Logits) -> Logits:
            after = _random_state(batch.device)
            try:
                return self._modulated(model, batch, logits, before=before)
            finally:
                _set_random_state(after, batch.device)

        return model.loss(batch, adjust=adjust)

    def _modulated(self, model: "MultimodalModel", batch: Batch, logits: Logits, *, before: list[Tensor]) -> Logits:
        cache: dict[tuple[bool, ...], Logits] = {(True,) * len(self.modalities): logits}

        def visible(subset: tuple[bool, ...]) -> Logits:
            if subset not in cache:
                _set_random_state(before, batch.device)  # the dropout of the full pass
                shown = batch.present & torch.tensor(subset, device=batch.device)
                cache[subset] = model(replace(batch, present=shown))
            return cache[subset]

        phi = shapley(visible, list(self._orders()))
        nobody = visible((False,) * len(self.modalities))
        factors = self._factors(self._strengths(model, batch, phi, nobody))
        return {
            outcome: nobody[outcome] + sum(_scaled(p[outcome], float(k)) for p, k in zip(phi, factors, strict=True))
            for outcome in logits
        }

    def _orders(self) -> Iterator[tuple[int, ...]]:
        m = len(self.modalities)
        if m <= EXACT:
            yield from permutations(range(m))
            return
        order = torch.randperm(m, generator=self.draws).tolist()
        yield tuple(order)
        yield tuple(reversed(order))

    @torch.no_grad()
    def _strengths(
        self, model: "MultimodalModel", batch: Batch, phi: list[dict[str, Tensor]], nobody: Logits
    ) -> Tensor:
        """(M,) negative log-likelihood of each modality's own share; NaN where nobody in the batch has it."""
        found = []
        for column, share in enumerate(phi):
            has = batch.present[:, column]
            seen = {name: replace(t, observed=t.observed & has) for name, t in batch.targets.items()}
            losses = [
                model.head(name).loss(nobody[name] + share[name], seen[name])
                for name in share
                if bool(seen[name].observed.any())
            ]
            found.append(torch.stack(losses).mean() if losses else torch.tensor(float("nan")))
        return torch.stack([value.double().cpu() for value in found])

    def _factors(self, strength: Tensor) -> Tensor:
        """(M,) factors of the gradients; updates the running sums."""
        seen = strength.isfinite()
        self.sums[0] += torch.where(seen, strength, 0.0)
        self.sums[2] += seen
        habit = _leads(torch.where(self.sums[2] > 0, self.sums[0] / self.sums[2].clamp(min=1), float("nan")))
        exponent = (self.alpha * (habit - _leads(strength))).clamp(-_CAP, _CAP)
        factors = torch.where(exponent.isfinite(), exponent.exp(), 1.0)
        self.sums[1] += torch.where(seen, factors, 0.0)
        return factors

    def close_epoch(self) -> dict[str, float | None]:
        """Mean strength and factor of each modality in the epoch, which starts anew."""
        count = self.sums[2].tolist()
        record: dict[str, float | None] = {}
        for row, name in ((0, "strength"), (1, "factor")):
            for column, modality in enumerate(self.modalities):
                value = float(self.sums[row, column])
                record[f"{name}.{modality}"] = value / count[column] if count[column] else None
        self.sums = torch.zeros_like(self.sums)
        return record


def shapley(visible: Callable[[tuple[bool, ...]], Logits], orders: list[tuple[int, ...]]) -> list[dict[str, Tensor]]:
    """Shapley value of each player, per outcome, over the given orders; they sum to f(all) - f(none) exactly.

    Args:
        visible: logits of a subset, given as M flags.
        orders: of the M players; all of them give the exact value.
    """
    m = len(orders[0])
    phi: list[dict[str, Tensor]] = [{} for _ in range(m)]
    for order in orders:
        subset = [False] * m
        for player in order:
            without = visible(tuple(subset))
            subset[player] = True
            gained = visible(tuple(subset))
            for outcome in gained:
                share = (gained[outcome] - without[outcome]) / len(orders)
                phi[player][outcome] = phi[player][outcome] + share if outcome in phi[player] else share
    return phi


def _leads(strength: Tensor) -> Tensor:
    """(M,) lead of each modality over the mean; NaN for one without a strength, 1 for all when only one has one."""
    seen = strength[strength.isfinite()]
    if len(seen) < 2:
        return torch.where(strength.isfinite(), 1.0, float("nan"))
    exponent = (seen.mean() - strength) * len(seen) / (len(seen) - 1)
    return exponent.clamp(-_CAP, _CAP).exp()


def _scaled(value: Tensor, factor: float) -> Tensor:
    """The same value; its gradient times ``factor``."""
    return value if factor == 1.0 else value.detach() + factor * (value - value.detach())


def _random_state(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _set_random_state(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
