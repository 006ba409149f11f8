"""One member: preprocessing, model and weights, as a folder of safetensors and JSON."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medfuse.batch import Batch, Item, ModalityShape, collate, target_tensors
from medfuse.errors import DataError, ModelError, StoreError
from medfuse.files import new_folder, read_json, seal, verify, write_bytes, write_json
from medfuse.models import HeadSettings, ModelSettings, MultimodalModel, build_model
from medfuse.models.encoders import ALONE
from medfuse.preprocessing import Preprocessing, fit_preprocessing, from_arrays, to_arrays, transform, transform_many
from medfuse.sample import ModalityData, ModalitySample
from medfuse.targets import Target
from medfuse.training.checkpoint import (
    FORMAT_VERSION,
    read_arrays,
    read_tensors,
    supported,
    tensor_bytes,
    write_arrays,
)
from medfuse.training.device import full_precision
from medfuse.types import PatientId

Samples = Mapping[str, Mapping[PatientId, ModalitySample]]


@dataclass(frozen=True, kw_only=True)
class Member:
    """A fitted model with all it needs to read new patients.

    Attributes:
        seed: seed of its fit.
        inner: index of the inner fold it was stopped on.
        preprocessing: per modality, fitted on this member's own training patients.
        shapes: per modality, what the model was built for.
        settings: of the model.
        heads: per outcome.
        state: weights, on the CPU, finite.
        history: per epoch.
        best_epoch: the epoch of the weights.
        expert: "" of the joint network, or the one modality it reads.

    Raises:
        ModelError: when a weight is not finite.
    """

    seed: int
    inner: int
    preprocessing: Mapping[str, Preprocessing]
    shapes: Mapping[str, ModalityShape]
    settings: ModelSettings
    heads: Mapping[str, HeadSettings]
    state: Mapping[str, Tensor]
    history: tuple[dict[str, float | None], ...] = field(default=())
    best_epoch: int = 0
    expert: str = ""

    def __post_init__(self) -> None:
        bad = [name for name, tensor in self.state.items() if not torch.isfinite(tensor).all()]
        if bad:
            msg = f'member: expected finite weights, found NaN or infinity in "{bad[0]}"; fit it again'
            raise ModelError(msg)

    @property
    def forest(self) -> bool:
        """Whether it is a forest; all others are networks."""
        return str(self.settings.encoders.get(self.expert, {}).get("name")) in ALONE

    @property
    def name(self) -> str:
        """Seed, inner fold and, where it reads only one of several, the modality; a forest says so."""
        parts = (f"{self.seed:02d}", f"{self.inner:02d}", self.expert, "forest" if self.forest else "")
        return "-".join(part for part in parts if part)

    def build(self) -> MultimodalModel:
        """The model with its weights, ready to predict."""
        with torch.random.fork_rng(devices=[]):  # initialisation draws; the weights are replaced anyway
            model = build_model(self.settings, shapes=self.shapes, heads=self.heads)
        try:
            model.load_state_dict(dict(self.state))
        except RuntimeError as error:
            msg = f"member {self.name}: expected weights of this model, found others; use the medfuse that wrote it"
            raise StoreError(msg) from error
        return model.eval()


def fit_preprocessings(data: Mapping[str, ModalityData], ids: Sequence[PatientId]) -> dict[str, Preprocessing]:
    """Fit the preprocessing of every modality on patients ``ids`` alone.

    Raises:
        DataError: when a modality cannot be fitted, with its name in a note.
    """
    found = {}
    for name, modality in data.items():
        try:
            found[name] = fit_preprocessing(modality, ids)
        except DataError as error:
            error.add_note(f'modality "{name}", {len(ids)} training patients')
            raise
    return found


def transform_patients(
    data: Mapping[str, ModalityData], preprocessing: Mapping[str, Preprocessing], ids: Sequence[PatientId]
) -> dict[str, dict[PatientId, ModalitySample]]:
    """Preprocessed samples per modality, of those of ``ids`` who have it."""
    found: dict[str, dict[PatientId, ModalitySample]] = {}
    for name, p in preprocessing.items():
        having = [i for i in ids if name in data and i in data[name].samples]
        if p.layout == "columns" and having:
            tokens, _ = transform_many(p, data[name], having)
            position = np.arange(tokens.shape[1], dtype=np.float32)[:, None]
            found[name] = {
                i: ModalitySample(tokens=rows, position=position) for i, rows in zip(having, tokens, strict=True)
            }
        else:
            found[name] = {i: transform(p, data[name].samples[i]) for i in having}
    return found


def shapes_of(preprocessing: Mapping[str, Preprocessing], data: Mapping[str, ModalityData]) -> dict[str, ModalityShape]:
    """What the model has to know of each modality."""
    shapes = {}
    for name, p in preprocessing.items():
        if p.layout == "columns":
            shapes[name] = ModalityShape(
                layout="columns",
                features=len(p.feature_names),
                columns=p.n_columns,
                column_of_feature=tuple(p.column_of_feature.tolist()),
                missing_features=tuple(np.flatnonzero(p.missing).tolist()),
                names=p.feature_names,
                pathways=_surviving(data[name].gene_sets, p.feature_names),
            )
        else:
            position = next(iter(data[name].samples.values())).position
            shapes[name] = ModalityShape(
                layout="vectors",
                features=len(p.feature_names),
                identities=p.identities,
                coordinates=position.shape[1],
                item=p.item,
            )
    return shapes


def _surviving(gene_sets: Mapping[str, Sequence[str]], names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Gene sets cut to the features that preprocessing kept; a set may end up empty, and its encoder says so."""
    kept = set(names)
    return {gene_set: tuple(gene for gene in genes if gene in kept) for gene_set, genes in gene_sets.items()}


