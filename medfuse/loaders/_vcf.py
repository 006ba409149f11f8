"""Variant Call Format 4.x: header, records, genotypes, and the annotations of snpEff (ANN, EFF) and VEP (CSQ).

Layout of records: VCF 4.3 specification, sections 1.4-1.6. ANN: "Variant annotations in VCF format" 1.0.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medfuse.errors import ConfigError, DataError
from medfuse.limits import check_lines, inflate
from medfuse.loaders._calls import Call, Calls
from medfuse.loaders._consequences import EFFECTS, TERMS, kind_of, worst
from medfuse.loaders._genome import (
    RegionIndex,
    build_named,
    build_of_lengths,
    check_build,
    check_positions,
    chromosome,
)

_BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
_CONTIG = re.compile(r"(\w+)=([^,<>]*)")
_EFF = re.compile(r"(\w+(?:\+\w+)*)\(([^()]*)\)")
_NO_ALLELE = {"*", ".", "<*>", "<NON_REF>", "<X>"}
ANNOTATIONS = ("ANN", "CSQ", "EFF")
_INFO = tuple(f"##INFO=<ID={name}," for name in ANNOTATIONS)
_COLUMNS = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"


@dataclass(frozen=True, kw_only=True)
class Header:
    """What stands above the records.

    Attributes:
        samples: names, in order.
        build: ``GRCh37``, ``GRCh38`` or empty where the header does not say.
        annotations: those of ``ANN``, ``CSQ`` and ``EFF`` that it declares.
        fields: names of the parts of a CSQ entry.
        lines: of the header.
    """

    samples: tuple[str, ...]
    build: str
    annotations: tuple[str, ...]
    fields: tuple[str, ...] = ()
    lines: int = 0


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What the card says about reading variants.

    Attributes:
        filters: ``pass``, ``pass_or_none`` or ``any``.
        silent: keep variants that do not change the protein.
        build: of the card.
        annotation: ``ANN``, ``CSQ`` or ``EFF`` where a file has several.
        all_records: every record is a variant of the sample, whatever its genotype.
        samples: which samples are wanted; None: all.
        regions: genes by position, for files without annotation.
    """

    filters: str = "pass"
    silent: bool = False
    build: str | None = None
    annotation: str | None = None
    all_records: bool = False
    samples: tuple[str, ...] | None = None
    regions: RegionIndex | None = None


def content_of(path: Path) -> list[str]:
    """Lines of a VCF.

    Raises:
        DataError: damage, or a block-compressed file without its end mark.
    """
    content = inflate(path)
    check_lines(content, where=path.name)
    with path.open("rb") as file:
        start = file.read(18)
        if start[:4] == b"\x1f\x8b\x08\x04" and start[12:14] == b"BC":
            file.seek(max(path.stat().st_size - len(_BGZF_END), 0))
            if file.read() != _BGZF_END:
                msg = f"{path.name}: expected the end mark of a bgzip file, found none; it is cut short, fetch it again"
                raise DataError(msg)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        msg = f"{path.name}: expected a VCF in UTF-8, found other bytes; fetch the file again"
        raise DataError(msg) from error
    if not text.startswith("##fileformat=VCF"):
        msg = f"{path.name}: expected ##fileformat=VCF in the first line, found another; is it a VCF?"
        raise DataError(msg)
    if text and not text.endswith("\n"):
        msg = (
            f"{path.name}: expected an end of line behind the last record, found none; it is cut short, fetch it again"
        )
        raise DataError(msg)
    return text.split("\n")


