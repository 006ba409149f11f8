"""Single events of a record, from the command to the stored answer: found in the files, summed, checked, read again."""

import shutil

import made_up
import numpy as np
import pandas as pd
import pytest

from medfuse.cli import main
from medfuse.errors import CohortError, ConfigError
from medfuse.explaining import contribution_table, read_coalitions
from medfuse.loaders.events import write_meds
from medfuse.run import open_run
from medfuse.within import Ask, explain_within, read_within, within_lines, within_table
from medfuse.workflow import train

pytestmark = pytest.mark.slow
EHR = (
    "{loader: events, file: ehr, options: {index: {time: '2020-01-10 12:00'}, lookback_days: 30, "
    "patient_id: 'p{:03d}', variables: {crp: {codes: CRP, unit: mg/L}, visit: {codes: VISIT, stats: [count]}}}}"
)


def write(folder, n):
    """The made-up cohort, of whom all but every seventh have a record; CRP rises with the hazard."""
    made_up.MODALITIES["ehr"] = EHR
    try:
        card = made_up.write(folder, n=n, outcomes=("survival",), modalities=("clinical", "ehr"))
    finally:
        del made_up.MODALITIES["ehr"]
    draw, table = np.random.default_rng(3), pd.read_csv(folder / "patients.csv")
    index, rows = pd.Timestamp("2020-01-10 12:00"), []
    for k, days in enumerate(table["days"]):
        for day in draw.uniform(-3, 29, size=0 if k % 7 == 0 else 6):
            crp = round(float(np.exp(draw.normal(3 - np.log(days) / 3, 0.3))), 2)
            row = (k, index - pd.Timedelta(days=day))
            rows.append((*row, "CRP", crp, "mg/L") if draw.random() < 0.7 else (*row, "VISIT", None, None))
    frame = pd.DataFrame(rows, columns=["subject_id", "time", "code", "numeric_value", "unit"])
    write_meds(folder / "ehr", frame)
    return card


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("events")
    card = write(folder, 90)
    settings = (*made_up.QUICK, *made_up.LEARN, "outcomes=[survival]", "baselines=[kaplan_meier]")
    places = {"data_root": folder, "store_root": folder / "store"}
    train(card, recipe="smoke", overrides=settings, **places, out=folder / "run")
    return folder


def explained(made, run, **ask):
    return explain_within(run, "ehr", ask=Ask(units="event", **ask), data_root=made, store_root=made / "store")


def test_events_sum_to_the_contribution_are_checked_and_read_without_data(made, tmp_path):
    shutil.copytree(made / "run", tmp_path / "run")
    run = open_run(tmp_path / "run")
    some = tuple(f"p{k:03d}" for k in range(90) if k % 7)[:6]
    found = explained(made, run, check=True, patients=some)
    run.verify()
    table = contribution_table(read_coalitions(run), horizon=found[0].attribution.horizon).query("modality == 'ehr'")
    ours = within_table(found)
    assert set(ours.patient_id) == set(some)
    sums = ours.groupby("patient_id").contribution.sum()
    shown = table.set_index("patient_id").contribution
    np.testing.assert_allclose(sums, shown[sums.index], atol=1e-4)
    assert set(ours.label) == {"sums to the contribution"}
    assert all(one.badge.startswith("passed ") for one in found)
    checks = {c.name: c for one in found for c in one.checked.checks}
    assert set(checks) == {"deletion", "insertion", "signs", "weights", "completeness", "stability"}
    assert checks["completeness"].value == 1.0
    assert np.mean([c.value for one in found for c in one.checked.checks if c.name == "signs"]) > 0.5
    events = ours[ours.part == "unit"]
    assert events.unit.str.fullmatch(r"(crp|visit), [\d.]+ days before").all()
    assert (events.y >= 0).all()  # days before the index time: nothing after it
    assert events.contribution.abs().max() > 0.01
    shutil.rmtree(run.path / "folds")
    again = explain_within(run, "ehr", ask=Ask(units="event", patients=some), data_root=made / "nowhere")
    read = read_within(run, "ehr", outcome="survival", units="event")
    for a, b, c in zip(found, again, read, strict=True):
        np.testing.assert_array_equal(a.attribution.values, b.attribution.values)
        np.testing.assert_array_equal(a.attribution.values, c.attribution.values)
    patient = found[0].attribution.patient_ids[0]
    assert "days before" in "\n".join(within_lines(read, patient=patient))
    assert "name a patient" in "\n".join(within_lines(read))


def test_the_command_and_what_it_refuses(made, tmp_path, monkeypatch, capsys):
    shutil.copytree(made / "run", tmp_path / "run")
    run = open_run(tmp_path / "run")
    monkeypatch.setenv("MEDFUSE_STORE", str(made / "store"))
    words = ["explain", str(run.path), "--data-root", str(made), "--within", "ehr", "--units", "event"]
    assert main([*words, "--patient", "p001"]) == 0
    said = capsys.readouterr().out
    assert "what each event of ehr adds" in said
    assert "sums to the contribution" in said
    assert main([*words, "--patient", "p007"]) == 2  # who has no record
    assert "found no such id" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="leave units out for clinical"):
        explain_within(run, "clinical", ask=Ask(units="event"), data_root=made, store_root=made / "store")
    shutil.copytree(made, tmp_path / "changed", ignore=shutil.ignore_patterns("store", "run"))
    part = next((tmp_path / "changed" / "ehr" / "data").rglob("*.parquet"))
    frame = pd.read_parquet(part)
    frame["numeric_value"] += 1
    frame.to_parquet(part)
    with pytest.raises(CohortError, match="changed since"):
        explain_within(
            run,
            "ehr",
            ask=Ask(units="event", patients=("p002",)),
            data_root=tmp_path / "changed",
            store_root=made / "store",
        )
