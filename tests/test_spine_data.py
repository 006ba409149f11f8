"""From files to modalities: loaders, store, preprocessing, splits, audit, on small made-up cohorts."""

import dataclasses
import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medfuse.audit import audit, fit_isolation, fitted_preprocessing, require_clean
from medfuse.cohort import read_cohort
from medfuse.config import read_card, read_recipe
from medfuse.dataset import load_modalities
from medfuse.errors import CohortError, ConfigError, DataError, LeakError, MedfuseError, StoreError
from medfuse.loaders import LOADERS, RAW
from medfuse.preprocessing import dense_matrix, fit_preprocessing, from_arrays, to_arrays, transform
from medfuse.sample import Column, ModalityData, ModalitySample
from medfuse.splits import Split, generated_splits, inner_folds
from medfuse.store import FeatureStore
from medfuse.stored_table import packed_columns, stored_columns, stored_tokens
from medfuse.types import PatientId

CARD = """---
name: toy
title: A toy cohort
governance: {licence: CC0, source: made up, citation: none, consent: none needed, deidentification: made up}
patients: {file: patients.csv, id: id}
groups: {person: person, site: site}
outcomes:
  death: {kind: survival, time: days, unit: days, event: status, event_codes: ["1"], censored_codes: ["0"]}
modalities:
  clinical:
    loader: tabular
    file: patients.csv
    columns:
      age: {kind: numeric, unit: years}
      stage: {kind: categorical, levels: [I, II, III]}
  genes: {loader: expression, file: genes.csv, columns: "g_*", unit: tpm, log_base: 2}
---

# Toy

Provenance, licence, population, missingness and biases: made up.
"""


def write_cohort(folder: Path, n: int = 60, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    ids = [f"{i:03d}" for i in range(n)]
    rows = ["id,person,site,age,stage,days,status"]
    for i, name in enumerate(ids):
        age = "" if i % 7 == 0 else f"{rng.normal(60, 9):.2f}"
        stage = ["I", "II", "III", ""][i % 4]
        person, site = (f"p{i // 2}", f"s{i // 2}") if i < 4 else (f"p{i}", f"s{i % 6}")
        rows.append(f"{name},{person},{site},{age},{stage},{rng.exponential(500):.1f},{int(i % 3 == 0)}")
    (folder / "patients.csv").write_text("\n".join(rows) + "\n")
    genes = ["id," + ",".join(f"g_G{k}" for k in range(60))]
    genes += [f"{name}," + ",".join(f"{v:.4f}" for v in rng.normal(size=60)) for name in ids[5:]]
    (folder / "genes.csv").write_text("\n".join(genes) + "\n")
    (folder / "toy.md").write_text(CARD)
    return folder / "toy.md"


@pytest.fixture
def toy(tmp_path):
    card = write_cohort(tmp_path)
    cohort = read_cohort(read_card(card), data_root=tmp_path)
    return cohort, load_modalities(cohort, store_root=tmp_path / "store")


def test_ids_stay_text_and_an_absent_modality_is_no_sample(toy):
    cohort, data = toy
    assert cohort.patient_ids[:2] == ("000", "001")
    assert "000" not in data["genes"].samples
    assert len(data["genes"].samples) == 55
    assert data["genes"].columns[0].name == "G0"
    assert data["genes"].columns[0].unit == "log2 tpm"


BAD = [
    ("patients.csv", "id,person", "id,persom", "person"),
    ("patients.csv", "005,p5,s5", ",p5,s5", "id"),
    ("genes.csv", "g_G0,g_G1", "g_G0,g_G0", "G0"),
    ("genes.csv", "g_G0,", "g_1-Sep,", "spreadsheet"),
    ("toy.md", "kind: survival, time: days", "kind: survival, tyme: days", "did you mean"),
    ("toy.md", "time: days", "time: dayz", "dayz"),
    ("toy.md", 'event_codes: ["1"]', 'event_codes: ["7"]', "code"),
    ("toy.md", "file: genes.csv", "file: ../genes.csv", "genes.csv"),
    ("toy.md", "file: genes.csv", "file: /etc/passwd", "passwd"),
    ("toy.md", "licence: CC0", "licence: CC0, sha256: {genes.csv: " + "0" * 64 + "}", "genes.csv"),
]


@pytest.mark.parametrize(("file", "good", "bad", "said"), BAD)
def test_bad_input_is_refused_by_name(tmp_path, file, good, bad, said):
    card = write_cohort(tmp_path)
    text = (tmp_path / file).read_text()
    assert good in text
    (tmp_path / file).write_text(text.replace(good, bad, 1))
    with pytest.raises(MedfuseError, match=said):
        load_modalities(read_cohort(read_card(card), data_root=tmp_path), store_root=tmp_path / "store")
    assert not list((tmp_path / "store").rglob("*tmp*")) if (tmp_path / "store").exists() else True


@pytest.mark.parametrize(("cell", "said"), [("-4", "000"), ("x", "days"), ("4,5", "days")])
def test_a_bad_time_names_its_place(tmp_path, cell, said):
    card = write_cohort(tmp_path)
    lines = (tmp_path / "patients.csv").read_text().splitlines()
    fields = lines[1].split(",")
    fields[5] = f'"{cell}"'
    lines[1] = ",".join(fields)
    (tmp_path / "patients.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises((CohortError, DataError), match=said):
        read_cohort(read_card(card), data_root=tmp_path)


def test_patients_in_are_patients_modelled_plus_listed(tmp_path):
    card = write_cohort(tmp_path)
    lines = (tmp_path / "patients.csv").read_text().splitlines()
    fields = lines[4].split(",")
    fields[5] = fields[6] = ""
    lines[4] = ",".join(fields)
    (tmp_path / "patients.csv").write_text("\n".join(lines) + "\n")
    attrition = read_cohort(read_card(card), data_root=tmp_path).attrition
    assert (attrition.total, attrition.modelled) == (60, 59)
    assert [e.patient_id for e in attrition.excluded] == ["003"]


def test_recipes_refuse_unknown_keys_and_take_overrides():
    assert read_recipe("default", ["train.lr=1e-4"]).train.lr == 1e-4
    with pytest.raises(ConfigError, match=r"did you mean"):
        read_recipe("default", ["train.epoch=3"])


@pytest.mark.parametrize("name", sorted(set(LOADERS) - set(RAW)))
def test_every_loader_reads_its_example_and_refuses_half_of_it(tmp_path, name):
    module = importlib.import_module(LOADERS[name])
    card = module.write_example(tmp_path)
    data = module.read("m", card, resolve=lambda source: tmp_path / source, patients=("id", ""))
    assert set(data.samples) == {"001", "002", "010"}
    for file in [path for path in tmp_path.rglob("*") if path.is_file()]:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2 - 3])
    with pytest.raises(DataError):
        module.read("m", card, resolve=lambda source: tmp_path / source, patients=("id", ""))


