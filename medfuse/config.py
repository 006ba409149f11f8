"""Cards and recipes: what a person writes, checked key by key before anything runs.

A card is the YAML front matter of ``data_cards/NAME.md`` and defines a cohort. A recipe is a YAML file of
``pipelines/`` and defines a way of working. An unknown key is an error with the nearest spelling.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from medfuse.errors import ConfigError, nearest
from medfuse.types import ColumnKind, OutcomeKind, TimeUnit


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


# --- cards ------------------------------------------------------------------------------------------------------


class Governance(_Strict):
    """Under what terms the data may be used, and how they were made safe."""

    licence: str
    source: str
    citation: str
    consent: str
    deidentification: str
    sha256: dict[str, str] = Field(default_factory=dict, description="file as the card names it -> SHA-256")


class PatientsCard(_Strict):
    """The table that lists every patient; a patient may stand in several rows."""

    file: str
    id: str | None = Field(default=None, description="id column; none: the row number, with row_prefix")
    row_prefix: str = "row-"


class GroupsCard(_Strict):
    """Columns of the patients table that say who is one person and which site treated them."""

    person: str | None = None
    site: str | None = None
    index_time: str | None = None


class ExcludeCard(_Strict):
    """Patients whose outcome is set to unknown because a column holds one of the codes."""

    column: str
    codes: list[str]


class OutcomeCard(_Strict):
    """One outcome; which code means event, and in which unit time is, are always stated."""

    kind: OutcomeKind
    file: str | None = Field(default=None, description="default: the patients table")
    id: str | None = None
    time: str | None = None
    unit: TimeUnit | str | None = None
    event: str | None = None
    event_codes: list[str] = Field(default_factory=list)
    censored_codes: list[str] = Field(default_factory=list)
    column: str | None = None
    classes: list[str] = Field(default_factory=list, description="codes in order; binary: the event last")
    exclude: ExcludeCard | None = None
    within_days: float | None = Field(default=None, description="binary: event within, else unknown if followed less")
    negative_time: Literal["refuse", "unknown"] = Field(default="refuse", description="unknown: listed, outcome dropped")
    description: str = ""

    @model_validator(mode="after")
    def _complete(self) -> "OutcomeCard":
        if self.kind == "survival":
            needed = {"time": self.time, "event": self.event, "event_codes": self.event_codes, "unit": self.unit}
            needed["censored_codes"] = self.censored_codes
        elif self.kind == "continuous":
            needed = {"column": self.column, "unit": self.unit}
        else:
            needed = {"column": self.column, "classes": self.classes}
        missing = [name for name, value in needed.items() if not value]
        if missing:
            msg = f"a {self.kind} outcome also needs {', '.join(missing)}"
            raise ValueError(msg)
        if self.within_days is not None and self.time is None:
            msg = "within_days needs time and unit, to know how long a patient without the event was followed"
            raise ValueError(msg)
        return self


class ColumnCard(_Strict):
    """One column of a table; missing codes become missing cells, levels fix the order of an ordinal."""

    kind: ColumnKind = "numeric"
    unit: str | None = None
    levels: list[str] = Field(default_factory=list)
    missing: list[str] = Field(default_factory=list)


class ModalityCard(_Strict):
    """One modality: which loader reads which files, and in what unit."""

    loader: Literal["tabular", "expression", "vectors"]
    file: str | None = None
    files: dict[str, str] = Field(default_factory=dict, description="vectors: token identity -> file")
    id: str | None = None
    columns: dict[str, ColumnCard] | str | None = Field(default=None, description="tabular: columns; else a pattern")
    orientation: Literal["patients_by_genes", "genes_by_patients"] = "patients_by_genes"
    unit: str | None = None
    log_base: float | None = None
    zscored_on: str | None = Field(default=None, description="which rows published z-scores have seen")
    gmt: str | None = None
    duplicates: Literal["refuse", "mean"] = "refuse"
    repeated_rows: Literal["agree", "mean", "first"] = "agree"
    accept_mangled: bool = False
    features: str = "features"
    coordinates: str = "coords"
    days_from_index: str | None = Field(default=None, description="column of days from index time; > 0 is refused")
    description: str = ""

    @model_validator(mode="after")
    def _complete(self) -> "ModalityCard":
        if bool(self.file) == bool(self.files):
            msg = "a modality needs either file or files"
            raise ValueError(msg)
        if self.loader == "tabular" and not isinstance(self.columns, dict):
            msg = "tabular needs columns: a mapping of column name to kind, unit, levels, missing"
            raise ValueError(msg)
        if self.loader == "expression" and self.unit is None:
            msg = "expression needs a unit (zscore, tpm, fpkm, counts, intensity, copy_number, mutation) and, if logged, log_base"
            raise ValueError(msg)
        return self


class FoldsCard(_Strict):
    """Published folds: one CSV per fold with id columns, or named JSON lists of {patient_id, dataset}."""

    pattern: str | None = Field(default=None, description="path with {k}")
    k: int = 0
    train: str = "train"
    held_out: str = "val"
    files: dict[str, str] = Field(default_factory=dict, description="split name -> JSON file")


class CohortCard(_Strict):
    """The definition of a cohort."""

    name: str
    title: str
    root: str = ""
    governance: Governance
    patients: PatientsCard
    groups: GroupsCard = GroupsCard()
    subgroups: list[str] = Field(default_factory=list, description="columns of the patients table")
    time_zero: Literal["keep", "exclude"] = Field(default="keep", description="what becomes of time 0 in survival")
    outcomes: dict[str, OutcomeCard]
    modalities: dict[str, ModalityCard]
    folds: FoldsCard | None = None
    prose: str = Field(default="", repr=False)
    path: Path | None = None

    @model_validator(mode="after")
    def _complete(self) -> "CohortCard":
        if not self.outcomes or not 1 <= len(self.modalities) <= 8:
            msg = f"a cohort needs an outcome and 1 to 8 modalities, found {len(self.outcomes)} and {len(self.modalities)}"
            raise ValueError(msg)
        return self


# --- recipes ----------------------------------------------------------------------------------------------------


class SplitsRecipe(_Strict):
    """Which patients are held out."""

    source: Literal["auto", "published", "generated", "temporal"] = "auto"
    folds: int = Field(default=5, ge=2)
    repeats: int = Field(default=1, ge=1)
    group_by_site: bool = False
    inner_folds: int = Field(default=3, ge=2)
    cutoff: str | None = None
    seed: int = 0


class ModelRecipe(_Strict):
    """The three slots; a component's keyword arguments stand beside its name."""

    width: int = Field(default=64, ge=4)
    encoders: dict[str, dict[str, Any]] = Field(default_factory=dict)
    fusion: dict[str, Any] = Field(default_factory=lambda: {"name": "transformer"})
    heads: dict[str, dict[str, Any]] = Field(default_factory=dict, description="by outcome, or by outcome kind")


