"""What the run itself knows against it: the sentences that a reader should not have to look for."""

from medfuse.documents import facts as f
from medfuse.documents.facts import RunFacts
from medfuse.documents.prototypes import collapsed_text

FEW_EVENTS = 100  # held-out events below which calibration cannot be judged well (Vergouwe et al. 2005)


def limits(facts: RunFacts) -> list[str]:
    """Limits of a run as sentences, worst first; there is always one, for no run validates itself elsewhere."""
    found = []
    if facts.audit.get("allowed"):
        found.append("Leaks were allowed explicitly: the results may be too good.")
    errors = [x for x in facts.audit.get("findings", ()) if x.get("severity") == "error"]
    if errors:
        found.append(f"The leak audit reports {len(errors)} errors.")
    for name, content in facts.metrics.items():
        found += _of_outcome(facts, name, content)
    found += _of_explanations(facts)
    for name, one in facts.prototypes.items():
        if one.pairs():
            found.append(f"Prototypes that should differ are one in fold {name}: {collapsed_text(one)}.")
    if not facts.stress:
        found.append("No stress test was run: how predictions hold up without modalities was not measured.")
    if facts.opened:
        found.append(f"Held-out results were opened {facts.opened} times in reviews before this page was written.")
    found.append("All results are of one cohort: nothing here shows how the model does elsewhere.")
    return found


def _of_outcome(facts: RunFacts, name: str, content: f.Row) -> list[str]:
    found = []
    if content["kind"] == "survival":
        counts = [f.events_of(facts, name, split["held_out"]) for split in facts.splits]
        events = sum(c for c in counts if c is not None)
        if all(c is not None for c in counts) and events < FEW_EVENTS:
            found.append(f"{name}: {events} held-out events; below {FEW_EVENTS} calibration cannot be judged well.")
    for other, row in content["differences"].items():
        if ":" not in other and row.get("estimate") is not None and (row["low"] is None or row["low"] <= 0):
            found.append(f"{name}: not shown to be better than {other} (difference {f.estimate(row)}).")
    p = (content.get("curves") or {}).get("a_calibration", {}).get("p_value")
    if p is not None and p < 0.05:
        found.append(f"{name}: events do not come at the predicted rate over all times (A-calibration p {p:.3f}).")
    small = [
        f"{group} {r['level']}"
        for group, rows in content["groups"].items()
        for r in rows
        if r["patients"] is not None and (r["estimate"] is None or (r["events"] is not None and r["events"] < 10))
    ]
    if small:
        found.append(f"{name}: fewer than 10 events or no score in {', '.join(small)}.")
    return found


def _of_explanations(facts: RunFacts) -> list[str]:
    found = []
    for name in facts.metrics:
        if name not in facts.explained:
            found.append(f"{name}: contributions of the modalities were not computed.")
        elif name not in facts.failed:
            found.append(f"{name}: the explanation was not checked.")
        elif facts.failed[name]:
            found.append(f"{name}: the explanation failed its check of {', '.join(facts.failed[name])}.")
    return found
