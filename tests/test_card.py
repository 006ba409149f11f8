"""Card models refuse what they would otherwise ignore, and a card's files stay below the data root."""

import copy
import hashlib
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from medfuse.card import CohortCard, ColumnCard, FoldsCard, ModalityCard, default_data_root, jailed, resolve_source
from medfuse.errors import ConfigError, DataError, MedfuseError

TABULAR = {"loader": "tabular", "file": "a.csv", "columns": {"age": {}}}
SURVIVAL = {
    "kind": "survival",
    "time": "t",
    "unit": "days",
    "event": "e",
    "event_codes": ["1"],
    "censored_codes": ["0"],
}
BINARY = {"kind": "binary", "column": "c", "classes": ["no", "yes"]}
CARD = {
    "name": "toy",
    "title": "A toy",
    "governance": {"licence": "CC0", "source": "s", "citation": "c", "consent": "n", "deidentification": "d"},
    "patients": {"file": "a.csv", "id": "id"},
    "outcomes": {"os": SURVIVAL},
    "modalities": {"clinical": TABULAR},
}


def card(**changes) -> CohortCard:
    content = copy.deepcopy(CARD)
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = content
        for parent in parents:
            node = node[parent]
        node[last] = value
    return CohortCard.model_validate(content)


def test_a_card_names_its_sources_once():
    made = card(
        patients__file="p.csv",
        subgroups=["sex", "b.csv#grade"],
        outcomes__os={**SURVIVAL, "file": "o.csv"},
        modalities__stains={"loader": "vectors", "files": {"HE": "h.npz", "CD8": "c.npz"}},
        folds={"pattern": "f_{k}.csv", "k": 2},
    )
    assert made.sources() == ["p.csv", "b.csv", "o.csv", "a.csv", "h.npz", "c.npz", "f_0.csv", "f_1.csv"]
    assert made.subgroup_columns() == [("p.csv", "sex"), ("b.csv", "grade")]


def test_a_card_survives_its_own_dump():
    made = card(
        modalities__genes={"loader": "expression", "file": "g.csv", "unit": "tpm"}, folds={"files": {"in": "i.json"}}
    )
    assert CohortCard.model_validate(made.model_dump()) == made


def test_an_outcome_lists_the_columns_it_reads():
    made = card(outcomes__os={**SURVIVAL, "exclude": [{"cause": ["other"], "t": "<= 3"}]})
    assert made.outcomes["os"].used_columns() == ["t", "e", "cause"]


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("outcomes", {}, "needs an outcome"),
        ("modalities", {f"m{i}": TABULAR for i in range(9)}, "1 to 8 modalities, found 1 and 9"),
        ("outcomes", {"a b": SURVIVAL}, "letters, digits and _"),
        ("modalities", {"x:y": TABULAR}, "letters, digits and _"),
        ("name", "../x", "name"),
        ("governance__sha256", {"b.csv": "0" * 64}, 'did you mean "a.csv"'),
        ("governance__sha256", {"a.csv": "0" * 63}, "64 lower-case hexadecimal"),
        ("governance__licence", "", "licence"),
        ("outcomes__os", {**SURVIVAL, "unit": "month"}, 'did you mean "months"'),
        ("outcomes__os", {**SURVIVAL, "unit": None}, "also needs unit"),
        ("outcomes__os", {**SURVIVAL, "event_codes": []}, "also needs event_codes"),
        ("outcomes__os", {**SURVIVAL, "censored_codes": ["1"]}, "expected each code once"),
        ("outcomes__os", {**SURVIVAL, "event_codes": [1]}, "valid string"),
        ("outcomes__os", {**SURVIVAL, "within_days": 30.0}, "within_days is for a binary outcome"),
        ("outcomes__os", {**SURVIVAL, "exclude": [{"cause": "other"}]}, "list of codes, or a comparison"),
        ("outcomes__os", {**BINARY, "classes": ["a", "b", "c"]}, "two classes"),
        ("outcomes__os", {**BINARY, "classes": ["a", "a"]}, "expected each code once"),
        ("outcomes__os", {**BINARY, "within_days": 30.0}, "needs time and unit"),
        ("outcomes__os", {"kind": "continuous", "column": "c"}, "also needs unit"),
        ("modalities__clinical", {**TABULAR, "files": {"x": "b.csv"}}, "one of file, files and path"),
        ("modalities__clinical", {**TABULAR, "columns": "a*"}, "tabular needs columns"),
        ("modalities__clinical", {**TABULAR, "gmt": "x.gmt"}, "does not read gmt"),
        ("modalities__clinical", {"loader": "vectors", "file": "x.npz", "log_base": 2}, "does not read log_base"),
        ("modalities__clinical", {"loader": "expression", "file": "x.csv"}, "needs a unit"),
        ("modalities__clinical", {"loader": "expression", "file": "x.csv", "unit": "zscore"}, "zscored_on"),
        ("modalities__clinical", {"loader": "tabulr", "file": "x"}, 'did you mean "tabular"'),
    ],
)
def test_a_card_that_cannot_be_meant_is_refused(path, value, said):
    with pytest.raises(ValidationError, match=said):
        card(**{path: value})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"kind": "ordinal"}, "needs its levels"),
        ({"kind": "numeric", "levels": ["a"]}, "no levels"),
        ({"kind": "ordinal", "levels": ["a", "b"], "missing": ["a"]}, "expected each code once"),
    ],
)
def test_levels_are_stated_where_they_mean_something(content, said):
    with pytest.raises(ValidationError, match=said):
        ColumnCard.model_validate(content)


