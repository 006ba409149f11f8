"""The averaged members of one outer fold: what they predict, and how they lie on disk."""

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from medfuse.batch import Batch
from medfuse.errors import CohortError, ModelError, StoreError
from medfuse.files import read_json, seal, verify, write_json
from medfuse.models.encoders import Encoder
from medfuse.prediction import Prediction
from medfuse.sample import ModalityData
from medfuse.targets import Survival, Target
from medfuse.training.checkpoint import FORMAT_VERSION, read_arrays, supported, weights_sha256, write_arrays
from medfuse.training.hazard import BaselineHazard, fit_baseline
from medfuse.training.member import (
    Member,
    Samples,
    load_member,
    make_batch,
    predict_batch,
    save_member,
    transform_patients,
)
from medfuse.types import PatientId

_CHUNK = 256
_PREDICTED = ("present", "risk_score", "times", "survival", "probability", "value")
Said = dict[str, dict[str, NDArray[np.float64]]]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """What turns outputs into a survival curve.

    Attributes:
        times: (t,) days; None unless the outcome is survival.
        standard: (members, 2) mean and SD of each member's log hazards, for heads without curves.
        baseline: of the same.
    """

    times: NDArray[np.float64] | None = None
    standard: NDArray[np.float64] | None = None
    baseline: BaselineHazard | None = None


@dataclass(frozen=True, kw_only=True)
class FoldModel:
    """The averaged members of one outer fold.

    Attributes:
        members: all of them; only together they are the model.
        train_ids: patients of the outer training side, so that a seen patient can be flagged.
        modalities: names, in the order of ``present``.
        curves: per outcome, how outputs become curves.
        out_of_fold: per outcome, predictions of the training patients by those members that never saw them.
    """

    members: tuple[Member, ...]
    train_ids: tuple[PatientId, ...]
    modalities: tuple[str, ...]
    curves: Mapping[str, Curve]
    out_of_fold: Mapping[str, Prediction]


def predict_fold(
    fold: FoldModel, data: Mapping[str, ModalityData], ids: Sequence[PatientId], *, device: torch.device | str = "cpu"
) -> dict[str, Prediction]:
    """Predict patients with all members of a fold, averaged.

    Curves, probabilities and values are averaged. The risk score of a survival outcome is minus the mean of the
    averaged curve over its grid; of one whose head has no curves, the mean of the members' log hazards, each
    standardised by its out-of-fold mean and SD.

    Args:
        fold: of :func:`fit_fold` or :func:`load_fold`.
        data: modalities; one that is missing altogether is absent for everyone.
        ids: patients; one without any modality gets the population estimate.
        device: where the members compute.

    Returns:
        Per outcome, predictions in the order of ``ids``.

    Raises:
        ModelError: when there are no patients.
    """
    ids = tuple(ids)
    if not ids:
        msg = "predict: expected patients, found none; check the cohort"
        raise ModelError(msg)
    said: list[tuple[int, tuple[PatientId, ...], Said]] = []
    batches: list[Batch] = []
    inner = None
    for k in sorted(range(len(fold.members)), key=lambda k: fold.members[k].inner):
        member = fold.members[k]
        if member.inner != inner:  # members of one inner fold share their preprocessing
            batches = chunks(member, transform_patients(data, member.preprocessing, ids), ids)
            inner = member.inner
        said.append((k, ids, speak(member, batches, device=device)))
    return {
        outcome: average(
            [(k, rows, one[outcome]) for k, rows, one in said],
            ids=ids,
            present=presence(data, fold.modalities, ids),
            modalities=fold.modalities,
            curve=fold.curves[outcome],
        )
        for outcome in fold.members[0].heads
    }


def encoder_notes(fold: FoldModel) -> tuple[str, ...]:
    """What the members' encoders left out, each once: ``MODALITY: NOTE``."""
    notes: dict[str, None] = {}
    for member in fold.members:
        model = member.build()
        for name, encoder in zip(model.modalities, model.encoders, strict=True):
            notes |= dict.fromkeys(f"{name}: {note}" for note in cast(Encoder, encoder).notes)
    return tuple(notes)


