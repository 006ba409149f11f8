"""The list of bad input: each is refused by name, place and remedy on the command line, and leaves nothing behind."""

import json
from pathlib import Path

import made_up
import numpy as np
import pytest

from medfuse.cli import main
from medfuse.files import sha256_file
from medfuse.workflow import read_evaluations, train

WORDS = [word for setting in (*made_up.QUICK, "baselines=[]", "train.epochs=1") for word in ("--set", setting)]


@pytest.fixture
def place(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    made_up.write(folder, n=40)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("MEDFUSE_STORE", str(tmp_path / "store"))
    return folder


def attempt(place, *more):
    words = ["train", "--cohort", str(place / "card.md"), "--recipe", "smoke", "--data-root", str(place)]
    return main([*words, "--out", "run", *WORDS, *more])


def edit(path, old, new, *, count=1):
    text = path.read_text()
    assert old in text, old
    path.write_text(text.replace(old, new, count))


def cell(place, row, name, value):
    """Write a cell of patients.csv; rows count from 1."""
    lines = (place / "patients.csv").read_text().splitlines()
    fields = lines[row].split(",")
    fields[lines[0].split(",").index(name)] = value
    lines[row] = ",".join(fields)
    (place / "patients.csv").write_text("\n".join(lines) + "\n")


def duplicated_gene(place):
    edit(place / "genes.csv", "g_G1,", "g_G0,")


def duplicated_id(place):
    lines = (place / "patients.csv").read_text().splitlines()
    fields = lines[3].split(",")
    fields[lines[0].split(",").index("days")] = "12345.5"
    (place / "patients.csv").write_text("\n".join([*lines, ",".join(fields)]) + "\n")


def published(place, train_ids, held_out):
    rows = [f"{a},{b}" for a, b in zip(train_ids, [*held_out, *[""] * len(train_ids)], strict=False)]
    (place / "fold_0.csv").write_text("\n".join(["train,val", *rows]) + "\n")
    edit(place / "card.md", "modalities:", 'folds: {pattern: "fold_{k}.csv", k: 1}\nmodalities:')


def changed(place):
    digest = sha256_file(place / "genes.csv")
    edit(place / "card.md", "licence: CC0", f"licence: CC0, sha256: {{genes.csv: {digest}}}")
    edit(place / "genes.csv", "p005,", "p005,9")


def nobody(place):
    for name in ("he", "cd8", "pdl1"):
        np.savez(place / f"{name}.npz", someone=np.ones(5), other=np.zeros(5))


def cut(name):
    return lambda place: (place / name).write_bytes((place / name).read_bytes()[: (place / name).stat().st_size // 2])


def all_censored(place):
    for row in range(1, 41):
        cell(place, row, "status", "0")


# what is done to a good cohort -> what the message says: where, expected, found, what to do
CASES = {
    "missing column": (
        lambda p: edit(p / "patients.csv", "age,", "aage,"),
        [r"patients.csv: expected a column 'age', found none", 'did you mean "aage"'],
    ),
    "missing column of the outcome": (
        lambda p: edit(p / "patients.csv", ",days,", ",dayz,"),
        ["patients.csv: expected a column 'days', found none", 'did you mean "dayz"'],
    ),
    "unknown event code": (
        lambda p: cell(p, 7, "status", "2"),
        [
            "patients.csv, data row 7, patient p006, column 'status'",
            "expected the codes",
            "found another",
            "event_codes",
        ],
    ),
    "negative time": (
        lambda p: cell(p, 7, "days", "-31"),
        [
            "patients.csv, data row 7, patient p006, column 'days'",
            "expected a time >= 0",
            "found a neg",
            "negative_time",
        ],
    ),
    "NaN time": (
        lambda p: cell(p, 7, "days", "NaN"),
        [
            "patients.csv, data row 7, patient p006",
            "expected a time wherever 'status' is known",
            "found none",
            "complete",
        ],
    ),
    "infinite time": (
        lambda p: cell(p, 7, "days", "inf"),
        ["patients.csv, data row 7, patient p006", "expected a number", "found infinity", "correct the cell"],
    ),
    "decimal comma": (
        lambda p: cell(p, 7, "age", '"61,5"'),
        ["patients.csv, data row 7, column 'age'", "expected a number", "found a decimal comma", "decimal points"],
    ),
    "Excel-mangled gene": (
        lambda p: edit(p / "genes.csv", "g_G3,", "g_2-Sep,"),
        ["genes.csv: expected gene symbols", "found 1", "2-Sep", "restore them from the source"],
    ),
    "duplicated gene": (
        duplicated_gene,
        ["genes.csv: expected distinct column names", "'g_G0' more than once", "rename"],
    ),
    "duplicated id": (
        duplicated_id,
        ["patients.csv, data rows 3 and 41: patient p002", "expected one value per patient", "correct the table"],
    ),
    "a patient in two folds": (
        lambda p: published(p, [f"p{i:03d}" for i in range(30)], ["p029", "p031"]),
        ["split 0: patient p029 stands in train and in held_out", "expected disjoint sides", "correct the folds"],
    ),
    "a modality nobody has": (
        nobody,
        [
            "modality stains: expected patients of cohort toy",
            "found none of 40 among 2",
            "do the ids have the same form",
        ],
    ),
    "a path out of the data root": (
        lambda p: edit(p / "card.md", "file: genes.csv", "file: ../genes.csv"),
        ["'../genes.csv': expected a path below the folder", "found a part '..'", "correct the card"],
    ),
    "a link out of the data root": (
        lambda p: ((p / "genes.csv").rename(p.parent / "g.csv"), (p / "genes.csv").symlink_to(p.parent / "g.csv")),
        ["'genes.csv': expected a path below the folder", "found a link out of it", "copy the file there"],
    ),
    "a missing file": (
        lambda p: (p / "cd8.npz").unlink(),
        ["toy: expected the file 'cd8.npz'", "found none", "check --data-root"],
    ),
    "a cut table": (
        lambda p: (p / "patients.csv").write_text((p / "patients.csv").read_text()[:-30]),
        ["patients.csv, data row 40: expected 9 cells as in the header", "found fewer", "fetch it again"],
    ),
    "a cut NPZ": (
        cut("he.npz"),
        ["he.npz: expected an NPZ file of plain arrays", "found damage", "fetch the file again"],
    ),
    "a cut GMT": (
        lambda p: (p / "sets.gmt").write_text("ZETA\tmade up\tG0\tG1\nALPHA\tmade"),
        ["sets.gmt, line 2: expected a new set name", "found 2 fields", "fetch it again"],
    ),
    "a cut card": (
        lambda p: (p / "card.md").write_text((p / "card.md").read_text()[:200]),
        ["card.md: expected YAML front matter", "found none"],
    ),
    "a changed file": (
        changed,
        ["'genes.csv' has changed: expected SHA-256", "found", "restore the file, or review the change"],
    ),
    "everyone censored": (
        all_censored,
        ["train: expected at least one event", "all of them censored", "check which code means event", '"survival"'],
    ),
}


@pytest.mark.parametrize("case", sorted(CASES))
def test_bad_input_is_refused_and_nothing_is_half_written(place, capsys, case):
    break_it, said = CASES[case]
    break_it(place)
    assert attempt(place) == 2
    error = capsys.readouterr().err
    for part in said:
        assert part in error, (part, error)
    assert list(Path.cwd().iterdir()) == [], "something was left in the working folder"
    left = [p.name for p in (place.parent / "store").rglob("*") if ".tmp" in p.name]
    assert left == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "train.epoch=3"], ["train.epoch: unknown key", 'did you mean "epochs"']),
        (["--set", "model.fusion={name: transfromer}"], ["model.fusion.name", 'did you mean "transformer"']),
        (
            ["--set", "model.encoders={genes: {name: pathway, hiden: 4}}"],
            ['no option "hiden"', 'did you mean "hidden"'],
        ),
        (["--set", "model.encoders={gene: {name: linear}}"], ['"gene" is not a modality', 'did you mean "genes"']),
        (["--set", "outcomes=[survial]"], ["no outcome 'survial'", 'did you mean "survival"']),
        (["--set", "modalities=[gens]"], ["no modality 'gens'", 'did you mean "genes"']),
        (
            ["--set", "baselines=[clinical_coks]"],
            ["baselines: no baseline 'clinical_coks' for survival", 'did you mean "clinical_cox"'],
        ),
        (["--set", "train.lr=-1"], ["train.lr", "greater than 0"]),
    ],
)
def test_a_recipe_that_cannot_be_meant_is_refused(place, capsys, words, said):
    assert attempt(place, *words) == 2
    error = capsys.readouterr().err
    for part in said:
        assert part in error, (part, error)
    assert list(Path.cwd().iterdir()) == [], "something was left in the working folder"


