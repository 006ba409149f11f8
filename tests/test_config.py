"""Cards and recipes as text: every fault named with its file, its key and the nearest spelling."""

from pathlib import Path

import pytest
import yaml

from medfuse.config import Recipe, read_card, read_recipe
from medfuse.errors import ConfigError

FRONT = """\
name: toy
title: A toy
governance: {licence: CC0, source: s, citation: c, consent: n, deidentification: d}
patients: {file: a.csv, id: id}
outcomes:
  os: {kind: survival, time: t, unit: days, event: e, event_codes: ["1"], censored_codes: ["0"]}
modalities:
  clinical: {loader: tabular, file: a.csv, columns: {age: {unit: years}}}
"""


def write(folder, front: str, prose: str = "\n# Toy\n"):
    path = folder / "toy.md"
    path.write_text(f"---\n{front}---\n{prose}")
    return path


def test_a_card_is_front_matter_and_prose(tmp_path):
    path = write(tmp_path, FRONT)
    card = read_card(path)
    assert card.name == "toy"
    assert card.prose == "\n# Toy\n"
    assert card.path == path
    assert card.modalities["clinical"].columns["age"].unit == "years"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_card(path) == card
    path.write_text(f"---\n{FRONT}---")
    assert read_card(path).prose == ""


def test_a_card_is_found_by_name_nearest_folder_first(tmp_path, monkeypatch):
    assert read_card("transbig").path.parts[-2:] == ("data_cards", "transbig.md")
    (tmp_path / "data_cards").mkdir()
    write(tmp_path / "data_cards", FRONT.replace("name: toy", "name: transbig")).rename(
        tmp_path / "data_cards/transbig.md"
    )
    monkeypatch.chdir(tmp_path)
    assert read_card("transbig").title == "A toy"
    assert read_card("hancock").name == "hancock"


@pytest.mark.parametrize(
    ("good", "bad", "said"),
    [
        ("title:", "titel:", r'toy\.md: title: Field required; titel: unknown key; did you mean "title"'),
        ("licence:", "license:", r'governance\.license: unknown key; did you mean "licence"'),
        ("event_codes:", "event_code:", r'outcomes\.os\.event_code: unknown key; did you mean "event_codes"'),
        ("columns:", "colums:", r'modalities\.clinical\.colums: unknown key; did you mean "columns"'),
        (
            "{unit: years}",
            "{units: years}",
            r'modalities\.clinical\.columns\.age\.units: unknown key; did you mean "unit"',
        ),
        ('["1"]', "[1]", r"outcomes\.os\.event_codes\.0: Input should be a valid string \(put it in quotes"),
        ('["0"]', "[no]", r"outcomes\.os\.censored_codes\.0: .*put it in quotes"),
        ("unit: days", "unit: day", r'outcomes\.os: expected unit to be a unit of time.*did you mean "days"'),
        ("kind: survival", "kind: survive", r"outcomes\.os\.kind: Input should be 'survival'"),
        ("patients:", "name: again\npatients:", r"line 4: expected YAML, found the key 'name' twice"),
        ("unit: days,", "unit: days, unit: weeks,", r"the key 'unit' twice"),
        ("{age: {unit: years}}", "[", r"toy\.md, line \d+: expected YAML"),
        ("a.csv, id", "!!python/object:os.system x, id", r"expected YAML, found could not determine a constructor"),
    ],
)
def test_a_fault_names_file_key_and_nearest_spelling(tmp_path, good, bad, said):
    assert good in FRONT
    with pytest.raises(ConfigError, match=said):
        read_card(write(tmp_path, FRONT.replace(good, bad, 1)))


def test_only_the_deeper_fault_of_a_union_is_told(tmp_path):
    with pytest.raises(ConfigError) as raised:
        read_card(write(tmp_path, FRONT.replace("{unit: years}", "{units: years}")))
    assert str(raised.value).count(";") == 1
    assert "dict[" not in str(raised.value)


