"""Copy number: GISTIC's gene and lesion tables, and segments (SEG) averaged over chromosome arms or genes.

Segments are brought to a region as the mean of their values weighted by the bases that they share with it; where less
than half of a region is covered the value is missing. The value stays in the unit of the file, which the card states.
"""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfuse.config import ModalityCard
from medfuse.errors import ConfigError, DataError, nearest
from medfuse.limits import inflate, read_head
from medfuse.loaders._barcodes import patients_of
from medfuse.loaders._genes import checked_names, merge_genes
from medfuse.loaders._genome import Region, arms, check_positions, chromosome, read_regions, whole
from medfuse.loaders._matrix import Matrix, read_matrix
from medfuse.loaders.base import Description, Head, Identifying
from medfuse.loaders.expression import gene_data, select
from medfuse.loaders.tabular import merge_rows
from medfuse.sample import ModalityData
from medfuse.types import PatientId

UNITS = ("gistic", "log2_ratio", "copies")
OPTIONS = ("table", "level", "coverage")
_TABLES = ("genes", "lesions", "segments")
_LEVELS = ("arm", "chromosome", "gene")
# Columns of SEG files as CBS (DNAcopy), IGV, GISTIC, the GDC and cBioPortal write them, without case and punctuation.
_SEGMENT = {
    "sample": {"sample", "id", "gdcaliquot", "samplename", "tumorsamplebarcode"},
    "chromosome": {"chromosome", "chrom", "chr"},
    "start": {"start", "locstart", "startbp", "startposition"},
    "end": {"end", "locend", "endbp", "endposition"},
    "value": {"segmentmean", "segmean", "segcn", "copynumber", "segvalue", "log2ratio"},
}
_GENE_FACTS = ("gene symbol", "gene id", "locus id", "cytoband", "hugo_symbol", "entrez_gene_id", "gene_symbol")
_LESION = re.compile(r"^(Amplification|Deletion) Peak +(\d+)( - CN values)?$")
_NO_PATIENTS = {
    b"cytoband\t": "genes of peaks (amp_genes, del_genes)",
    b"Type\tChromosome\tStart": "scores of the cohort (scores.gistic)",
}
_LARGEST = {"log2_ratio": 20.0, "copies": 1e4}


@dataclass(frozen=True, kw_only=True)
class Segments:
    """Segments of several samples: n rows."""

    sample: list[str]
    chromosome: list[str]
    start: NDArray[np.float64]
    end: NDArray[np.float64]
    value: NDArray[np.float64]
    warnings: tuple[str, ...]


def _options(card: ModalityCard, *, name: str) -> dict[str, Any]:
    where = f"modality {name}, options"
    unknown = next((key for key in card.options if key not in OPTIONS), None)
    if unknown is not None:
        msg = f"{where}: no option {unknown!r}; {nearest(unknown, OPTIONS)}"
        raise ConfigError(msg)
    options = {"coverage": 0.5, **card.options}
    if options.get("table") not in _TABLES or card.unit not in UNITS:
        msg = f"{where}: expected table ({', '.join(_TABLES)}) and unit ({', '.join(UNITS)}), found others; state both"
        raise ConfigError(msg)
    if options["table"] == "segments" and (options.get("level") not in _LEVELS or card.build is None):
        msg = f"{where}: segments need a level ({', '.join(_LEVELS)}) and the card's build (GRCh37 or GRCh38)"
        raise ConfigError(msg)
    if (options.get("level") == "gene") != (card.regions is not None):
        msg = f"{where}: level gene needs regions, a table of gene, chromosome, start, end; other levels take none"
        raise ConfigError(msg)
    coverage = options["coverage"]
    if isinstance(coverage, bool) or not isinstance(coverage, int | float) or not 0 < coverage <= 1:
        msg = f"{where}: expected coverage above 0 and at most 1, found another; correct the card"
        raise ConfigError(msg)
    return options


