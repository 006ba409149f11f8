"""Trained with every modality, deployed on one: the others are targets of a bottleneck around the prime modality."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from medfuse.batch import TargetTensors
from medfuse.errors import ConfigError, nearest
from medfuse.models.attention import masked_mean
from medfuse.models.encoders.linear import perceptron
from medfuse.models.fusion.base import Fused, Fusion, Readout
from medfuse.models.settings import check_count, check_rate, check_weight


class PrimeFusion(Fusion):
    """x = mean token of the prime modality; code b ~ N(mu(x), sigma(x)^2), mu in evaluation; state LN(x + expand(b)).

    From b one decoder per other modality reconstructs that modality's own state, detached; those states learn from the
    outcome by readouts of their own. A patient without the prime modality gets the mean of the predictions of the own
    states of the others, one without any a learned state.

    Args:
        modalities: names of the M modalities.
        width: D.
        prime: name of the prime modality (default the first). A network of one modality takes that.
        code: numbers in b.
        dropout: on the states and in the perceptrons.
        reconstruction: weight of the mean squared error of the others' states.
        bottleneck: weight of KL(b | N(0, I)), mean over the numbers of b.
        auxiliary: weight of the mean loss of the readouts of the other modalities.

    References:
        Xiao et al. (2024), Neuro-inspired information-theoretic hierarchical perception (ITHP), ICLR.
        NOTE[DIFF]: one bottleneck with a decoder per target instead of a chain whose order must be chosen; learned,
        normalised targets; the mean instead of a sample in evaluation; terms per patient who has prime and target; the
        fallback without the prime. Weights 2 / (8 + 32) = 0.05 for KL and 8 x that for the error are the authors'.
    """

    def __init__(
        self,
        *,
        modalities: Sequence[str],
        width: int,
        prime: str | None = None,
        code: int = 32,
        dropout: float = 0.2,
        reconstruction: float = 0.4,
        bottleneck: float = 0.05,
        auxiliary: float = 0.5,
    ) -> None:
        super().__init__()
        if prime is not None and len(modalities) > 1 and prime not in modalities:
            msg = f'prime: expected the name of a modality, found "{prime}"; {nearest(str(prime), modalities)}'
            raise ConfigError(msg)
        check_rate("dropout", dropout)
        self.prime = 0 if prime is None or prime not in modalities else list(modalities).index(prime)
        self.others = [m for m in range(len(modalities)) if m != self.prime]
        self.reconstruction = check_weight("reconstruction", reconstruction)
        self.bottleneck = check_weight("bottleneck", bottleneck)
        self.auxiliary = check_weight("auxiliary", auxiliary)
        check_count("code", code)

        def body(inputs: int, outputs: int) -> nn.Sequential:
            return perceptron(inputs, outputs, hidden=width, layers=1, dropout=dropout, nonlinearity="gelu")

        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in modalities])
        self.own = nn.ModuleList([nn.Linear(width, width) for _ in self.others])
        self.encode = body(width, 2 * code)
        self.expand = nn.Linear(code, width)
        self.decode = nn.ModuleList([body(code, width) for _ in self.others])
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.nobody = nn.Parameter(torch.zeros(width))

    def uses(self, present: Tensor) -> Tensor:
        """The prime modality alone where it is there, else the others."""
        has = present[:, self.prime, None]
        prime = torch.zeros_like(present)
        prime[:, self.prime] = True
        return present & (prime | ~has)

    def forward(self, tokens: Sequence[Tensor], masks: Sequence[Tensor], present: Tensor) -> Fused:
        """M + 1 states per patient: of every modality, and for patients without any; no readout in evaluation."""
        x = [norm(masked_mean(t, mask)) for norm, t, mask in zip(self.norms, tokens, masks, strict=True)]
        mean, log_variance = self.encode(x[self.prime]).chunk(2, dim=1)
        log_variance = log_variance.clamp(-8.0, 8.0)
        code = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance) if self.training else mean
        states = {m: own(x[m]) for m, own in zip(self.others, self.own, strict=True)}
        states[self.prime] = self.norm(x[self.prime] + self.expand(code))
        ordered = [self.dropout(states[m]) for m in range(len(x))]
        read = self.uses(present).to(mean.dtype)
        weights = torch.cat([read, (~present.any(1, keepdim=True)).to(mean.dtype)], dim=1)
        fused = Fused(
            states=torch.stack([*ordered, self.nobody.to(mean.dtype).expand_as(ordered[0])], dim=1),
            weights=weights / weights.sum(1, keepdim=True),
        )
        if not self.training:
            return fused
        kl = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1.0).mean(1)
        has = present[:, self.prime]
        parts = {"kl": torch.where(has, kl, 0.0), "has": has}
        for m, decode in zip(self.others, self.decode, strict=True):
            target = functional.layer_norm(states[m].detach(), states[m].shape[1:])
            both = has & present[:, m]
            parts[f"both{m}"] = both
            parts[f"error{m}"] = torch.where(both, (decode(code) - target).square().mean(1), 0.0)
        share = self.auxiliary / max(1, len(self.others))
        readouts = [Readout(states=ordered[m], included=present[:, m], weight=share) for m in self.others if share]
        return Fused(states=fused.states, weights=fused.weights, readouts=tuple(readouts), parts=parts)

    def penalties(self, fused: Fused, targets: Mapping[str, TargetTensors]) -> dict[str, Tensor]:
        """``bottleneck``: mean over patients with the prime; ``reconstruction``: mean over (patient, target) pairs."""
        del targets
        parts = fused.parts
        found = {"bottleneck": self.bottleneck * parts["kl"].sum() / parts["has"].sum().clamp(min=1)}
        if self.others:
            error = torch.stack([parts[f"error{m}"] for m in self.others]).sum()
            pairs = torch.stack([parts[f"both{m}"] for m in self.others]).sum()
            found["reconstruction"] = self.reconstruction * error / pairs.clamp(min=1)
        return found
