"""``medfuse demo`` end to end: raw files, what stands in them, the feature store, training, and the truth beside it."""

import re
import shutil
from functools import partial

import numpy as np
import pandas as pd
import pytest

from medfuse import synthetic
from medfuse.checking import check
from medfuse.cli import main
from medfuse.cohort import read_cohort
from medfuse.config import read_card
from medfuse.dataset import load_modalities
from medfuse.demo import PROCESS, _cohort, demo, missing_by
from medfuse.errors import ConfigError, DataError
from medfuse.extraction import plan
from medfuse.inspection import inspect
from medfuse.loaders import module_of
from medfuse.metrics.discrimination import harrell_c
from medfuse.synthetic import MODALITIES, SHOWS, Missing, simulate
from medfuse.synthetic.raw import write_cohort
from medfuse.synthetic.recovery import held_out_r2, pooled, recovered, ridge_predict
from medfuse.workflow import train

N = 60
# the training is a part of the story, not how well it does: the recipe as it is runs in review/test_demo_pages.py
QUICK = ("train.epochs=4", "splits.folds=2", "splits.inner_folds=2", "evaluation.bootstrap=50")


@pytest.fixture(scope="module", autouse=True)
def quick_training():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medfuse.demo.train", partial(train, overrides=QUICK))
        yield


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("demo") / "out"


@pytest.fixture(scope="module")
def said():
    return []


@pytest.fixture(scope="module")
def done(out, said):
    return demo(out, patients=N, say=said.append)


@pytest.fixture(scope="module")
def made():
    return simulate(N, process=PROCESS, missing=missing_by("mcar"), modalities=())


@pytest.fixture(scope="module")
def cohort(out, done):
    return read_cohort(read_card(out / "cohort" / "card.md"), data_root=out / "cohort")


@pytest.fixture(scope="module")
def data(out, cohort):
    return load_modalities(cohort, store_root=out / "store")


@pytest.fixture(scope="module")
def latents(made):
    return {
        patient: {name: float(getattr(made.latents, name)[k]) for name in synthetic.LATENTS}
        for k, patient in enumerate(made.patient_ids)
    }


# --- what stands in the files ---------------------------------------------------------------------------------------


def test_the_card_reads_what_each_patient_has(data, made):
    for m, name in enumerate(MODALITIES):
        having = {made.patient_ids[k] for k in np.flatnonzero(made.present[:, m])}
        assert set(data[name].samples) == having, name
        assert 0 < len(having) < N, name


def test_ridge_on_extracted_features_recovers_every_planted_latent(data, latents):
    found = recovered(data, latents)
    assert set(found) == set(MODALITIES)
    assert {name: r2 for name, r2 in found.items() if r2 < 0.5} == {}


def test_nothing_is_recovered_of_a_latent_that_is_not_theirs(data, latents):
    """The same regression on another patient's latent: what it finds above is in the files, not in the method."""
    ids = sorted(latents)
    other = dict(zip(ids, [latents[i] for i in np.random.default_rng(1).permutation(ids)], strict=True))
    assert max(recovered(data, other).values()) < 0.2


@pytest.mark.parametrize("name", ["imaging", "pathology", "ecg"])
def test_the_mean_of_all_values_recovers_nothing(name, cohort, latents):
    """An extractor that sees only the global mean intensity: no offset or brightness carries the signal."""
    items, failed = plan(cohort, name)
    assert not failed
    read = module_of(cohort.card.modalities[name].loader, where=name).read
    mean = [np.concatenate(list(read(i.files, i.card.options).batches(64))).mean(dtype=np.float64) for i in items]
    true = np.array([latents[i.patient_id][SHOWS[name]] for i in items])
    assert np.ptp(mean) > 0
    assert held_out_r2(np.array(mean)[:, None], true) < 0.15


def test_inspect_names_every_file_and_refuses_none(out, done):
    root = out / "cohort"
    wanted = {
        "imaging": "dicom",
        "pathology": "slide",
        "ecg": "ecg",
        "reports": "text",
        "ehr": "events",
        "mutations.maf": "variants",
        "expression.tsv": "expression",
    }
    for name, loader in wanted.items():
        found = inspect([root / name])
        assert found, name
        assert not [one.refusal for one in found if one.refusal], name
        assert {one.loader for one in found} == {loader}, name