def header_of(lines: Sequence[str], *, file: str) -> Header:
    """The header.

    Raises:
        DataError: no line of column names, or samples that stand twice.
    """
    lengths: dict[str, int] = {}
    named: set[str] = set()
    annotations: list[str] = []
    fields: tuple[str, ...] = ()
    for number, raw in enumerate(lines):
        line = raw.rstrip("\r")
        if line.startswith("##contig="):
            facts = dict(_CONTIG.findall(line))
            contig = chromosome(facts.get("ID", ""))
            if contig and facts.get("length", "").isdigit():
                lengths[contig] = int(facts["length"])
            named.add(build_named(facts.get("assembly", "")))
        elif line.startswith(("##reference=", "##assembly=", "##SnpEffCmd=", "##VEP=")):
            named.add(build_named(line.split("=", 1)[1]))
        elif line.startswith(_INFO):
            kind = line.removeprefix("##INFO=<ID=")[:3]
            annotations.append(kind)
            if kind == "CSQ":
                fields = tuple(part.strip(' "><') for part in line.partition("Format:")[2].split("|"))
        elif line.startswith(_COLUMNS):
            samples = tuple(line.split("\t")[9:])
            if len(set(samples)) < len(samples):
                msg = f"{file}: expected distinct sample names, found one twice; rename it"
                raise DataError(msg)
            named.discard("")
            build = build_of_lengths(lengths) or (named.pop() if len(named) == 1 else "")
            return Header(samples=samples, build=build, annotations=tuple(annotations), fields=fields, lines=number + 1)
        elif not line.startswith("##"):
            break
    msg = (
        f"{file}: expected the line #CHROM POS ID REF ALT QUAL FILTER INFO below the header, found none; fetch it again"
    )
    raise DataError(msg)


def read_vcf(path: Path, rules: Rules) -> Calls:
    """Variants of a VCF, one entry per sample, gene and variant.

    Raises:
        DataError: damage, another build, an annotation that does not say which allele it is of.
        ConfigError: the card leaves open how genes, genotypes or annotations are to be read.
    """
    lines = content_of(path)
    header = header_of(lines, file=path.name)
    check_build(header.build, rules.build, file=path.name)
    annotation = _annotation(lines, header, rules, file=path.name)
    reader = _Reader(path.name, header, rules, annotation)
    for number in range(header.lines, len(lines)):
        if lines[number].strip():
            reader.record(lines[number].rstrip("\r").split("\t"), where=f"{path.name}, line {number + 1}")
    check_positions(reader.furthest, rules.build, file=path.name)
    if reader.unapplied:
        msg = (
            f"{path.name}: expected records whose filters were applied (FILTER PASS), found {reader.unapplied} with "
            "'.'; state filter: pass_or_none to take them, or filter the file"
        )
        raise DataError(msg)
    return reader.found


def _annotation(lines: Sequence[str], header: Header, rules: Rules, *, file: str) -> str:
    """Which annotation says the genes; empty where regions do."""
    known = list(header.annotations)
    if "EFF" not in known and any(";EFF=" in line or "\tEFF=" in line for line in lines[header.lines :][:100]):
        known.append("EFF")  # some files do not declare it
    if rules.annotation:
        if rules.annotation not in known:
            msg = f"{file}: expected {rules.annotation}, found {', '.join(known) or 'none'}; correct the annotation"
            raise ConfigError(msg)
        return rules.annotation
    if rules.regions is not None:
        return ""
    if len(known) != 1:
        what = (
            f"{' and '.join(known)}; state one as annotation" if known else "none; annotate the file with snpEff or VEP"
        )
        msg = f"{file}: expected one annotation of genes, found {what}, or name a table of gene regions in the card"
        raise ConfigError(msg)
    return known[0]


