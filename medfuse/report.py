"""A run as one self-contained HTML page: no script, no request to anywhere, everything escaped."""

import contextlib
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from medfuse import figures
from medfuse.config import read_card
from medfuse.documents import DOCUMENTS, write_documents
from medfuse.errors import MedfuseError
from medfuse.evaluation import Evaluation, from_json, in_words, summary_table
from medfuse.files import read_json, write_text
from medfuse.pages import BANNER, page, span, table
from medfuse.report_sections import calibration_section, contribution_section, group_section
from medfuse.run import Run
from medfuse.targets import Survival

_PATTERNS = 20  # of availability, in the table


def _results(evaluation: Evaluation, tuning: Mapping[str, Sequence[float | None]]) -> str:
    rows = summary_table(evaluation)
    body = []
    for row in rows:
        known = [v for v in tuning.get(row["model"], ()) if v is not None]
        gap = (
            ""
            if row["carrying"]
            else (
                "undefined"
                if row["difference"] is None
                else f"{row['difference']:+.3f} ({span(row['difference_low'], row['difference_high'])})"
            )
        )
        inner = f"{np.mean(known):.3f}" if known else "none"
        mean = "undefined" if row["mean"] is None else f"{row['mean']:.3f}"
        spread = "undefined" if row["sd"] is None else f"{row['sd']:.3f}"
        body.append((row["model"], mean, spread, row["pooled"], span(row["low"], row["high"]), gap, inner))
    header = (
        "model",
        "mean over folds",
        "SD",
        "pooled",
        "95 % interval",
        "carrying model minus this",
        "inner (tuning)",
    )
    return table(header, body, marked=(0,)) + _legend(evaluation) + figures.forest(rows, score=evaluation.score)


_MODELS = {
    "joint": "the networks over all modalities alone",
    "unimodal": "the experts of single modalities alone",
    "kaplan_meier": "everyone gets the survival curve of the training patients",
    "clinical_cox": "Cox regression on the clinical table",
    "ridge_cox": "ridge Cox on one modality, which the name tells",
    "random_survival_forest": "a forest on the columns of all modalities side by side",
    "late_average": "the mean of the ridge Cox scores of a patient's modalities",
    "late_average_weighted": "of each modality the best simple learner, weighted by its inner C: the strong bar",
    "rank_average": "the mean of ranks among the held-out patients, as papers report it; it cannot predict one patient",
    "prevalence": "everyone gets the frequencies of the training patients",
    "logistic": "ridge logistic regression on all columns",
    "gradient_boosting": "boosted trees on all columns",
    "ridge": "ridge regression on all columns",
}


def _legend(evaluation: Evaluation) -> str:
    """What each row is, in words."""
    own, found = f"{evaluation.carrying}:", {}
    for name in evaluation.models:
        kind = name.removeprefix(own) if name.startswith(own) else name.partition(":")[0]
        found[name if name.startswith(own) else kind] = _MODELS.get(kind, "")
    lines = "".join(f"<li>{escape(name)}: {said}</li>" for name, said in found.items() if said)
    return f"<details><summary>what each row is</summary><ul>{lines}</ul></details>"


def _notes(evaluation: Evaluation) -> str:
    """What was chosen on inner folds, per model and fold: open for the carrying model, folded for the others."""
    parts = []
    first = sorted(evaluation.models.items(), key=lambda item: item[0] != evaluation.carrying)
    for name, model in first:
        if model["notes"]:
            lines = "".join(f"<li>{escape(note)}</li>" for note in model["notes"])
            state = " open" if name == evaluation.carrying else ""
            title = f"{escape(name)}: what the inner folds chose"
            parts.append(f"<details{state}><summary>{title}</summary><ul>{lines}</ul></details>")
    return "".join(parts)


def _per_fold(evaluation: Evaluation) -> str:
    rows = evaluation.models[evaluation.carrying]["folds"]
    keys = [k for k in rows[0] if k not in {"fold", "patients", "events", "reason"}] if rows else []
    keys.sort(key=lambda key: (key.partition("@")[0], float(key.partition("@")[2] or 0)))
    header = ("metric", *(f"fold {r['fold']} ({r['patients']} patients, {r['events']} events)" for r in rows))
    shown = table(header, [(key, *(r.get(key) for r in rows)) for key in keys])
    reasons = [f"fold {r['fold']}: {r['reason']}" for r in rows if r.get("reason")]
    return shown + "".join(f"<p class=note>{escape(reason)}</p>" for reason in reasons)