def make_batch(
    samples: Samples,
    ids: Sequence[PatientId],
    *,
    shapes: Mapping[str, ModalityShape],
    targets: Mapping[str, Target] | None = None,
) -> Batch:
    """A batch of patients ``ids``; ``targets`` are aligned with them."""
    items = [Item(patient_id=i, samples={m: s[i] for m, s in samples.items() if i in s}) for i in ids]
    batch = collate(items, shapes=shapes)
    if targets is None:
        return batch
    return dataclasses.replace(batch, targets={name: target_tensors(target) for name, target in targets.items()})


@torch.no_grad()
def predict_batch(
    model: MultimodalModel, batch: Batch, *, device: torch.device | str = "cpu"
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """What each head says, as float64 arrays on the CPU; evaluation in full precision, without random draws."""
    with full_precision():
        outputs = model.predict(batch.to(device))
    return {
        outcome: {key: value.detach().double().cpu().numpy() for key, value in said.items()}
        for outcome, said in outputs.items()
    }


def save_member(
    member: Member, folder: Path, *, fingerprint: str = "", more: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """Write a member as a sealed folder, at once or not at all; ``more`` are further JSON parts by name."""
    with new_folder(folder) as temporary:
        write_bytes(temporary / "weights.safetensors", tensor_bytes(member.state))
        arrays: dict[str, NDArray[Any]] = {}
        described: dict[str, Any] = {}
        for name, p in member.preprocessing.items():
            parts, described[name] = to_arrays(p)
            arrays |= {f"{name}/{key}": array for key, array in parts.items()}
        write_arrays(temporary / "preprocessing.safetensors", arrays)
        content = {
            "format_version": FORMAT_VERSION,
            "seed": member.seed,
            "inner": member.inner,
            "modalities": list(member.shapes),  # weights follow these orders, which JSON objects do not keep
            "outcomes": list(member.heads),
            "preprocessing": described,
            "shapes": {name: dataclasses.asdict(shape) for name, shape in member.shapes.items()},
            "settings": dataclasses.asdict(member.settings),
            "heads": {name: dataclasses.asdict(head) for name, head in member.heads.items()},
            "history": list(member.history),
            "best_epoch": member.best_epoch,
            "expert": member.expert,
        }
        for name, part in {"member": content, **(more or {})}.items():
            write_json(temporary / f"{name}.json", part)
        seal(temporary, {"format_version": FORMAT_VERSION, "fingerprint": fingerprint})


def load_member(folder: Path, *, fingerprint: str | None = None) -> Member:
    """Read a member and check every part of it.

    Args:
        folder: as written by :func:`save_member`.
        fingerprint: when given, the member must have been saved with this one.

    Raises:
        StoreError: damaged, of a newer format, or with another fingerprint.
        ModelError: when a weight is not finite.
    """
    manifest = verify(folder)
    supported(manifest, where=folder)
    if fingerprint is not None and manifest.get("fingerprint") != fingerprint:
        msg = f"{folder}: expected a member of these settings, data and seed, found one of others; use another folder"
        raise StoreError(msg)
    content = read_json(folder / "member.json")
    arrays = read_arrays(folder / "preprocessing.safetensors")
    try:
        return Member(
            seed=content["seed"],
            inner=content["inner"],
            preprocessing={
                name: from_arrays(_below(arrays, name), content["preprocessing"][name])
                for name in content["modalities"]
            },
            shapes={name: ModalityShape(**_tuples(content["shapes"][name])) for name in content["modalities"]},
            settings=ModelSettings(**_tuples(content["settings"])),
            heads={name: HeadSettings(**_tuples(content["heads"][name])) for name in content["outcomes"]},
            state=read_tensors(folder / "weights.safetensors"),
            history=tuple(content["history"]),
            best_epoch=content["best_epoch"],
            expert=content["expert"],
        )
    except (KeyError, TypeError, AttributeError) as error:
        msg = f"{folder / 'member.json'}: expected the parts of a member, found others; use the medfuse that wrote it"
        raise StoreError(msg) from error


def _below(arrays: Mapping[str, NDArray[Any]], name: str) -> dict[str, NDArray[Any]]:
    return {key.removeprefix(f"{name}/"): array for key, array in arrays.items() if key.startswith(f"{name}/")}


def _tuples(content: Mapping[str, Any]) -> dict[str, Any]:
    """JSON knows lists only; the settings are frozen, with tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}