@dataclass
class _Reader:
    """Collects the variants of one file."""

    file: str
    header: Header
    rules: Rules
    annotation: str
    found: Calls = field(default_factory=Calls)
    furthest: dict[str, int] = field(default_factory=dict)
    unapplied: int = 0

    def __post_init__(self) -> None:
        wanted = self.rules.samples
        missing = [name for name in wanted or () if name not in self.header.samples]
        if missing:
            msg = f"{self.file}: expected {len(missing)} samples of the card that the header lacks; correct the card"
            raise ConfigError(msg)
        self.found.samples = [s for s in self.header.samples if wanted is None or s in wanted]
        self._columns = [9 + k for k, s in enumerate(self.header.samples) if wanted is None or s in wanted]
        if self.rules.all_records and len(self.found.samples) > 1:
            count = len(self.found.samples)
            msg = f"{self.file}: genotype: all_records needs one sample, found {count}; name it as option sample"
            raise ConfigError(msg)

    def record(self, cells: list[str], *, where: str) -> None:
        """One line."""
        least = 9 + len(self.header.samples) if self.header.samples else 8
        if len(cells) != least and not (not self.header.samples and len(cells) == 9):
            msg = (
                f"{where}: expected {least} cells as in the header, found {len(cells)}; the file is cut short or "
                "damaged, fetch it again"
            )
            raise DataError(msg)
        contig, position, reference, alternatives = chromosome(cells[0]), cells[1], cells[3], cells[4].split(",")
        if not (position.isdigit() and len(position) < 11) or not reference or not all(alternatives):
            msg = f"{where}: expected a position and alleles, found other text; fetch the file again"
            raise DataError(msg)
        if contig:
            self.furthest[contig] = max(self.furthest.get(contig, 0), int(position))
        if self.rules.filters != "any" and cells[6] != "PASS":
            if cells[6] != ".":
                self.found.left_out["FILTER is not PASS"] += 1
                return
            if self.rules.filters == "pass":
                self.unapplied += 1
                return
        real = [k for k, allele in enumerate(alternatives, 1) if allele not in _NO_ALLELE]
        genes = self._genes(cells, contig, alternatives, real, where=where)
        if any(genes.values()):
            self._genotypes(cells, alternatives, genes, where=where)

    def _genes(
        self, cells: list[str], contig: str, alternatives: list[str], real: list[int], *, where: str
    ) -> dict[int, dict[str, str]]:
        """Number of each allele -> gene -> kind, of what the card keeps."""
        if not self.annotation:
            end = int(cells[1]) + len(cells[3]) - 1
            index = self.rules.regions
            over = index.over(contig, int(cells[1]), end) if index is not None and contig else []
            if not over:
                self.found.left_out["without a gene"] += 1
            return {k: dict.fromkeys(over, "") for k in real}
        info = next((p for p in cells[7].split(";") if p.startswith(f"{self.annotation}=")), "")
        entries = list(_entries(self.annotation, info, self.header.fields))
        kept: dict[int, dict[str, str]] = {}
        for k in real:
            kinds: dict[str, list[str]] = {}
            for allele, gene, terms in entries:
                if self._is_of(allele, k, cells[3], alternatives, where=where) and gene:
                    table = EFFECTS if self.annotation == "EFF" else TERMS
                    kinds.setdefault(gene, []).append(kind_of(terms, table, self.found.terms))
            worsts = {gene: worst(found) for gene, found in kinds.items()}
            kept[k] = {gene: kind for gene, kind in worsts.items() if kind != "silent" or self.rules.silent}
            if not kinds:
                self.found.left_out["without a gene"] += 1
            elif not kept[k]:
                self.found.left_out["silent or not coding"] += 1
        return kept

    def _is_of(self, allele: str, number: int, reference: str, alternatives: list[str], *, where: str) -> bool:
        """Whether an annotation's allele is the one of this number."""
        if len(alternatives) == 1:
            return True
        if not allele:
            msg = (
                f"{where}: expected annotations that name their allele, found {len(alternatives)} alleles and none; "
                "split such records (bcftools norm -m -any), or annotate with alleles"
            )
            raise DataError(msg)
        alternative = alternatives[number - 1]
        if self.annotation == "EFF":
            return allele == str(number)
        shared = all(a[:1] == reference[:1] for a in alternatives) and any(
            len(a) != len(reference) for a in alternatives
        )
        return allele in {alternative, (alternative[1:] or "-") if shared else alternative}

    def _genotypes(
        self, cells: list[str], alternatives: list[str], genes: dict[int, dict[str, str]], *, where: str
    ) -> None:
        keys = cells[8].split(":") if len(cells) > 8 else []
        place = (chromosome(cells[0]) or cells[0], cells[1], cells[3])
        if self.rules.all_records:
            for number, kinds in genes.items():
                self._add(
                    self.found.samples[0] if self.found.samples else "", (*place, alternatives[number - 1]), kinds, None
                )
            return
        if not keys or keys[0] != "GT":
            msg = (
                f"{where}: expected genotypes (GT first in FORMAT), found none; state genotype: all_records where "
                "every record is a variant of the sample"
            )
            raise ConfigError(msg)
        everything = {gene for kinds in genes.values() for gene in kinds}
        for column in self._columns:
            values = cells[column].split(":")
            carried = _alleles(values[0], len(alternatives), where=where)
            sample = self.header.samples[column - 9]
            if carried is None:
                self.found.unknown |= {(sample, gene) for gene in everything}
                continue
            for number in carried & genes.keys():
                share = _share(dict(zip(keys, values, strict=False)), number, where=where)
                self._add(sample, (*place, alternatives[number - 1]), genes[number], share)

    def _add(self, sample: str, place: tuple[str, str, str, str], kinds: dict[str, str], share: float | None) -> None:
        for gene, kind in kinds.items():
            self.found.calls.append(Call(sample=sample, gene=gene, kind=kind, place=place, vaf=share))


