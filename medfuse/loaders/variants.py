"""Mutations to genes: MAF of all patients, VCF of all or of one patient each; tokens per gene and per gene set.

Absence is not zero: a patient without a variant has zeros only where a source says that the patient was sequenced: the
samples of a VCF's header, a file of the patient's own, or the table that the card names under ``sequenced``.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfuse.config import ModalityCard
from medfuse.errors import ConfigError, DataError, nearest
from medfuse.limits import read_head
from medfuse.loaders._barcodes import patients_of
from medfuse.loaders._calls import Call, Calls
from medfuse.loaders._genes import checked_names, cut_sets, read_gene_sets
from medfuse.loaders._genome import RegionIndex, read_regions
from medfuse.loaders._maf import is_maf, read_maf
from medfuse.loaders._maf import rows as maf_rows
from medfuse.loaders._vcf import ANNOTATIONS, Rules, content_of, header_of, read_vcf
from medfuse.loaders._write_variants import write_maf, write_vcf
from medfuse.loaders.base import Description, Head, Identifying
from medfuse.loaders.expression import select
from medfuse.loaders.tabular import to_samples
from medfuse.sample import Column, ModalityData
from medfuse.tables import column, read_table
from medfuse.types import PatientId

__all__ = ["read", "read_files", "write_example", "write_maf", "write_vcf"]

VALUES = {
    "mutated": "0/1",
    "count": "variants",
    "truncating": "variants",
    "missense": "variants",
    "other": "variants",
    "vaf": "fraction",
}
_CHOICES: dict[str, tuple[str, ...]] = {
    "filter": ("pass", "pass_or_none", "any"),
    "silent": ("leave_out", "keep"),
    "uncalled": ("unknown", "reference"),
    "genotype": ("gt", "all_records"),
    "annotation": ANNOTATIONS,
}
OPTIONS = (*_CHOICES, "values", "genes", "burden", "vaf", "sample")
_LARGEST_LOOK = 64 << 20  # bytes on disk up to which an inspection counts variants


@dataclass(frozen=True, kw_only=True)
class Options:
    """The card's options, checked.

    Attributes:
        values: per gene, of ``mutated``, ``count``, ``truncating``, ``missense``, ``other``, ``vaf`` (the largest).
        genes: the panel that was sequenced; none: the genes with a variant.
        burden: a column per gene set with the number of its mutated genes.
        uncalled: an uncalled genotype leaves the gene ``unknown``, or counts as ``reference``.
        vaf: column of a MAF with allele fractions, and what they are divided by.
        sample: of a VCF of one patient with several samples.
        rules: what the readers need.
    """

    values: tuple[str, ...]
    genes: tuple[str, ...]
    burden: bool
    uncalled: str
    vaf: tuple[str, float] | None
    sample: str | None
    rules: Rules


def _options(card: ModalityCard, *, name: str) -> Options:
    given = dict(card.options)
    where = f"modality {name}, options"
    unknown = next((key for key in given if key not in OPTIONS), None)
    if unknown is not None:
        msg = f"{where}: no option {unknown!r}; {nearest(unknown, OPTIONS)}"
        raise ConfigError(msg)
    for key, choices in _CHOICES.items():
        if key in given and given[key] not in choices:
            msg = f"{where}: expected {key} to be one of {', '.join(choices)}, found another"
            raise ConfigError(msg)
    values = given.get("values", ["mutated"])
    wrong = not isinstance(values, list) or next((v for v in values if v not in VALUES), None)
    if wrong or (not values and not card.gmt):
        msg = f"{where}: expected values to be a list of {', '.join(VALUES)}, found another"
        raise ConfigError(msg)
    genes = given.get("genes", [])
    vaf = given.get("vaf")
    if vaf is not None and not (isinstance(vaf, dict) and set(vaf) == {"column", "unit"} and vaf["unit"] in _SCALES):
        msg = f"{where}: expected vaf as {{column: NAME, unit: percent or fraction}}, found another form"
        raise ConfigError(msg)
    burden = bool(given.get("burden", card.gmt is not None))
    if not isinstance(genes, list) or (burden and card.gmt is None):
        msg = f"{where}: expected genes as a list, and a gmt for burden, found others"
        raise ConfigError(msg)
    return Options(
        values=tuple(values),
        genes=tuple(str(gene) for gene in genes),
        burden=burden,
        uncalled=str(given.get("uncalled", "unknown")),
        vaf=None if vaf is None else (str(vaf["column"]), _SCALES[vaf["unit"]]),
        sample=given.get("sample"),
        rules=Rules(
            filters=str(given.get("filter", "pass")),
            silent=given.get("silent") == "keep",
            build=card.build,
            annotation=given.get("annotation"),
            all_records=given.get("genotype") == "all_records",
        ),
    )


_SCALES = {"percent": 100.0, "fraction": 1.0}


# --- files to variants -----------------------------------------------------------------------------------------------


def _with_regions(options: Options, card: ModalityCard, resolve: Callable[[str], Path], *, name: str) -> Options:
    if card.regions is None:
        return options
    if card.build is None:
        msg = f"modality {name}: gene regions need the card's build: GRCh37 or GRCh38"
        raise ConfigError(msg)
    index = RegionIndex(read_regions(resolve(card.regions), build=card.build))
    return replace(options, rules=replace(options.rules, regions=index))


def _read_one(path: Path, options: Options) -> Calls:
    start = read_head(path)
    if start.startswith((b"##fileformat=VCF", b"\xef\xbb\xbf##fileformat=VCF")):
        return read_vcf(path, options.rules)
    rules = options.rules
    return read_maf(path, filters=rules.filters, silent=rules.silent, build=rules.build, vaf=options.vaf)


def _is_vcf(path: Path) -> bool:
    return b"##fileformat=VCF" in read_head(path)[:20]


def read(
    name: str, card: ModalityCard, *, resolve: Callable[[str], Path], patients: tuple[str | None, str]
) -> ModalityData:
    """Read a MAF or a VCF of all patients; see :func:`medfuse.loaders.read`.

    Returns:
        Layout ``columns``: per gene the values that the card asks for (``TP53`` for mutated, ``TP53:vaf`` ...), per
        gene set ``burden:NAME``.

    Raises:
        ConfigError: options that are not known, or a MAF without a statement of who was sequenced.
        DataError: damage, or content that contradicts the card.
    """
    options = _with_regions(_options(card, name=name), card, resolve, name=name)
    path = resolve(card.file or "")
    vcf = _is_vcf(path)
    if not vcf and card.sequenced is None:
        msg = (
            f"modality {name}: a MAF names only those with a variant; state sequenced: FILE#COLUMN of all who were "
            "sequenced, or sequenced: with_variants, by which the others count as absent"
        )
        raise ConfigError(msg)
    if vcf:
        names = header_of(content_of(path), file=path.name).samples
        pattern = card.columns if isinstance(card.columns, str) else None
        chosen, wanted = select(names, pattern, file=path.name)
        options = replace(options, rules=replace(options.rules, samples=tuple(chosen)))
        calls = _read_one(path, options)
        people = dict(zip(chosen, patients_of(wanted, card.barcode, file=path.name), strict=True))
    else:
        calls = _read_one(path, options)
        people = dict(zip(calls.samples, patients_of(calls.samples, card.barcode, file=path.name), strict=True))
    listed = _sequenced(card, resolve, set(people.values()), file=path.name)
    if listed is None and not vcf:
        calls.warnings.append("only patients with a variant in the file count as sequenced; the others are absent")
    everyone = listed if listed is not None else list(dict.fromkeys(people.values()))
    return _data(name, card, options, resolve=resolve, calls=calls, people=people, everyone=everyone)


def read_files(
    name: str, card: ModalityCard, *, resolve: Callable[[str], Path], files: Mapping[PatientId, Sequence[Path]]
) -> ModalityData:
    """Read a VCF or MAF of each patient; a patient with a file was sequenced.

    Raises:
        ConfigError, DataError: as :func:`read`; a patient with several files, or a file with several samples none of
            which the card's option ``sample`` names.
    """
    options = _with_regions(_options(card, name=name), card, resolve, name=name)
    if options.sample:
        options = replace(options, rules=replace(options.rules, samples=(options.sample,)))
    together = Calls()
    for patient, paths in files.items():
        if len(paths) != 1:
            msg = f"modality {name}, patient {patient}: expected one file, found {len(paths)}; narrow the card's path"
            raise DataError(msg)
        found = _read_one(paths[0], options)
        if len(found.samples) > 1:
            msg = (
                f"{paths[0].name}: expected one sample, found {len(found.samples)}; name the patient's tumour as the "
                "option sample"
            )
            raise DataError(msg)
        together.samples.append(patient)
        together.calls += [replace(call, sample=patient) for call in found.calls]
        together.unknown |= {(patient, gene) for _, gene in found.unknown}
        together.left_out += found.left_out
        together.terms |= found.terms
        together.warnings += [w for w in found.warnings if w not in together.warnings][: 20 - len(together.warnings)]
    people = {str(patient): patient for patient in files}
    return _data(name, card, options, resolve=resolve, calls=together, people=people, everyone=list(files))


def _sequenced(
    card: ModalityCard, resolve: Callable[[str], Path], named: set[PatientId], *, file: str
) -> list[PatientId] | None:
    """Patients that the card lists; None where it lists none.

    Raises:
        DataError: a patient has variants and is not listed.
    """
    if card.sequenced in (None, "with_variants"):
        return None
    source, _, label = str(card.sequenced).rpartition("#")
    if not source or not label:
        msg = f"{file}: expected sequenced as FILE#COLUMN or with_variants, found another form; correct the card"
        raise ConfigError(msg)
    path = resolve(source)
    cells = column(read_table(path), label, file=path.name).dropna()
    listed = list(dict.fromkeys(patients_of([str(c) for c in cells], card.barcode, file=path.name)))
    stray = len(named - set(listed))
    if stray:
        msg = (
            f"{path.name}: expected everyone with variants among those sequenced, found {stray} patients of {file} "
            "that are not listed; complete the list, or state how samples name patients (barcode)"
        )
        raise DataError(msg)
    return listed


# --- variants to columns ---------------------------------------------------------------------------------------------


def _data(
    name: str,
    card: ModalityCard,
    options: Options,
    *,
    resolve: Callable[[str], Path],
    calls: Calls,
    people: Mapping[str, PatientId],
    everyone: list[PatientId],
) -> ModalityData:
    """Variants of samples as columns of patients."""
    warnings = list(calls.warnings)
    found, said = _named_genes(calls, card, file=name)
    warnings += said
    genes = options.genes or tuple(sorted({call.gene for call in found} | {gene for _, gene in calls.unknown}))
    outside = {call.gene for call in found} - set(genes)
    if outside:
        warnings.append(f"{len(outside)} genes with variants are not in the card's list of genes and were left out")
    found = [call for call in found if call.gene not in outside]
    if any(not call.kind for call in found) and {"truncating", "missense", "other"} & set(options.values):
        msg = (
            f"modality {name}: regions say no class of a variant; annotate the file, or leave the classes out of values"
        )
        raise ConfigError(msg)
    values = _values(found, people, everyone, genes=genes, kinds=options.values)
    mutated = (
        values if options.values == ("mutated",) else _values(found, people, everyone, genes=genes, kinds=("mutated",))
    )
    unknown = _unknown(calls, people, everyone, genes=genes, carried=mutated)
    if unknown.any() and options.uncalled == "unknown":
        mutated[unknown] = np.nan
        values[np.repeat(unknown, len(options.values), axis=1)] = np.nan
        warnings.append(f"{int(unknown.sum())} genes of patients are unknown, as a genotype was not called")
    columns = [
        Column(name=gene if kind == "mutated" else f"{gene}:{kind}", unit=VALUES[kind])
        for gene in genes
        for kind in options.values
    ]
    gene_sets: dict[str, tuple[str, ...]] = {}
    if card.gmt is not None:
        gmt = resolve(card.gmt)
        sets, said = cut_sets(read_gene_sets(gmt), genes, file=gmt.name)
        warnings += said
        place = {gene: k for k, gene in enumerate(genes)}
        width = len(options.values)
        gene_sets = {s: tuple(c.name for g in m for c in columns[place[g] * width :][:width]) for s, m in sets.items()}
        if options.burden:
            sums = [mutated[:, [place[gene] for gene in members]].sum(axis=1) for members in sets.values()]
            values = np.concatenate([values, np.stack(sums, axis=1)], axis=1)
            columns += [Column(name=f"burden:{gene_set}", unit="mutated genes") for gene_set in sets]
    warnings += [f"{count} {_RECORDS[reason]}" for reason, count in sorted(calls.left_out.items())]
    if calls.terms:
        warnings.append(
            f"consequences that medfuse does not know count as silent: {', '.join(sorted(calls.terms)[:10])}"
        )
    return ModalityData(
        name=name,
        layout="columns",
        features=2,
        columns=tuple(columns),
        samples=to_samples(values, everyone),
        gene_sets={gene_set: members for gene_set, members in gene_sets.items() if members},
        warnings=tuple(warnings),
    )


_RECORDS = {
    "FILTER is not PASS": "variants were left out: their FILTER is not PASS",
    "silent or not coding": "variants were left out: silent or not coding",
    "without a gene": "variants were left out: they lie in no gene",
    "the same variant of the same sample again": "rows were left out: the same variant of the same sample again",
}


def _named_genes(calls: Calls, card: ModalityCard, *, file: str) -> tuple[list[Call], list[str]]:
    """Variants with checked names of genes, each of a patient's once."""
    names = list(dict.fromkeys([call.gene for call in calls.calls] + [gene for _, gene in sorted(calls.unknown)]))
    plain, warnings = checked_names(names, accept_mangled=card.accept_mangled, file=file)
    now = dict(zip(names, plain, strict=True))
    calls.unknown = {(sample, now[gene]) for sample, gene in calls.unknown}
    return [
        replace(call, gene=now[call.gene]) if now[call.gene] != call.gene else call for call in calls.calls
    ], warnings


