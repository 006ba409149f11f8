"""Many models on one cohort under one budget: resumable, chosen by inner scores, and a verdict in words."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import made_up
import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from medfuse import benchmark_table, benchmarking
from medfuse.benchmark_table import BASELINE, FUSION, choose, smallest_resolved, table_text, verdict
from medfuse.benchmarking import benchmark, recipe_of, trial
from medfuse.cli import main
from medfuse.config import read_recipe
from medfuse.errors import ConfigError, StoreError
from medfuse.jobs import fold_settings
from medfuse.metrics.comparison import Interval
from medfuse.models import FUSIONS

WORDS = (*made_up.QUICK, *made_up.LEARN, "train.epochs=6", "baselines=[kaplan_meier, clinical_cox, late_average]")
MODELS = ("concat", "transformer", "ensemble")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("benchmark")
    made_up.write(place, n=90)
    return place


def run(place, *models, out="out", more=(), **options):
    return benchmark(
        place / "card.md",
        models=models or MODELS,
        recipe="smoke",
        overrides=[*WORDS, "train.unimodal=true", *more],
        data_root=place,
        store_root=place / "s",
        out=place / out,
        **options,
    )


@pytest.fixture(scope="module")
def found(place):
    return run(place)


def test_the_table_holds_every_model_with_its_cost_and_difference(found):
    one = found.content["outcomes"]["survival"]
    rows = pd.DataFrame(one["rows"]).set_index("model")
    assert set(rows.index) == {*MODELS, "kaplan_meier", "clinical_cox", "late_average", FUSION, BASELINE}
    networks = rows.loc[list(MODELS)]
    assert (networks.parameters > 100).all()
    assert (networks.flops > 2 * 8 * 8).all()
    assert networks.flops.concat != networks.flops.transformer
    assert "MFLOPs" in (found.path / "table.md").read_text()
    assert networks.members.to_dict() == {"concat": 2, "transformer": 2, "ensemble": 8}  # 4 experts x 2 inner folds
    assert (rows.drop([FUSION, BASELINE]).seconds > 0).all()
    assert (rows.drop([FUSION, BASELINE]).peak_memory_mb > 50).all()
    assert rows.loc[[*MODELS, FUSION]].difference.notna().all()
    assert (networks.difference_low < networks.difference).all()
    assert (networks.difference - (networks.pooled - rows.pooled[BASELINE])).abs().max() < 1e-9
    assert networks.calibration_slope.notna().any()
    assert len(found.content["folds"]) == 2
    assert found.content["budget"]["seeds"] == 1
    text = (found.path / "table.md").read_text()
    assert one["verdict"] in text
    assert "clinical_cox" in text
    assert json.loads((found.path / "benchmark.json").read_text()) == json.loads(json.dumps(found.content))


def test_what_is_merged_from_networks_per_modality_is_judged_as_the_merged_network(place):
    files = sorted(run(place, "lego", out="merged").path.glob("cells/lego/*.json"))
    assert [json.loads(file.read_text())["members"] for file in files] == [8, 8]  # 3 blocks, merger; 2 inner folds
    own = run(place, "ensemble", out="averaged", more=["model.fusion={name: lego}", "train.merge=true"])
    other = json.loads((own.path / "cells" / "ensemble" / files[0].name).read_text())
    merged, averaged = json.loads(files[0].read_text())["results"]["lego"], other["results"]["ensemble"]
    assert np.std(merged["survival"]["risk_score"]) > 0
    assert not np.allclose(merged["survival"]["risk_score"], averaged["survival"]["risk_score"])


def test_what_is_chosen_is_chosen_by_the_inner_scores_of_each_fold(found):
    one = found.content["outcomes"]["survival"]
    cells = {
        p.parent.name: {f.stem: json.loads(f.read_text())["results"] for f in sorted(p.parent.glob("*.json"))}
        for p in found.path.glob("cells/*/*.json")
    }
    for k, fold in enumerate(found.content["folds"]):
        inner = {name: cells[name][fold][name]["survival"]["tuning"] for name in MODELS}
        assert one["chosen"][FUSION][k] == max(inner, key=inner.get)
        own = {name: r["survival"]["tuning"] for name, r in cells["baselines-survival"][fold].items()}
        assert own["kaplan_meier"] is None  # it has none, and is never chosen
        assert own["clinical_cox"] is not None
    rows = {r["model"]: r for r in one["rows"]}
    for name in (FUSION, BASELINE):
        expected = [rows[m]["per_fold"][k] for k, m in enumerate(one["chosen"][name])]
        assert rows[name]["per_fold"] == expected


def test_an_interrupted_benchmark_goes_on_and_gives_the_same(found, place, monkeypatch):
    real, calls = benchmarking.fit_fold, []

    def dies(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(benchmarking, "fit_fold", dies)
    with pytest.raises(KeyboardInterrupt):
        run(place, out="again")
    assert len(list((place / "again" / "cells").rglob("*.json"))) == 3 + 2  # networks and baselines of both folds
    again = run(place, out="again")
    assert len(calls) == 4 + 3
    drop = ["seconds", "peak_memory_mb"]
    a, b = (pd.DataFrame(f.content["outcomes"]["survival"]["rows"]).drop(columns=drop) for f in (found, again))
    pd.testing.assert_frame_equal(a, b, check_exact=True)
    assert not (place / "again" / "work" / "concat").exists()
    calls.clear()
    wider = run(place, *MODELS, "late", out="again")  # a further model later: the finished cells stand
    assert len(calls) == 2
    assert "late" in {r["model"] for r in wider.content["outcomes"]["survival"]["rows"]}
    with pytest.raises(StoreError, match="choose another --out"):
        run(place, "late", out="again", more=["train.epochs=7"])


def test_a_benchmark_does_not_go_on_with_other_outcomes(tmp_path):
    made_up.write(tmp_path, n=60, modalities=("stains", "genes"))
    more = ["train.epochs=1", "train.unimodal=false", "baselines=[kaplan_meier]"]
    first = run(tmp_path, "late", more=more)
    files = {path: path.read_bytes() for path in first.path.rglob("*.json")}
    table = pd.read_csv(tmp_path / "patients.csv", dtype=str)
    table.assign(days=table.days + "1").to_csv(tmp_path / "patients.csv", index=False)  # the same folds
    with pytest.raises(StoreError, match="patients, outcomes and folds, found another; choose another --out"):
        run(tmp_path, "late", more=more)
    assert {path: path.read_bytes() for path in first.path.rglob("*.json")} == files


def test_what_train_refuses_is_refused_before_the_first_cell(tmp_path, monkeypatch):
    made_up.write(tmp_path, n=60)
    monkeypatch.setattr(benchmarking, "fit_fold", lambda *_, **__: pytest.fail("a cell was fitted"))
    with pytest.raises(ConfigError, match=r"no baseline 'clinical_coxx'.*did you mean"):
        run(tmp_path, "late", more=["baselines=[clinical_coxx]"])
    with pytest.raises(ConfigError, match='a known name, found "pathwayz"') as refused:
        run(tmp_path, "late", more=["model.encoders={genes: {name: pathwayz}}"])
    assert "model late" in refused.value.__notes__
    assert not (tmp_path / "out").exists()


KILLED = """
import os, signal, sys
sys.path[:0] = sys.argv[1:3]
from pathlib import Path
import test_benchmark
from medfuse import benchmarking

