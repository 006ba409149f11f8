"""The members of one outer fold as one model: what they predict together, and how they lie on disk."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medfuse.batch import Batch
from medfuse.errors import ConfigError, ModelError, StoreError, nearest
from medfuse.files import read_json, seal, verify, write_json
from medfuse.prediction import Prediction
from medfuse.sample import ModalityData
from medfuse.targets import Labels, Survival, Target, Values
from medfuse.training.balance import balance_notes
from medfuse.training.checkpoint import FORMAT_VERSION, read_arrays, supported, weights_sha256, write_arrays
from medfuse.training.device import enough_memory
from medfuse.training.ensemble import Ensemble, link_of, outputs_of
from medfuse.training.member import Member, load_member, predict_batch, save_member
from medfuse.training.patients import batches_of
from medfuse.training.patterns import Patterns
from medfuse.types import PatientId

_PREDICTED = ("risk_score", "times", "survival", "probability", "value")
CHOSEN, JOINT = "chosen", "joint"
Links = dict[str, NDArray[np.float64]]  # by outcome, (n, L)


@dataclass(frozen=True, kw_only=True)
class FoldModel:
    """The members of one outer fold and how they become one model.

    Attributes:
        members: all of them; only together they are the model.
        train_ids: patients of the outer training side, so that a seen patient can be flagged.
        modalities: names, in the order of ``present``.
        ensembles: per outcome, ``chosen`` (the model) and, where there are several experts, ``joint`` and ``unimodal``.
        out_of_fold: like ``ensembles``, predictions of the training patients by those members that never saw them.
        cross_fitted: the same, the experts of each inner fold weighed by the others: what inner scores are of.
        skipped: modalities without an expert of their own, or ``forests``, with the reason.
    """

    members: tuple[Member, ...]
    train_ids: tuple[PatientId, ...]
    modalities: tuple[str, ...]
    ensembles: Mapping[str, Mapping[str, Ensemble]]
    out_of_fold: Mapping[str, Mapping[str, Prediction]]
    cross_fitted: Mapping[str, Mapping[str, Prediction]]
    skipped: Mapping[str, str]

    @property
    def experts(self) -> tuple[str, ...]:
        """Names of the experts: "" is the joint network, the others are modalities."""
        return tuple(dict.fromkeys(member.expert for member in self.members))

    def describe(self, outcome: str) -> list[str]:
        """What the inner folds said of each expert, as lines for a report."""
        e = self.ensembles[outcome][CHOSEN]
        lines = [
            f"{name or 'joint network'}: weight {w:.2f}, inner concordance {s:.3f}"
            for name, w, s in zip(self.experts, e.weight, e.score, strict=True)
        ]
        lines += [f"{name}: left out of the experts: {reason}" for name, reason in self.skipped.items()]
        said = [f"{len(self.members)} members", f"recalibration slope {e.slope:.2f}"]
        if e.patterns is not None:
            said.append(f"{e.patterns.fitted.sum()} of {len(e.patterns.fitted)} availability patterns recalibrated")
        return ["; ".join(said), *lines]


def predict_fold(
    fold: FoldModel,
    data: Mapping[str, ModalityData],
    ids: Sequence[PatientId],
    *,
    variant: str = CHOSEN,
    device: torch.device | str = "cpu",
) -> dict[str, Prediction]:
    """Predict patients with all members of a fold; :class:`medfuse.training.ensemble.Ensemble` says how.

    Args:
        fold: of :func:`fit_fold` or :func:`load_fold`.
        data: modalities; one that is missing altogether is absent for everyone.
        ids: patients; one without any modality gets the population estimate.
        variant: ``chosen``, or ``joint`` or ``unimodal`` alone.
        device: where the members compute.

    Returns:
        Per outcome, predictions in the order of ``ids``.

    Raises:
        ModelError: when there are no patients.
        ConfigError: no such variant.
    """
    known = next(iter(fold.ensembles.values()))
    if variant not in known:
        msg = f"predict: no variant {variant!r}; {nearest(variant, known)}"
        raise ConfigError(msg)
    return predict_variants(fold, data, ids, variants=(variant,), device=device)[variant]


def predict_variants(
    fold: FoldModel,
    data: Mapping[str, ModalityData],
    ids: Sequence[PatientId],
    *,
    variants: Sequence[str] | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, dict[str, Prediction]]:
    """As :func:`predict_fold`, for several variants (default: all), whose members are asked once.

    Raises:
        ModelError: when there are no patients.
    """
    ids = tuple(ids)
    if not ids:
        msg = "predict: expected patients, found none; check the cohort"
        raise ModelError(msg)
    links = [(k, np.arange(len(ids)), said) for k, said in _listen(fold.members, data, ids, device=device)]
    present = presence(data, fold.modalities, ids)
    has = reads(fold.experts, fold.modalities, present)
    found: dict[str, dict[str, Prediction]] = {}
    for outcome, ensembles in fold.ensembles.items():
        own = [(k, rows, said[outcome]) for k, rows, said in links]
        kind = KINDS[fold.members[0].heads[outcome].kind]
        for variant in variants or ensembles:
            ensemble = ensembles[variant]
            outputs = outputs_of(ensemble.combine(own, has, shown=present), kind)
            found.setdefault(variant, {})[outcome] = Prediction(
                patient_ids=ids, present=present, modalities=fold.modalities, times=ensemble.times, **outputs
            )
    return found


KINDS: dict[str, type[Target]] = {"survival": Survival, "binary": Labels, "multiclass": Labels, "continuous": Values}


def _listen(
    members: Sequence[Member],
    data: Mapping[str, ModalityData],
    ids: tuple[PatientId, ...],
    *,
    device: torch.device | str,
) -> list[tuple[int, Links]]:
    """What every member says of all of ``ids``; members of one expert and inner fold share their preprocessing."""
    said, shared = [], None
    batches: Sequence[Batch] = []
    for k in sorted(range(len(members)), key=lambda k: (members[k].expert, members[k].inner)):
        member = members[k]
        if (member.expert, member.inner) != shared:
            batches = chunks(member, data, ids)
            shared = (member.expert, member.inner)
        said.append((k, speak(member, batches, device=device)))
    return said


def model_notes(fold: FoldModel) -> tuple[str, ...]:
    """What a reader must know of the members' encoders and fusions, and of their balance, each once."""
    own = dict.fromkeys(note for member in fold.members for note in member.build().notes)
    balanced = [m for m in fold.members if any(key.startswith("strength.") for row in m.history[:1] for key in row)]
    return (*own, *balance_notes(str(member.settings.fusion.get("name")) for member in balanced))