def chunks(member: Member, samples: Samples, ids: Sequence[PatientId]) -> list[Batch]:
    """Batches of at most 256 patients, in the order of ``ids``, as the member reads them."""
    return [
        make_batch(samples, ids[start : start + _CHUNK], shapes=member.shapes) for start in range(0, len(ids), _CHUNK)
    ]


def speak(member: Member, batches: Sequence[Batch], *, device: torch.device | str = "cpu") -> Said:
    """What one member says of the patients of ``batches``, per outcome and kind of output."""
    model = member.build().to(device)
    parts = [predict_batch(model, batch, device=device) for batch in batches]
    return {
        outcome: {key: np.concatenate([part[outcome][key] for part in parts]) for key in parts[0][outcome]}
        for outcome in member.heads
    }


def presence(
    data: Mapping[str, ModalityData], modalities: Sequence[str], ids: Sequence[PatientId]
) -> NDArray[np.bool_]:
    """(n, M) which of ``modalities`` each of ``ids`` has."""
    has = [[m in data and i in data[m].samples for m in modalities] for i in ids]
    return np.array(has, dtype=bool).reshape(len(ids), len(modalities))


def average(
    said: Sequence[tuple[int, tuple[PatientId, ...], dict[str, NDArray[np.float64]]]],
    *,
    ids: tuple[PatientId, ...],
    present: NDArray[np.bool_],
    modalities: tuple[str, ...],
    curve: Curve,
) -> Prediction:
    """Mean over what members say, each of its own patients; of everyone in ``ids`` at least one must speak.

    Args:
        said: number of the member, the patients it speaks of, and its outputs for one outcome.
        ids: n patients.
        present: (n, M).
        modalities: M names.
        curve: of the outcome.
    """
    row_of = {patient: row for row, patient in enumerate(ids)}
    count = np.zeros(len(ids))
    total: dict[str, NDArray[np.float64]] = {}
    for k, patients, outputs in said:
        rows = np.array([row_of[patient] for patient in patients], dtype=np.intp)
        count[rows] += 1
        for key, array in outputs.items():
            values = array
            if key == "risk_score" and curve.standard is not None:
                values = (array - curve.standard[k, 0]) / curve.standard[k, 1]
            total.setdefault(key, np.zeros((len(ids), *array.shape[1:])))[rows] += values
    mean = {key: values / count.reshape(-1, *[1] * (values.ndim - 1)) for key, values in total.items()}
    survival, risk_score = mean.get("survival"), mean["risk_score"]
    if survival is not None:
        survival = np.minimum.accumulate(np.clip(survival, 0, 1), axis=1)
        risk_score = -survival.mean(axis=1)
    elif curve.baseline is not None:
        survival = curve.baseline.survival(risk_score)
    return Prediction(
        patient_ids=ids,
        present=present,
        modalities=modalities,
        risk_score=risk_score,
        times=None if survival is None else curve.times,
        survival=survival,
        probability=mean.get("probability"),
        value=mean.get("value"),
    )


def combine(
    members: Sequence[Member],
    said: Sequence[tuple[int, tuple[PatientId, ...], Said]],
    *,
    train_ids: tuple[PatientId, ...],
    targets: Mapping[str, Target],
    time_grid: Mapping[str, NDArray[np.float64]],
    data: Mapping[str, ModalityData],
) -> FoldModel:
    """Members and what each said of training patients it never saw, as one model.

    Args:
        members: all.
        said: number of the member, the training patients it never saw, its outputs; members without any are left out.
        train_ids: n patients.
        targets: of the same patients.
        time_grid: per survival outcome.
        data: modalities.

    Raises:
        CohortError: when a head needs out-of-fold predictions and there are none.
    """
    spoken_of = {patient for _, patients, _ in said for patient in patients}
    ids = tuple(patient for patient in train_ids if patient in spoken_of)
    index = np.array([row for row, patient in enumerate(train_ids) if patient in spoken_of], dtype=np.intp)
    modalities = tuple(data)
    present = presence(data, modalities, ids)
    curves: dict[str, Curve] = {}
    out_of_fold: dict[str, Prediction] = {}
    for outcome, target in targets.items():
        ours = [(k, patients, one[outcome]) for k, patients, one in said]
        curve = Curve(times=time_grid.get(outcome))
        if isinstance(target, Survival) and members[0].heads[outcome].name == "cox":
            curve = dataclasses.replace(curve, standard=_standard(ours, members=len(members), outcome=outcome))
        if ours:
            found = average(ours, ids=ids, present=present, modalities=modalities, curve=curve)
            if curve.standard is not None and isinstance(target, Survival) and curve.times is not None:
                baseline = fit_baseline(target.take(index), found.risk_score, times=curve.times)
                curve = dataclasses.replace(curve, baseline=baseline)
                found = dataclasses.replace(found, times=curve.times, survival=baseline.survival(found.risk_score))
            out_of_fold[outcome] = found
        curves[outcome] = curve
    return FoldModel(
        members=tuple(members), train_ids=train_ids, modalities=modalities, curves=curves, out_of_fold=out_of_fold
    )


