"""What a new user reads first: the result in words, what each row is, patterns by how many have them; and no waste."""

from types import SimpleNamespace

import numpy as np
import pytest

from medfuse.baselines import FoldData, fit_baselines, survival
from medfuse.cli import _command
from medfuse.cohort import read_cohort
from medfuse.config import read_card
from medfuse.dataset import load_modalities
from medfuse.evaluation import Evaluation, in_words
from medfuse.extractors._texture import CLASSES, texture
from medfuse.report import _legend, _patients
from medfuse.splits import generated_splits, inner_folds
from medfuse.workflow import summary_lines

GAPS = {
    "weak": (0.05, 0.01, 0.09),
    "strong": (-0.05, -0.09, -0.01),
    "alike": (0.01, -0.02, 0.04),
    "medfuse:joint": (0.03, 0.01, 0.05),
    "unknown": (None, None, None),
}


def evaluation(*, score: str = "harrell_c", pooled: float | None = 0.7) -> Evaluation:
    interval = {"estimate": pooled, "low": 0.6, "high": 0.8}
    row = {"folds": [], "mean": {score: 0.71}, "sd": {score: 0.02}, "notes": []}
    row["pooled"] = None if pooled is None else interval
    gaps = {name: dict(zip(("estimate", "low", "high"), gap, strict=True)) for name, gap in GAPS.items()}
    return Evaluation(
        outcome="os",
        kind="survival",
        score=score,
        carrying="medfuse",
        horizons=(),
        models={name: row for name in ("medfuse", *GAPS)},
        differences=gaps,
        groups={},
    )


def test_the_result_in_words_says_what_intervals_say():
    first, *others = in_words(evaluation())
    assert first.startswith("medfuse: 0.700, 95 % interval [0.600, 0.800], on held-out patients (Harrell's C")
    assert others == ["Better than: weak.", "Worse than: strong.", "Not distinguishable from: alike."]
    assert summary_lines(evaluation())[-4:] == [first, *others]


def test_without_a_pooled_score_the_mean_over_folds_stands_without_an_interval():
    first = in_words(evaluation(score="r2", pooled=None))[0]
    assert first.startswith("medfuse: 0.710 on held-out patients (R2")


def test_an_undefined_score_is_said_to_be_undefined():
    bare = evaluation(score="auroc", pooled=None)
    assert in_words(Evaluation(**{**vars(bare), "models": {"medfuse": {**bare.models["medfuse"], "mean": {}}}})) == (
        "medfuse: no score of os is defined here.",
    )


def test_each_row_is_explained_once_and_unknown_ones_are_left_out():
    row = evaluation().models["medfuse"]
    names = ("medfuse", "medfuse:joint", "ridge_cox:a", "ridge_cox:b", "kaplan_meier", "mine")
    page = _legend(Evaluation(**{**vars(evaluation()), "models": dict.fromkeys(names, row)}))
    assert page.count("<li>") == 3
    assert page.count("ridge_cox") == 1
    assert "medfuse:joint: the networks over all modalities" in page
    assert "mine" not in page


def test_commands_that_are_told_can_be_run_where_the_shell_does_not_know_them(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.executable", str(tmp_path / ".venv" / "bin" / "python"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _command("medfuse") == ".venv/bin/medfuse"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert _command("medfuse") == str(tmp_path / ".venv" / "bin" / "medfuse")
    (tmp_path / "medfuse").touch(mode=0o755)
    assert _command("medfuse") == "medfuse"


def test_every_baseline_has_words():
    from medfuse.baselines import BASELINES
    from medfuse.report import _MODELS

    assert {name for table in BASELINES.values() for name in table} <= set(_MODELS)


def test_patterns_of_availability_stand_by_their_number_and_none_is_lost():
    counts = {f"m{k:02d}": k + 1 for k in range(25)}
    attrition = {"total": 325, "modelled": 325, "excluded": [], "problems": [], "availability": counts}
    page = _patients(SimpleNamespace(read=lambda _: attrition))
    assert page.index("<td>m24</td>") < page.index("<td>m05</td>")
    assert "<td>5 other patterns</td><td>15</td>" in page
    assert "<td>m04</td>" not in page


def test_no_learner_is_asked_twice_for_the_same_inner_fold(monkeypatch):
    cohort = read_cohort(read_card("transbig"))
    split = generated_splits(cohort, outcome="distant_metastasis", folds=4, seed=0)[0]
    inner = inner_folds(split.train, cohort=cohort, outcome="distant_metastasis", folds=2, seed=0)
    data = {"clinical": load_modalities(cohort)["clinical"]}

    learners = survival.strong_learners()

    def fold() -> FoldData:
        return FoldData(
            cohort=cohort, outcome="distant_metastasis", data=data, split=split, inner=inner, clinical="clinical"
        )

    asked, real = [], survival.ridge_cox

    def counting(x, outcome, other, seed):
        asked.append(len(x))
        return real(x, outcome, other, seed)

    alone = fit_baselines(fold(), kind="survival", names=["late_average_weighted"])[0]
    monkeypatch.setattr(survival, "strong_learners", lambda: {**learners, "ridge_cox": counting})
    monkeypatch.setattr(survival, "ridge_cox", counting)
    one = fold()
    results = fit_baselines(one, kind="survival", names=["ridge_cox", "late_average", "late_average_weighted"])
    sizes = [len(fit) for fit, _ in one.inner_ids]
    assert sum(size in sizes for size in asked) == len(sizes)
    np.testing.assert_array_equal(results[-1].prediction.risk_score, alone.prediction.risk_score)
    assert results[-1].notes == alone.notes


@pytest.mark.parametrize("far", [2, 5])
def test_texture_counts_each_pair_in_both_orders(far):
    grey = np.random.default_rng(far).integers(0, 256, (24, 31)).astype(np.uint8)
    patterns, pairs, _ = texture(grey, far, CLASSES)
    for k, step in enumerate((1, far)):
        level = grey >> 4
        expected = np.zeros((16, 16))
        for a, b in ((level[:-step, :-step], level[:-step, step:]), (level[:-step, :-step], level[step:, :-step])):
            np.add.at(expected, (a.ravel(), b.ravel()), 1)
            np.add.at(expected, (b.ravel(), a.ravel()), 1)
        np.testing.assert_allclose(pairs[k], expected / expected.sum(), atol=1e-15)
    assert patterns.sum() == pytest.approx(1)
