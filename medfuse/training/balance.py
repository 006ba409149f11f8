"""Adaptive gradient modulation: modalities that run ahead of their own habit learn more slowly, laggards faster.

Let f(S) be the logits when only the modalities in S are visible, and phi_m the Shapley value of modality m, so that
f(all) = f(none) + sum_m phi_m. The strength s_m is the mean negative log-likelihood of f(none) + phi_m over those who
have m (small = strong), its lead r_m = exp((mean_j s_j - s_m) M / (M - 1)), tau_m the same of the running means of the
epoch, and the gradient through phi_m is multiplied by kappa_m = exp(alpha (tau_m - r_m)). No output changes.

References:
    Li et al. (2023), Boosting multi-modal model performance with adaptive gradient modulation, eqs. 3 to 8.
    NOTE[DIFF]: f(none) is the population's logit, not zero, or every branch of a survival model would be judged by a
    share of the baseline hazard. NOTE[DIFF]: encoders run once, and the muted passes of the fusion carry gradient and
    share the full pass's dropout; without a gradient they would turn the method into a change of the learning rate, and
    with other dropout a modality that a patient lacks would seem to say something. With more than three modalities phi
    is that of two orders, one random and its reverse, which sum exactly as well. Only the logits are modulated: what a
    fusion adds to the loss by readouts and penalties is not.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import permutations

import torch
from torch import Tensor

from medfuse.batch import Batch
from medfuse.models import Fusion, MultimodalModel
from medfuse.models.fusion.transformer import TransformerFusion

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

    def loss(self, model: MultimodalModel, batch: Batch, *, of: Batch | None = None) -> Tensor:
        """The model's training loss, with the same value and modulated gradients.

        Args:
            model: in training.
            batch: with all outcomes of the model.
            of: as in :meth:`medfuse.models.MultimodalModel.loss`.
        """
        with _unpacked(model.fusion):
            tokens, masks = model.encode(batch)
            before = _random_state(batch.device)

            def adjust(logits: Logits) -> Logits:
                after = _random_state(batch.device)
                known = {(True,) * len(self.modalities): logits}

                def visible(subset: tuple[bool, ...]) -> Logits:
                    if subset not in known:
                        _set_random_state(before, batch.device)  # dropout and order of reading of the full pass
                        shown = muted(tokens, masks, batch.present, subset)
                        known[subset] = model.decode(model.fusion(*shown))
                    return known[subset]

                try:
                    return self._modulated(model, batch, visible)
                finally:
                    _set_random_state(after, batch.device)

            return model.loss_of_tokens(tokens, masks, batch, of=of, adjust=adjust)

    def _modulated(self, model: MultimodalModel, batch: Batch, visible: Callable[[tuple[bool, ...]], Logits]) -> Logits:
        phi = shapley(visible, list(self._orders()))
        nobody = visible((False,) * len(self.modalities))
        factors = self._factors(self._strengths(model, batch, phi, nobody))
        return {
            outcome: start + sum(_scaled(p[outcome], k) for p, k in zip(phi, factors, strict=True))
            for outcome, start in nobody.items()
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
    def _strengths(self, model: MultimodalModel, batch: Batch, phi: list[dict[str, Tensor]], nobody: Logits) -> Tensor:
        """(M,) negative log-likelihood of each modality's own share; NaN where nobody in the batch has it.

        Like everything here, it stays on the device: no number is asked for before the epoch ends.
        """
        found = []
        for column, share in enumerate(phi):
            has = batch.present[:, column]
            seen = {name: replace(t, observed=t.observed & has) for name, t in batch.targets.items() if name in share}
            losses = torch.stack([model.head(name).loss(nobody[name] + share[name], t) for name, t in seen.items()])
            known = torch.stack([t.observed.any() for t in seen.values()])
            found.append(torch.where(known, losses, 0.0).sum() / known.sum())
        return torch.stack(found).double()

    def _factors(self, strength: Tensor) -> Tensor:
        """(M,) factors of the gradients; updates the running sums."""
        seen = strength.isfinite()
        strengths, factors, steps = self.sums.to(strength)
        strengths, steps = strengths + torch.where(seen, strength, 0.0), steps + seen
        # Both leads are over the modalities of this batch: over others the means of all would differ, not the habits.
        habit = _leads(torch.where(seen, strengths / steps.clamp(min=1), float("nan")))
        exponent = (self.alpha * (habit - _leads(strength))).clamp(-_CAP, _CAP)
        factor = torch.where(seen, exponent.exp(), 1.0)
        self.sums = torch.stack([strengths, factors + torch.where(seen, factor, 0.0), steps])
        return factor

    def close_epoch(self) -> dict[str, float | None]:
        """Mean strength and factor of each modality in the epoch, which starts anew."""
        *sums, count = self.sums.tolist()
        record: dict[str, float | None] = {}
        for name, values in zip(("strength", "factor"), sums, strict=True):
            for modality, value, steps in zip(self.modalities, values, count, strict=True):
                record[f"{name}.{modality}"] = value / steps if steps else None
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


def muted(
    tokens: Sequence[Tensor], masks: Sequence[Tensor], present: Tensor, subset: Sequence[bool]
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Encodings as a fusion receives them when only the modalities in ``subset`` are visible: zeros, masked.

    Where a patient lacks a modality nothing changes at all, so that muting it changes nothing for him.
    """
    shown = torch.stack([there & seen for there, seen in zip(present.unbind(1), subset, strict=True)], dim=1)
    hidden = (present & ~shown).unbind(1)
    return (
        [
            token if seen else torch.where(gone[:, None, None], 0.0, token)
            for token, gone, seen in zip(tokens, hidden, subset, strict=True)
        ],
        [mask & seen for mask, seen in zip(masks, subset, strict=True)],
        shown,
    )


@contextmanager
def _unpacked(fusion: Fusion) -> Iterator[None]:
    """Without packed attention, which draws dropout for visible tokens alone: no two subsets would share theirs."""
    if not (isinstance(fusion, TransformerFusion) and fusion.packed):
        yield
        return
    fusion.packed = False
    try:
        yield
    finally:
        fusion.packed = True


def _leads(strength: Tensor) -> Tensor:
    """(M,) lead of each modality over the mean; NaN for one without a strength, 1 for all when only one has one."""
    seen = strength.isfinite()
    count = seen.sum()
    mean = torch.where(seen, strength, 0.0).sum() / count
    return ((mean - strength) * count / (count - 1).clamp(min=1)).clamp(-_CAP, _CAP).exp()


def _scaled(value: Tensor, factor: Tensor) -> Tensor:
    """The same value; its gradient times ``factor``."""
    return value.detach() + factor * (value - value.detach())


def balance_notes(fusions: Iterable[str], *, together: bool = True) -> tuple[str, ...]:
    """Where adaptive gradient modulation changes nothing that a modality learns, for whoever asked for it.

    Args:
        fusions: names, of joint networks.
        together: whether these are trained at all, rather than merged from networks of one modality each.
    """
    if not together:
        return ("train.balance: agm has no effect: merged networks are not trained together (train.tune_epochs is 0)",)
    if "stacked" in fusions:
        return ("train.balance: agm reaches no modality of fusion stacked, where each learns by itself",)
    return ()


def _random_state(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _set_random_state(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