real, calls, at = benchmarking.fit_fold, [], sys.argv[4]
def dies(*args, **kwargs):
    calls.append(1)
    if (len(calls), at) == (4, "before"):
        os.kill(os.getpid(), signal.SIGKILL)
    found = real(*args, **kwargs)
    if (len(calls), at) == (1, "after"):
        os.kill(os.getpid(), signal.SIGKILL)
    return found
benchmarking.fit_fold = dies
test_benchmark.run(Path(sys.argv[3]), out="killed")
"""


@pytest.mark.slow
def test_kill_9_between_cells_and_inside_one_loses_no_cell_and_changes_no_number(found, place):
    here = Path(__file__)
    words = [sys.executable, "-c", KILLED, str(here.parent), str(here.parents[2]), str(place)]
    written = {}
    for moment, cells in (("before", 3 + 2), ("after", 3 + 2)):  # the second process dies when its first cell is fitted
        done = subprocess.run([*words, moment], check=False, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        files = {p: p.read_bytes() for p in (place / "killed" / "cells").rglob("*.json")}
        assert len(files) == cells
        assert written.items() <= files.items()  # what was finished stands as it was
        written = files
    assert any((place / "killed" / "work").rglob("*.safetensors"))  # networks of the unfinished cell
    again = run(place, out="killed")
    assert [r["model"] for r in again.content["outcomes"]["survival"]["rows"] if r["interrupted"]] == ["concat"]
    assert "| >" in (again.path / "table.md").read_text()
    assert not any(r["interrupted"] for r in found.content["outcomes"]["survival"]["rows"])
    drop = ["seconds", "interrupted", "peak_memory_mb"]
    a, b = (pd.DataFrame(f.content["outcomes"]["survival"]["rows"]).drop(columns=drop) for f in (found, again))
    pd.testing.assert_frame_equal(a, b, check_exact=True)
    assert all(p.read_bytes() == content for p, content in written.items())


def test_tuning_trials_are_the_same_for_every_model_and_the_inner_score_picks(place, monkeypatch):
    real, judged = benchmarking._judged, []

    def noted(*args):
        judged.append(real(*args)["survival"])
        return {"survival": judged[-1] + 1}  # no score of a trial

    monkeypatch.setattr(benchmarking, "_judged", noted)
    base = read_recipe("smoke", list(WORDS))
    one, other = (recipe_of(name, base, list(WORDS)) for name in ("concat", "late"))
    assert trial(one, 0) is one
    assert trial(one, 2).train.lr == trial(other, 2).train.lr != one.train.lr
    found = run(place, "late", out="trials", trials=2)
    cells = [json.loads(p.read_text()) for p in (place / "trials" / "cells" / "late").glob("*.json")]
    assert all(c["trial"] == int(np.argmax(c["trial_scores"])) for c in cells)
    told = [c["results"]["late"]["survival"]["tuning"] for c in cells]
    assert sorted(told) == [one + 1 for one in sorted(judged)]  # what is cross-fitted, not the best trial's score
    assert all(0.4 < one < 1 for one in judged)  # the cohort can be learned
    assert found.content["budget"]["tuning_trials"] == 2


def test_every_fusion_is_a_model_under_the_budget_of_the_base(place):
    base = read_recipe("default", ["train.seeds=2", "seed=5", "train.epochs=7"])
    for name in FUSIONS:
        recipe = recipe_of(name, base, ["train.seeds=2", "seed=5"])
        assert recipe.train.seeds == 2
        assert recipe.train.epochs == base.train.epochs
        assert recipe.seed == 5
        assert recipe.train.unimodal == recipe.train.merge == (name == "lego")
        fold_settings(recipe, {})  # raises where options do not go together
    assert recipe_of("ensemble", base, []).train.unimodal
    with pytest.raises(ConfigError, match='did you mean "transformer"'):
        recipe_of("transfomer", base, [])
    with pytest.raises(ConfigError, match="at least 1"):
        run(place, trials=0)
    other = ["model.fusion={name: late}"]  # would put a late fusion into the row of concat
    with pytest.raises(ConfigError, match="expected concat to stay the fusion concat, found late"):
        recipe_of("concat", read_recipe("default", other), other)
    assert recipe_of("late", read_recipe("default", other), other).model.fusion["name"] == "late"
    assert recipe_of("transformer", read_recipe("default", other), other).model.fusion["name"] == "transformer"


def rows_of(low, high, *, best=0.0):
    base = {"kind": "fusion", "difference": (low + high) / 2, "difference_low": low, "difference_high": high}
    return [
        {"model": FUSION, **base, "kind": "choice"},
        {"model": "late", **base, "difference_low": best, "difference_high": best + 0.1},
    ]


def test_the_verdict_says_no_more_than_the_intervals():
    chosen = {FUSION: ["late", "late"], BASELINE: ["clinical_cox", "clinical_cox"]}
    said = verdict(rows_of(-0.03, 0.05), chosen, cohort="toy", resolvable=0.0612)
    assert said.startswith("no fusion model is distinguishable from clinical Cox on toy")
    assert said.endswith("the smallest difference this cohort can resolve is 0.06")
    assert "is better than" in verdict(rows_of(0.01, 0.05), chosen, cohort="toy", resolvable=0.04)
    assert "is worse than" in verdict(rows_of(-0.09, -0.05), chosen, cohort="toy", resolvable=0.04)
    lucky = verdict(rows_of(-0.03, 0.05, best=0.02), chosen, cohort="toy", resolvable=0.04)
    assert "late stood above it on held-out patients, but was not chosen" in lucky
    poor = verdict(rows_of(-0.03, 0.05, best=-0.2), chosen, cohort="toy", resolvable=0.04)
    assert poor.startswith("no fusion model is better than clinical Cox on toy")
    assert "worse are late" in poor
    mixed = {**chosen, BASELINE: ["clinical_cox", "late_average"]}
    assert "clinical Cox (1 of 2 folds)" in verdict(rows_of(-0.03, 0.05), mixed, cohort="toy", resolvable=0.06)
    assert verdict([], {FUSION: [], BASELINE: []}, cohort="toy", resolvable=None).startswith("no verdict")


def test_the_smallest_difference_that_is_resolved_leaves_0_out_in_80_percent_of_cohorts():
    rng, error, half = np.random.default_rng(0), 0.03, 0.07
    draws = np.append(rng.normal(0.01, error, 200_000), np.nan)
    gap = Interval(estimate=0.01, low=0.01 - half, high=0.01 + half)
    found = smallest_resolved(gap, draws)
    assert found == pytest.approx(half + norm.ppf(0.8) * error, rel=0.01)
    assert np.mean(rng.normal(found, error, 200_000) - half > 0) == pytest.approx(0.8, abs=0.005)


def test_choice_is_by_fold_and_needs_a_score_everywhere():
    tuning = {"a": [0.6, 0.7], "b": [0.65, 0.6], "c": [0.9, float("nan")]}
    assert choose(tuning, ["a", "b", "c"]) == ["b", "a"]
    assert choose(tuning, ["c"]) == []


def test_every_kind_of_outcome_has_intervals_differences_and_a_verdict(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(benchmark_table, "smallest_resolved", lambda *a: asked.append(a) or smallest_resolved(*a))
    kinds = {"subtype": "auroc", "size": "r2", "response": "auroc"}
    made_up.write(tmp_path, n=90, outcomes=tuple(kinds), missing=0.1)
    words = ("train.epochs=6", "baselines=[prevalence, logistic, ridge]", f"outcomes=[{', '.join(kinds)}]")
    found = run(tmp_path, "concat", "late", more=words)
    for name, score in kinds.items():
        one = found.content["outcomes"][name]
        rows = {r["model"]: r for r in one["rows"]}
        base = "ridge" if name == "size" else "logistic"
        assert one["score"] == score
        assert one["chosen"][BASELINE] == [base, base]
        for row in rows.values():
            if row["model"] != "prevalence":
                assert row["low"] < row["pooled"] < row["high"]
                assert row["pooled"] == pytest.approx(row["mean"], abs=0.1)  # the score of the folds, not another one
        fusion = rows[FUSION]
        assert fusion["difference"] == pytest.approx(fusion["pooled"] - rows[BASELINE]["pooled"])
        assert fusion["difference_low"] < fusion["difference"] < fusion["difference_high"]
        gap, draws = asked[list(kinds).index(name)]
        assert one["resolvable"] == smallest_resolved(gap, draws)
        assert gap.estimate == pytest.approx(-fusion["difference"])  # baseline minus fusion; draws the other way round
        assert np.nanmean(draws) == pytest.approx(fusion["difference"], abs=0.3 * np.nanstd(draws))
        half = fusion["difference_high"] - fusion["difference"]
        assert gap.high - gap.estimate == pytest.approx(half)
        # In standard errors; a bounded score of few patients has lighter tails than the normal.
        assert 1.7 < half / np.nanstd(draws, ddof=1) < 3.5
        assert f"than {base}" in one["verdict"] or f"from {base}" in one["verdict"] or f", {base}," in one["verdict"]
        assert f"the smallest difference this cohort can resolve is {one['resolvable']:.2f}" in one["verdict"]
    for file in found.path.glob("cells/baselines-subtype/*.json"):
        said = json.loads(file.read_text())["results"]["logistic"]["subtype"]
        assert said["risk_score"] == pytest.approx([1 - share[0] for share in said["probability"]])  # as of networks


def test_held_out_patients_who_cannot_be_compared_get_a_table_and_no_verdict(tmp_path):
    """Two published folds, and nobody of either held-out side has the event."""
    card = made_up.write(tmp_path, n=60, outcomes=("response",))
    table = pd.read_csv(tmp_path / "patients.csv", dtype=str)
    table.loc[40:, "response"] = "no"
    table.to_csv(tmp_path / "patients.csv", index=False)
    for k, held in enumerate((table.id[40:50], table.id[50:])):
        train = table.id[~table.id.isin(held)].reset_index(drop=True)
        sides = pd.DataFrame({"train": train, "val": held.reset_index(drop=True)})
        sides.to_csv(tmp_path / f"fold_{k}.csv", index=False)
    text = card.read_text()
    card.write_text(text.replace("outcomes:", "folds: {pattern: 'fold_{k}.csv', k: 2}\noutcomes:", 1))
    found = run(tmp_path, "late", more=["train.epochs=2", "train.unimodal=false", "baselines=[logistic]"])
    one = found.content["outcomes"]["response"]
    assert one["verdict"].startswith("no verdict on toy: the difference between late and logistic has no interval")
    assert "a class has nobody to compare within a fold" in one["verdict"]
    assert one["resolvable"] is None
    for row in one["rows"]:
        assert (row["pooled"], row["difference"], row["difference_low"]) == (None, None, None)
    assert one["verdict"] in (found.path / "table.md").read_text()


def test_the_command_line_and_an_outcome_with_classes(tmp_path, monkeypatch, capsys):
    made_up.write(tmp_path, n=80, outcomes=("response",))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDFUSE_STORE", str(tmp_path / "s"))
    words = ["benchmark", "--cohort", str(tmp_path / "card.md"), "--data-root", str(tmp_path), "--recipe", "smoke"]
    sets = [word for text in (*made_up.QUICK, "baselines=[prevalence, logistic]") for word in ("--set", text)]
    assert main([*words, *sets, "--models", "late,concat"]) == 0
    said = capsys.readouterr().out
    assert "auroc" in said
    assert "logistic" in said
    assert "distinguishable" in said or "chose" in said
    assert (tmp_path / "runs" / "benchmark-toy" / "table.csv").is_file()
    assert main([*words, "--models", "lat"]) == 2
    assert len(table_text([])) == 2
