"""Data cards: the YAML front matter of ``data_cards/NAME.md`` defines a cohort, checked key by key.

An unknown key is an error with the nearest spelling, and a key that the chosen loader or kind would ignore is refused.
"""

import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from medfuse.errors import ConfigError, DataError, nearest
from medfuse.files import sha256_path
from medfuse.types import DAYS_PER_UNIT, ColumnKind, OutcomeKind

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
COMPARISON = re.compile(r"(<=|>=|<|>)\s*([+-]?\d+(?:\.\d*)?)")


class Strict(BaseModel):
    """A section whose unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _distinct(codes: list[str], *, what: str) -> None:
    twice = {code for code in codes if codes.count(code) > 1}
    if twice:
        msg = f"{what}: expected each code once, found {sorted(twice)} twice"
        raise ValueError(msg)


class Governance(Strict):
    """Under what terms the data may be used, and how they were made safe."""

    licence: str = Field(min_length=1)
    source: str = Field(min_length=1)
    citation: str = Field(min_length=1)
    consent: str = Field(min_length=1)
    deidentification: str = Field(min_length=1)
    sha256: dict[str, str] = Field(default_factory=dict, description="file as the card names it -> SHA-256")
    checksums: str | None = Field(default=None, description="file of sha256sum's lines, for the files of patients")
    accepted: list[str] = Field(default_factory=list, description="identifying elements that a person reviewed")

    @field_validator("sha256")
    @classmethod
    def _hexadecimal(cls, value: dict[str, str]) -> dict[str, str]:
        bad = [name for name, digest in value.items() if not re.fullmatch(r"[0-9a-f]{64}", digest)]
        if bad:
            msg = f"expected 64 lower-case hexadecimal digits for {bad[0]}; take them from sha256sum"
            raise ValueError(msg)
        return value


class PatientsCard(Strict):
    """The table that lists every patient; a patient may stand in several rows."""

    file: str
    id: str | None = Field(default=None, description="id column; none: the row number, with row_prefix")
    row_prefix: str = "row-"
    pseudonyms: bool = Field(default=False, description="stores and runs hold keyed pseudonyms; medfuse.pseudonyms")


class GroupsCard(Strict):
    """Columns of the patients table that say who is one person and which site treated them."""

    person: str | None = None
    site: str | None = None
    index_time: str | None = None


class OutcomeCard(Strict):
    """One outcome; which code means event, and in which unit time is, are always stated."""

    kind: OutcomeKind
    file: str | None = Field(default=None, description="default: the patients table")
    id: str | None = None
    time: str | None = None
    unit: str | None = Field(default=None, description="days, weeks, months (30.4375 days) or years; continuous: any")
    event: str | None = None
    event_codes: list[str] = Field(default_factory=list)
    censored_codes: list[str] = Field(default_factory=list)
    column: str | None = None
    classes: list[str] = Field(default_factory=list, description="codes in order; binary: the event last")
    exclude: list[dict[str, list[str] | str]] = Field(
        default_factory=list,
        description="rules: outcome unknown where every column of one holds a listed code or compares, as '> 1095'",
    )
    within_days: float | None = Field(
        default=None, gt=0, description="binary: event within, else unknown if followed less"
    )
    negative_time: Literal["refuse", "unknown"] = Field(
        default="refuse", description="unknown: listed, outcome dropped"
    )
    description: str = ""

    @model_validator(mode="after")
    def _complete(self) -> "OutcomeCard":
        codes = {"event_codes": self.event_codes, "censored_codes": self.censored_codes}
        needed: dict[str, object] = {"column": self.column, "classes": self.classes}
        if self.kind == "survival":
            needed = {"time": self.time, "event": self.event, "unit": self.unit, **codes}
        elif self.kind == "continuous":
            needed = {"column": self.column, "unit": self.unit}
        missing = [name for name, value in needed.items() if not value]
        if missing:
            msg = f"a {self.kind} outcome also needs {', '.join(missing)}"
            raise ValueError(msg)
        if self.within_days is not None and (self.kind != "binary" or self.time is None):
            msg = "within_days is for a binary outcome, and needs time and unit: how long was a patient followed?"
            raise ValueError(msg)
        if self.time is not None and self.unit not in DAYS_PER_UNIT:
            msg = f"expected unit to be a unit of time, found {self.unit!r}; {nearest(str(self.unit), DAYS_PER_UNIT)}"
            raise ValueError(msg)
        _distinct(self.event_codes + self.censored_codes, what="event_codes and censored_codes")
        _distinct(self.classes, what="classes")
        if self.kind == "binary" and len(self.classes) != 2:
            msg = f"a binary outcome needs two classes, the event last, found {len(self.classes)}"
            raise ValueError(msg)
        return self

    @field_validator("exclude")
    @classmethod
    def _rules(cls, value: list[dict[str, list[str] | str]]) -> list[dict[str, list[str] | str]]:
        for rule in value:
            for name, wanted in rule.items():
                if isinstance(wanted, str) and not COMPARISON.fullmatch(wanted):
                    msg = f"{name}: expected a list of codes, or a comparison such as '> 1095', found other text"
                    raise ValueError(msg)
        return value

    def used_columns(self) -> list[str]:
        """Columns of the outcome's table that the outcome reads."""
        ruled = [name for rule in self.exclude for name in rule]
        return list(dict.fromkeys(name for name in (self.time, self.event, self.column, *ruled) if name))