class TrainRecipe(_Strict):
    """Settings of one member's fit; see medfuse.training.settings.TrainSettings."""

    seeds: int = Field(default=3, ge=1)
    epochs: int = Field(default=100, ge=1)
    batch_size: int = Field(default=64, ge=1)
    lr: float = Field(default=3e-4, gt=0)
    weight_decay: float = Field(default=1e-2, ge=0)
    schedule: Literal["cosine", "constant"] = "constant"
    patience: int = Field(default=10, ge=0)
    select_by: Literal["loss", "score", "last"] = "loss"
    modality_dropout: bool = True
    keep_all: float = Field(default=0.3, ge=0, le=1)
    ema: float = Field(default=0.0, ge=0, lt=1)
    accumulate: int = Field(default=1, ge=1)
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: int = Field(default=0, ge=0)


class EvaluationRecipe(_Strict):
    """What is reported of held-out patients."""

    horizons: list[float] | None = Field(default=None, description="days; default: quartiles of train event times")
    bootstrap: int = Field(default=1000, ge=0)
    minimum_cell: int = Field(default=10, ge=1)


class TrackingRecipe(_Strict):
    """MLflow; SQLite in the working folder unless MLFLOW_TRACKING_URI says otherwise."""

    mlflow: bool = True
    experiment: str = "medfuse"


class Recipe(_Strict):
    """A way of working."""

    name: str = "default"
    seed: int = 0
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