def _standard(
    said: Sequence[tuple[int, tuple[PatientId, ...], dict[str, NDArray[np.float64]]]], *, members: int, outcome: str
) -> NDArray[np.float64]:
    """(members, 2) out-of-fold mean and SD of each member's log hazards; SD 1 where a member says the same of all."""
    found = np.full((members, 2), np.nan)
    for k, _, outputs in said:
        spread = float(outputs["risk_score"].std())
        found[k] = float(outputs["risk_score"].mean()), spread if spread > 0 else 1.0
    if np.isnan(found).any():
        msg = (
            f'outcome "{outcome}", head cox: expected inner out-of-fold patients for every member, found none for one; '
            "use two or more inner folds"
        )
        raise CohortError(msg)
    return found


def save_fold(fold: FoldModel, folder: Path) -> None:
    """Write a fold as a sealed folder; members that are there already, from the fit, are checked and kept.

    Raises:
        StoreError: when it cannot be written, or ``folder`` holds members of another fold.
    """
    names = []
    for member in fold.members:
        names.append(member.name)
        path = folder / "members" / member.name
        if not path.exists():
            save_member(member, path)
        elif weights_sha256(load_member(path).state) != weights_sha256(member.state):
            msg = f"{path}: expected this fold's member or none, found another; choose a new folder"
            raise StoreError(msg)
    arrays: dict[str, NDArray[Any]] = {}
    outcomes = list(fold.curves)
    for number, outcome in enumerate(outcomes):
        curve, found = fold.curves[outcome], fold.out_of_fold.get(outcome)
        parts: dict[str, Any] = {"times": curve.times, "standard": curve.standard}
        if curve.baseline is not None:
            parts |= {"cumulative": curve.baseline.cumulative, "slope": np.array([curve.baseline.slope])}
        if found is not None:
            parts |= {f"oof.{key}": getattr(found, key) for key in _PREDICTED}
        arrays |= {f"{number}.{key}": array for key, array in parts.items() if array is not None}
    write_arrays(folder / "fold.safetensors", arrays)
    oof_ids = next((list(found.patient_ids) for found in fold.out_of_fold.values()), [])
    content = {
        "format_version": FORMAT_VERSION,
        "members": names,
        "train_ids": list(fold.train_ids),
        "out_of_fold_ids": oof_ids,
        "modalities": list(fold.modalities),
        "outcomes": outcomes,
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
        curves, out_of_fold = {}, {}
        for number, outcome in enumerate(content["outcomes"]):
            parts = {k.removeprefix(f"{number}."): v for k, v in arrays.items() if k.startswith(f"{number}.")}
            times, baseline = parts.get("times"), None
            if times is not None and "slope" in parts:
                slope = float(parts["slope"][0])
                baseline = BaselineHazard(times=times, cumulative=parts["cumulative"], slope=slope)
            curves[outcome] = Curve(times=times, standard=parts.get("standard"), baseline=baseline)
            if ids:
                found = {key: parts.get(f"oof.{key}") for key in _PREDICTED}
                out_of_fold[outcome] = Prediction(patient_ids=ids, modalities=modalities, **found)  # type: ignore[arg-type]
        return FoldModel(
            members=tuple(load_member(folder / "members" / name) for name in content["members"]),
            train_ids=tuple(PatientId(i) for i in content["train_ids"]),
            modalities=modalities,
            curves=curves,
            out_of_fold=out_of_fold,
        )
    except (KeyError, TypeError, AttributeError) as error:
        msg = f"{folder / 'fold.json'}: expected the parts of a fold, found others; use the medfuse that wrote it"
        raise StoreError(msg) from error