@pytest.mark.parametrize("part", ["cells.npy", "position.npy", "index.json", "manifest.json"])
def test_a_damaged_store_entry_is_named_and_rebuilt(toy, part):
    cohort, data = toy
    store = FeatureStore(cohort.data_root / "store")
    key = data["genes"].key
    path = store.path(key) / part
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(StoreError, match=part.split(".")[0]):
        store.get(key)
    again = load_modalities(cohort, store_root=cohort.data_root / "store")
    np.testing.assert_array_equal(again["genes"].samples["010"].tokens, data["genes"].samples["010"].tokens)


def test_preprocessing_reads_train_rows_only_and_survives_the_disk(toy):
    cohort, data = toy
    split = Split(name="x", train=cohort.patient_ids[:40], held_out=cohort.patient_ids[40:])
    assert fit_isolation(fitted_preprocessing, data, split) == ()

    def leaky(modalities, ids):  # a fit that sees everyone is caught
        return fitted_preprocessing(modalities, cohort.patient_ids)

    assert fit_isolation(leaky, data, split)
    fitted = fit_preprocessing(data["clinical"], split.train)
    again = from_arrays(*to_arrays(fitted))
    for field in dataclasses.fields(fitted):
        np.testing.assert_array_equal(getattr(fitted, field.name), getattr(again, field.name))


def test_missing_cells_and_unseen_levels_are_a_state_of_their_own(toy):
    cohort, data = toy
    stage_three = [i for i in cohort.patient_ids if int(i) % 4 == 2]
    train = [i for i in cohort.patient_ids if i not in stage_three]
    fitted = fit_preprocessing(data["clinical"], train)
    assert "stage=III" not in fitted.feature_names
    stage = [k for k, name in enumerate(fitted.feature_names) if name.startswith("stage")]
    tokens = transform(fitted, data["clinical"].samples[stage_three[0]]).tokens
    assert not tokens[stage, 1].any()
    x, present = dense_matrix(fitted, data["clinical"], cohort.patient_ids)
    assert np.isfinite(x).all()
    assert present.sum() == len(data["clinical"].samples)
    assert x.shape[1] > len(fitted.feature_names)  # indicators of missing cells


