"""What a run answers to the methods items of TRIPOD+AI (5 to 16): the text of the run, and what is the author's."""

import numpy as np

from medfuse.documents import facts as f
from medfuse.documents.facts import RunFacts

Answer = tuple[str, str]  # from the run, for the author


def sources(facts: RunFacts) -> Answer:
    """Item 5a: where the data come from."""
    g = facts.card.governance if facts.card is not None else None
    source = f"Source: {g.source}. Citation: {g.citation}. " if g is not None else ""
    return source + facts.quote("Provenance"), "why these data, and whom they represent."


def dates(facts: RunFacts) -> Answer:
    """Item 5b: time of entry and follow-up."""
    rows = facts.outcomes
    if "time" not in rows or not rows["time"].notna().any():
        return "", "dates of entry and end of follow-up."
    last = float(np.nanmax(rows["time"].to_numpy(dtype=np.float64)))
    return f"Times are days since index time; the longest is {last:.0f} days.", "calendar dates: the run keeps none."


def setting(facts: RunFacts) -> Answer:
    """Item 6a: centres."""
    sites = {r["level"] for c in facts.metrics.values() for r in c["groups"].get("site", []) if r["patients"]}
    text = f"{len(sites)} sites with enough patients to be shown: {', '.join(sorted(sites))}." if sites else ""
    return text or "The card names no column of the site.", "kind of care and place of the centres."


def eligibility(facts: RunFacts) -> Answer:
    """Item 6b: who could take part."""
    rules = []
    for name, outcome in (facts.card.outcomes if facts.card is not None else {}).items():
        rules += [f"{name} unknown where {' and '.join(rule)} as listed in the card" for rule in outcome.exclude]
    text = " ".join(p for p in (facts.quote("Population and outcome"), f.attrition_text(facts), "; ".join(rules)) if p)
    return text, "criteria of the study that the data come from."


def preparation(facts: RunFacts) -> Answer:
    """Item 7: cleaning and checks."""
    checks = ", ".join(facts.audit.get("checks", ())) or "not recorded"
    found = facts.audit.get("findings", ())
    warned = [f"{n}: {w}" for n, m in facts.data.get("modalities", {}).items() for w in m.get("warnings", ())]
    text = (
        "Columns are standardised, coded and dropped where constant by what is fitted on the training side of each "
        f"inner fold alone. Checks of the run (leak audit): {checks}; {len(found)} findings."
    )
    return text + (f" Warnings: {'; '.join(warned)}." if warned else ""), "whether this was alike across groups."


def outcome(facts: RunFacts) -> Answer:
    """Item 8a: what is predicted."""
    parts = []
    for name, content in facts.metrics.items():
        card = facts.card.outcomes.get(name) if facts.card is not None else None
        said = f": {card.description}" if card is not None and card.description else ""
        within = f", event within {card.within_days:g} days" if card is not None and card.within_days else ""
        days = ", ".join(f"{h:g}" for h in content["horizons"])
        at = f"; reported at {days} days" if days else ""
        parts.append(f"{f.outcome_text(facts, name)}{said}{within}{at}.")
    return " ".join(parts), "how and when it was determined, why it was chosen, and whether alike across groups."


def chosen(facts: RunFacts) -> Answer:
    """Item 9a: candidate predictors."""
    text = f"{f.modalities_text(facts)} All columns that the card names enter; none is selected by the outcome."
    return text, "why the card names these."


def predictors(facts: RunFacts) -> Answer:
    """Item 9b: every predictor."""
    parts = []
    for name in facts.about["facts"]["data"]:
        card = facts.card.modalities.get(name) if facts.card is not None else None
        if card is None:
            continue
        columns = card.columns if isinstance(card.columns, dict) else {}
        units = ", ".join(f"{c} ({v.unit or v.kind})" for c, v in list(columns.items())[:12])
        more = f" and {len(columns) - 12} more" if len(columns) > 12 else ""
        said = f" {card.description}." if card.description else ""
        unit = f", unit {card.unit}" if card.unit else ""
        parts.append(f"{name}:{said} Read as {card.loader}{unit}{f': {units}{more}' if units else ''}.")
    text = " ".join([*parts, facts.quote("Modalities")]).strip()
    return text, "when each was measured relative to index time, and blinding."


def size(facts: RunFacts) -> Answer:
    """Item 10: sample size."""
    text = " ".join(f"{f.outcome_text(facts, name)}." for name in facts.metrics)
    return (
        f"{text} All who could be modelled; medfuse calculates no sample size.",
        "why this is enough, and any calculation.",
    )