def _risk_groups(run: Run, evaluation: Evaluation) -> str:
    """Kaplan-Meier by thirds of risk; each fold's cuts are the thirds of its own inner out-of-fold scores."""
    outcomes = run.path / "outcomes.parquet"
    if evaluation.kind != "survival" or not outcomes.is_file():
        return ""
    import pandas as pd

    frame = run.predictions()
    frame = frame[(frame.model == evaluation.carrying) & (frame.outcome == evaluation.outcome)]
    truth = pd.read_parquet(outcomes)
    truth = truth[truth.outcome == evaluation.outcome].set_index("patient_id")
    parts = []
    for fold, rows in frame[frame.partition == "held_out"].groupby("fold"):
        inner = frame[(frame.partition == "inner") & (frame.fold == fold)].risk_score.to_numpy()
        group = np.searchsorted(np.quantile(inner, [1 / 3, 2 / 3]), rows.risk_score.to_numpy())
        parts.append(truth.loc[rows.patient_id].assign(group=group))
    pooled = pd.concat(parts)
    pooled = pooled[pooled.observed & ~pooled.index.duplicated()]
    survival = Survival(event=pooled.event.to_numpy(bool), time=pooled.time.to_numpy(float))
    labels = ("low risk", "middle", "high risk")
    figure = figures.survival_by_group(survival, pooled.group.to_numpy(np.int64), labels)
    note = "Held-out patients; cuts are thirds of each fold's inner out-of-fold scores, so no held-out row set them."
    return f"<h2>Survival by predicted risk</h2>{figure}<p class=note>{note}</p>"


def _outcome(run: Run, name: str, content: Mapping[str, Any]) -> str:
    tuning = content.get("tuning", {})
    evaluation = from_json({k: v for k, v in content.items() if k != "tuning"})
    overlap = (
        "<p class=note>The splits share held-out patients, so they are not pooled; differences use each split once, "
        "and resamples draw a patient of several splits into all of them.</p>"
        if evaluation.models[evaluation.carrying]["pooled"] is None
        else ""
    )
    return (
        f"<h2>Results: {escape(name)}</h2><p>The model that carries the claim, "
        f"<b>{escape(evaluation.carrying)}</b>, was settled by the recipe and the inner folds before any held-out row "
        "was read. Differences are paired, on the same "
        f"resamples, with simultaneous 95 % intervals.</p>{_results(evaluation, tuning)}{overlap}{_notes(evaluation)}"
        f"<h3>Each fold</h3>{_per_fold(evaluation)}{_risk_groups(run, evaluation)}"
        f"{calibration_section(evaluation)}{group_section(evaluation)}{contribution_section(run, evaluation)}"
    )


def _header(run: Run) -> str:
    facts = run.read("run")
    title = facts["facts"]["cohort"]
    with contextlib.suppress(MedfuseError):  # the page still says which cohort by name
        title = read_card(run.path / "card.md").title
    git = facts.get("git", {})
    commit = f"{git.get('commit', 'unknown')[:12]}{' (with local changes)' if git.get('dirty') else ''}"
    rows = [
        ("cohort", facts["facts"]["cohort"]),
        ("status", facts["status"]),
        ("started, finished", f"{facts.get('started')}, {facts.get('finished')}"),
        ("recipe SHA-256", facts["facts"]["recipe"][:16]),
        ("seed", facts["facts"]["seed"]),
        ("code", commit),
        ("versions", ", ".join(f"{k} {v}" for k, v in facts["versions"].items())),
        *((f"data {name}", key[:16]) for name, key in facts["facts"]["data"].items()),
    ]
    return f"<h1>{escape(title)}</h1><p class=warn>{BANNER}</p>{_first(run)}<h2>This run</h2>" + table(
        ("", "this run"), rows, kind="text"
    )


def _first(run: Run) -> str:
    """The result in words, for who reads no further."""
    parts = []
    for name, content in run.read("metrics")["outcomes"].items():
        said = in_words(from_json({k: v for k, v in content.items() if k != "tuning"}))
        parts.append(f"<p><b>{escape(name)}</b>. {escape(' '.join(said))}</p>")
    return "".join(parts)