def _values(
    calls: Sequence[Call],
    people: Mapping[str, PatientId],
    everyone: Sequence[PatientId],
    *,
    genes: Sequence[str],
    kinds: Sequence[str],
) -> NDArray[np.float64]:
    """(patients, genes x kinds); a variant that several samples of a patient share counts once."""
    row = {patient: k for k, patient in enumerate(everyone)}
    place = {gene: k * len(kinds) for k, gene in enumerate(genes)}
    offsets = {kind: k for k, kind in enumerate(kinds)}
    values = np.zeros((len(everyone), len(genes) * len(kinds)))
    if "vaf" in offsets:
        values[:, offsets["vaf"] :: len(kinds)] = np.nan
    seen: set[tuple[PatientId, str, tuple[str, str, str, str]]] = set()
    for call in calls:
        patient = people[call.sample]
        at = (row[patient], place[call.gene])
        if "vaf" in offsets and call.vaf is not None:
            cell = at[0], at[1] + offsets["vaf"]
            values[cell] = np.fmax(values[cell], call.vaf)
        if "mutated" in offsets:
            values[at[0], at[1] + offsets["mutated"]] = 1
        again = (patient, call.gene, call.place)
        if again in seen and call.place[1]:
            continue
        seen.add(again)
        for kind in {"count", call.kind} & offsets.keys():
            values[at[0], at[1] + offsets[kind]] += 1
    return values


