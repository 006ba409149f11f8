"""Reading what a person writes: recipes (a way of working) and the front matter of cards (a cohort).

Everything is checked before anything runs: an unknown key is an error with the nearest spelling.
"""

import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError

from medfuse.card import (
    CohortCard,
    ColumnCard,
    FoldsCard,
    Governance,
    GroupsCard,
    ModalityCard,
    OutcomeCard,
    PatientsCard,
    Strict,
)
from medfuse.errors import ConfigError, nearest

__all__ = [
    "CohortCard",
    "ColumnCard",
    "EvaluationRecipe",
    "FoldsCard",
    "Governance",
    "GroupsCard",
    "ModalityCard",
    "ModelRecipe",
    "OutcomeCard",
    "PatientsCard",
    "Recipe",
    "SplitsRecipe",
    "TrackingRecipe",
    "TrainRecipe",
    "read_card",
    "read_recipe",
    "recipe_names",
]

Section = TypeVar("Section", bound=BaseModel)


class SplitsRecipe(Strict):
    """Which patients are held out."""

    source: Literal["auto", "published", "generated", "temporal"] = "auto"
    folds: int = Field(default=5, ge=2)
    repeats: int = Field(default=1, ge=1)
    group_by_site: bool = False
    inner_folds: int = Field(default=3, ge=2)
    cutoff: str | None = None
    seed: int = Field(default=0, ge=0, lt=2**32)


class ModelRecipe(Strict):
    """The three slots; a component's keyword arguments stand beside its name."""

    width: int = Field(default=64, ge=4)
    encoders: dict[str, dict[str, Any]] = Field(default_factory=dict, description="by modality")
    defaults: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="by default encoder: what takes the place of bag, table, linear, ..."
    )
    fusion: dict[str, Any] = Field(default_factory=lambda: {"name": "transformer"})
    committee: list[dict[str, Any]] = Field(
        default_factory=list, description="further fusions, with which the joint networks of the seeds take turns"
    )
    heads: dict[str, dict[str, Any]] = Field(default_factory=dict, description="by outcome, or by outcome kind")


class TrainRecipe(Strict):
    """Settings of one member's fit; see medfuse.training.settings.TrainSettings."""

    seeds: int = Field(default=3, ge=1)
    unimodal: bool = Field(default=True, description="beside the joint network, one network per modality")
    forests: bool = Field(default=False, description="with unimodal: beside each such network a random forest")
    merge: bool = Field(default=False, description="the joint network is the unimodal ones merged; needs fusion lego")
    tune_epochs: int = Field(default=0, ge=0, description="with merge: epochs of training together that follow")
    epochs: int = Field(default=100, ge=1)
    batch_size: int = Field(default=64, ge=1)
    lr: float = Field(default=3e-4, gt=0)
    weight_decay: float = Field(default=1e-2, ge=0)
    schedule: Literal["cosine", "constant"] = "constant"
    warmup: float = Field(default=0.05, ge=0, le=1)
    most_tokens: int = Field(default=0, ge=0, description="tokens of a bag that a training step reads; 0 = all")
    clip: float = Field(default=1.0, ge=0)
    patience: int = Field(default=10, ge=0)
    select_by: Literal["loss", "score", "last"] = "loss"
    modality_dropout: bool = True
    keep_all: float = Field(default=0.3, ge=0, le=1)
    presence: Literal["as_is", "balanced"] = "as_is"
    balance: Literal["none", "agm"] = "none"
    balance_alpha: float = Field(default=1.0, ge=0)
    ema: float = Field(default=0.0, ge=0, lt=1)
    accumulate: int = Field(default=1, ge=1)
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: int = Field(default=1, ge=0, description="CPU threads of a fit; 0 = as many as torch takes")
    deterministic: bool = False
    checkpoint_every: int = Field(default=0, ge=0)
    checkpoint_seconds: float = Field(default=30.0, ge=0)


class EvaluationRecipe(Strict):
    """What is reported of held-out patients."""

    horizons: list[float] | None = Field(default=None, description="days; default: quartiles of train event times")
    bootstrap: int = Field(default=1000, ge=0)
    minimum_cell: int = Field(default=10, ge=1)


class TrackingRecipe(Strict):
    """MLflow; SQLite in the working folder unless MLFLOW_TRACKING_URI says otherwise."""

    mlflow: bool = True
    experiment: str = "medfuse"


class Recipe(Strict):
    """A way of working."""

    name: str = "default"
    seed: int = Field(default=0, ge=0, lt=2**32)
    outcomes: list[str] | None = None
    modalities: list[str] | None = None
    splits: SplitsRecipe = SplitsRecipe()
    model: ModelRecipe = ModelRecipe()
    train: TrainRecipe = TrainRecipe()
    evaluation: EvaluationRecipe = EvaluationRecipe()
    baselines: list[str] | None = None
    tracking: TrackingRecipe = TrackingRecipe()
    allow_leaks: bool = False


# --- reading ----------------------------------------------------------------------------------------------------