def test_the_good_cohort_runs(place, capsys):
    """The cases above are refused for their own fault."""
    assert attempt(place) == 0
    assert (Path.cwd() / "run" / "report.html").is_file()


@pytest.mark.parametrize("case", ["everyone censored", "one event", "one patient"])
def test_a_dreaded_held_out_fold_runs_and_is_labelled(place, case):
    lines = [line.split(",") for line in (place / "patients.csv").read_text().splitlines()]
    status = lines[0].index("status")
    censored = [line[0] for line in lines[1:] if line[status] == "0"]
    happened = [line[0] for line in lines[1:] if line[status] == "1"]
    held = {"everyone censored": censored[:8], "one event": [*censored[:7], happened[0]], "one patient": censored[:1]}
    ids = [line[0] for line in lines[1:]]
    published(place, [i for i in ids if i not in held[case]], held[case])
    run = train(
        place / "card.md",
        recipe="smoke",
        overrides=(*made_up.QUICK, "baselines=[kaplan_meier, clinical_cox]"),
        data_root=place,
        out=Path("run"),
    )
    evaluation = read_evaluations(run)["survival"]
    assert len(evaluation.models) == 3
    for model in evaluation.models.values():
        (row,) = model["folds"]
        assert row["patients"] == len(held[case])
        assert row["events"] == (case == "one event")
        if case != "one event":
            assert row["harrell_c"] is None
            assert "no comparable pair" in row["reason"]
            assert model["pooled"]["estimate"] is None
            assert model["pooled"]["reason"]
    page = (run.path / "report.html").read_text()
    assert "nan" not in page.lower().replace("finance", "")
    json.dumps(evaluation.to_json(), allow_nan=False)