class ColumnCard(Strict):
    """One column of a table; missing codes become missing cells, levels fix the order of an ordinal."""

    kind: ColumnKind = "numeric"
    unit: str | None = None
    levels: list[str] = Field(default_factory=list)
    missing: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _complete(self) -> "ColumnCard":
        if self.kind == "ordinal" and len(self.levels) < 2:
            msg = "an ordinal column needs its levels, lowest first"
            raise ValueError(msg)
        if self.kind == "numeric" and self.levels:
            msg = "a numeric column has no levels; is it categorical or ordinal?"
            raise ValueError(msg)
        _distinct(self.levels + self.missing, what="levels and missing")
        return self


# Keys beyond loader, id and description that a loader reads; any other key would be ignored and is refused.
_TABLE_KEYS = {"file", "columns", "repeated_rows", "days_from_index"}
LOADER_KEYS = {
    "tabular": _TABLE_KEYS,
    "expression": _TABLE_KEYS
    | {"orientation", "unit", "log_base", "zscored_on", "gmt", "duplicates", "accept_mangled", "barcode", "options"},
    "copy_number": {"file", "path", "columns", "repeated_rows", "unit", "gmt", "duplicates", "accept_mangled", "build"}
    | {"barcode", "regions", "options"},
    "variants": {"file", "path", "columns", "gmt", "accept_mangled", "build", "barcode", "regions", "sequenced"}
    | {"options"},
    "vectors": {"file", "files", "unit", "features", "coordinates"},
    "events": {"file", "files", "options"},
}
# Loaders of raw files: one path per patient (or one table of all), options that the loader checks, and an extractor.
_RAW_KEYS = {"path", "file", "files", "options", "extractor", "unit", "gmt"}


