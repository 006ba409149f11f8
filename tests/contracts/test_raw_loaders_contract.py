"""What every loader of raw files promises: its example goes to the store and back, nothing broken goes in silently."""

import shutil

import numpy as np
import pytest

from medfuse import loaders
from medfuse.cohort import read_cohort
from medfuse.config import CohortCard
from medfuse.dataset import load_modalities
from medfuse.extraction import extract
from medfuse.inspection import inspect, recognise
from medfuse.store import FeatureStore

NO_END = {"text"}  # formats that do not say how long they are: half of one is a shorter one


def cohort_of(folder, card):
    """A cohort of three patients, of whom the third has no file of the modality."""
    (folder / "patients.csv").write_text("id,days,died\n001,100,1\n002,250,0\n003,30,1\n")
    content = {
        "name": "example",
        "title": "Example",
        "governance": {
            "licence": "CC0-1.0",
            "source": "write_example",
            "citation": "none",
            "consent": "nobody is in it",
            "deidentification": "nobody is in it",
        },
        "patients": {"file": "patients.csv", "id": "id"},
        "outcomes": {
            "os": {
                "kind": "survival",
                "time": "days",
                "unit": "days",
                "event": "died",
                "event_codes": ["1"],
                "censored_codes": ["0"],
            }
        },
        "modalities": {"m": card.model_dump(exclude_defaults=True)},
    }
    return read_cohort(CohortCard.model_validate(content), data_root=folder)


def raw_files(folder):
    return [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "patients.csv"]


@pytest.fixture(params=sorted(loaders.RAW))
def example(request, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    module = loaders.module_of(request.param, where="test")
    return request.param, cohort_of(folder, module.write_example(folder)), folder, tmp_path / "store"


def test_an_example_goes_to_the_store_and_back(example):
    _, cohort, _, store = example
    data = load_modalities(cohort, store_root=store)["m"]
    assert set(data.samples) == {"001", "002"}
    for sample in data.samples.values():
        assert np.isfinite(sample.tokens).all()
        assert sample.tokens.shape[1] == data.features
        assert np.isfinite(sample.position).all()
    report = extract(cohort, store_root=store)
    assert report.absent == {"m": 1}
    assert {item.status for item in report.items} == {"kept"}


def entries(store):
    return {p.relative_to(store).as_posix(): p.read_bytes() for p in sorted(store.rglob("*")) if p.is_file()}


def test_order_and_workers_change_no_byte_and_a_damaged_entry_is_made_again(example, tmp_path):
    _, cohort, _, store = example
    extract(cohort, store_root=store)
    other = tmp_path / "other"
    extract(cohort.subset(cohort.patient_ids[::-1]), store_root=other, workers=2)
    assert entries(store) == entries(other)
    expected = entries(store)
    for name in list(expected)[::3]:
        content = bytearray(expected[name])
        content[len(content) // 2] ^= 1
        (store / name).write_bytes(content)
    assert not extract(cohort, store_root=store).failed
    assert entries(store) == expected


def test_half_a_file_is_refused_by_name_or_read_the_same_and_stops_nobody_else(example, tmp_path):
    name, cohort, folder, store = example
    whole = {i.patient_id: i.key for i in extract(cohort, store_root=store).items}
    kept = {k: FeatureStore(store).get_item(key).sample.tokens[:] for k, key in whole.items()}
    for number, file in enumerate(p for p in raw_files(folder) if "001" in p.as_posix()):
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
        fresh = tmp_path / f"fresh{number}"
        report = extract(cohort, store_root=fresh)
        assert [i.status for i in report.items if i.patient_id == "002"] == ["stored"] * sum(
            i.patient_id == "002" for i in report.items
        )
        for item in report.items:
            if item.patient_id == "001" and item.status == "failed":
                assert "internal error" not in item.reason
                assert len(item.reason) > 30
            elif item.patient_id == "001" and name not in NO_END:
                np.testing.assert_array_equal(FeatureStore(fresh).get_item(item.key).sample.tokens, kept["001"])
        inspect([folder])
        file.write_bytes(content)


def test_inspect_names_the_loader_and_never_raises(example):
    name, _, folder, _ = example
    found = [one for one in inspect([folder]) if not one.path.endswith("patients.csv")]
    assert {one.loader for one in found} == {name}
    assert not any(one.refusal for one in found)
    assert all(one.holds and one.kind for one in found)
    for file in raw_files(folder):
        assert recognise(file) == name
        file.write_bytes(b"")
    assert all(one.refusal for one in inspect([folder]) if not one.path.endswith("patients.csv"))
    shutil.rmtree(folder)
    assert inspect([folder])[0].refusal