def _unknown(
    calls: Calls,
    people: Mapping[str, PatientId],
    everyone: Sequence[PatientId],
    *,
    genes: Sequence[str],
    carried: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """(patients, genes): a genotype was not called, and no other variant of the gene is there."""
    unknown = np.zeros((len(everyone), len(genes)), dtype=bool)
    row = {patient: k for k, patient in enumerate(everyone)}
    place = {gene: k for k, gene in enumerate(genes)}
    for sample, gene in calls.unknown:
        if gene in place and people[sample] in row:
            unknown[row[people[sample]], place[gene]] = True
    unknown &= carried == 0
    return unknown


# --- inspection ------------------------------------------------------------------------------------------------------


def recognise(head: Head) -> bool:
    """The first line of a VCF, or the columns of a MAF."""
    return b"##fileformat=VCF" in head.start[:20] or is_maf(head.start)


def describe(files: Sequence[Path]) -> Description:
    """Samples, genes, variants, build and annotation; no name of a sample."""
    path = files[0]
    if not _is_vcf(path):
        return _describe_maf(path)
    lines = content_of(path)
    header = header_of(lines, file=path.name)
    holds: dict[str, Any] = {
        "samples": len(header.samples),
        "variants": sum(1 for line in lines[header.lines :] if line.strip()),
        "build": header.build or "not stated",
        "annotation": list(header.annotations) or "none",
    }
    filters = Counter(line.split("\t", 7)[6] for line in lines[header.lines :] if line.count("\t") >= 7)
    holds["passed"] = filters["PASS"]
    warnings = ["filters were not applied to some records ('.')"] if filters["."] else []
    if not header.annotations:
        warnings.append("no annotation of genes: annotate with snpEff or VEP, or name gene regions in the card")
    return Description(kind="variants (VCF)", holds=holds, warnings=tuple(warnings))


def _describe_maf(path: Path) -> Description:
    names, content = maf_rows(path)
    at = {name: k for k, name in enumerate(names)}
    samples, genes, builds, classes = set(), set(), set(), Counter[str]()
    for _, cells in content:
        samples.add(cells[at["tumor_sample_barcode"]])
        genes.add(cells[at["hugo_symbol"]])
        classes[cells[at["variant_classification"]]] += 1
        if "ncbi_build" in at:
            builds.add(cells[at["ncbi_build"]])
    holds = {
        "samples": len(samples),
        "genes": len(genes),
        "variants": classes.total(),
        "build": sorted(builds) or "not stated",
        "filter": "filter" in at,
    }
    _, warnings = checked_names(sorted(genes), accept_mangled=True, file=path.name)
    return Description(kind="variants (MAF)", holds=holds, warnings=tuple(warnings))


def identifying(files: Sequence[Path]) -> list[Identifying]:
    """Names of samples, and command lines and dates of a VCF's header."""
    path = files[0]
    if not _is_vcf(path):
        return [Identifying(where=f"{path.name}: Tumor_Sample_Barcode", kind="id")]
    lines = content_of(path)
    header = header_of(lines, file=path.name)
    found = [Identifying(where=f"{path.name}: sample names in the header", kind="id")] if header.samples else []
    for start, kind in (("##fileDate", "date"), ("##commandline", "free text"), ("##SAMPLE", "free text")):
        if any(line.lower().startswith(start.lower()) for line in lines[: header.lines]):
            found.append(Identifying(where=f"{path.name}: {start}", kind=kind))
    return found


def write_example(folder: Path) -> ModalityCard:
    """Write a small MAF and the table of who was sequenced, and return the card that reads them."""
    rows = [
        ("001", "TP53", "Missense_Mutation", 0.41),
        ("001", "EGFR", "Frame_Shift_Del", 0.2),
        ("010", "TP53", "Nonsense_Mutation", 0.5),
        ("010", "BRCA1", "Silent", 0.1),
    ]
    samples, genes, classes, shares = (list(part) for part in zip(*rows, strict=True))
    write_maf(folder / "variants.maf", samples=samples, genes=genes, classes=classes, vaf=shares)
    (folder / "sequenced.csv").write_text("patient\n001\n002\n010\n", encoding="utf-8")
    return ModalityCard(
        loader="variants",
        file="variants.maf",
        sequenced="sequenced.csv#patient",
        options={"values": ["mutated", "truncating", "vaf"], "filter": "any"},
    )