# --- segments --------------------------------------------------------------------------------------------------------


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _segment_columns(names: Sequence[str]) -> dict[str, str]:
    """Role -> column of a SEG file; fewer roles where it is none."""
    return {role: n for role, known in _SEGMENT.items() for n in names if _plain(n) in known}


def read_segments(path: Path, *, build: str | None) -> Segments:
    """Segments of a SEG file.

    Raises:
        DataError: a missing column, positions that are not of the build, an end before its start, segments of a sample
            that overlap.
    """
    chosen: dict[str, str] = {}

    def plan(names: list[str]) -> tuple[list[str], list[str]]:
        chosen.update(_segment_columns(names))
        missing = [role for role in _SEGMENT if role not in chosen]
        if missing:
            msg = f"{path.name}: expected columns of a SEG file, found no {', '.join(missing)}; rename the columns"
            raise DataError(msg)
        return [chosen["sample"], chosen["chromosome"]], [chosen["start"], chosen["end"], chosen["value"]]

    matrix = read_matrix(path, plan)
    samples = [str(s).strip() if s is not None else "" for s in matrix.texts[chosen["sample"]]]
    contigs = [chromosome(str(c)) if c is not None else "" for c in matrix.texts[chosen["chromosome"]]]
    start, end, value = matrix.values.T
    bad = [k for k in range(len(samples)) if not samples[k] or not 0 <= start[k] <= end[k] or np.isnan(value[k])]
    if bad:
        msg = (
            f"{path.name}, data row {bad[0] + 1}: expected a sample, 0 <= start <= end and a value, found others "
            f"({len(bad)} such rows); correct or remove the rows"
        )
        raise DataError(msg)
    keep = [k for k, contig in enumerate(contigs) if contig]
    warnings = []
    if len(keep) < len(contigs):
        warnings.append(f"{len(contigs) - len(keep)} segments were left out: their contig is no chromosome 1-22, X, Y")
    furthest: dict[str, int] = {}
    for k in keep:
        furthest[contigs[k]] = max(furthest.get(contigs[k], 0), int(end[k]))
    check_positions(furthest, build, file=path.name)
    segments = Segments(
        sample=[samples[k] for k in keep],
        chromosome=[contigs[k] for k in keep],
        start=start[keep],
        end=end[keep],
        value=value[keep],
        warnings=tuple(warnings),
    )
    _check_overlap(segments, file=path.name)
    return segments


def _check_overlap(segments: Segments, *, file: str) -> None:
    order = sorted(
        range(len(segments.sample)),
        key=lambda k: (segments.sample[k], segments.chromosome[k], segments.start[k], segments.end[k]),
    )
    for a, b in itertools.pairwise(order):
        same = segments.sample[a] == segments.sample[b] and segments.chromosome[a] == segments.chromosome[b]
        if same and segments.start[b] < segments.end[a]:
            msg = (
                f"{file}, data row {b + 1}: expected segments of a sample that do not overlap, found two that do; does "
                "a sample stand twice in the file? keep one of them"
            )
            raise DataError(msg)


def average(
    segments: Segments, samples: Sequence[str], regions: Sequence[Region], *, coverage: float
) -> NDArray[np.float64]:
    """Means of segment values weighted by shared bases, (samples, regions); NaN below the ``coverage`` of a region."""
    by_chromosome: dict[str, list[int]] = {}
    for k, region in enumerate(regions):
        by_chromosome.setdefault(region.chromosome, []).append(k)
    first = np.array([r.start for r in regions], dtype=np.float64)
    last = np.array([r.end for r in regions], dtype=np.float64)
    row = {sample: k for k, sample in enumerate(samples)}
    total = np.zeros((len(samples), len(regions)))
    bases = np.zeros_like(total)
    for k, sample in enumerate(segments.sample):
        at = np.array(by_chromosome.get(segments.chromosome[k], []), dtype=np.intp)
        if sample not in row or not at.size:
            continue
        shared = np.minimum(last[at], segments.end[k]) - np.maximum(first[at], segments.start[k]) + 1
        shared = np.maximum(shared, 0)
        total[row[sample], at] += shared * segments.value[k]
        bases[row[sample], at] += shared
    enough = bases >= coverage * (last - first + 1)
    means: NDArray[np.float64] = np.where(enough, total / np.where(bases > 0, bases, 1), np.nan)
    return means


