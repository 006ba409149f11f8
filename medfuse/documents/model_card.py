"""Model card: a minimum block, limits, and the source attributes that health IT must be able to show of a predictor.

References: Mitchell et al. (2019), Model cards for model reporting; Hernandez-Boussard et al. (2020), MINIMAR; ONC,
HTI-1 final rule (89 FR 1192, 2024), 45 CFR 170.315(b)(11)(iv)(B): 31 source attributes of predictive interventions,
in our own words.
"""

from collections.abc import Callable

from medfuse.documents import facts as f
from medfuse.documents.facts import RunFacts
from medfuse.documents.limits import limits
from medfuse.documents.prototypes import ASKS, prototype_text
from medfuse.documents.sheet import Entry

Answer = tuple[str, str]
_EXTERNAL = "an external validation, with medfuse evaluate RUN --cohort CARD, and who did it."
_LOCAL = "how and how often this is watched where the model runs; medfuse evaluate measures it on local data."


def model_entries(facts: RunFacts) -> list[Entry]:
    """Entries of the model card: minimum block, limits, prototypes where there are some, then 31 source attributes."""
    entries = []
    for key, (asks, answer) in MINIMUM.items():
        filled, author = answer(facts)
        entries.append(Entry(key=key, section="In short", asks=asks, filled=filled, author=author))
    if facts.has_prototypes:
        entries.append(Entry(key="prototypes", section="In short", asks=ASKS, filled=prototype_text(facts)))
    for key, (section, asks, answer) in ATTRIBUTES.items():
        filled, author = answer(facts)
        entries.append(Entry(key=key, section=section, asks=asks, filled=filled, author=author))
    return entries


def _left(text: str) -> Callable[[RunFacts], Answer]:
    return lambda _: ("", text)


def _said(text: str, author: str = "") -> Callable[[RunFacts], Answer]:
    return lambda _: (text, author)


def _population(facts: RunFacts) -> Answer:
    return f"{f.population_text(facts)} {facts.quote('Population and outcome')}".strip(), ""


def _demographics(facts: RunFacts) -> Answer:
    groups = f.group_text(facts, without=("available modalities",))
    sizes = f.modalities_text(facts)
    return f"{sizes} {groups}".strip(), "age, sex, ethnicity and social position, as far as they are not shown."


def _architecture(facts: RunFacts) -> Answer:
    return f.model_text(facts), "" if facts.recipe is not None else "the model; the recipe cannot be read."


def _performance(facts: RunFacts) -> Answer:
    return " ".join(f.performance_text(facts, name) for name in facts.metrics), ""


def _limits(facts: RunFacts) -> Answer:
    return " ".join(limits(facts)), ""


def _opened(facts: RunFacts) -> Answer:
    if facts.opened is None:
        return "Not counted: no audit log of reviews was given when this was written.", ""
    return f"{facts.opened} times, by the audit log of the review when it was last counted (medfuse report).", ""


def _output(facts: RunFacts) -> Answer:
    kinds = {
        "survival": "probability of being free of the event over time, with its spread over members",
        "binary": "probability of the event",
        "multiclass": "probability of each class",
        "continuous": "a value",
    }
    return "; ".join(f"{name}: {kinds[c['kind']]}" for name, c in facts.metrics.items()) + ".", ""


def _intended(facts: RunFacts) -> Answer:
    return f"Research. {facts.quote('Intended use')}".strip(), "the intended use, should there be one beyond research."


def _patients(facts: RunFacts) -> Answer:
    return facts.quote("Population and outcome"), "the patients it is meant for, beyond those it was trained on."


def _cautioned(facts: RunFacts) -> Answer:
    return (
        "Decisions about individual patients. Patients unlike the training cohort, availability patterns with fewer "
        "than 20 training patients, and times beyond the follow-up of the training cohort.",
        "further tasks and settings to warn of.",
    )


def _risks(facts: RunFacts) -> Answer:
    return f"{' '.join(limits(facts))} {facts.quote('Known biases')}".strip(), "risks seen in use."


def _criteria(facts: RunFacts) -> Answer:
    return f.attrition_text(facts), "criteria of the study that the data come from."


def _sensitive(facts: RunFacts) -> Answer:
    words = ("sex", "gender", "race", "ethnic", "language", "age", "birth", "insurance", "disab", "orientation")
    found = []
    for name in facts.about["facts"]["data"]:
        card = facts.card.modalities.get(name) if facts.card is not None else None
        columns = card.columns if card is not None and isinstance(card.columns, dict) else {}
        found += [f"{name}.{c}" for c in columns if any(_names(c, word) for word in words)]
    text = (
        f"By their names: {', '.join(found)}." if found else "None of the columns that the card names, by their names."
    )
    return text, "whether other inputs (texts, codes, images) carry such features."