class ModalityCard(Strict):
    """One modality: which loader reads which files, and in what unit."""

    loader: str
    file: str | None = None
    files: dict[str, str] = Field(default_factory=dict, description="token identity (a stain, say) -> file or path")
    path: str | None = Field(default=None, description="raw files: 'imaging/{patient_id}', a file, folder or glob")
    options: dict[str, Any] = Field(default_factory=dict, description="raw files: what the loader takes")
    extractor: dict[str, Any] = Field(default_factory=dict, description="raw files: name and options; default by kind")
    id: str | None = None
    columns: dict[str, ColumnCard] | str | None = Field(default=None, description="tabular: columns; else a pattern")
    orientation: Literal["patients_by_genes", "genes_by_patients"] = "patients_by_genes"
    unit: str | None = None
    log_base: float | None = Field(default=None, gt=1)
    zscored_on: str | None = Field(default=None, description="which rows published z-scores have seen")
    gmt: str | None = Field(default=None, description="gene sets: GMT, or CSV with a column per set")
    duplicates: Literal["refuse", "mean"] = "refuse"
    repeated_rows: Literal["agree", "mean", "first"] = "agree"
    accept_mangled: bool = False
    barcode: Literal["as_is", "tcga_patient"] = Field(default="as_is", description="how samples name their patients")
    build: Literal["GRCh37", "GRCh38"] | None = Field(default=None, description="genome that positions are of")
    regions: str | None = Field(default=None, description="table of gene, chromosome, start, end (1-based, inclusive)")
    sequenced: str | None = Field(default=None, description="FILE#COLUMN of who was sequenced, or with_variants")
    features: str = "features"
    coordinates: str = "coords"
    days_from_index: str | None = Field(default=None, description="column of days from index time; > 0 is refused")
    description: str = ""

    @model_validator(mode="after")
    def _complete(self) -> "ModalityCard":
        known = sorted(p.stem for p in (Path(__file__).parent / "loaders").glob("[a-z]*.py") if p.stem != "base")
        if self.loader not in known:
            msg = f"no loader {self.loader!r}; {nearest(self.loader, known)}"
            raise ValueError(msg)
        if sum(map(bool, (self.file, self.files, self.path))) != 1:
            msg = "a modality needs one of file, files and path"
            raise ValueError(msg)
        for pattern in (self.path, *(self.files.values() if self.loader not in LOADER_KEYS else ())):
            if pattern and "{patient_id}" not in pattern:
                msg = "raw files need {patient_id} in path and files; a table of all patients stands under file"
                raise ValueError(msg)
        if self.loader == "tabular" and not (isinstance(self.columns, dict) and self.columns):
            msg = "tabular needs columns: a mapping of column name to kind, unit, levels, missing"
            raise ValueError(msg)
        allowed = LOADER_KEYS.get(self.loader, _RAW_KEYS) | {"loader", "id", "description"}
        ignored = [
            key
            for key, field in type(self).model_fields.items()
            if key not in allowed and getattr(self, key) != field.get_default(call_default_factory=True)
        ]
        if ignored:
            msg = f"the loader {self.loader} does not read {', '.join(ignored)}; it reads {', '.join(sorted(allowed))}"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _of_genes(self) -> "ModalityCard":
        if self.loader == "expression" and (self.unit is None or isinstance(self.columns, dict)):
            msg = (
                "expression needs a unit (zscore, tpm, fpkm, counts, intensity, copy_number, mutation), log_base if "
                "logged, and columns as a pattern such as '*_rnaseq'"
            )
            raise ValueError(msg)
        rows = self.repeated_rows != "agree" and self.barcode == "as_is"  # several samples of a patient are columns
        if self.orientation == "genes_by_patients" and (self.days_from_index or rows):
            key = "days_from_index dates" if self.days_from_index else "repeated_rows merges"
            msg = f"{key} rows, and rows of genes_by_patients are genes; transpose the table to use it"
            raise ValueError(msg)
        if self.loader in {"copy_number", "variants"} and isinstance(self.columns, dict):
            msg = f"{self.loader} takes columns as a pattern of sample names, such as '*_tumour'"
            raise ValueError(msg)
        if self.unit == "zscore" and not self.zscored_on:
            msg = "unit zscore also needs zscored_on: which rows have the published z-scores seen?"
            raise ValueError(msg)
        return self

    def sources(self) -> list[str]:
        """Files that the loader opens, without those that every patient has of his own."""
        listed = self.sequenced.rpartition("#")[0] if self.sequenced else None
        named = (self.file, *self.files.values(), self.gmt, self.regions, listed)
        return [source for source in dict.fromkeys(named) if source and "{patient_id}" not in source]


class FoldsCard(Strict):
    """Published folds: one CSV per fold with id columns, or named JSON lists of {patient_id, dataset}."""

    pattern: str | None = Field(default=None, description="path with {k}")
    k: int = Field(default=0, ge=0)
    train: str = "train"
    held_out: str = "val"
    files: dict[str, str] = Field(default_factory=dict, description="split name -> JSON file")

    @model_validator(mode="after")
    def _complete(self) -> "FoldsCard":
        if bool(self.pattern) == bool(self.files) or (self.pattern and ("{k}" not in self.pattern or not self.k)):
            msg = "folds need either a pattern with {k} and the number k, or files"
            raise ValueError(msg)
        return self

    def sources(self) -> list[str]:
        """Files of the folds."""
        counted = [str(self.pattern).replace("{k}", str(k)) for k in range(self.k)] if self.pattern else []
        return [*counted, *self.files.values()]