def _entries(annotation: str, info: str, fields: tuple[str, ...]) -> Iterator[tuple[str, str, list[str]]]:
    """Allele, gene and terms of each annotation; the gene is empty where it lies between genes."""
    content = info.partition("=")[2]
    if not content:
        return
    if annotation == "EFF":
        for effect, inside in _EFF.findall(content):
            parts = inside.split("|")
            number = next((p for p in parts[10:11] if p.isdigit()), "")
            yield number, parts[5] if len(parts) > 5 else "", effect.split("+") if effect not in EFFECTS else [effect]
        return
    places = {name: k for k, name in enumerate(fields)} if annotation == "CSQ" else {}
    for entry in content.split(","):
        parts = entry.split("|")
        if annotation == "ANN":
            terms = parts[1].split("&") if len(parts) > 1 else []
            between = "intergenic_region" in terms
            yield parts[0], "" if between or len(parts) < 4 else parts[3] or parts[4], terms
        else:
            values = {name: parts[k] if k < len(parts) else "" for name, k in places.items()}
            terms = values.get("Consequence", "").split("&")
            yield values.get("Allele", ""), values.get("SYMBOL") or values.get("Gene", ""), terms


def _alleles(genotype: str, alternatives: int, *, where: str) -> set[int] | None:
    """Numbers of the alleles that a sample carries, 0 the reference; None where it was not called."""
    parts = genotype.replace("|", "/").split("/")
    if any(part == "." for part in parts):
        carried = {int(part) for part in parts if part.isdigit() and part != "0"}
        return carried or None
    if not all(part.isdigit() and int(part) <= alternatives for part in parts):
        msg = f"{where}: expected genotypes of the record's alleles, found others; fetch the file again"
        raise DataError(msg)
    return {int(part) for part in parts}


def _share(values: dict[str, str], number: int, *, where: str) -> float | None:
    """Share of the reads with an allele, from AD, or AF of the sample, or FREQ in percent."""
    try:
        depths = values.get("AD", ".").split(",")
        if len(depths) > number and "." not in depths:
            total = sum(float(d) for d in depths)
            return float(depths[number]) / total if total > 0 else None
        fractions = values.get("AF", ".").split(",")
        if len(fractions) >= number and fractions[number - 1] != ".":
            return float(fractions[number - 1])
        if values.get("FREQ", "").endswith("%"):
            return float(values["FREQ"][:-1]) / 100
    except ValueError as error:
        msg = f"{where}: expected numbers in AD, AF or FREQ, found text; fetch the file again"
        raise DataError(msg) from error
    return None