class _UniqueKeys(yaml.SafeLoader):
    """Safe YAML that refuses a key standing twice, of which the plain loader keeps the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                problem = f"the key {key.value!r} twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


# YAML 1.1 reads 1e-4 as text; its exponent needs no point here.
_UniqueKeys.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _yaml(text: str, *, where: str) -> Any:  # noqa: ANN401  # whatever YAML holds
    loader = _UniqueKeys(text)
    try:
        return loader.get_single_data()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        msg = f"{where}{line}: expected YAML, found {getattr(error, 'problem', None) or 'damage'}; correct the line"
        raise ConfigError(msg) from None
    except RecursionError:
        msg = f"{where}: expected YAML of a few levels, found endless nesting"
        raise ConfigError(msg) from None
    finally:
        loader.dispose()


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    """Every model inside a field's annotation, such as ``dict[str, X] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def _known_keys(model: type[BaseModel], location: Sequence[int | str]) -> set[str]:
    """Field names of the section in which an unknown key stands, following a pydantic error location."""
    current = [model]
    for part in location[:-1]:
        found = [
            m
            for section in current
            if part in section.model_fields
            for m in _models(section.model_fields[str(part)].annotation)
        ]
        current = found or current
    return {name for section in current for name in section.model_fields}


# What pydantic puts into a location to say which member of a union it tried; no key of ours.
_UNION_TAG = re.compile(r"(str|float|int|bool|(list|dict)\[.*\])")


def _explain(model: type[BaseModel], error: ValidationError) -> str:
    """Every fault with its key path; no value is repeated, for cards stand beside patients' data."""
    items = error.errors(include_input=False, include_url=False)
    lines: dict[str, None] = {}
    for item in items:
        where = item["loc"]
        tagged = bool(where) and _UNION_TAG.fullmatch(str(where[-1])) is not None
        deeper = any(other["loc"][: len(where) - 1] == where[:-1] and len(other["loc"]) > len(where) for other in items)
        if tagged and deeper:
            continue  # the other member of the union says more
        key = ".".join(str(part) for part in where if not _UNION_TAG.fullmatch(str(part))) or "(top)"
        text = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            text = f"unknown key; {nearest(str(where[-1]), _known_keys(model, where))}"
        elif item["type"] == "string_type":
            text += " (put it in quotes: YAML reads 1, no and yes as numbers and booleans)"
        lines[f"{key}: {text}"] = None
    return "; ".join(lines)


def _checked(model: type[Section], content: object, *, where: str) -> Section:
    if not isinstance(content, Mapping):
        msg = f"{where}: expected a mapping of keys, found {type(content).__name__}"
        raise ConfigError(msg)
    try:
        return model.model_validate(dict(content))
    except ValidationError as error:
        msg = f"{where}: {_explain(model, error)}"
        raise ConfigError(msg) from None


def _find(name: str, *, folder: str, suffix: str) -> Path:
    """A file by path, or by name in the working folder, the repository, or the installed package."""
    direct = Path(name)
    if direct.suffix == suffix or direct.is_file():
        if not direct.is_file():
            msg = f"{name}: expected a file, found none; check the path, or give the name of one in {folder}"
            raise ConfigError(msg)
        return direct
    package = Path(__file__).parent
    places = [Path.cwd() / folder, package.parent / folder, package / "_data" / folder]
    known = {path.stem: path for place in reversed(places) for path in sorted(place.glob(f"*{suffix}"))}
    if name not in known:
        msg = f"{name}: no such file and no entry of that name in {folder}; {nearest(name, known)}"
        raise ConfigError(msg)
    return known[name]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{path}: expected readable text in UTF-8, found {type(error).__name__}; save it as UTF-8"
        raise ConfigError(msg) from error


def recipe_names() -> list[str]:
    """Names of the recipes that :func:`read_recipe` finds."""
    package = Path(__file__).parent
    places = [Path.cwd() / "pipelines", package.parent / "pipelines", package / "_data" / "pipelines"]
    return sorted({path.stem for place in places for path in place.glob("*.yaml")})


def read_card(name: str | Path) -> CohortCard:
    """Read a data card.

    Args:
        name: a path, or the name of a card in ``data_cards/``.

    Raises:
        ConfigError: no such card, no front matter, an unknown key (with the nearest spelling) or a value that is not
            what its key expects.
    """
    path = _find(str(name), folder="data_cards", suffix=".md")
    match = re.match(r"\A---[ \t]*\n(.*?)\n---[ \t]*(?:\n(.*))?\Z", _text(path), flags=re.DOTALL)
    if match is None:
        msg = f"{path.name}: expected YAML front matter between two lines of ---, found none"
        raise ConfigError(msg)
    card = _checked(CohortCard, _yaml(match.group(1), where=path.name), where=path.name)
    return card.model_copy(update={"prose": match.group(2) or "", "path": path})


def _override(content: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        msg = f"--set {text}: expected key.path=value, such as train.lr=1e-4"
        raise ConfigError(msg)
    node = content
    *parents, last = parts
    for parent in parents:
        if node.get(parent) is None:
            node[parent] = {}
        if not isinstance(node[parent], dict):
            msg = f"--set {text}: expected {parent} to be a section, found a value; set {parent} itself"
            raise ConfigError(msg)
        node = node[parent]
    node[last] = _yaml(value, where=f"--set {text}")


def read_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply overrides.

    Who asks for a fusion means this fusion: ``model.fusion=...`` without ``model.committee=...`` leaves no committee.

    Args:
        name: a path, or the name of a recipe in ``pipelines/``.
        overrides: ``section.key=value`` texts; values are YAML.

    Raises:
        ConfigError: as for cards.
    """
    path = _find(str(name), folder="pipelines", suffix=".yaml")
    content = _yaml(_text(path), where=path.name)
    content = {} if content is None else content
    if isinstance(content, dict):
        keys = {text.partition("=")[0].strip() for text in overrides}
        if keys & {"model.fusion", "model.fusion.name"} and "model.committee" not in keys:
            overrides = ["model.committee=[]", *overrides]
        for text in overrides:
            _override(content, text)
    return _checked(Recipe, content, where=path.name)