def _names(column: str, word: str) -> bool:
    """Whether a column's name speaks of it: short words only as a whole part of the name."""
    parts = column.lower().replace("-", "_").split("_")
    return word in parts if len(word) <= 3 else any(part.startswith(word) for part in parts)


def _fair(facts: RunFacts) -> Answer:
    return "No method in fitting; scores by subgroup are reported.", "the approach to fairness, if there is one."


def _bias(facts: RunFacts) -> Answer:
    return f"Leak audit, splits by person and site. {facts.quote('Known biases')}".strip(), "what else was done."


def _internal(facts: RunFacts) -> Answer:
    return _performance(facts)


def _internal_fair(facts: RunFacts) -> Answer:
    text = f.group_text(facts, without=("available modalities",))
    return text, "" if text else "subgroups in the data card, so that scores by subgroup are measured."


MINIMUM: dict[str, tuple[str, Callable[[RunFacts], Answer]]] = {
    "population": ("Population and setting of the data.", _population),
    "demographics": ("Whom the data show.", _demographics),
    "architecture": ("The model and its fitting.", _architecture),
    "evaluation": ("Internal validation on held-out patients.", _performance),
    "limits": ("What the run knows against itself.", _limits),
    "held_out_opened": ("How often held-out results were opened in reviews.", _opened),
}

_DETAILS, _PURPOSE, _CAUTION = "Details and output", "Purpose", "Cautioned use"
_INPUTS, _FAIR, _OUTSIDE = "Development and inputs", "Fairness in development", "External validation"
_MEASURES, _UPKEEP, _UPDATE = "Measures of performance", "Maintenance", "Updates"
ATTRIBUTES: dict[str, tuple[str, str, Callable[[RunFacts], Answer]]] = {
    "developer": (_DETAILS, "Developer and contact.", _left("name and contact.")),
    "funding": (_DETAILS, "Who paid for the technical implementation.", _left("source of funding.")),
    "output_value": (_DETAILS, "The value that it puts out.", _output),
    "output_type": (
        _DETAILS,
        "Kind of output: prediction, classification, advice, analysis.",
        _said("Prediction."),
    ),
    "intended_use": (_PURPOSE, "Intended use.", _intended),
    "intended_patients": (_PURPOSE, "Intended patients.", _patients),
    "intended_users": (_PURPOSE, "Intended users.", _said("Researchers.", "other users, if any.")),
    "decision_role": (_PURPOSE, "Part in decisions: informs, augments or replaces.", _said("None: research use only.")),
    "out_of_scope": (_CAUTION, "Tasks, situations and patients to be cautious with.", _cautioned),
    "known_risks": (_CAUTION, "Known risks, unfit settings and uses, limits.", _risks),
    "training_criteria": (_INPUTS, "Criteria of inclusion and exclusion of the training data.", _criteria),
    "sensitive_inputs": (_INPUTS, "Demographic and social variables among the inputs.", _sensitive),
    "representativeness": (_INPUTS, "Whom the training data represent.", _demographics),
    "relevance": (_INPUTS, "How training data fit the setting of use.", _left("the setting of use beside the data's.")),
    "fairness_approach": (_FAIR, "How the output is made fair.", _fair),
    "bias_approach": (_FAIR, "How bias is managed, reduced or removed.", _bias),
    "external_data": (_OUTSIDE, "Data and setting of external validation.", _left(_EXTERNAL)),
    "external_party": (_OUTSIDE, "Who validated externally.", _left("who did it, or that nobody has.")),
    "external_representativeness": (_OUTSIDE, "Whom the external data represent.", _left("whom they represent.")),
    "external_process": (_OUTSIDE, "How it was validated externally.", _left("how it was done.")),
    "internal_validity": (_MEASURES, "Validity in test data of the same source.", _internal),
    "internal_fairness": (_MEASURES, "Fairness in test data of the same source.", _internal_fair),
    "external_validity": (_MEASURES, "Validity in external data.", _left("results of the external validation.")),
    "external_fairness": (_MEASURES, "Fairness in external data.", _left("results by subgroup elsewhere.")),
    "outcome_evidence": (
        _MEASURES,
        "Studies of what its use does to outcomes.",
        _left("references, or none."),
    ),
    "validity_monitoring": (_UPKEEP, "How validity is watched over time.", _left(_LOCAL)),
    "local_validity": (_UPKEEP, "Validity in local data.", _left("results in local data.")),
    "fairness_monitoring": (_UPKEEP, "How fairness is watched over time.", _left(_LOCAL)),
    "local_fairness": (_UPKEEP, "Fairness in local data.", _left("results by subgroup in local data.")),
    "update_process": (_UPDATE, "How and how often it is updated.", _left("the process and its dates.")),
    "correction_frequency": (_UPDATE, "How often performance is corrected when risks are found.", _left("how often.")),
}
