"""Mutations to columns: per gene what the card asks for, per gene set the number of its mutated genes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medfuse.config import ModalityCard
from medfuse.errors import ConfigError
from medfuse.loaders._calls import Call, Calls
from medfuse.loaders._genes import checked_names, cut_sets, read_gene_sets
from medfuse.loaders._variant_options import VALUES, Options
from medfuse.loaders.tabular import to_samples
from medfuse.sample import Column, ModalityData
from medfuse.types import PatientId

_RECORDS = {
    "FILTER is not PASS": "variants were left out: their FILTER is not PASS",
    "silent or not coding": "variants were left out: silent or not coding",
    "without a gene": "variants were left out: they lie in no gene",
    "the same variant of the same sample again": "rows were left out: the same variant of the same sample again",
}


def to_columns(
    name: str,
    card: ModalityCard,
    options: Options,
    *,
    resolve: Callable[[str], Path],
    calls: Calls,
    people: Mapping[str, PatientId],
    everyone: list[PatientId],
) -> ModalityData:
    """Variants of samples as columns of patients.

    Args:
        name: of the modality.
        card: of the modality.
        options: of the card.
        resolve: finds the card's files.
        calls: variants.
        people: patient of each sample.
        everyone: patients who were sequenced.

    Raises:
        ConfigError: classes of variants are asked for, and the file has none.
        DataError: no gene set shares a gene with the file.
    """
    found, genes, warnings = _of_genes(calls, card, options, name=name)
    values = _values(found, people, everyone, genes=genes, kinds=options.values)
    mutated = (
        values if options.values == ("mutated",) else _values(found, people, everyone, genes=genes, kinds=("mutated",))
    )
    unknown = _unknown(calls, people, everyone, genes=genes, carried=mutated)
    if unknown.any() and options.uncalled == "unknown":
        mutated[unknown] = np.nan
        values[np.repeat(unknown, len(options.values), axis=1)] = np.nan
        warnings.append(f"{int(unknown.sum())} genes of patients are unknown, as a genotype was not called")
    of_gene = {gene: [_column(gene, kind) for kind in options.values] for gene in genes}
    columns = [one for gene in genes for one in of_gene[gene]]
    sets: dict[str, tuple[str, ...]] = {}
    if card.gmt is not None:
        gmt = resolve(card.gmt)
        sets, said = cut_sets(read_gene_sets(gmt), genes, file=gmt.name)
        warnings += said
    if options.burden:
        place = {gene: k for k, gene in enumerate(genes)}
        sums = [mutated[:, [place[gene] for gene in members]].sum(axis=1) for members in sets.values()]
        values = np.concatenate([values, np.stack(sums, axis=1)], axis=1)
        columns += [Column(name=f"burden:{gene_set}", unit="mutated genes") for gene_set in sets]
    return ModalityData(
        name=name,
        layout="columns",
        features=2,
        columns=tuple(columns),
        samples=to_samples(values, everyone),
        gene_sets={
            gene_set: tuple(one.name for gene in members for one in of_gene[gene])
            for gene_set, members in sets.items()
            if options.values
        },
        warnings=(*warnings, *_left_out(calls)),
    )


def _column(gene: str, kind: str) -> Column:
    return Column(name=gene if kind == "mutated" else f"{gene}:{kind}", unit=VALUES[kind])


def _of_genes(
    calls: Calls, card: ModalityCard, options: Options, *, name: str
) -> tuple[list[Call], tuple[str, ...], list[str]]:
    """Variants of the genes that the card asks for, those genes, and warnings.

    Raises:
        ConfigError: classes of variants are asked for, and the file has none.
    """
    found, said = _named_genes(calls, card, file=name)
    warnings = [*calls.warnings, *said]
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
    return found, genes, warnings


def _left_out(calls: Calls) -> list[str]:
    """Warnings of what the readers left out or did not know."""
    warnings = [f"{count} {_RECORDS[reason]}" for reason, count in sorted(calls.left_out.items())]
    if calls.terms:
        warnings.append(
            f"consequences that medfuse does not know count as silent: {', '.join(sorted(calls.terms)[:10])}"
        )
    return warnings


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
