"""What a run answers to the items of TRIPOD+AI, and what it leaves to the author."""

from collections.abc import Callable

from medfuse.documents import facts as f
from medfuse.documents import tripod_methods as methods
from medfuse.documents.facts import RunFacts
from medfuse.documents.limits import limits
from medfuse.documents.sheet import Entry
from medfuse.documents.tripod import ITEMS

Answer = methods.Answer


def tripod_entries(facts: RunFacts) -> list[Entry]:
    """An entry for each of the 52 items and parts, in the order of the guideline."""
    entries = []
    for item in ITEMS:
        filled, author = ANSWERS[item.number](facts)
        asks = f"{item.topic} ({item.applies}). {item.asks}"
        entries.append(Entry(key=item.number, section=item.section, asks=asks, filled=filled, author=author))
    return entries


def _author(text: str) -> Callable[[RunFacts], Answer]:
    def answer(_: RunFacts) -> Answer:
        return "", text

    return answer


def _outcomes(facts: RunFacts) -> str:
    return ", ".join(facts.metrics)


def _title(facts: RunFacts) -> Answer:
    title = facts.card.title if facts.card is not None else facts.about["facts"]["cohort"]
    text = f"Development and internal validation of a multimodal prediction model of {_outcomes(facts)}: {title}."
    return text, "word the title of the paper."


def _abstract(facts: RunFacts) -> Answer:
    scores = " ".join(f.performance_text(facts, name) for name in facts.metrics)
    return f"{f.population_text(facts)} {scores}", "write the abstract; these are its numbers."


def _purpose(facts: RunFacts) -> Answer:
    return facts.quote("Intended use"), "the point of care at which it would be used, and by whom."


def _inequalities(facts: RunFacts) -> Answer:
    return facts.quote("Known biases"), "what is known of inequalities between groups in this disease and setting."


def _objectives(facts: RunFacts) -> Answer:
    return (
        f"Development with internal validation on {len(facts.splits)} splits of one cohort, outcome "
        f"{_outcomes(facts)}. An external validation (medfuse evaluate) is not part of the run.",
        "the aims of the study.",
    )


def _ethics(facts: RunFacts) -> Answer:
    g = facts.card.governance if facts.card is not None else None
    text = "" if g is None else f"Consent: {g.consent}. De-identification: {g.deidentification}."
    return text, "the committee and its decision."


def _sharing(facts: RunFacts) -> Answer:
    g = facts.card.governance if facts.card is not None else None
    text = "" if g is None else f"Licence: {g.licence}. Source: {g.source}. {facts.quote('Licence and use')}"
    return text.strip(), "how to ask for what is not public."


def _code(facts: RunFacts) -> Answer:
    versions = ", ".join(f"{k} {v}" for k, v in facts.about["versions"].items())
    commit = facts.about.get("git", {}).get("commit")
    at = f", commit {commit}" if commit else ""
    return f"medfuse (Apache-2.0){at}; {versions}. The recipe stands in the run.", "where this run can be had."


def _flow(facts: RunFacts) -> Answer:
    text = " ".join(f"{f.outcome_text(facts, name)}." for name in facts.metrics)
    return f"{f.population_text(facts)} {f.attrition_text(facts)} {text}", ""


def _characteristics(facts: RunFacts) -> Answer:
    return (
        f"{f.modalities_text(facts)} {facts.quote('Population and outcome')}".strip(),
        "the table of characteristics.",
    )


def _compared(facts: RunFacts) -> Answer:
    return "Not applicable: no evaluation on other data is part of the run.", ""


def _counts(facts: RunFacts) -> Answer:
    folds = facts.recipe.splits.inner_folds if facts.recipe is not None else None
    inner = "" if folds is None else f" Each member fits on {folds - 1} of {folds} inner folds and stops on the other."
    return f.split_text(facts) + inner, ""


def _specification(facts: RunFacts) -> Answer:
    sha = facts.about["facts"]["recipe"]
    return (
        "Weights, scalers and vocabularies lie in the run (folds/), with the resolved recipe (recipe.yaml, SHA-256 "
        f"{sha}) and the columns that a prediction needs (modalities.json).",
        "whether and where others can have them.",
    )


def _performance(facts: RunFacts) -> Answer:
    own = " ".join(f.performance_text(facts, name) for name in facts.metrics)
    groups = f.group_text(facts, without=("site", "available modalities"))
    return f"{own} {groups}".strip(), ""


def _by_cluster(facts: RunFacts) -> Answer:
    return f.group_text(facts, only="site") or "Not examined: the card names no site.", ""


def _updated(facts: RunFacts) -> Answer:
    return "Not applicable: nothing was updated.", ""


def _interpretation(facts: RunFacts) -> Answer:
    parts = []
    for name, content in facts.metrics.items():
        for other, row in content["differences"].items():
            if ":" not in other and row.get("estimate") is not None:
                parts.append(f"{name}: {content['score']} minus that of {other} {f.estimate(row)}")
    return "; ".join(parts) + ("." if parts else ""), "what this means, fairness included, beside earlier studies."


def _limitations(facts: RunFacts) -> Answer:
    return " ".join([*limits(facts), facts.quote("Known biases")]).strip(), "limits that the run cannot know."


def _inputs(facts: RunFacts) -> Answer:
    return (
        "A missing modality is allowed and shown. Unknown levels, units and columns are refused with a reason. Inputs "
        "unlike the training patients are marked, and predictions with two such marks are withheld (after medfuse "
        "explain).",
        "who checks inputs in use.",
    )


def _users(facts: RunFacts) -> Answer:
    return "Research use only: no use in care is foreseen.", "the expertise of the intended users."


ANSWERS: dict[str, Callable[[RunFacts], Answer]] = {
    "1": _title,
    "2": _abstract,
    "3a": _author("setting, reasons and earlier models."),
    "3b": _purpose,
    "3c": _inequalities,
    "4": _objectives,
    "5a": methods.sources,
    "5b": methods.dates,
    "6a": methods.setting,
    "6b": methods.eligibility,
    "6c": _author("treatments, and how they were dealt with."),
    "7": methods.preparation,
    "8a": methods.outcome,
    "8b": _author("who judged the outcome, or that it needs no judgement."),
    "8c": _author("blinding of those who determined the outcome, or that there was none."),
    "9a": methods.chosen,
    "9b": methods.predictors,
    "9c": _author("who judged predictors, or that none needs judgement."),
    "10": methods.size,
    "11": methods.missing,
    "12a": methods.division,
    "12b": methods.handled,
    "12c": methods.kind,
    "12d": methods.clusters,
    "12e": methods.measures,
    "12f": methods.updating,
    "12g": methods.computed,
    "13": methods.imbalance,
    "14": methods.fairness,
    "15": methods.output,
    "16": methods.differences,
    "17": _ethics,
    "18a": _author("funding and the part of the funders."),
    "18b": _author("interests of all authors."),
    "18c": _author("where the protocol is, or that none was written."),
    "18d": _author("register and number, or that the study was not registered."),
    "18e": _sharing,
    "18f": _code,
    "19": _author("the part of patients and public, or that they had none."),
    "20a": _flow,
    "20b": _characteristics,
    "20c": _compared,
    "21": _counts,
    "22": _specification,
    "23a": _performance,
    "23b": _by_cluster,
    "24": _updated,
    "25": _interpretation,
    "26": _limitations,
    "27a": _inputs,
    "27b": _users,
    "27c": _author("next steps."),
}