def _regions(card: ModalityCard, level: str, resolve: Callable[[str], Path]) -> list[Region]:
    build = str(card.build)
    if level == "gene":
        return read_regions(resolve(str(card.regions)), build=build)
    return arms(build) if level == "arm" else whole(build)


# --- tables ----------------------------------------------------------------------------------------------------------


def _gene_table(path: Path, card: ModalityCard) -> tuple[NDArray[np.float64], list[str], list[str]]:
    """(samples, genes), samples, genes of a table with genes in rows."""
    facts: list[str] = []
    samples: list[str] = []
    pattern = card.columns if isinstance(card.columns, str) else None

    def plan(names: list[str]) -> tuple[list[str], list[str]]:
        facts[:] = [n for n in names if n.lower() in _GENE_FACTS]
        label = card.id or next((n for n in facts if "symbol" in n.lower()), None)
        if label is None or label not in names:
            msg = f"{path.name}: expected a column of gene symbols, found none; name it as id in the card"
            raise DataError(msg)
        facts[:] = [label, *(f for f in facts if f != label)]
        labels, samples[:] = select([n for n in names if n not in facts], pattern, file=path.name)
        return [label], labels

    matrix = read_matrix(path, plan)
    genes = _names(matrix, path)
    return matrix.values.T, samples, genes


def _names(matrix: Matrix, path: Path) -> list[str]:
    cells = matrix.texts.iloc[:, 0]
    empty = np.flatnonzero(cells.isna().to_numpy())
    if empty.size:
        msg = f"{path.name}, data row {empty[0] + 1}: expected a gene, found an empty cell; complete or remove the row"
        raise DataError(msg)
    return [str(cell).strip() for cell in cells]


def _lesion_table(path: Path, card: ModalityCard) -> tuple[NDArray[np.float64], list[str], list[str]]:
    """(samples, peaks), samples, peaks of GISTIC's all_lesions: thresholded rows, or rows of actual values."""
    samples: list[str] = []
    pattern = card.columns if isinstance(card.columns, str) else None

    def plan(names: list[str]) -> tuple[list[str], list[str]]:
        if names[:2] != ["Unique Name", "Descriptor"] or "Amplitude Threshold" not in names:
            msg = f"{path.name}: expected GISTIC's all_lesions, found other columns; correct the card's table"
            raise DataError(msg)
        after = names.index("Amplitude Threshold") + 1
        rest = [n for n in names[after:] if not n.startswith("Unnamed: ")]  # lines end in a tab
        labels, samples[:] = select(rest, pattern, file=path.name)
        return names[:2], labels

    matrix = read_matrix(path, plan)
    actual = card.unit != "gistic"
    keep, names = [], []
    for k, (unique, band) in enumerate(zip(_names(matrix, path), matrix.texts["Descriptor"], strict=True)):
        match = _LESION.match(unique)
        if match is None:
            msg = f"{path.name}, data row {k + 1}: expected the name of a peak, found another; fetch the file again"
            raise DataError(msg)
        if bool(match[3]) == actual:
            keep.append(k)
            names.append(f"{match[1]} {match[2]} {str(band or '').strip()}")
    return matrix.values[keep].T, samples, names


