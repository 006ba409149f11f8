"""How the members of a fold are built and fitted."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from medfuse.errors import ConfigError
from medfuse.models import ModelSettings
from medfuse.models.encoders import ALONE
from medfuse.models.settings import Options
from medfuse.training.settings import TrainSettings


@dataclass(frozen=True, kw_only=True)
class FoldSettings:
    """How the members of a fold are built and fitted.

    Attributes:
        model: encoders, fusion, width.
        heads: per outcome ``{"name": ..., **options}``; others get the head of their kind.
        train: of every member.
        seeds: one member per seed and inner fold.
        committee: further fusions; the joint networks of the seeds take turns, the first seed having the model's own.
            What differs in design errs differently, and the average gains more than by another seed. Where there are
            fewer seeds than fusions, the last ones are not fitted.
        unimodal: beside the joint network, fit one for each modality alone; inner folds decide what each is worth.
        forests: beside each network of one modality, a random forest of it (:mod:`medfuse.training.forests`), which
            speaks as one more member of the same expert.
        merge: the joint network is the unimodal ones merged (fusion ``lego``), patients need not be paired.
        tune_epochs: with ``merge``, epochs of training together that follow; 0 = none.
        intervals: wanted number of time intervals of survival outcomes.

    Raises:
        ConfigError: ``merge`` without what it needs, or with a committee.
    """

    model: ModelSettings = field(default_factory=ModelSettings)
    heads: Mapping[str, Options] = field(default_factory=dict)
    train: TrainSettings = field(default_factory=TrainSettings)
    seeds: tuple[int, ...] = (0, 1, 2)
    committee: tuple[Options, ...] = ()
    unimodal: bool = True
    forests: bool = False
    merge: bool = False
    tune_epochs: int = 0
    intervals: int = 20

    def __post_init__(self) -> None:
        fusion = str(self.model.fusion.get("name"))
        if self.tune_epochs < 0 or (self.tune_epochs and not self.merge):
            msg = f"train.tune_epochs: expected a number >= 0 and train.merge, found {self.tune_epochs}, {self.merge}"
            raise ConfigError(msg)
        if self.committee and self.merge:
            msg = f"model.committee: expected none with train.merge, found {len(self.committee)} fusions; set it to []"
            raise ConfigError(msg)
        if self.forests and not self.unimodal:
            msg = (
                "train.forests: expected train.unimodal, beside whose networks they stand, found none; set one of them"
            )
            raise ConfigError(msg)
        flattering = next(
            (
                o["name"]
                for o in (*self.model.encoders.values(), *self.model.defaults.values())
                if o.get("name") in ALONE
            ),
            None,
        )
        if flattering:
            msg = f'model.encoders: "{flattering}" is no encoder of a network; set train.forests instead'
            raise ConfigError(msg)
        if self.merge and (fusion != "lego" or not self.unimodal):
            msg = f"train.merge: expected model.fusion.name lego and train.unimodal, found {fusion}, {self.unimodal}"
            raise ConfigError(msg)
        if self.merge and not self.tune_epochs and self.model.fusion.get("combine", "merge") != "merge":
            msg = "model.fusion.combine: stack and weave are trained together after the merge; set train.tune_epochs"
            raise ConfigError(msg)

    def joint(self, seed: int) -> ModelSettings:
        """The joint network of one of ``seeds``."""
        turns = (self.model.fusion, *self.committee)
        return dataclasses.replace(self.model, fusion=turns[self.seeds.index(seed) % len(turns)])