def test_check_finds_nothing_wrong(out, done):
    report = check(out / "cohort" / "card.md", data_root=out / "cohort", store_root=out / "store")
    assert report.ok, report.problems
    assert {row["modality"] for row in report.modalities} == set(MODALITIES)


def test_files_and_tables_are_of_the_same_patients(out, made, cohort):
    told = pd.read_csv(out / "cohort" / "truth" / "latents.csv")
    assert list(told["patient_id"]) == list(made.patient_ids)
    for name in synthetic.LATENTS:
        assert np.allclose(told[name], getattr(made.latents, name), atol=1e-12), name
    target = cohort.targets["death"]
    assert np.array_equal(target.event, made.survival.event)
    assert np.abs(target.time - made.survival.time).max() <= 0.01


@pytest.mark.parametrize("mechanism", ["none", "mcar", "mar", "mnar"])
def test_modalities_are_absent_as_asked(mechanism, tmp_path):
    missing = Missing(mechanism=mechanism, rate=0.4)
    write_cohort(tmp_path / "c", patients=5, seed=2, missing=missing)
    present = simulate(5, seed=2, missing=missing, modalities=()).present
    assert present.all() == (mechanism == "none")
    for name in ("imaging", "ecg", "reports"):
        having = {p.name.split(".")[0] for p in (tmp_path / "c" / name).iterdir()}
        column = present[:, MODALITIES.index(name)]
        assert having == {f"SYN-{k + 1:04d}" for k in np.flatnonzero(column)}
    card = (tmp_path / "c" / "card.md").read_text()
    assert f'by the mechanism "{mechanism}"' in " ".join(card.split())
    assert f"{int(present.all(axis=1).sum())} patients have every modality" in card


def test_the_data_card_says_what_is_there(out, cohort, made):
    text = " ".join((out / "cohort" / "card.md").read_text().split("---\n", 2)[2].split())
    assert f"{N} patients of 4 sites" in text
    assert f"{int(made.survival.event.sum())} events" in text
    for m, name in enumerate(MODALITIES):
        has = int(made.present[:, m].sum())
        assert re.search(rf"\| {name} \|[^|]+\| \w+ \| `[^`]+` \| {has} \(", text), name
    for heading in ("Provenance", "Licence", "Population", "Modalities", "Missingness", "Known biases", "Intended use"):
        assert f"## {heading}" in text


# --- the demonstration ----------------------------------------------------------------------------------------------


def test_the_run_is_finished_and_reported(done, out):
    done.run.verify()
    assert done.run.read("run")["status"] == "finished"
    assert (out / "run" / "report.html").stat().st_size > 10_000
    assert (out / "truth.md").read_text().splitlines()[3 : 3 + len(done.lines)] == list(done.lines)


def test_the_truth_stands_beside_the_result(done, made):
    frame = done.run.predictions()
    held = frame[(frame["partition"] == "held_out") & (frame["model"] == "medfuse")].set_index("patient_id")
    row = {patient: k for k, patient in enumerate(made.patient_ids)}
    best = synthetic.best_score(made.process, made.latents, made.present)
    pairs, values = [], []
    for _, fold in held.groupby("fold"):
        rows = np.array([row[i] for i in fold.index])
        mine, oracle = (harrell_c(made.survival.take(rows), r) for r in (fold["risk_score"].to_numpy(), best[rows]))
        pairs.append(oracle.comparable)
        values.append((oracle.value, mine.value))
    expected = np.average(values, axis=0, weights=pairs)
    shown = [float(re.search(r"(\d\.\d{3}) \[", line).group(1)) for line in done.lines[1:3]]
    assert np.allclose(shown, expected, atol=6e-4)
    assert shown[0] > 0.7
    assert [line.split()[0] for line in done.lines[5 : 5 + len(MODALITIES)]] == list(MODALITIES)


def test_again_it_tells_the_same_and_writes_nothing(done, out, said):
    stamps = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file() and p.name != "truth.md"}
    lines: list[str] = []
    again = demo(out, patients=N, say=lines.append)
    assert again.lines == done.lines
    after = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file() and p.name != "truth.md"}
    assert after == stamps
    assert any("is finished" in line for line in lines)
    assert any("writing the raw files" in line for line in said)