def _check_values(values: NDArray[np.float64], unit: str, *, file: str) -> None:
    """Whether values can be of the unit.

    Raises:
        DataError: they cannot.
    """
    given = values[~np.isnan(values)]
    wrong = 0
    if unit == "gistic":
        wrong = int(np.count_nonzero(~np.isin(given, (-2, -1, 0, 1, 2))))
    elif given.size:
        least = 0.0 if unit == "copies" else -np.inf
        wrong = int(np.count_nonzero((given < least) | (np.abs(given) > _LARGEST[unit])))
    if wrong:
        expected = {"gistic": "-2 to 2 in whole numbers", "copies": "0 to 10,000", "log2_ratio": "-20 to 20"}[unit]
        msg = f"{file}: expected values of unit {unit} ({expected}), found {wrong} others; correct the card's unit"
        raise DataError(msg)


# --- the modality ----------------------------------------------------------------------------------------------------


def _refuse_cohort_tables(path: Path) -> None:
    start = read_head(path)
    for mark, what in _NO_PATIENTS.items():
        if start.startswith(mark):
            msg = f"{path.name}: expected values of patients, found {what}; use all_thresholded or all_lesions"
            raise DataError(msg)


def read(
    name: str, card: ModalityCard, *, resolve: Callable[[str], Path], patients: tuple[str | None, str]
) -> ModalityData:
    """Read a table of copy number; see :func:`medfuse.loaders.read`.

    Returns:
        Layout ``columns``: one numeric column per gene, peak, arm or chromosome, in the card's unit.

    Raises:
        ConfigError: options that are not known or missing.
        DataError: damage, values that the unit cannot have, positions of another build, patients who disagree.
    """
    options = _options(card, name=name)
    path = resolve(card.file or "")
    _refuse_cohort_tables(path)
    warnings: list[str] = []
    if options["table"] == "segments":
        segments = read_segments(path, build=card.build)
        pattern = card.columns if isinstance(card.columns, str) else None
        samples, names = select(list(dict.fromkeys(segments.sample)), pattern, file=path.name)
        regions = _regions(card, options["level"], resolve)
        _check_values(segments.value, str(card.unit), file=path.name)
        values = average(segments, samples, regions, coverage=options["coverage"])
        features, warnings = [region.name for region in regions], list(segments.warnings)
    else:
        values, names, features = (_gene_table if options["table"] == "genes" else _lesion_table)(path, card)
        _check_values(values, str(card.unit), file=path.name)
    ids = patients_of(names, card.barcode, file=path.name)
    values, unique = merge_rows(values, ids, rule=card.repeated_rows, file=path.name, names=features)
    return _modality(name, card, values, unique, features=features, resolve=resolve, warnings=warnings)


def read_files(
    name: str, card: ModalityCard, *, resolve: Callable[[str], Path], files: Mapping[PatientId, Sequence[Path]]
) -> ModalityData:
    """Read segments of one patient per file.

    Raises:
        ConfigError, DataError: as :func:`read`; a table of another kind, or a file with several samples.
    """
    options = _options(card, name=name)
    if options["table"] != "segments":
        msg = f"modality {name}: files of one patient each hold segments; name a table of all patients as file"
        raise ConfigError(msg)
    regions = _regions(card, options["level"], resolve)
    rows, warnings = [], dict[str, None]()
    for patient, paths in files.items():
        if len(paths) != 1:
            msg = f"modality {name}, patient {patient}: expected one file, found {len(paths)}; narrow the card's path"
            raise DataError(msg)
        segments = read_segments(paths[0], build=card.build)
        if len(set(segments.sample)) > 1:
            msg = f"{paths[0].name}: expected one sample, found {len(set(segments.sample))}; name the file as file"
            raise DataError(msg)
        _check_values(segments.value, str(card.unit), file=paths[0].name)
        rows.append(average(segments, segments.sample[:1] or [""], regions, coverage=options["coverage"])[0])
        warnings |= dict.fromkeys(segments.warnings)
    values = np.stack(rows) if rows else np.zeros((0, len(regions)))
    features = [region.name for region in regions]
    return _modality(name, card, values, list(files), features=features, resolve=resolve, warnings=list(warnings))