@pytest.mark.parametrize("text", ["", "# no front matter\n", "---\nname: x\n", "---\n- a\n---\n"])
def test_a_file_that_is_no_card_is_refused(tmp_path, text):
    (tmp_path / "toy.md").write_text(text)
    with pytest.raises(ConfigError, match=r"toy\.md: expected"):
        read_card(tmp_path / "toy.md")


def test_a_card_in_other_bytes_or_that_is_not_there_is_refused(tmp_path):
    (tmp_path / "toy.md").write_bytes("---\nname: ä\n---\n".encode("latin-1"))
    with pytest.raises(ConfigError, match="UTF-8"):
        read_card(tmp_path / "toy.md")
    with pytest.raises(ConfigError, match="expected a file, found none"):
        read_card(tmp_path / "gone.md")
    with pytest.raises(ConfigError, match='did you mean "transbig"'):
        read_card("transbg")


@pytest.mark.parametrize("name", sorted(path.stem for path in (Path(__file__).parents[1] / "pipelines").glob("*.yaml")))
def test_recipes_read_by_name_and_repeat_from_their_dump(tmp_path, name):
    recipe = read_recipe(name)
    assert recipe.name == name
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    assert read_recipe(tmp_path / "again.yaml") == recipe


def test_an_empty_recipe_is_the_defaults(tmp_path):
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert read_recipe(tmp_path / "empty.yaml") == Recipe()


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("train.lr=1e-4", ("train", "lr"), 1e-4),
        ("train.seeds=5", ("train", "seeds"), 5),
        ("modalities=[clinical, expression]", ("modalities",), ["clinical", "expression"]),
        ("splits.group_by_site=true", ("splits", "group_by_site"), True),
        ("evaluation.horizons=null", ("evaluation", "horizons"), None),
        ("model.fusion={name: late}", ("model", "fusion"), {"name": "late"}),
        ("model.fusion.name=concat", ("model", "fusion", "name"), "concat"),
        ("model.encoders.expression.name=pathway", ("model", "encoders", "expression", "name"), "pathway"),
        ("model.fusion.dropout=1e-1", ("model", "fusion", "dropout"), 0.1),
        ("name=1e-1x", ("name",), "1e-1x"),
        ("name=a=b", ("name",), "a=b"),
    ],
)
def test_an_override_sets_one_key(text, path, value):
    node = read_recipe("default", [text]).model_dump()
    for part in path:
        node = node[part]
    assert node == value


def test_who_asks_for_a_fusion_gets_it_alone():
    assert len(read_recipe("default").model.committee) == 2
    assert len(read_recipe("default", ["train.lr=1e-4", "model.fusion.dropout=0.3"]).model.committee) == 2
    for text in ("model.fusion={name: late}", "model.fusion.name=concat"):
        assert read_recipe("default", [text]).model.committee == []
        both = read_recipe("default", ["model.committee=[{name: stacked}]", text]).model
        assert both.committee == [{"name": "stacked"}]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train.leraning_rate=1", r"train\.leraning_rate: unknown key"),
        ("trian.lr=1", r'trian: unknown key; did you mean "train"'),
        ("train.patince=1", r'did you mean "patience"'),
        ("train.lr=fast", r"train\.lr: Input should be a valid number"),
        ("train.lr=-1", r"train\.lr: Input should be greater than 0"),
        ("train.lr=.nan", r"train\.lr: "),
        ("train.lr.x=1", r"expected lr to be a section"),
        ("train.lr", r"expected key\.path=value"),
        ("=1", r"expected key\.path=value"),
        ("train..lr=1", r"expected key\.path=value"),
        ("model.fusion={", r"--set model\.fusion=\{, line 1: expected YAML"),
    ],
)
def test_an_override_that_cannot_be_is_refused(text, said):
    with pytest.raises(ConfigError, match=said):
        read_recipe("default", [text])


def test_a_recipe_that_is_a_list_or_missing_is_refused(tmp_path):
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(ConfigError, match="expected a mapping of keys, found list"):
        read_recipe(tmp_path / "list.yaml")
    with pytest.raises(ConfigError, match='did you mean "default"'):
        read_recipe("defualt")