def missing(facts: RunFacts) -> Answer:
    """Item 11: missing data."""
    patterns = facts.attrition.get("availability", {})
    whole = len(facts.about["facts"]["data"])
    full = sum(n for text, n in patterns.items() if len(text.split(" + ")) == whole)
    r = facts.recipe
    dropped = "" if r is None or not r.train.modality_dropout else " Training hides random subsets of the modalities."
    text = (
        "A patient may lack any modality: the network gets a learned absent token in its place, and nobody is dropped "
        f"for it.{dropped} Missing cells enter as missing with an indicator. {len(patterns)} patterns of availability; "
        f"{full} patients have all {whole} modalities. {facts.quote('Missingness')}"
    )
    return f"{text} {f.attrition_text(facts)}".strip(), "reasons for missing data that the files do not tell."


def division(facts: RunFacts) -> Answer:
    """Item 12a: how data were divided."""
    r = facts.recipe
    how = "" if r is None else f" Source of the splits: {r.splits.source}; inner folds: {r.splits.inner_folds}."
    if r is not None and r.splits.group_by_site:
        how += " A site is never on both sides."
    return (
        f"Each split fits on train, chooses on inner folds, and reports held out once. {f.split_text(facts)}{how}",
        "",
    )


def handled(facts: RunFacts) -> Answer:
    """Item 12b: how predictors entered."""
    return (
        "Numeric columns: mean 0 and standard deviation 1 of the training side, cut at 8 standard deviations; "
        "ordered levels as numbers; other levels as indicators. Vectors: standardised per feature. Networks learn any "
        "form.",
        "",
    )


def kind(facts: RunFacts) -> Answer:
    """Item 12c: the model."""
    content = next(iter(facts.metrics.values()))
    names = ", ".join(n for n in content["models"] if n != content["carrying"])
    text = f"{f.model_text(facts)} Beside it, on the same splits: {names}. The recipe fixed the carrying model first."
    return text.strip(), "why this kind of model."


def clusters(facts: RunFacts) -> Answer:
    """Item 12d: differences between sites."""
    by_site = f.group_text(facts, only="site")
    if not by_site:
        return "The card names no site, so differences between sites were not measured.", "other clusters, if any."
    return "Performance is reported by site (23b); the site is no input unless the card lists its column as one.", ""


def measures(facts: RunFacts) -> Answer:
    """Item 12e: measures of performance."""
    kinds = {c["kind"] for c in facts.metrics.values()}
    survival = (
        "Harrell's and Uno's C, time-dependent AUC, Brier score, observed over expected, calibration slope, ICI, "
        "D- and A-calibration, decision curve; Kaplan-Meier curves of thirds of risk"
    )
    other = "AUROC, AUPRC, Brier score, calibration intercept and slope, or R2, absolute and squared error, Spearman"
    text = "; ".join(t for t, has in ((survival, "survival" in kinds), (other, bool(kinds - {"survival"}))) if has)
    n = facts.recipe.evaluation.bootstrap if facts.recipe is not None else None
    draws = "" if n is None else f" ({n} resamples within folds)"
    text += f". Intervals: case bootstrap{draws}; models are compared by paired, simultaneous intervals."
    if facts.stress:
        text += f" Stress tests: {', '.join(facts.stress)}."
    return text, "why these measures, where it is not plain."


def updating(facts: RunFacts) -> Answer:
    """Item 12f: updating."""
    return (
        "Slope and level are set once on pooled inner out-of-fold predictions of training patients; nothing was "
        "updated after held-out rows were read.",
        "",
    )


def computed(facts: RunFacts) -> Answer:
    """Item 12g: how predictions are computed."""
    return (
        "medfuse predict RUN --cohort CARD, or the stored MLflow model; the weights lie in the run, the code is "
        "medfuse's (18f).",
        "",
    )


def imbalance(facts: RunFacts) -> Answer:
    """Item 13: class imbalance."""
    text = "No class or event was resampled or reweighted."
    if facts.recipe is not None and facts.recipe.train.presence == "balanced":
        text += " Training hid modalities so that who has them does not go with the outcome."
    return text, ""


def fairness(facts: RunFacts) -> Answer:
    """Item 14: fairness."""
    groups = sorted({g for c in facts.metrics.values() for g in c["groups"]} - {"available modalities"})
    seen = f" Performance is reported by {', '.join(groups)} (23a)." if groups else " The card names no subgroups."
    return f"No method to change fairness was used in fitting.{seen}", "which groups matter here, and why."


def output(facts: RunFacts) -> Answer:
    """Item 15: output."""
    parts = []
    for name, content in facts.metrics.items():
        kinds = {
            "survival": "survival probability over time",
            "binary": "probability of the event",
            "multiclass": "probability of each class",
            "continuous": "a value",
        }
        parts.append(f"{name}: {kinds.get(content['kind'], content['kind'])}")
    spread = "The review shows each with the 5th to 95th percentile over the members."
    return f"{'; '.join(parts)}. {spread} No threshold is part of the model.", ""


def differences(facts: RunFacts) -> Answer:
    """Item 16: differences between data sets."""
    external = any(split.get("external") for split in facts.splits)
    if external:
        return "Some splits hold external patients.", "how they differ in setting, eligibility, outcome and predictors."
    return "None by design: held-out patients are of the same cohort, outcome and predictors as those of train.", ""