def test_the_command_line_shows_it(done, out, capsys):
    assert main(["demo", "--patients", str(N), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    for line in done.lines:
        assert line in printed
    assert str(out / "run" / "report.html") in printed


def test_another_cohort_is_not_written_over_this_one(done, out, capsys):
    with pytest.raises(ConfigError, match="choose another --out"):
        demo(out, patients=N + 1)
    with pytest.raises(ConfigError, match="choose another --out"):
        demo(out, patients=N, seed=1)
    assert main(["demo", "--patients", str(N), "--out", str(out), "--missing", "maybe"]) == 2
    assert "none, mcar, mar or mnar" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="60 patients or more"):
        demo(out, patients=10)


def test_an_interrupted_cohort_is_written_anew_and_is_the_same(tmp_path):
    made = simulate(3, seed=1, process=PROCESS, missing=missing_by("mcar"), modalities=())
    once, again = tmp_path / "once" / "cohort", tmp_path / "again" / "cohort"
    _cohort(once, made, say=lambda text: None)
    left = tmp_path / "again" / "cohort.part" / "imaging"
    left.mkdir(parents=True)
    (left / "half.dcm").write_bytes(b"half")
    _cohort(again, made, say=lambda text: None)
    files = sorted(p.relative_to(once) for p in once.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    assert all((once / f).read_bytes() == (again / f).read_bytes() for f in files)
    assert not left.exists()


@pytest.mark.slow
def test_an_interrupted_run_goes_on_from_the_store(done, out, tmp_path):
    """Without its run and half of its store, the demo makes what is missing and comes to the same result."""
    other = tmp_path / "other"
    shutil.copytree(out / "cohort", other / "cohort")
    shutil.copytree(out / "store", other / "store")
    entries = sorted(p for p in (other / "store").rglob("manifest.json"))
    for entry in entries[::2]:
        shutil.rmtree(entry.parent)
    again = demo(other, patients=N)
    assert again.lines == done.lines


# --- the ridge ------------------------------------------------------------------------------------------------------


def test_ridge_is_the_closed_form_of_the_penalty_it_chose():
    rng = np.random.default_rng(0)
    x, others = rng.normal(size=(40, 6)) * [1, 2, 3, 4, 5, 6] + 7, rng.normal(size=(5, 6))
    y = x @ rng.normal(size=6) + rng.normal(size=40)
    z, zo = (x - x.mean(0)) / x.std(0), (others - x.mean(0)) / x.std(0)
    errors = {}
    for penalty in synthetic.recovery.PENALTIES:
        left_out = []
        for i in range(40):
            keep = np.arange(40) != i
            zc, yc = z[keep] - z[keep].mean(0), y[keep] - y[keep].mean()
            beta = np.linalg.solve(zc.T @ zc + penalty * np.eye(6), zc.T @ yc)
            left_out.append(y[i] - y[keep].mean() - (z[i] - z[keep].mean(0)) @ beta)
        errors[penalty] = float(np.mean(np.square(left_out)))
    best = min(errors, key=errors.get)
    beta = np.linalg.solve(z.T @ z + best * np.eye(6), z.T @ (y - y.mean()))
    assert np.allclose(ridge_predict(x, y, others), y.mean() + zo @ beta, atol=1e-8)


def test_recovery_of_noise_is_nothing_and_few_patients_are_refused(data, latents):
    rng = np.random.default_rng(3)
    assert held_out_r2(rng.normal(size=(200, 30)), rng.normal(size=200)) < 0.1
    assert np.array_equal(ridge_predict(np.ones((9, 2)), np.arange(9.0), np.ones((2, 2))), [4.0, 4.0])
    with pytest.raises(DataError, match="larger cohort"):
        held_out_r2(np.zeros((10, 2)), np.zeros(10))
    ids = sorted(data["reports"].samples)[:3]
    assert pooled(data["reports"], ids).shape == (3, 4 * 512)
    assert pooled(data["ehr"], sorted(data["ehr"].samples)[:3]).shape == (3, len(data["ehr"].columns))