def chunks(member: Member, data: Mapping[str, ModalityData], ids: Sequence[PatientId]) -> Sequence[Batch]:
    """Batches of at most 256 patients, in the order of ``ids``, as the member reads them."""
    return batches_of(data, member.preprocessing, ids, shapes=member.shapes)


def speak(member: Member, batches: Sequence[Batch], *, device: torch.device | str = "cpu") -> Links:
    """Link (n, L) of the patients of ``batches`` by one member, per outcome."""
    with enough_memory(f"member {member.name}"):
        model = member.build().to(device)
        parts = [predict_batch(model, batch, device=device) for batch in batches]
    return {outcome: np.concatenate([link_of(part[outcome]) for part in parts]) for outcome in member.heads}


def presence(
    data: Mapping[str, ModalityData], modalities: Sequence[str], ids: Sequence[PatientId]
) -> NDArray[np.bool_]:
    """(n, M) which of ``modalities`` each of ``ids`` has."""
    has = [[m in data and i in data[m].samples for m in modalities] for i in ids]
    return np.array(has, dtype=bool).reshape(len(ids), len(modalities))


def reads(experts: Sequence[str], modalities: Sequence[str], present: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(E, n) which patients have something that each expert reads."""
    return np.stack([present[:, modalities.index(e)] if e else present.any(axis=1) for e in experts])


def save_fold(fold: FoldModel, folder: Path) -> None:
    """Write a fold as a sealed folder; members that are there already, from the fit, are checked and kept.

    Raises:
        StoreError: when it cannot be written, or ``folder`` holds members of another fold.
    """
    for member in fold.members:
        path = folder / "members" / member.name
        if not path.exists():
            save_member(member, path)
        elif weights_sha256(load_member(path).state) != weights_sha256(member.state):
            msg = f"{path}: expected this fold's member or none, found another; choose a new folder"
            raise StoreError(msg)
    arrays: dict[str, NDArray[Any]] = {}
    for number, outcome in enumerate(fold.ensembles):
        for variant, ensemble in fold.ensembles[outcome].items():
            said = {"oof": fold.out_of_fold[outcome][variant], "crossed": fold.cross_fitted[outcome][variant]}
            parts: dict[str, Any] = {f.name: getattr(ensemble, f.name) for f in fields(ensemble)}
            patterns = parts.pop("patterns")
            if patterns is not None:
                parts |= {f"patterns.{f.name}": getattr(patterns, f.name) for f in fields(patterns)}
            parts |= {f"{name}.{key}": getattr(one, key) for name, one in said.items() for key in _PREDICTED}
            arrays |= {f"{number}.{variant}.{k}": np.atleast_1d(v) for k, v in parts.items() if v is not None}
    first = next(iter(fold.out_of_fold.values()))[CHOSEN]
    arrays["present"] = first.present
    write_arrays(folder / "fold.safetensors", arrays)
    content = {
        "format_version": FORMAT_VERSION,
        "members": [member.name for member in fold.members],
        "train_ids": list(fold.train_ids),
        "out_of_fold_ids": list(first.patient_ids),
        "modalities": list(fold.modalities),
        "outcomes": [[outcome, list(variants)] for outcome, variants in fold.ensembles.items()],  # numbered in order
        "skipped": dict(fold.skipped),
    }
    write_json(folder / "fold.json", content)
    shutil.rmtree(folder / "work", ignore_errors=True)
    seal(folder, {"format_version": FORMAT_VERSION})


def load_fold(folder: Path) -> FoldModel:
    """Read a fold and check every part of it.

    Raises:
        StoreError: damaged, incomplete or of a newer format.
    """
    supported(verify(folder), where=folder)
    content = read_json(folder / "fold.json")
    arrays = read_arrays(folder / "fold.safetensors")
    try:
        ids = tuple(PatientId(i) for i in content["out_of_fold_ids"])
        modalities = tuple(content["modalities"])
        ensembles: dict[str, dict[str, Ensemble]] = {}
        out_of_fold: dict[str, dict[str, Prediction]] = {}
        crossed: dict[str, dict[str, Prediction]] = {}
        for number, (outcome, variants) in enumerate(content["outcomes"]):
            ensembles[outcome], out_of_fold[outcome], crossed[outcome] = {}, {}, {}
            for variant in variants:
                start = f"{number}.{variant}."
                parts: dict[str, Any] = {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}
                oof: dict[str, Any] = {key: parts.pop(f"oof.{key}", None) for key in _PREDICTED}
                other: dict[str, Any] = {key: parts.pop(f"crossed.{key}", None) for key in _PREDICTED}
                numbers = {key: float(parts[key][0]) for key in ("slope", "tuning_score")}
                moved = {f.name: parts.pop(f"patterns.{f.name}", None) for f in fields(Patterns)}
                patterns = None if moved["fitted"] is None else Patterns(**moved)  # folds of before have none
                ensembles[outcome][variant] = Ensemble(**{**parts, **numbers}, patterns=patterns)
                about: dict[str, Any] = {"patient_ids": ids, "present": arrays["present"], "modalities": modalities}
                out_of_fold[outcome][variant] = Prediction(**about, **oof)
                known = other["risk_score"] is not None  # folds of before have none
                crossed[outcome][variant] = Prediction(**about, **(other if known else oof))
        return FoldModel(
            members=tuple(load_member(folder / "members" / name) for name in content["members"]),
            train_ids=tuple(PatientId(i) for i in content["train_ids"]),
            modalities=modalities,
            ensembles=ensembles,
            out_of_fold=out_of_fold,
            cross_fitted=crossed,
            skipped=content["skipped"],
        )
    except (KeyError, TypeError, AttributeError) as error:
        msg = f"{folder / 'fold.json'}: expected the parts of a fold, found others; use the medfuse that wrote it"
        raise StoreError(msg) from error