@pytest.mark.parametrize(
    "content",
    [{}, {"pattern": "f.csv", "k": 5}, {"pattern": "f_{k}.csv"}, {"pattern": "f_{k}.csv", "k": 1, "files": {"a": "b"}}],
)
def test_folds_are_either_counted_or_named(content):
    with pytest.raises(ValidationError, match="either a pattern"):
        FoldsCard.model_validate(content)


def test_every_key_of_a_modality_belongs_to_a_loader():
    from medfuse.card import _RAW_KEYS, LOADER_KEYS

    keys = set.union(*LOADER_KEYS.values(), _RAW_KEYS) | {"loader", "id", "description"}
    assert keys == set(ModalityCard.model_fields)


ESCAPES = [
    "/etc/passwd",
    "../x.csv",
    "a/../../x.csv",
    "a/..",
    "\\\\host\\share\\x",
    "//host/x",
    "C:\\x",
    "C:x",
    "..\\x",
]
ODD = ["", " ", "a\0b", "~/x", "nul", "sub/COM1.csv", "con.txt", "x" * 5000, "\\x"]


@pytest.mark.parametrize("source", ESCAPES + ODD)
def test_a_path_that_leaves_the_data_root_is_refused(tmp_path, source):
    with pytest.raises(MedfuseError):
        resolve_source(card(patients__file=source), source, tmp_path)


@pytest.mark.parametrize("source", ESCAPES)
def test_escapes_are_errors_of_the_card(tmp_path, source):
    with pytest.raises(ConfigError, match="expected a path below"):
        jailed(source, tmp_path)
    with pytest.raises(ConfigError, match="expected a path below"):
        resolve_source(card(root=source), "a.csv", tmp_path)


@given(st.text(alphabet=st.sampled_from("./\\ab~:\0 "), max_size=12))
def test_whatever_is_let_through_lies_inside(source):
    base = Path("/nowhere/data")
    try:
        path = jailed(source, base)
    except ConfigError:
        return
    assert path.resolve().is_relative_to(base)


def test_a_link_out_of_the_data_root_is_refused_and_one_inside_is_not(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    (tmp_path / "secret.csv").write_text("id\n1\n")
    (root / "a.csv").write_text("id\n1\n")
    (root / "out.csv").symlink_to(tmp_path / "secret.csv")
    (root / "in.csv").symlink_to(root / "a.csv")
    (root / "loop.csv").symlink_to(root / "loop.csv")
    assert resolve_source(card(), "in.csv", root).read_text() == "id\n1\n"
    with pytest.raises(ConfigError, match="a link out of it"):
        resolve_source(card(), "out.csv", root)
    with pytest.raises(MedfuseError, match=r"loop\.csv"):
        resolve_source(card(), "loop.csv", root)


def test_a_changed_file_is_named_with_both_hashes(tmp_path):
    (tmp_path / "a.csv").write_text("id\n1\n")
    digest = hashlib.sha256(b"id\n1\n").hexdigest()
    made = card(governance__sha256={"a.csv": digest})
    assert resolve_source(made, "a.csv", tmp_path) == tmp_path / "a.csv"
    (tmp_path / "a.csv").write_text("id\n2\n")
    with pytest.raises(DataError, match=r"'a\.csv' has changed.*update governance\.sha256") as raised:
        resolve_source(made, "a.csv", tmp_path)
    assert digest in str(raised.value)
    assert hashlib.sha256(b"id\n2\n").hexdigest() in str(raised.value)


def test_a_missing_file_and_a_missing_data_root_say_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="--data-root or MEDFUSE_DATA"):
        resolve_source(card(), "a.csv", tmp_path)
    monkeypatch.delenv("MEDFUSE_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    assert default_data_root() is None
    with pytest.raises(ConfigError, match="pass --data-root or set MEDFUSE_DATA"):
        resolve_source(card(), "a.csv", None)
    monkeypatch.setenv("MEDFUSE_DATA", str(tmp_path / "elsewhere"))
    assert default_data_root() == tmp_path / "elsewhere"


PACKAGED = "package:sksurv/datasets/data/breast_cancer_GSE7390-metastasis.arff"


def test_a_packaged_file_is_found_without_importing_the_package(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "sksurv"]:
        monkeypatch.delitem(sys.modules, name)
    path = resolve_source(card(), PACKAGED, None)
    assert path.stat().st_size > 100_000
    assert "sksurv" not in sys.modules


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("package:no_such_package/x", "to be installed"),
        ("package:sksurv.datasets/data/x", "to be installed"),
        ("package:/etc/passwd", "to be installed"),
        ("package:sksurv/../pip/x", "part '..'"),
        ("package:sksurv", "no path at all"),
        ("package:sksurv/none.arff", "expected the file"),
    ],
)
def test_a_packaged_source_that_cannot_be_is_refused(source, said):
    with pytest.raises(MedfuseError, match=said):
        resolve_source(card(), source, None)
