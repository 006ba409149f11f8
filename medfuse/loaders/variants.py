"""Mutations to genes: MAF of all patients, VCF of all or of one patient each; tokens per gene and per gene set.

Absence is not zero: a patient without a variant has zeros only where a source says that the patient was sequenced: the
samples of a VCF's header, a file of the patient's own, or the table that the card names under ``sequenced``.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medfuse.config import ModalityCard
from medfuse.errors import ConfigError, DataError
from medfuse.limits import read_head
from medfuse.loaders._barcodes import patients_of
from medfuse.loaders._calls import Calls
from medfuse.loaders._genes import checked_names
from medfuse.loaders._genome import RegionIndex, read_regions
from medfuse.loaders._maf import is_maf, read_maf
from medfuse.loaders._maf import rows as maf_rows
from medfuse.loaders._variant_columns import to_columns
from medfuse.loaders._variant_options import Options, options_of
from medfuse.loaders._vcf import content_of, header_of, read_vcf
from medfuse.loaders._write_variants import write_maf, write_vcf
from medfuse.loaders.base import Description, Head, Identifying
from medfuse.loaders.expression import select
from medfuse.sample import ModalityData
from medfuse.tables import column, read_table
from medfuse.types import PatientId

__all__ = ["read", "read_files", "write_example", "write_maf", "write_vcf"]


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
    options = _with_regions(options_of(card, name=name), card, resolve, name=name)
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
    return to_columns(name, card, options, resolve=resolve, calls=calls, people=people, everyone=everyone)


def read_files(
    name: str, card: ModalityCard, *, resolve: Callable[[str], Path], files: Mapping[PatientId, Sequence[Path]]
) -> ModalityData:
    """Read a VCF or MAF of each patient; a patient with a file was sequenced.

    Raises:
        ConfigError, DataError: as :func:`read`; a patient with several files, or a file with several samples none of
            which the card's option ``sample`` names.
    """
    options = _with_regions(options_of(card, name=name), card, resolve, name=name)
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
    return to_columns(name, card, options, resolve=resolve, calls=together, people=people, everyone=list(files))


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