def test_constant_columns_are_dropped_and_listed(tmp_path):
    card = write_cohort(tmp_path)
    lines = (tmp_path / "genes.csv").read_text().splitlines()
    lines[1:] = [",".join([line.split(",")[0], "1.5", *line.split(",")[2:]]) for line in lines[1:]]
    (tmp_path / "genes.csv").write_text("\n".join(lines) + "\n")
    cohort = read_cohort(read_card(card), data_root=tmp_path)
    data = load_modalities(cohort, store_root=tmp_path / "store")
    assert ("G0", "constant in train") in fit_preprocessing(data["genes"], cohort.patient_ids).dropped


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(folds=st.integers(2, 4), seed=st.integers(0, 99), by_site=st.booleans())
def test_generated_folds_are_disjoint_cover_everyone_and_keep_groups_whole(toy, folds, seed, by_site):
    cohort, _ = toy
    splits = generated_splits(cohort, outcome="death", folds=folds, seed=seed, group_by_site=by_site)
    held = [i for split in splits for i in split.held_out]
    assert sorted(held) == sorted(cohort.patient_ids)
    records = {r.patient_id: r for r in cohort.records}
    for split in splits:
        assert not set(split.train) & set(split.held_out)
        for key in ("person", "site") if by_site else ("person",):
            sides = [{getattr(records[i], key) for i in side} for side in (split.train, split.held_out)]
            assert not sides[0] & sides[1]
        inner = inner_folds(split.train, cohort=cohort, outcome="death", folds=2, seed=seed)
        again = inner_folds(split.train[::-1], cohort=cohort, outcome="death", folds=2, seed=seed)
        assert inner == again
        assert {i for s in inner for i in s.tuning} == set(split.train)


def test_a_patient_on_two_sides_is_named():
    with pytest.raises(CohortError, match="007"):
        Split(name="x", train=("007", "008"), held_out=("009", "007"))


def test_planted_leaks_are_found_and_a_clean_cohort_is_clean(toy):
    cohort, data = toy
    splits = generated_splits(cohort, outcome="death", folds=3, seed=0)
    report = audit(cohort, data, splits, "death")
    assert report.ok, report.to_dict()
    require_clean(report, allow=False)
    a, b = splits[0].train[-1], splits[0].held_out[-1]
    genes = data["genes"]
    samples = {**genes.samples, b: genes.samples[a]}
    doubled = {**data, "genes": dataclasses.replace(genes, samples=samples)}
    found = audit(cohort, doubled, splits, "death")
    assert "duplicate content" in {f.kind for f in found.findings}
    with pytest.raises(LeakError, match=a):
        require_clean(found, allow=False)
    near = genes.samples[a].tokens * np.float32(1.0001)
    near[:, 1] = 1
    samples[b] = dataclasses.replace(genes.samples[a], tokens=near)
    kinds = {
        f.kind for f in audit(cohort, {"genes": dataclasses.replace(genes, samples=samples)}, splits, "death").findings
    }
    assert "near-duplicate profile" in kinds


@pytest.mark.parametrize("what", ["event", "time"])
def test_a_column_that_knows_the_outcome_is_found(toy, what):
    cohort, data = toy
    splits = generated_splits(cohort, outcome="death", folds=3, seed=0)
    truth = getattr(cohort.targets["death"], what).astype(np.float32)
    row = {patient: k for k, patient in enumerate(cohort.patient_ids)}
    samples = {}
    for patient, sample in data["clinical"].samples.items():
        tokens = np.array(sample.tokens)
        tokens[0] = [3 - 2 * truth[row[patient]], 1]
        samples[patient] = dataclasses.replace(sample, tokens=tokens)
    leaky = {"clinical": dataclasses.replace(data["clinical"], samples=samples)}
    report = audit(cohort, leaky, splits, "death")
    finding = next(f for f in report.findings if f.kind == "label-derived column")
    assert finding.evidence == ("age",)
    json.dumps(report.to_dict())


@pytest.mark.parametrize("card", sorted(p.stem for p in (Path(__file__).parents[1] / "data_cards").glob("*.md")))
def test_every_card_is_complete(card):
    found = read_card(card)
    assert found.governance.licence
    assert found.governance.sha256
    for heading in ("Provenance", "Licence", "Population", "Missingness", "biases", "Intended use"):
        assert heading in found.prose


def test_transbig_reads_without_a_download(tmp_path):
    cohort = read_cohort(read_card("transbig"))
    assert len(cohort.records) == 198
    assert cohort.targets["distant_metastasis"].n_events == 51
    data = load_modalities(cohort, store_root=tmp_path)
    assert (len(data["clinical"].columns), len(data["expression"].columns)) == (4, 76)