class CohortCard(Strict):
    """The definition of a cohort."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    title: str = Field(min_length=1)
    root: str = ""
    governance: Governance
    patients: PatientsCard
    groups: GroupsCard = GroupsCard()
    subgroups: list[str] = Field(default_factory=list, description="columns of the patients table, or FILE#COLUMN")
    time_zero: Literal["keep", "exclude"] = Field(default="keep", description="what becomes of time 0 in survival")
    outcomes: dict[str, OutcomeCard]
    modalities: dict[str, ModalityCard]
    folds: FoldsCard | None = None
    strict: bool = Field(default=False, description="refuse files with identifying elements before anything is stored")
    prose: str = Field(default="", repr=False)
    path: Path | None = None

    @model_validator(mode="after")
    def _complete(self) -> "CohortCard":
        if not self.outcomes or not 1 <= len(self.modalities) <= 8:
            found = f"{len(self.outcomes)} and {len(self.modalities)}"
            msg = f"a cohort needs an outcome and 1 to 8 modalities, found {found}"
            raise ValueError(msg)
        odd = [name for name in (*self.outcomes, *self.modalities) if not _NAME.fullmatch(name)]
        if odd:
            msg = f"expected names of outcomes and modalities in letters, digits and _, found {odd[0]!r}"
            raise ValueError(msg)
        stray = [name for name in self.governance.sha256 if name not in set(self.sources())]
        if stray:
            hint = nearest(stray[0], self.sources())
            msg = f"governance.sha256 names {stray[0]!r}, which no part of the card reads; {hint}"
            raise ValueError(msg)
        return self

    def subgroup_columns(self) -> list[tuple[str, str]]:
        """File and column of each subgroup."""
        parted = [text.rpartition("#") for text in self.subgroups]
        return [(file or self.patients.file, name) for file, _, name in parted]

    def sources(self) -> list[str]:
        """Every file that the card names, each once."""
        named: list[str | None] = [self.patients.file, *(file for file, _ in self.subgroup_columns())]
        named += [outcome.file for outcome in self.outcomes.values()]
        for modality in self.modalities.values():
            named += modality.sources()
        named += self.folds.sources() if self.folds else []
        named.append(self.governance.checksums)
        return list(dict.fromkeys(source for source in named if source))


# --- where a card's files lie ---------------------------------------------------------------------------------------

_DEVICES = {"con", "prn", "aux", "nul"} | {f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10)}


def _faults(source: str) -> Iterator[str]:
    """Why a text cannot be a path below a folder, on any system."""
    if "\0" in source or not source.strip():
        yield "a NUL character or no path at all"
    if source.startswith(("/", "\\", "~")) or PureWindowsPath(source).drive:
        yield "an absolute or network path"
    parts = re.split(r"[/\\]", source)
    if ".." in parts:
        yield "a part '..'"
    if any(part.split(".")[0].strip().lower() in _DEVICES for part in parts):
        yield "the name of a device"


def jailed(source: str, base: Path) -> Path:
    """The path ``base/source``.

    Raises:
        ConfigError: it is absolute, has ``..``, names a device or a network share, or leaves ``base`` through a link.
    """
    fault = next(_faults(source), None)
    if fault is not None:
        msg = f"{source!r}: expected a path below the folder {base.name!r}, found {fault}; correct the card"
        raise ConfigError(msg)
    path = base / source
    try:
        inside = path.resolve().is_relative_to(base.resolve())
    except (OSError, RuntimeError) as error:  # a loop of links, or a name longer than the file system takes
        msg = f"{source!r}: expected a path below the folder {base.name!r}, found one that cannot be followed"
        raise ConfigError(msg) from error
    if not inside:
        msg = f"{source!r}: expected a path below the folder {base.name!r}, found a link out of it; copy the file there"
        raise ConfigError(msg)
    return path


def default_data_root() -> Path | None:
    """MEDFUSE_DATA, or the folder ``../shared/data`` where it is there."""
    named = os.environ.get("MEDFUSE_DATA")
    if named:
        return Path(named)
    beside = Path.cwd().parent / "shared" / "data"
    return beside if beside.is_dir() else None


def _package_folder(card: CohortCard, package: str) -> Path:
    # A dotted name would import the parent package to find its child: only top-level names are taken.
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        msg = f"{card.name}: expected the package {package!r} to be installed, found none; pip install it"
        raise ConfigError(msg)
    return Path(next(iter(spec.submodule_search_locations)))


def resolve_source(card: CohortCard, source: str, data_root: Path | None, *, folder: bool = False) -> Path:
    """Where a source of a card lies; its SHA-256 is checked where the card states it.

    Args:
        card: the card, whose ``root`` is a folder below the data root.
        source: a path below it, or ``package:NAME/path`` inside an installed package, found without importing it.
        data_root: folder laid out as the cards expect; None: the default, which a package source does not need.
        folder: the source may be a folder (the shards of a MEDS dataset).

    Raises:
        ConfigError: a path that leaves the data root, a package that is not installed, or no data root.
        DataError: no such file, or a file that differs from what the card was written for.
    """
    if source.startswith("package:"):
        package, _, inside = source.removeprefix("package:").partition("/")
        path = jailed(inside, _package_folder(card, package))
    else:
        root = data_root or default_data_root()
        if root is None:
            msg = f"{card.name}: expected a data root with {source!r}, found none; pass --data-root or set MEDFUSE_DATA"
            raise ConfigError(msg)
        path = jailed(source, jailed(card.root, root) if card.root else root)
    try:
        there = path.is_file() or (folder and path.is_dir())
    except OSError:  # a name longer than the file system takes
        there = False
    if not there:
        msg = f"{card.name}: expected the file {source!r} at {path}, found none; check --data-root or MEDFUSE_DATA"
        raise DataError(msg)
    expected = card.governance.sha256.get(source)
    if expected is not None:
        found = sha256_path(path)
        if found != expected:
            msg = (
                f"{card.name}: {source!r} has changed: expected SHA-256 {expected} as the card states, found {found}; "
                "restore the file, or review the change and update governance.sha256 in the card"
            )
            raise DataError(msg)
    return path
