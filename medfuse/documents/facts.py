"""What a run says of itself, gathered once for all documents, and the sentences that several of them use."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from medfuse.card import CohortCard
from medfuse.config import Recipe, read_card, read_recipe
from medfuse.errors import MedfuseError
from medfuse.explain.prototype_record import PrototypeRecord, recipe_has_prototypes
from medfuse.explaining_parts import FOLDER, read_checks
from medfuse.explaining_prototypes import read_prototype_records
from medfuse.metrics.nonparametric import kaplan_meier
from medfuse.pages import number
from medfuse.run import Run

Row = Mapping[str, Any]
_LONGEST = 700  # characters quoted of a section of the data card


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """The parts of a run that documents speak of.

    Attributes:
        run: the run.
        about: ``run.json``.
        card, recipe: None where they cannot be read.
        metrics: per outcome.
        attrition, audit, data: the parts of those names.
        splits: one row of ids per split.
        outcomes: table of all modelled patients' outcomes; empty where the run keeps none.
        prose: sections of the data card by heading, as plain text.
        explained: outcomes with stored contributions.
        failed: names of checks of explanations that failed, per outcome with checks.
        prototypes: by outer fold, of the networks that all outcomes share; empty where none can be read.
        has_prototypes: whether the fusion of some joint network has prototypes.
        stress: names of the stress tests that were run.
        opened: how often held-out results were opened in reviews; None: no audit log was given.
    """

    run: Run
    about: Row
    card: CohortCard | None
    recipe: Recipe | None
    metrics: Mapping[str, Row]
    attrition: Row
    audit: Row
    data: Row
    splits: list[Row]
    outcomes: pd.DataFrame
    prose: Mapping[str, str]
    explained: tuple[str, ...]
    failed: Mapping[str, tuple[str, ...]]
    prototypes: Mapping[str, PrototypeRecord]
    has_prototypes: bool
    stress: tuple[str, ...]
    opened: int | None = None

    def quote(self, heading: str) -> str:
        """A section of the data card as a quotation; empty where it has none."""
        text = self.prose.get(heading, "")
        if len(text) > _LONGEST:
            text = text[:_LONGEST].rsplit(" ", 1)[0] + " ..."
        return f'Data card, "{heading}": {text}' if text else ""


def read_facts(run: Run, *, opened: int | None = None) -> RunFacts:
    """Gather what a finished run says of itself.

    Args:
        run: with its metrics written.
        opened: how often held-out results were opened in reviews.

    Raises:
        StoreError: a part of the run is missing or damaged.
    """
    table = run.path / "outcomes.parquet"
    about, metrics = run.read("run"), run.read("metrics")["outcomes"]
    card, recipe = _card(run), _recipe(run)
    explained = tuple(name for name in metrics if (run.path / FOLDER / name).is_dir())
    failed = {name: checks for name in explained if (checks := _failed(run, name)) is not None}
    return RunFacts(
        run=run,
        about=about,
        card=card,
        recipe=recipe,
        metrics=metrics,
        attrition=_part(run, "attrition"),
        audit=_part(run, "audit"),
        data=_part(run, "data"),
        splits=run.read("splits")["splits"],
        outcomes=pd.read_parquet(table) if table.is_file() else pd.DataFrame(columns=["outcome"]),
        prose=sections(card.prose) if card is not None else {},
        explained=explained,
        failed=failed,
        prototypes=next(filter(None, (_prototypes(run, name) for name in explained)), {}),
        has_prototypes=recipe is not None and recipe_has_prototypes(recipe),
        stress=tuple(sorted(path.stem for path in (run.path / "stress").glob("*.json"))),
        opened=opened,
    )


def _part(run: Run, name: str) -> Row:
    found: Row = run.read(name) if (run.path / f"{name}.json").is_file() else {}
    return found


def _card(run: Run) -> CohortCard | None:
    try:
        return read_card(run.path / "card.md")
    except MedfuseError:
        return None


def _recipe(run: Run) -> Recipe | None:
    try:
        return read_recipe(run.path / "recipe.yaml")
    except MedfuseError:
        return None


def _prototypes(run: Run, outcome: str) -> Mapping[str, PrototypeRecord]:
    try:
        return read_prototype_records(run, outcome)
    except MedfuseError:
        return {}


def _failed(run: Run, outcome: str) -> tuple[str, ...] | None:
    checks = read_checks(run, outcome)
    return tuple(c.name for c in checks if c.passed is False) if checks else None


def sections(prose: str) -> dict[str, str]:
    """Sections of Markdown by their headings of the second level, as plain text in one line; tables are left out."""
    found: dict[str, str] = {}
    for part in re.split(r"^## +", prose, flags=re.MULTILINE)[1:]:
        heading, _, body = part.partition("\n")
        lines = [line for line in body.splitlines() if not line.lstrip().startswith(("|", "#"))]
        found[heading.strip()] = " ".join(" ".join(lines).split())
    return found


# --- sentences ------------------------------------------------------------------------------------------------------


def outcome_text(facts: RunFacts, name: str) -> str:
    """An outcome with its size: patients, events or classes, follow-up."""
    kind, rows = facts.metrics[name]["kind"], facts.outcomes
    rows = rows[(rows["outcome"] == name)] if len(rows) else rows
    if not len(rows):
        return f"{name} ({kind})"
    known = rows[rows["observed"].astype(bool)]
    text = f"{name} ({kind}): {len(known)} patients with a known outcome"
    if kind == "survival":
        event, time = known["event"].to_numpy(bool), known["time"].to_numpy(float)
        text += f", {int(event.sum())} events, {int((~event).sum())} censored"
        return text + (f"; median follow-up {follow_up(event, time)}" if len(known) else "")
    if "label" in known and kind in ("binary", "multiclass"):
        counts = known["label"].astype(int).value_counts().sort_index()
        classes = _classes(facts, name)
        names = [classes[k] if k < len(classes) else f"class {k + 1}" for k in counts.index]
        return text + ": " + ", ".join(f"{n} {c}" for n, c in zip(names, counts, strict=True))
    return text


def _classes(facts: RunFacts, name: str) -> list[str]:
    known = facts.card is not None and name in facts.card.outcomes
    return list(facts.card.outcomes[name].classes) if known and facts.card is not None else []


def follow_up(event: np.ndarray, time: np.ndarray) -> str:
    """Median follow-up by reverse Kaplan-Meier, as text."""
    curve = kaplan_meier(time, ~event)
    below = np.flatnonzero(curve.survival <= 0.5)
    return f"{curve.times[below[0]]:.0f} days (reverse Kaplan-Meier)" if len(below) else "not reached"


def population_text(facts: RunFacts) -> str:
    """Who is in the cohort."""
    a = facts.attrition
    title = facts.card.title if facts.card is not None else str(facts.about["facts"]["cohort"])
    if not a:
        return f"{title}."
    return f"{title}: {a['total']} patients in the table, {a['modelled']} modelled, {len(a['excluded'])} left out."


def attrition_text(facts: RunFacts) -> str:
    """Who was left out and why, as counts."""
    if not facts.attrition:
        return ""
    reasons: dict[str, int] = {}
    for row in facts.attrition["excluded"]:
        reasons[row["reason"]] = reasons.get(row["reason"], 0) + 1
    if not reasons:
        return "Nobody was left out."
    return "Left out: " + "; ".join(f"{count} x {reason}" for reason, count in reasons.items()) + "."


def modalities_text(facts: RunFacts) -> str:
    """Modalities with how many patients have them."""
    total = facts.attrition.get("modelled")
    rows = facts.data.get("modalities", {})
    parts = []
    for name in facts.about["facts"]["data"]:
        row = rows.get(name, {})
        size = f"{row['columns']} columns" if row.get("columns") else "vectors"
        has = "" if "patients" not in row else f", {row['patients']}" + (f" of {total}" if total else "") + " patients"
        parts.append(f"{name} ({size}{has})")
    return "Modalities: " + "; ".join(parts) + "."


def split_text(facts: RunFacts) -> str:
    """Patients and events on each side of each split, per outcome."""
    parts = []
    for split in facts.splits:
        sizes = [f"{side} {len(split[side])}" for side in ("train", "held_out", "external") if split.get(side)]
        events = []
        for name, content in facts.metrics.items():
            counts = [(side, events_of(facts, name, split[side])) for side in ("train", "held_out")]
            if content["kind"] == "survival" and all(c is not None for _, c in counts):
                events.append(f"{name}: " + ", ".join(f"{c} events in {side}" for side, c in counts))
        parts.append(f"split {split['name']}: " + ", ".join(sizes) + (f" ({'; '.join(events)})" if events else ""))
    return "; ".join(parts) + "."


def events_of(facts: RunFacts, outcome: str, ids: Any) -> int | None:  # noqa: ANN401  # a list of ids
    """Events of a survival outcome among patients; None where the run keeps no outcomes."""
    rows = facts.outcomes
    if not len(rows) or "event" not in rows:
        return None
    own = rows[(rows["outcome"] == outcome) & rows["patient_id"].isin(ids) & rows["observed"].astype(bool)]
    return int(own["event"].astype(bool).sum())


def model_text(facts: RunFacts) -> str:
    """The model and how it was fitted."""
    r = facts.recipe
    if r is None:
        return ""
    heads = ", ".join(f"{k}: {v.get('name', v)}" for k, v in r.model.heads.items()) or "the default of each outcome"
    t = r.train
    fusions = [str(fusion.get("name")) for fusion in (r.model.fusion, *r.model.committee)][: t.seeds]
    turns = f"fusion {fusions[0]}" if len(fusions) == 1 else f"fusions {', '.join(fusions)} (the seeds take turns)"
    apart = "networks and random forests" if t.forests else "networks"
    beside = f", beside {apart} of single modalities that weigh by their inner concordance" if t.unimodal else ""
    return (
        f"Neural networks of three parts: encoders per modality (width {r.model.width}), {turns}, heads ({heads}). "
        f"Members are {t.seeds} seeds x {r.splits.inner_folds} inner folds{beside}; their weighted mean is the model. "
        f"Up to {t.epochs} epochs, batches of {t.batch_size}, learning rate {t.lr:g}, weight decay {t.weight_decay:g}, "
        f"early stopping after {t.patience} epochs without gain on the inner fold, seed {r.seed}."
    )


def performance_text(facts: RunFacts, name: str) -> str:
    """Headline score with interval, and calibration, of the carrying model on held-out patients."""
    content = facts.metrics[name]
    model, score = content["models"][content["carrying"]], content["score"]
    text = f"{name}: {score} {estimate(model['pooled'])}"
    curves = content.get("curves") or {}
    parts = []
    for horizon in sorted(curves.get("calibration", {}), key=float):
        one, smooth = curves["calibration"][horizon], curves.get("smooth", {}).get(horizon, {})
        index = _number(smooth.get("index"))
        parts.append(
            f"{horizon} days: observed / expected {_number(one['ratio'])}, slope {_number(one['slope'])}, ICI {index}"
        )
    if "a_calibration" in curves:
        parts.append(f"A-calibration p {_number(curves['a_calibration']['p_value'])}")
    return text + (f"; calibration {'; '.join(parts)}" if parts else "") + "."


def _number(value: float | None) -> str:
    return "undefined" if value is None else number(value)


def estimate(interval: Row | None) -> str:
    """A score with its 95 % interval as text."""
    if interval is None:
        return "not pooled: the splits share held-out patients"
    if interval.get("estimate") is None:
        return f"undefined ({interval.get('reason') or 'no comparable pair'})"
    return f"{number(interval['estimate'])} (95 % interval {_number(interval['low'])} to {_number(interval['high'])})"


def group_text(facts: RunFacts, *, only: str | None = None, without: tuple[str, ...] = ()) -> str:
    """Scores of subgroups with intervals and sizes; empty where there are none."""
    parts = []
    for name, content in facts.metrics.items():
        for group, rows in content["groups"].items():
            if (only is not None and group != only) or group in without:
                continue
            shown = [
                f"{r['level']} {estimate(r)}, {r['patients']} patients" if r["patients"] is not None else r["level"]
                for r in rows
            ]
            parts.append(f"{name} ({content['score']}) by {group}: " + "; ".join(shown))
    return ". ".join(parts) + ("." if parts else "")