def _known_keys(model: type[BaseModel], location: Sequence[int | str]) -> set[str]:
    """Field names of the section in which an unknown key stands, following a pydantic error location."""
    current: Any = model
    for part in location[:-1]:
        if isinstance(current, type) and issubclass(current, BaseModel) and part in current.model_fields:
            current = current.model_fields[str(part)].annotation
        for inner in getattr(current, "__args__", ()):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                current = inner
    return set(current.model_fields) if isinstance(current, type) and issubclass(current, BaseModel) else set()


def _checked(model: type[BaseModel], content: Any, *, where: str) -> Any:  # noqa: ANN401  # an instance of model
    if not isinstance(content, Mapping):
        msg = f"{where}: expected a mapping of keys, found {type(content).__name__}"
        raise ConfigError(msg)
    try:
        return model.model_validate(dict(content))
    except ValidationError as error:
        lines = []
        for item in error.errors(include_input=False, include_url=False):
            key = ".".join(str(part) for part in item["loc"]) or "(top)"
            if item["type"] == "extra_forbidden":
                known = _known_keys(model, item["loc"])
                lines.append(f"{key}: unknown key; {nearest(str(item['loc'][-1]), known)}")
            else:
                lines.append(f"{key}: {item['msg']}")
        msg = f"{where}: " + "; ".join(lines)
        raise ConfigError(msg) from None


def _find(name: str, *, folder: str, suffix: str) -> Path:
    """A file by path, or by name in the working folder, the repository, or the installed package."""
    direct = Path(name)
    if direct.suffix == suffix or direct.is_file():
        if not direct.is_file():
            msg = f"{name}: expected a file, found none"
            raise ConfigError(msg)
        return direct
    package = Path(__file__).parent
    places = [Path.cwd() / folder, package.parent / folder, package / "_data" / folder]
    for place in places:
        if (place / f"{name}{suffix}").is_file():
            return place / f"{name}{suffix}"
    known = {p.stem for place in places if place.is_dir() for p in place.glob(f"*{suffix}")}
    msg = f"{name}: no such file and no {folder} entry of that name; {nearest(name, known)}"
    raise ConfigError(msg)


def _yaml(text: str, *, where: str) -> Any:  # noqa: ANN401  # whatever YAML holds
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        msg = f"{where}{line}: expected YAML, found {getattr(error, 'problem', 'damage')}"
        raise ConfigError(msg) from None


def read_card(name: str | Path) -> CohortCard:
    """Read a data card.

    Args:
        name: a path, or the name of a card in ``data_cards/``.

    Raises:
        ConfigError: no such card, no front matter, an unknown key (with the nearest spelling) or a value that is not
            what its key expects.
    """
    path = _find(str(name), folder="data_cards", suffix=".md")
    match = re.match(r"\A---\s*\n(.*?)\n---\s*\n(.*)\Z", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    if match is None:
        msg = f"{path.name}: expected YAML front matter between two lines of ---, found none"
        raise ConfigError(msg)
    content = _yaml(match.group(1), where=path.name)
    card = _checked(CohortCard, content, where=path.name)
    return card.model_copy(update={"prose": match.group(2), "path": path})  # type: ignore[no-any-return]


def _override(content: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key:
        msg = f"--set {text}: expected key.path=value, such as train.lr=1e-4"
        raise ConfigError(msg)
    node = content
    *parents, last = key.split(".")
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            msg = f"--set {text}: {parent} is a value, not a section"
            raise ConfigError(msg)
        node = child
    parsed = _yaml(value, where=f"--set {text}")
    if isinstance(parsed, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", parsed):
        parsed = float(parsed)  # YAML 1.1 reads 1e-4 as text
    node[last] = parsed


def read_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply overrides.

    Args:
        name: a path, or the name of a recipe in ``pipelines/``.
        overrides: ``section.key=value`` texts; values are YAML.

    Raises:
        ConfigError: as for cards.
    """
    path = _find(str(name), folder="pipelines", suffix=".yaml")
    content = _yaml(path.read_text(encoding="utf-8"), where=path.name) or {}
    if isinstance(content, dict):
        for text in overrides:
            _override(content, text)
    return _checked(Recipe, content, where=path.name)  # type: ignore[no-any-return]
