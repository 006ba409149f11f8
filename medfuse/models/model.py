"""The model: an encoder per modality, a fusion, a head per outcome."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from medfuse.batch import Batch, ModalityShape, TargetTensors
from medfuse.errors import ConfigError, ModelError, nearest
from medfuse.models.encoders import ALONE, DEFAULTS, ENCODERS, Encoder, encoder_options
from medfuse.models.fusion import FUSIONS, Fused, Fusion
from medfuse.models.heads import HEADS, CoxHead, Head
from medfuse.models.settings import HeadSettings, ModelSettings, construct

_LONG = 256  # tokens; asking how many are padding makes a GPU wait, which shorter bags do not repay


class MultimodalModel(nn.Module):
    """Three slots. Modules stand in lists, in the order of the names, so that any name is allowed.

    What stands in an absent modality's slot or in padding is replaced by zeros at the door and masked from there on.

    Args:
        encoders: by modality.
        fusion: of as many modalities.
        heads: by outcome.

    Attributes:
        begun: what :meth:`begin` would fit stands already, as in a model that goes on from earlier weights.
    """

    def __init__(self, *, encoders: Mapping[str, Encoder], fusion: Fusion, heads: Mapping[str, Head]) -> None:
        super().__init__()
        self.begun = False
        self.modalities = tuple(encoders)
        self.outcomes = tuple(heads)
        self.encoders = nn.ModuleList(encoders.values())
        self.fusion = fusion
        self.heads = nn.ModuleList(heads.values())

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the run must know of encoders (``MODALITY: NOTE``) and fusion."""
        named = zip(self.modalities, self.encoders, strict=True)
        return (
            *(f"{name}: {note}" for name, encoder in named for note in cast(Encoder, encoder).notes),
            *self.fusion.notes,
        )

    @property
    def bags(self) -> tuple[str, ...]:
        """Modalities whose patients differ in the number of tokens."""
        layouts = [cast(Encoder, encoder).layouts for encoder in self.encoders]
        return tuple(name for name, some in zip(self.modalities, layouts, strict=True) if "vectors" in some)

    def fuse(self, batch: Batch) -> Fused:
        """States of the patients; only ``present``, tokens, masks and positions are read.

        Raises:
            ModelError: when the batch has other modalities than the model.
        """
        fused: Fused = self.fusion(*self.encode(batch), batch.present)
        return fused

    @torch.no_grad()
    def begin(self, train: Batch, *, targets: Mapping[str, TargetTensors] | None = None) -> None:
        """Let encoders and fusion fit what must stand before the first step, on training patients alone.

        Args:
            train: training patients, or some of them where not all fit into memory.
            targets: outcomes of all training patients; default those of ``train``.

        Raises:
            ModelError: when the batch has other modalities than the model.
        """
        self._check(train)
        if self.begun:
            return
        self.eval()
        for column, encoder in enumerate(self.encoders):
            cast(Encoder, encoder).begin(*self.door(train, column))
        if type(self.fusion).begin is not Fusion.begin:  # most fit nothing, and encoding the whole cohort is dear
            everyone = train.targets if targets is None else targets
            self.fusion.begin(*self.encode(train), train.present, train.targets, everyone)

    def _check(self, batch: Batch) -> None:
        if batch.modalities != self.modalities:
            msg = f"model: expected modalities {', '.join(self.modalities)}, found {', '.join(batch.modalities)}"
            raise ModelError(msg)

    def door(self, batch: Batch, column: int) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, mask and positions of one modality, zeros wherever nothing real stands."""
        name = self.modalities[column]
        mask = batch.token_mask[name] & batch.present[:, column, None]
        tokens, position = batch.tokens[name], batch.position[name]
        if "vectors" in cast(Encoder, self.encoders[column]).layouts and mask.shape[1] > _LONG:
            # Of a long bag that is part of a larger batch, what is padding for everybody here is not even looked at.
            there = mask.any(0).nonzero()
            length = int(there[-1]) + 1 if len(there) else 1
            mask, tokens, position = mask[:, :length], tokens[:, :length], position[:, :length]
        real = mask[..., None]
        return torch.where(real, tokens, 0.0), mask, torch.where(real, position, 0.0)

    def encode(self, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """Tokens and masks per modality as the fusion receives them; the same whatever else is present.

        Raises:
            ModelError: when the batch has other modalities than the model.
        """
        self._check(batch)
        found = [encoder(*self.door(batch, column)) for column, encoder in enumerate(self.encoders)]
        return [tokens for tokens, _ in found], [mask for _, mask in found]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Logits (B, number of logits) per outcome."""
        return self.decode(self.fuse(batch))

    def decode(self, fused: Fused) -> dict[str, Tensor]:
        """Logits (B, number of logits) per outcome, of states."""
        weights = fused.weights[..., None]  # (B, S, 1)
        return {name: (weights * found).sum(1) for name, found in self._headed(fused.states).items()}

    def _headed(self, states: Tensor) -> dict[str, Tensor]:
        """Logits (..., number of logits) per outcome, of states (..., D); under autocast, too, in full precision.

        In bfloat16 a logit has eight bits, and patients who differ little become ties.
        """
        states = states.float() if states.dtype in (torch.bfloat16, torch.float16) else states
        with torch.autocast(states.device.type, enabled=False):
            return {name: self.head(name)(states) for name in self.outcomes}

    def head(self, outcome: str) -> Head:
        """The head of an outcome.

        Raises:
            ModelError: when the model has no such outcome.
        """
        if outcome not in self.outcomes:
            msg = f'model: no outcome "{outcome}"; {nearest(outcome, self.outcomes)}'
            raise ModelError(msg)
        return cast(Head, self.heads[self.outcomes.index(outcome)])

    def loss(self, batch: Batch, *, of: Batch | None = None) -> Tensor:
        """Mean over the outcomes of each one's loss over its observed patients.

        While training, the readouts of the fusion add the same loss of their states, and the fusion its penalties.

        Args:
            batch: with all outcomes of the model.
            of: the batch that ``batch`` is a micro-batch of; then this is its part of a sum over the micro-batches.
                That sum is the loss of the whole but for what no micro-batch knows: risk sets of Cox's likelihood, and
                whom readouts and penalties are means over.

        Raises:
            ModelError: when the batch lacks a modality or an outcome of the model.
        """
        return self.loss_of_tokens(*self.encode(batch), batch, of=of)

    def loss_of_tokens(
        self,
        tokens: Sequence[Tensor],
        masks: Sequence[Tensor],
        batch: Batch,
        *,
        of: Batch | None = None,
        adjust: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] | None = None,
    ) -> Tensor:
        """As :meth:`loss`, of a batch that is encoded.

        Args:
            tokens: as :meth:`encode` gives them.
            masks: as :meth:`encode` gives them.
            batch: of which ``present`` and the outcomes are read.
            of: as in :meth:`loss`.
            adjust: given the logits, returns equal ones whose gradients differ; for the balance of modalities.

        Raises:
            ModelError: when the batch lacks an outcome of the model.
        """
        for name in self.outcomes:
            if name not in batch.targets:
                msg = f'model: the batch has no outcome "{name}"; {nearest(name, batch.targets)}'
                raise ModelError(msg)
        fused: Fused = (
            self.fusion.told(tokens, masks, batch.present, batch.targets)
            if self.training
            else self.fusion(tokens, masks, batch.present)
        )
        logits: Mapping[str, Tensor] = self.decode(fused)
        shares = None if of is None else self._shares(batch, of)
        total = self.loss_of(logits if adjust is None else adjust(logits), batch.targets, shares=shares)
        if not self.training:
            return total
        for readout in fused.readouts:
            read = self._headed(readout.states)
            seen = {
                name: replace(target, observed=target.observed & readout.included)
                for name, target in batch.targets.items()
            }
            total = total + readout.weight * self.loss_of(read, seen, shares=shares)
        for penalty in self.fusion.penalties(fused, batch.targets).values():
            total = total + (penalty if of is None else penalty * (len(batch) / len(of)))
        return total

    def loss_of(
        self,
        logits: Mapping[str, Tensor],
        targets: Mapping[str, TargetTensors],
        *,
        shares: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Mean over the outcomes of each one's loss, of logits that are known; ``shares`` are factors of the losses."""
        each = [self.head(name).loss(logits[name], targets[name]) for name in self.outcomes]
        if shares is not None:
            each = [loss * shares[name] for loss, name in zip(each, self.outcomes, strict=True)]
        return torch.stack(each).mean()

    def _shares(self, batch: Batch, of: Batch) -> dict[str, Tensor]:
        """Per outcome, the part of those whom the loss of ``of`` is a mean over (Cox: deaths) that ``batch`` has."""

        def count(name: str, target: TargetTensors) -> Tensor:
            deaths = target.event if isinstance(self.head(name), CoxHead) else None
            return (target.observed if deaths is None else target.observed & deaths).sum()

        return {
            name: count(name, batch.targets[name]) / count(name, of.targets[name]).clamp(min=1)
            for name in self.outcomes
        }

    @torch.no_grad()
    def predict(self, batch: Batch) -> dict[str, dict[str, Tensor]]:
        """Predictions per outcome, as ``Head.predict`` gives them; the caller sets ``eval()``."""
        return self.predictions(self(batch))

    @torch.no_grad()
    def predictions(self, logits: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Predictions per outcome, of logits that are known."""
        return {name: self.head(name).predict(said) for name, said in logits.items()}


def build_model(
    settings: ModelSettings, *, shapes: Mapping[str, ModalityShape], heads: Mapping[str, HeadSettings]
) -> MultimodalModel:
    """Build a model; weights are drawn from torch's global generator.

    Args:
        settings: names and options of encoders and fusion.
        shapes: shape per modality, in the order that batches have.
        heads: head per outcome.

    Raises:
        ConfigError: an unknown name or option, an encoder for a modality that is not there, no modality or no outcome.
    """
    if not shapes or not heads:
        msg = f"model: expected at least one modality and one outcome, found {len(shapes)} and {len(heads)}"
        raise ConfigError(msg)
    for name in settings.encoders:
        if name not in shapes:
            msg = f'model.encoders: "{name}" is not a modality of this run; {nearest(name, shapes)}'
            raise ConfigError(msg)
    unknown = next((name for name in settings.defaults if name not in DEFAULTS), None)
    if unknown is not None:
        msg = f'model.defaults: "{unknown}" is no default encoder; {nearest(unknown, DEFAULTS)}'
        raise ConfigError(msg)
    encoders = {
        name: construct(
            ENCODERS if len(shapes) > 1 else {**ENCODERS, **ALONE},
            encoder_options(settings, name, shape),
            where=f"model.encoders.{name}",
            given={"shape": shape, "width": settings.width},
        )
        for name, shape in shapes.items()
    }
    fusion = construct(
        FUSIONS, settings.fusion, where="model.fusion", given={"modalities": tuple(shapes), "width": settings.width}
    )
    built = {
        outcome: construct(
            HEADS,
            {**head.options, "name": head.name},
            where=f"model.head.{outcome}",
            given={"settings": head, "width": settings.width},
        )
        for outcome, head in heads.items()
    }
    return MultimodalModel(encoders=encoders, fusion=fusion, heads=built)