def _modality(
    name: str,
    card: ModalityCard,
    values: NDArray[np.float64],
    ids: list[PatientId],
    *,
    features: list[str],
    resolve: Callable[[str], Path],
    warnings: list[str],
) -> ModalityData:
    features, said = checked_names(features, accept_mangled=card.accept_mangled, file=name)
    values, features, more = merge_genes(values, features, duplicates=card.duplicates, file=name)
    columns = dict.fromkeys(features, str(card.unit))
    return gene_data(name, values, ids, columns=columns, card=card, resolve=resolve, warnings=[*warnings, *said, *more])


# --- inspection ------------------------------------------------------------------------------------------------------


def _first_line(start: bytes) -> list[str]:
    line = start.split(b"\n", 1)[0].decode("utf-8", errors="replace").rstrip("\r")
    return [cell.strip().strip('"') for cell in line.split("\t")]


def recognise(head: Head) -> bool:
    """The columns of a SEG file or of GISTIC's tables."""
    if any(head.start.startswith(mark) for mark in _NO_PATIENTS):
        return True
    names = _first_line(head.start)
    if names[:2] == ["Unique Name", "Descriptor"] or (names[:1] == ["Gene Symbol"] and "Cytoband" in names[:3]):
        return True
    return len(names) <= 12 and len(_segment_columns(names)) == len(_SEGMENT)


def describe(files: Sequence[Path]) -> Description:
    """Number of samples, and of segments or genes; no value of a patient.

    Raises:
        DataError: a table of the cohort without patients, or damage.
    """
    path = files[0]
    _refuse_cohort_tables(path)
    content = inflate(path)
    names = _first_line(content)
    rows = content.count(b"\n") - 1 + (not content.endswith(b"\n"))
    if len(_segment_columns(names)) == len(_SEGMENT) and len(names) <= 12:
        segments = read_segments(path, build=None)
        span = {"samples": len(set(segments.sample)), "segments": len(segments.sample)}
        least, most = (float(f(segments.value)) for f in (np.min, np.max)) if segments.sample else (0.0, 0.0)
        warnings = ["no value below 0: copies rather than log2 ratios?"] if least >= 0 and most > 0 else []
        warnings.append("the file does not state its genome build; the card must")
        return Description(kind="copy-number segments (SEG)", holds=span, warnings=tuple(warnings))
    if names[0] == "Unique Name":
        after = names.index("Amplitude Threshold") + 1 if "Amplitude Threshold" in names else len(names)
        samples = len([n for n in names[after:] if n])
        return Description(kind="copy number of peaks (GISTIC all_lesions)", holds={"samples": samples, "rows": rows})
    samples = len([n for n in names if n and n.lower() not in _GENE_FACTS])
    return Description(kind="copy number of genes (GISTIC)", holds={"samples": samples, "genes": rows})


def identifying(files: Sequence[Path]) -> list[Identifying]:
    """Names of samples."""
    return [Identifying(where=f"{files[0].name}: sample names", kind="id")]


def write_example(folder: Path) -> ModalityCard:
    """Write a small SEG file into ``folder`` and return the card that reads it."""
    lines = ["Sample\tChromosome\tStart\tEnd\tNum_Probes\tSegment_Mean"]
    for patient, gain in (("001", 0.58), ("002", -1.0), ("010", 0.0)):
        for contig, end in (("1", 240_000_000), ("7", 150_000_000), ("X", 150_000_000)):
            lines.append(f"{patient}\t{contig}\t1\t{end}\t1000\t{gain if contig == '7' else 0.01}")
    (folder / "segments.seg.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return ModalityCard(
        loader="copy_number",
        file="segments.seg.txt",
        unit="log2_ratio",
        build="GRCh38",
        options={"table": "segments", "level": "arm"},
    )
