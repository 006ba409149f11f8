"""What the card says under ``options`` of mutations, checked."""

from dataclasses import dataclass

from medfuse.config import ModalityCard
from medfuse.errors import ConfigError, nearest
from medfuse.loaders._vcf import ANNOTATIONS, Rules

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
_SCALES = {"percent": 100.0, "fraction": 1.0}


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


def options_of(card: ModalityCard, *, name: str) -> Options:
    """The options of a card.

    Raises:
        ConfigError: one that is not known, or of another form.
    """
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
