"""Variants of samples as the readers of MAF and VCF hand them on."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Call:
    """One variant of one sample in one gene.

    Attributes:
        sample: name in the file.
        gene: its name in the file.
        kind: ``truncating``, ``missense``, ``other``, ``silent``, or empty where nothing says what it does.
        place: chromosome, position, reference and alternative allele: what tells variants apart.
        vaf: share of reads with the variant, 0 to 1, or None.
    """

    sample: str
    gene: str
    kind: str
    place: tuple[str, str, str, str]
    vaf: float | None = None


@dataclass(kw_only=True)
class Calls:
    """What a file of variants holds after the card's filters.

    Attributes:
        samples: whom the file names; all of a VCF's header, in a MAF those with a row.
        calls: variants that passed.
        unknown: (sample, gene) where a variant's genotype was not called.
        left_out: reason -> number of records or variants.
        terms: consequences that medfuse does not know, which count as silent.
        warnings: what a person should know.
    """

    samples: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    unknown: set[tuple[str, str]] = field(default_factory=set)
    left_out: Counter[str] = field(default_factory=Counter)
    terms: set[str] = field(default_factory=set)
    warnings: list[str] = field(default_factory=list)