COUNTS = {
    "tcga_blca": (373, 169),
    "tcga_brca": (956, 130),
    "tcga_gbmlgg": (569, 187),
    "tcga_kirc": (345, 92),
    "tcga_luad": (453, 158),
    "hancock": (763, 213),
}


@pytest.mark.realdata
@pytest.mark.parametrize("card", sorted(COUNTS))
def test_real_cohorts_have_the_counted_patients_and_pass_the_audit(card, tmp_path):
    cohort = read_cohort(read_card(card))
    assert (len(cohort.records), cohort.targets["overall_survival"].n_events) == COUNTS[card]
    data = load_modalities(cohort, store_root=tmp_path)
    splits = generated_splits(cohort, outcome="overall_survival", folds=3, seed=0)
    report = audit(cohort, data, splits, "overall_survival")
    assert report.ok, report.to_dict()


def table_of(values, known):
    position = np.arange(values.shape[1], dtype=np.float32)[:, None]
    samples = {
        PatientId(f"P{k}"): ModalitySample(tokens=np.stack([v, f], axis=1).astype(np.float32), position=position)
        for k, (v, f) in enumerate(zip(values, known, strict=True))
    }
    columns = tuple(Column(name=f"c{k}") for k in range(values.shape[1]))
    return ModalityData(name="t", layout="columns", features=2, columns=columns, samples=samples)


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_a_table_comes_back_to_the_bit_and_takes_no_more_than_its_values(tmp_path, missing):
    rng = np.random.default_rng(0)
    known = rng.random((40, 1000)) >= missing
    known[7] = known[3]  # rows of flags that agree are kept once
    data = table_of(np.where(known, rng.normal(size=known.shape), -0.0), known)
    store = FeatureStore(tmp_path)
    back = store.put(data, key="k" * 64, sources={})
    for patient, sample in data.samples.items():
        found = back.samples[patient]
        assert found.tokens.dtype == np.float32
        assert found.tokens.tobytes() == sample.tokens.tobytes()
        assert found.position.tobytes() == sample.position.tobytes()
        assert found.take([5, 2]).tokens.tobytes() == sample.tokens[[5, 2]].tobytes()
        with pytest.raises(ValueError, match="read-only"):
            found.tokens[0, 0] = 1
    rows = 40 + len(np.unique(known, axis=0))
    assert (store.path("k" * 64) / "cells.npy").stat().st_size == 128 + rows * 4000
    assert store.put(dataclasses.replace(data, samples={}), key="e" * 64, sources={}).samples == {}


def test_columns_come_back_in_order_and_those_of_older_entries_too():
    columns = [Column(name=f"g{k}", unit="log2 tpm") for k in range(3)]
    columns += [Column(name="stage", kind="ordinal", levels=("I", "II")), Column(name="g3", unit="log2 tpm")]
    packed = json.loads(json.dumps(packed_columns(columns)))
    assert [run["names"] for run in packed] == [["g0", "g1", "g2"], ["stage"], ["g3"]]
    found = stored_columns({"columns": packed})
    assert found == tuple(columns)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found[0].name = "x"
    older = [[c.name, c.kind, c.unit, list(c.levels)] for c in columns]
    assert stored_columns({"columns": older}) == found
    assert packed_columns(()) == []


@pytest.mark.parametrize(
    ("names", "shared", "words"),
    [
        (["a", ""], {}, "expected a name"),
        (["a", 3], {}, "expected a name, found int"),
        (["a", "b"], {"kind": "number"}, "numeric, categorical, ordinal, found 'number'"),
        (["a", "b"], {"levels": ["x"]}, "levels of a numeric column"),
        (["a", "b"], {"kind": "ordinal", "levels": ["x", "y", "x"]}, "a level twice"),
    ],
)
def test_a_column_that_cannot_be_is_refused_alone_and_among_many_alike(names, shared, words):
    alone = {**shared, "levels": tuple(shared.get("levels", ()))}
    with pytest.raises(DataError, match=words):
        [Column(name=name, **alone) for name in names]
    with pytest.raises(DataError, match=words):
        Column.alike(names, **shared)
    assert Column.alike([], kind="ordinal") == []


def test_rows_of_flags_that_the_file_lacks_are_refused(tmp_path):
    store = FeatureStore(tmp_path)
    store.put(table_of(np.ones((3, 4)), np.ones((3, 4))), key="k" * 64, sources={})
    for flags in ([3, 3, 4], [-1, 3, 3], [0, 3, 3]):
        with pytest.raises(StoreError, match="another shape"):
            stored_tokens(store.path("k" * 64), {"flags": flags, "lengths": [4] * 3})
