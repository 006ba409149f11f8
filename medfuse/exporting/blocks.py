"""What an exported page shows, in order: the same tables and sentences for HTML and PDF."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medfuse.review.words import percent

Record = Mapping[str, Any]
HOW_TO_VERIFY = (
    "To verify: medfuse verify RUN FILE, with the run that has this id. It computes the numbers again from the stored "
    "values of the run and compares them, and what is shown, with this file."
)
NO_CONTRIBUTION = (
    "Being like a prototype is no contribution, and prototypes of another network are others. A level is where a "
    "prototype started."
)


@dataclass(frozen=True, kw_only=True)
class Block:
    """A heading with a table, sentences or a picture below.

    Attributes:
        title: heading; empty: none.
        header, rows: of a table.
        lines: sentences.
        picture: ``curve`` or ``contributions``.
        alt: the picture in words.
    """

    title: str = ""
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    lines: Sequence[str] = ()
    picture: str = ""
    alt: str = ""


def warning(record: Record) -> str:
    """What must be read before any number; empty for a patient like those of the training."""
    word = record["familiar"]
    reasons = "; ".join(record["reasons"])
    if word == "withheld":
        return f"PREDICTION WITHHELD: {reasons}. It is shown because somebody asked for it all the same."
    if word == "unusual":
        return f"Unlike the training patients: {reasons}."
    return "" if word == "familiar" else "Whether this patient is like the training patients was not checked."


def blocks(record: Record) -> list[Block]:
    """Everything below the banner."""
    return [
        Block(rows=_facts(record)),
        *_risks(record),
        *_contributions(record),
        Block(title="In words", lines=record["summary"]),
        Block(title="Uncertainty", rows=_uncertainty(record)),
        _checks(record),
        *_prototypes(record.get("prototypes")),
        Block(title="What this was made from", rows=_stamp(record), lines=[HOW_TO_VERIFY]),
    ]


def _facts(record: Record) -> list[tuple[str, str]]:
    at = "" if record["at"] is None else f", at {record['at']:g} days"
    if record["kind"] == "multiclass":
        at = f", class {int(record['at'] or 0) + 1}"
    return [
        ("patient", str(record["patient"])),
        ("outcome", f"{record['outcome']} ({record['kind']}{at})"),
        ("has", ", ".join(record["has"]) or "no modality"),
        ("lacks", ", ".join(record["lacks"]) or "nothing"),
        ("predicted by", f"the model of fold {record['fold']}, which never saw this patient"),
    ]


def _risks(record: Record) -> list[Block]:
    if record["kind"] == "continuous":
        rows = [("", f"{r['risk']:.2f}", f"{r['low']:.2f} to {r['high']:.2f}", "") for r in record["risks"]]
        return [Block(title="Prediction", header=("", "value", "interval", ""), rows=rows)]
    name = "class" if record["kind"] == "multiclass" else "horizon"
    rows = []
    for r in record["risks"]:
        where = "" if r["day"] is None else f"{int(r['day']) + 1}" if name == "class" else f"{r['day']:.0f} days"
        share = f"about {round(100 * r['risk'])} of 100 patients like this"
        rows.append((where, percent(r["risk"]), f"{percent(r['low'])} to {percent(r['high'])}", share))
    found = [Block(title="Risk", header=(name, "risk", "interval", "in words"), rows=rows)]
    if record["curve"]:
        last = record["curve"][-1]
        alt = (
            f"Survival falls from 1 on day 0 to {last['survival']:.3f} ({last['low']:.3f} to {last['high']:.3f}) on "
            f"day {last['day']:.0f}, the last with enough training patients."
        )
        found.append(Block(picture="curve", alt=alt))
    return found


def _contributions(record: Record) -> list[Block]:
    rows = []
    for c in record["contributions"]:
        ratio = "" if c["ratio"] is None else f"{c['ratio']:.2f}"
        points = "" if c["points"] is None else f"{100 * c['points']:+.1f}"
        interval = f"{c['low']:+.3f} to {c['high']:+.3f}"
        rows.append((str(c["modality"]), f"{c['contribution']:+.3f}", interval, ratio, points))
    header = ("modality", "contribution", "interval", "x hazard or odds", "points of risk")
    title = "What each modality contributed"
    if not rows:
        return [Block(title=title, lines=["This patient has no modality; the estimate is that of the population."])]
    said = "; ".join(f"{name} {value}" for name, value, *_ in rows)
    return [
        Block(title=title, header=header, rows=rows),
        Block(picture="contributions", alt=f"Bars of contributions: {said}."),
    ]


def _prototypes(found: Record | None) -> list[Block]:
    """Whom the patient is like and what each prototype adds; nothing of a run without prototypes."""
    if found is None:
        return []
    told = [found["about"], found["collapse"]["text"], NO_CONTRIBUTION]
    out = [Block(title="Prototypes: whom this patient is like", lines=told), *_terms(found["sum"])]
    for one in found["modalities"]:
        out += _likeness(one, found["networks"])
    return out


def _terms(found: Record | None) -> list[Block]:
    """The exact terms of a network whose logit is a sum of them."""
    if found is None:
        return []
    sums = [(m["modality"], *(f"{m[k]:+.3f}" for k in ("sum", "lowest", "highest"))) for m in found["by_modality"]]
    rows = [(f"{t['modality']} {t['prototype']}", f"{t['term']:+.3f}", t["level"]) for t in found["terms"]]
    header = ("modality", "sum of its terms", "lowest of all networks", "highest of all networks")
    return [
        Block(title="Prototypes: terms of the sum", header=header if sums else (), rows=sums, lines=[found["text"]]),
        Block(header=("prototype", "term", "level") if rows else (), rows=rows),
    ]


def _likeness(one: Record, networks: int) -> list[Block]:
    """The prototypes of a modality with their nearest training patients; those of the nearest one with outcomes."""
    rows = []
    for p in one["prototypes"]:
        name = f"{p['prototype']}: {p['level']}{', NEAREST' if p['nearest'] else ''}"
        like = f"{p['cosine']:+.3f}" + ("" if p["probability"] is None else f", {percent(p['probability'])}")
        near = ", ".join(f"{x['key']} ({x['cosine']:+.3f})" for x in p["exemplars"])
        rows.append((name, like, f"{p['networks']} of {networks}; {p['check']}", near))
    like = "cosine" if one["prototypes"][0]["probability"] is None else "cosine, probability"
    header = ("prototype", like, "networks of its level; collapse check", "nearest training patients")
    became, near = one["became"], one["exemplars"]
    by = "" if became["day"] is None else f", by day {became['day']:g}"
    told = f"What became of {became['of']}, nearest to prototype {one['nearest']}{by}: {became['text']}."
    title = f"Training patients nearest to prototype {one['nearest']} of {one['modality']}"
    cells = [tuple(f"{v:+.3f}" if k == "cosine" else str(v) for k, v in x.items()) for x in near]
    return [
        Block(title=f"Prototypes of {one['modality']}", header=header, rows=rows),
        Block(title=title, header=tuple(near[0]) if near else (), rows=cells, lines=[told]),
    ]


def _uncertainty(record: Record) -> list[tuple[str, str]]:
    found = record["uncertainty"]
    unsupported = found["unsupported"]
    support = "not computed" if unsupported is None else "; ".join(unsupported) or "all coalitions have a sound record"
    rows = [
        ("interval", f"{record['risk']['interval']}, {record['replicates']} replicates"),
        ("lower bound on time", found["lower_bound"]),
        ("support of the contributions", support),
    ]
    for one in found["likeness"]:
        value = one["note"] or f"percentile {one['percentile']:.1f} of unlikeness among training patients"
        rows.append((f"{one['modality']}: likeness", value))
    return rows


def _checks(record: Record) -> Block:
    title = "Checks of the explanation (of the model, not of this patient)"
    if not record["checks"]:
        return Block(title=title, lines=["Not run: nothing shows that these contributions are faithful."])
    words = {True: "passed", False: "FAILED", None: "not run"}
    rows = []
    for check in record["checks"]:
        value = "" if check["statistic"] is None else f"{check['statistic']:.3f}"
        rows.append((str(check["name"]), words[check["passed"]], value, str(check["rule"])))
    return Block(title=title, header=("check", "result", "statistic", "passes when"), rows=rows)


def _stamp(record: Record) -> list[tuple[str, str]]:
    s = record["stamp"]
    return [
        ("run id", s["run_id"]),
        ("cohort", s["cohort"]),
        ("run manifest SHA-256", s["run_manifest_sha256"]),
        ("recipe SHA-256", s["recipe_sha256"]),
        *((f"data {name} SHA-256", value) for name, value in s["data_sha256"].items()),
        *((f"{name} SHA-256", value) for name, value in s["parts_sha256"].items()),
        ("versions", ", ".join(f"{k} {v}" for k, v in s["versions"].items())),
        ("trained, exported", f"{s['trained']}, {s['exported']}"),
        ("last hash of the audit log", s["audit_log_head"] or "none"),
        ("content SHA-256", record["content_sha256"]),
    ]