def _patients(run: Run) -> str:
    a = run.read("attrition")
    rows = [
        ("in the patients table", a["total"]),
        ("modelled", a["modelled"]),
        ("left out, with a reason", len(a["excluded"])),
    ]
    reasons: dict[str, int] = {}
    for entry in a["excluded"]:
        reasons[entry["reason"]] = reasons.get(entry["reason"], 0) + 1
    rows += [(f"- {reason}", count) for reason, count in reasons.items()]
    problems = "".join(f"<p class=note>{escape(p['file'])}: {escape(p['message'])}</p>" for p in a["problems"])
    patterns = sorted(a["availability"].items(), key=lambda kv: (-kv[1], kv[0]))  # a JSON file has them by name
    shown, rest = patterns[:_PATTERNS], patterns[_PATTERNS:]
    if rest:
        shown.append((f"{len(rest)} other patterns", sum(count for _, count in rest)))
    return (
        f"<h2>Patients</h2>{table(('', 'patients'), rows)}{problems}<h3>Available modalities</h3>"
        + table(("pattern", "patients"), shown)
        + _without_any(int(a["availability"].get("none", 0)))
    )


def _without_any(count: int) -> str:
    if not count:
        return ""
    return (
        f"<p class=note>{count} without any modality (none): the model knows nothing of them and gives the population "
        "level, the average of the training patients; the review withholds it. They count in every result.</p>"
    )


def _audit(run: Run) -> str:
    content = run.read("audit")
    said = "No leak found." if not content["findings"] else ""
    allowed = "<p class=warn>Leaks were allowed explicitly (allow_leaks).</p>" if content.get("allowed") else ""
    rows = [(f["kind"], f["severity"], f["message"], ", ".join(f["evidence"][:5])) for f in content["findings"]]
    found = table(("finding", "severity", "message", "evidence"), rows, kind="text") if rows else ""
    return f"<h2>Leak audit</h2>{allowed}<p>{said} Checked: {escape(', '.join(content['checks']))}.</p>{found}"


_CAPTIONS = {
    "subsets": "Every subset of the modalities: the others are hidden from all held-out patients.",
    "mcar": "Each modality of each held-out patient is hidden with the same probability.",
    "mar": "Hidden more often the higher the first principal component of the modality that always stays.",
    "mnar": "Hidden only from patients with the event (by the horizon).",
    "mnar-flip": "Hidden only from patients without the event (by the horizon): a model that has learned that absence "
    "goes with the event falls below chance.",
    "noise": "Normal noise, in standard deviations of train, on numbers; coded cells redrawn with half that chance.",
    "dilution": "Bags get tokens of train patients, tables typical values in empty cells.",
    "swap": "A share of the patients show another patient's modality.",
}


def _stress(run: Run) -> str:
    """What ``medfuse stress`` wrote into the run."""
    parts = []
    for path in sorted((run.path / "stress").glob("*.json")):
        content = read_json(path)
        mechanism = content["mechanism"]
        for outcome, one in content["outcomes"].items():
            rows = [r for r in one["rows"] if r["model"] in ("medfuse", r["reference"])]
            body = [
                (
                    r["pattern"] if r["rate"] is None else f"{r['pattern']}: {r['rate']:g}",
                    r["model"],
                    f"{100 * r['hidden']:.0f} %",
                    f"{100 * r['empty']:.0f} %",
                    r["score"],
                    span(r["score_low"], r["score_high"]),
                    r["calibration_slope"],
                    span(r["calibration_slope_low"], r["calibration_slope_high"]),
                    r["calibration_ratio"],
                    r["error"],
                    ""
                    if "difference" not in r or r["difference"] is None
                    else f"{r['difference']:+.3f} ({span(r['difference_low'], r['difference_high'])})",
                    r["shift"],
                )
                for r in rows
            ]
            header = (
                "modalities: rate",
                "model",
                "hidden",
                "left with none",
                one["score"],
                "95 % interval",
                "calibration slope",
                "95 % interval",
                "observed / expected",
                "error",
                "minus the late average of what is present",
                "change of risk (SD)",
            )
            parts.append(
                f"<h3>{escape(path.stem)}: {escape(outcome)}</h3><p class=note>{_CAPTIONS.get(mechanism, '')}</p>"
                f"{figures.stress(one, mechanism=mechanism)}<details><summary>table</summary>"
                f"{table(header, body)}</details>"
            )
    note = (
        "<p class=note>Held-out patients and the stored networks, no refit; nobody is dropped: a patient without any "
        "modality gets the population estimate. Intervals: case bootstrap within folds, 95 %.</p>"
    )
    none = "<p>Not run; <code>medfuse stress RUN --mechanism subsets</code> hides modalities and measures.</p>"
    return f"<h2>Stress tests</h2>{note}{''.join(parts)}" if parts else f"<h2>Stress tests</h2>{none}"


