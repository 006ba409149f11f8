"""Mutation Annotation Format (GDC, TCGA, cBioPortal): one row per variant and sample."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from medfuse.errors import DataError, nearest
from medfuse.limits import check_lines, inflate
from medfuse.loaders._calls import Call, Calls
from medfuse.loaders._consequences import MAF
from medfuse.loaders._genome import build_named, check_build, check_positions, chromosome
from medfuse.tables import MISSING

NEEDED = ("hugo_symbol", "variant_classification", "tumor_sample_barcode")
_NOBODY = {"", "unknown", "."}  # what stands for a gene where there is none


def is_maf(start: bytes) -> bool:
    """Whether the beginning of a file is that of a MAF."""
    for line in start.split(b"\n"):
        if not line.startswith(b"#"):
            cells = line.decode("utf-8", errors="replace").strip().lower().split("\t")
            return set(NEEDED) <= set(cells)
    return False


def rows(path: Path) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """Lower-case names of the columns, and (line number, cells) of the rows.

    Raises:
        DataError: damage, no MAF header, a column that stands twice, or (on reading) a row of another length.
    """
    content = inflate(path)
    check_lines(content, where=path.name)
    try:
        lines = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        msg = f"{path.name}: expected a MAF in UTF-8, found other bytes; fetch the file again"
        raise DataError(msg) from error
    first = next((k for k, line in enumerate(lines) if not line.startswith("#") and line.strip()), None)
    names = lines[first].rstrip("\r").lower().split("\t") if first is not None else []
    missing = [name for name in NEEDED if name not in names]
    if first is None or missing or len(set(names)) < len(names):
        what = f"no column {missing[0]}; {nearest(missing[0], names[:30])}" if missing and names else "no header"
        what = what if missing else "a column that stands twice"
        msg = f"{path.name}: expected a MAF with {', '.join(NEEDED)}, found {what}; fetch it again"
        raise DataError(msg)
    start = first + 1

    def read() -> Iterator[tuple[int, list[str]]]:
        for number in range(start, len(lines)):
            line = lines[number].rstrip("\r")
            if not line.strip():
                continue
            cells = line.split("\t")
            if len(cells) != len(names):
                msg = (
                    f"{path.name}, line {number + 1}: expected {len(names)} cells as in the header, found {len(cells)};"
                    " the file is cut short or damaged, fetch it again"
                )
                raise DataError(msg)
            yield number + 1, cells

    return names, read()


def read_maf(path: Path, *, filters: str, silent: bool, build: str | None, vaf: tuple[str, float] | None) -> Calls:
    """Variants of a MAF.

    Args:
        path: plain or gzip.
        filters: ``pass``, ``pass_or_none`` (also '.' and empty) or ``any``, of the column FILTER where there is one.
        silent: keep variants that do not change the protein.
        build: of the card, compared with NCBI_Build and the positions.
        vaf: column of allele fractions and what it is divided by (100 for percent); None: from read counts.

    Raises:
        DataError: damage, a classification that is not of the format, two builds, or another one than the card's.
    """
    names, content = rows(path)
    if vaf is not None and vaf[0].lower() not in names:
        msg = f"{path.name}: expected a column {vaf[0]!r} of allele fractions, found none; {nearest(vaf[0], names)}"
        raise DataError(msg)
    reader = _Reader(at={name: k for k, name in enumerate(names)}, filters=filters, silent=silent, vaf=vaf)
    for number, cells in content:
        reader.row(cells, where=f"{path.name}, line {number}")
    if len(reader.builds) > 1:
        found = ", ".join(sorted(reader.builds))
        msg = f"{path.name}: expected one genome build, found {found}; split the file, or lift the positions over"
        raise DataError(msg)
    check_build(next(iter(reader.builds), ""), build, file=path.name)
    check_positions(reader.furthest, build, file=path.name)
    if filters != "any" and "filter" not in reader.at:
        reader.found.warnings.append(f"{path.name} has no column FILTER: every variant counts as passed")
    reader.found.samples = list(reader.samples)
    return reader.found


@dataclass(kw_only=True)
class _Reader:
    """Collects the variants of one file."""

    at: dict[str, int]
    filters: str
    silent: bool
    vaf: tuple[str, float] | None
    found: Calls = field(default_factory=Calls)
    samples: dict[str, None] = field(default_factory=dict)
    builds: set[str] = field(default_factory=set)
    furthest: dict[str, int] = field(default_factory=dict)
    seen: set[tuple[str, str, tuple[str, str, str, str]]] = field(default_factory=set)

    def cell(self, cells: list[str], name: str) -> str:
        """A cell by the name of its column; empty where there is no such column."""
        return cells[self.at[name]].strip() if name in self.at else ""

    def row(self, cells: list[str], *, where: str) -> None:
        """One row."""
        sample, gene = self.cell(cells, "tumor_sample_barcode"), self.cell(cells, "hugo_symbol")
        if not sample:
            msg = f"{where}: expected a Tumor_Sample_Barcode, found an empty cell; complete or remove the row"
            raise DataError(msg)
        self.samples.setdefault(sample)
        place = self.place(cells)
        kind = MAF.get(self.cell(cells, "variant_classification"))
        if kind is None:
            msg = (
                f"{where}: expected a Variant_Classification of the MAF format, found another; "
                "correct the cell, or annotate the variants again"
            )
            raise DataError(msg)
        given = self.cell(cells, "filter") if "filter" in self.at else None
        reason = _left_out(given, kind, gene, filters=self.filters, silent=self.silent)
        if not reason and "start_position" in self.at and (sample, gene, place) in self.seen:
            reason = "the same variant of the same sample again"
        if reason:
            self.found.left_out[reason] += 1
            return
        self.seen.add((sample, gene, place))
        share = _vaf(cells, self.at, self.vaf, where=where)
        self.found.calls.append(Call(sample=sample, gene=gene, kind=kind, place=place, vaf=share))

    def place(self, cells: list[str]) -> tuple[str, str, str, str]:
        """Where the variant is, and its alleles; builds and positions are kept for the checks at the end."""
        build = self.cell(cells, "ncbi_build")
        if build:
            self.builds.add(build_named(build) or "another build")
        contig, position = chromosome(self.cell(cells, "chromosome")), self.cell(cells, "start_position")
        if contig and position.isdigit() and len(position) < 11:
            self.furthest[contig] = max(self.furthest.get(contig, 0), int(position))
        reference = self.cell(cells, "reference_allele")
        first, second = self.cell(cells, "tumor_seq_allele1"), self.cell(cells, "tumor_seq_allele2")
        other = first if second == reference else second
        return contig or self.cell(cells, "chromosome"), position, reference, other


def _left_out(given: str | None, kind: str, gene: str, *, filters: str, silent: bool) -> str:
    """Why a row is left out; empty where it is kept."""
    if given is not None and filters != "any":
        passed = given.upper() == "PASS" or (filters == "pass_or_none" and given in MISSING)
        if not passed:
            return "FILTER is not PASS"
    if kind == "silent" and not silent:
        return "silent or not coding"
    return "without a gene" if gene.lower() in _NOBODY else ""


def _vaf(cells: list[str], at: dict[str, int], vaf: tuple[str, float] | None, *, where: str) -> float | None:
    try:
        if vaf is not None:
            text = cells[at[vaf[0].lower()]].strip()
            share = None if text in MISSING else float(text) / vaf[1]
        else:
            alternative = cells[at["t_alt_count"]] if "t_alt_count" in at else ""
            other = cells[at["t_ref_count"]] if "t_ref_count" in at else ""
            if alternative in MISSING or other in MISSING:
                return None
            total = float(alternative) + float(other)
            share = float(alternative) / total if total > 0 else None
    except ValueError as error:
        msg = f"{where}: expected numbers of reads or an allele fraction, found text; correct the cell"
        raise DataError(msg) from error
    if share is not None and not 0 <= share <= 1:
        msg = f"{where}: expected an allele fraction from 0 to 1, found another; state the unit of vaf (percent?)"
        raise DataError(msg)
    return share
