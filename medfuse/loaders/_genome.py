"""Human chromosomes: their names, lengths and arms in GRCh37 and GRCh38, and regions of genes that a user supplies."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medfuse.errors import DataError
from medfuse.tables import column, read_table, to_numeric

CHROMOSOMES = (*(str(k) for k in range(1, 23)), "X", "Y")

# Lengths of the primary assemblies (Genome Reference Consortium, GRCh37.p13 and GRCh38.p14), chromosomes 1-22, X, Y.
_LENGTHS = {
    "GRCh37": "249250621 243199373 198022430 191154276 180915260 171115067 159138663 146364022 141213431 135534747 "
    "135006516 133851895 115169878 107349540 102531392 90354753 81195210 78077248 59128983 63025520 48129895 51304566 "
    "155270560 59373566",
    "GRCh38": "248956422 242193529 198295559 190214555 181538259 170805979 159345973 145138636 138394717 133797422 "
    "135086622 133275309 114364328 107043718 101991189 90338345 83257441 80373285 58617616 64444167 46709983 50818468 "
    "156040895 57227415",
}
# Where the short arm ends, in units of 100,000 bases: the border of the two centromere bands, in the same order.
_SHORT_ARMS = {
    "GRCh37": "1250 933 910 504 484 610 599 456 490 402 537 358 179 176 190 366 240 172 265 275 132 147 606 125",
    "GRCh38": "1234 939 909 500 488 598 601 452 430 398 534 355 177 172 190 368 251 185 262 281 120 150 610 104",
}
LENGTHS = {b: dict(zip(CHROMOSOMES, map(int, t.split()), strict=True)) for b, t in _LENGTHS.items()}
SHORT_ARMS = {
    b: {c: int(n) * 100_000 for c, n in zip(CHROMOSOMES, t.split(), strict=True)} for b, t in _SHORT_ARMS.items()
}
_BUILDS = {
    "GRCh37": re.compile(r"grch37|hg19|b37|hs37|(?<![\w.])37(?![\w.])", flags=re.IGNORECASE),
    "GRCh38": re.compile(r"grch38|hg38|b38|hs38|(?<![\w.])38(?![\w.])", flags=re.IGNORECASE),
}


@dataclass(frozen=True, kw_only=True)
class Region:
    """A named stretch of a chromosome, 1-based, both ends inside."""

    name: str
    chromosome: str
    start: int
    end: int


def chromosome(name: str) -> str:
    """``1`` to ``22``, ``X`` or ``Y`` from any common spelling (chr1, 01, 23, 24); empty for any other contig."""
    bare = name.strip()
    bare = bare[3:] if bare[:3].lower() == "chr" else bare
    bare = bare.lstrip("0") if bare.isdigit() else bare.upper()
    bare = {"23": "X", "24": "Y"}.get(bare, bare)
    return bare if bare in LENGTHS["GRCh37"] else ""


def build_named(text: str) -> str:
    """``GRCh37`` or ``GRCh38`` where a text names exactly one of them; else empty."""
    named = [build for build, pattern in _BUILDS.items() if pattern.search(text)]
    return named[0] if len(named) == 1 else ""


def build_of_lengths(lengths: Mapping[str, int]) -> str:
    """The build whose chromosomes have these lengths (chromosome -> bases); empty where none has them all."""
    fitting = [b for b in LENGTHS if lengths and all(LENGTHS[b].get(c) == n for c, n in lengths.items())]
    return fitting[0] if len(fitting) == 1 else ""


def check_build(found: str, stated: str | None, *, file: str) -> None:
    """Refuse a file of another build than the card's.

    Raises:
        DataError: they differ.
    """
    if stated and found and found != stated:
        msg = (
            f"{file}: expected genome build {stated} as the card states, found {found}; correct the card, or lift the "
            "positions over first"
        )
        raise DataError(msg)


def check_positions(furthest: Mapping[str, int], stated: str | None, *, file: str) -> None:
    """Refuse positions beyond the end of their chromosome in the stated build.

    Args:
        furthest: chromosome -> largest position.
        stated: build of the card.
        file: for messages.

    Raises:
        DataError: there are some: the build is another one, or the file is damaged.
    """
    beyond = [c for c, position in furthest.items() if stated and position > LENGTHS[stated][c]]
    if beyond:
        others = [b for b in LENGTHS if b != stated and all(furthest[c] <= LENGTHS[b][c] for c in beyond)]
        hint = f"they would fit {others[0]}" if others else "they fit no known build"
        msg = (
            f"{file}: expected positions of {stated}, found some beyond the end of chromosome {', '.join(beyond)} "
            f"({hint}); correct the card's build, or lift the positions over first"
        )
        raise DataError(msg)


def arms(build: str) -> list[Region]:
    """Both arms of every chromosome, such as 1p and 1q."""
    found = []
    for name in CHROMOSOMES:
        border = SHORT_ARMS[build][name]
        found.append(Region(name=f"{name}p", chromosome=name, start=1, end=border))
        found.append(Region(name=f"{name}q", chromosome=name, start=border + 1, end=LENGTHS[build][name]))
    return found


def whole(build: str) -> list[Region]:
    """Every chromosome as one region."""
    return [Region(name=f"chr{c}", chromosome=c, start=1, end=n) for c, n in LENGTHS[build].items()]


def read_regions(path: Path, *, build: str) -> list[Region]:
    """Regions of genes from a table with the columns gene, chromosome, start and end (1-based, both ends inside).

    Raises:
        DataError: a missing column, a gene that stands twice, a contig that is no chromosome, or positions that are
            not those of the build.
    """
    frame = read_table(path)
    names = [str(cell).strip() for cell in column(frame, "gene", file=path.name)]
    contigs = [chromosome(str(cell)) for cell in column(frame, "chromosome", file=path.name)]
    start, end = (to_numeric(column(frame, side, file=path.name), file=path.name) for side in ("start", "end"))
    sound = (start >= 1) & (end >= start) & (start % 1 == 0) & (end % 1 == 0) & np.array([bool(c) for c in contigs])
    bad = np.flatnonzero(~sound)
    if bad.size:
        msg = (
            f"{path.name}, data row {bad[0] + 1}: expected a chromosome (1-22, X, Y) and 1 <= start <= end, found "
            f"others ({bad.size} such rows); correct the regions"
        )
        raise DataError(msg)
    if len(set(names)) < len(names) or not names:
        msg = f"{path.name}: expected each gene once, found {len(names) - len(set(names))} twice of {len(names)}"
        raise DataError(msg + "; give one region per gene")
    furthest: dict[str, int] = {}
    for contig, last in zip(contigs, end, strict=True):
        furthest[contig] = max(furthest.get(contig, 0), int(last))
    check_positions(furthest, build, file=path.name)
    rows = zip(names, contigs, start, end, strict=True)
    return [Region(name=n, chromosome=c, start=int(a), end=int(b)) for n, c, a, b in rows]


class RegionIndex:
    """Which regions cover a position."""

    def __init__(self, regions: Iterable[Region]) -> None:
        by_chromosome: dict[str, list[Region]] = {}
        for region in sorted(regions, key=lambda r: (r.chromosome, r.start)):
            by_chromosome.setdefault(region.chromosome, []).append(region)
        self._regions = by_chromosome
        self._starts = {c: np.array([r.start for r in found]) for c, found in by_chromosome.items()}
        self._ends = {c: np.array([r.end for r in found]) for c, found in by_chromosome.items()}

    def over(self, contig: str, start: int, end: int) -> list[str]:
        """Names of the regions that share a base with start to end."""
        if contig not in self._starts:
            return []
        hits = np.flatnonzero((self._starts[contig] <= end) & (self._ends[contig] >= start))
        return [self._regions[contig][k].name for k in hits]