def _training(run: Run) -> str:
    """Logs of the joint networks: how strong each modality was (``balance: agm``), and how often it was shown."""
    rows = [r for r in run.curves() if str(r.get("member", "")).count("-") == 1]  # SEED-INNER: no unimodal network
    parts = []
    kept = sorted({key for r in rows for key in r if key.startswith("kept.")})
    if kept:
        folds = list(dict.fromkeys(str(r["fold"]) for r in rows))
        body = []
        for key in kept:
            values = [[r[key] for r in rows if str(r["fold"]) == fold and key in r] for fold in folds]
            body.append((key.removeprefix("kept."), *(float(np.mean(v)) if v else None for v in values)))
        header = ("modality", *(f"fold {fold}" for fold in folds))
        parts.append(
            "<h3>Presence made independent of the outcome</h3><p class=note>Share of the training patients who have a "
            "modality and were shown with it; below 1 where who has it went with the outcome.</p>" + table(header, body)
        )
    names = list(dict.fromkeys(k.removeprefix("strength.") for r in rows for k in r if k.startswith("strength.")))
    if names:
        epochs = sorted({int(r["epoch"]) for r in rows})

        def mean(key: str) -> list[float | None]:
            known = [[v for r in rows if r["epoch"] == e and (v := r.get(key)) is not None] for e in epochs]
            return [float(np.mean(v)) if v else None for v in known]

        curves = {what: {name: mean(f"{what}.{name}") for name in names} for what in ("strength", "factor")}
        parts.append(
            "<h3>Competition of the modalities (adaptive gradient modulation)</h3><p class=note>Means over the joint "
            "networks of all folds. The lower the negative log-likelihood of a modality's Shapley share, the more it "
            "carries; a factor below 1 slows a modality that runs ahead of its own habit. Late epochs are those of the "
            f"networks that trained longest.</p>{figures.balance(epochs, curves)}"
        )
    if (run.path / "competition.json").is_file():
        measured = run.read("competition")["folds"]
        for outcome in sorted({o for by in measured.values() for o in by}):
            names = list(dict.fromkeys(m for by in measured.values() for m in by.get(outcome, {})))
            body = [(m, *(by.get(outcome, {}).get(m) for by in measured.values())) for m in names]
            parts.append(
                f"<h3>Competition strength: {escape(outcome)}</h3><p class=note>Share of what a network of the "
                "modality alone says of unseen training patients that cannot be read, linearly, from the joint "
                "network's state: 0 = all of it is there, 1 or more = none.</p>"
                + table(("modality", *(f"fold {fold}" for fold in measured)), body)
            )
    return f"<h2>Training</h2>{''.join(parts)}" if parts else ""


def _documents() -> str:
    links = ", ".join(f"<a href={name}.html>{name.replace('_', ' ')}</a>" for name in DOCUMENTS)
    return f"<h2>Documents</h2><p>Beside this page, as HTML, Markdown and JSON: {links}.</p>"


def write_report(run: Run, *, opened: int | None = None, into: Path | None = None) -> Path:
    """Write ``report.html`` of a run, and its documents: model card, TRIPOD+AI table and data-card checks.

    Args:
        run: with its parts written; ``metrics.json`` included.
        opened: how often held-out results were opened in reviews; None: as the documents that are there say.
        into: folder; default the run.

    Returns:
        The file.

    Raises:
        StoreError: a part is missing or damaged.
    """
    outcomes = run.read("metrics")["outcomes"]
    body = "".join(
        [
            _header(run),
            _patients(run),
            *(_outcome(run, n, c) for n, c in outcomes.items()),
            _stress(run),
            _training(run),
            _audit(run),
            _documents(),
        ]
    )
    write_documents(run, opened=opened, into=into)
    path = (into or run.path) / "report.html"
    write_text(path, page("medfuse report", body))
    return path


def refresh_report(run: Run) -> None:
    """Seal what joined a finished run, and with it, in one step, its report and documents anew where it has a report.

    The caller holds the run (:func:`medfuse.run.only_writer`).

    Raises:
        StoreError: a part is missing or damaged.
    """
    with run.amended() as stage:
        if (run.path / "report.html").is_file():
            write_report(run, into=stage)
