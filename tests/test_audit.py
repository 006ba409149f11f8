"""The leak audit against planted leaks and clean cohorts: every leak is found, and nothing is found where none is."""

import dataclasses
import json

import numpy as np
import pytest
from leaks import bags, flipped, on_values, table, truth, with_columns, with_content, with_records, world

from medfuse.audit import AuditReport, audit, fit_isolation, outcome_isolation, require_clean, same_names
from medfuse.errors import LeakError
from medfuse.sample import Column, ModalityData, ModalitySample
from medfuse.splits import Split, generated_splits

SEED = 7


def audited(w) -> AuditReport:
    return audit(w.cohort, w.data, w.splits, w.outcome, group_by_site=w.group_by_site)


# --- one person on two sides --------------------------------------------------------------------------------------------


def same_person(first: str, second: str):
    def plant(seed):
        w = world(seed, only=("clinical",))
        a, b = w.pair
        return with_records(w, person={a: first, b: second}), "shared person", (a, b)

    return plant


def same_patient(first: str, second: str, others):
    """The same id in two spellings, as two rows of the patients table; no person column tells."""

    def plant(seed):
        w = world(seed, only=("clinical",), ids=[first, second, *others])
        kept = [i for i in w.ids if i not in (first, second)]
        split = Split(name="0", train=(first, *kept[:70]), held_out=(second, *kept[70:]))
        return dataclasses.replace(w, splits=[split]), "shared p", (first, second)

    return plant


def in_between(side: str):
    """One person in train and in a side that is neither train nor held_out."""

    def plant(seed):
        w = world(seed, only=("clinical",))
        out, rest = w.splits[0].held_out, w.splits[0].train
        parts = {"held_out": out, "train": rest[20:], side: rest[:20]}
        split = Split(name="0", **parts)
        a, b = (out[0], rest[0]) if side == "tuning" else (rest[20], rest[0])
        w = with_records(dataclasses.replace(w, splits=[split]), person={a: "hospital 4711", b: "Hospital-4711"})
        return w, "shared person", (a, b)

    return plant


def sites(rename):
    """Published folds that cut through sites although grouping by site was asked."""

    def plant(seed):
        w = dataclasses.replace(world(seed, only=("clinical",)), group_by_site=True)
        grouped = generated_splits(w.cohort, outcome="death", folds=4, seed=seed, group_by_site=True)
        w = dataclasses.replace(w, splits=grouped if rename else w.splits)
        if rename:
            a, b = grouped[0].train[0], grouped[0].held_out[0]
            site = {r.patient_id: r.site for r in w.cohort.records}
            w = with_records(w, site={b: rename(site[a])})
        return w, "shared site", ()

    return plant


# --- one person's content under two ids ---------------------------------------------------------------------------------


def copy(name, change, *, kind="", only=None, n=120):
    def plant(seed):
        w = world(seed, n=n, only=only)
        a, b = w.pair
        return with_content(w, name, lambda tokens: change(tokens, w.rng)), kind, (a, b)

    return plant


def noisy(share):
    return lambda t, rng: on_values(lambda v: v + share * rng.normal(size=len(v)) * np.maximum(abs(v), 1))(t)


def half_missing(tokens, rng):
    tokens[rng.permutation(len(tokens))[: len(tokens) // 2]] = 0
    return tokens


def labs_only(change):
    """A narrow table is all there is."""

    def plant(seed):
        w = world(seed, only=("clinical",))
        a, b = w.pair
        return with_content(w, "clinical", lambda t: change(t, w.rng)), "", (a, b)

    return plant


def one_vector(change):
    """One embedding per patient."""

    def plant(seed):
        w = world(seed, only=("tiles",))
        w.data["tiles"] = bags("tiles", w.ids, w.rng.normal(size=(len(w.ids), 1, 96)) + 2)
        return with_content(w, "tiles", lambda t: change(t, w.rng)), "", w.pair

    return plant


def one_stain(seed):
    w = world(seed)
    a, b = w.pair
    kept = w.data["stains"].samples[b].tokens
    return with_content(w, "stains", lambda t: np.concatenate([kept[:3], t[3:]])), "duplicate content", (a, b)


def three_copies(seed):
    w = world(seed, only=("genes",))
    a, b = w.pair
    pairs = [(a, b), (a, w.splits[0].held_out[-1])]
    return with_content(w, "genes", lambda t: noisy(0.02)(t, w.rng), pairs), "near-duplicate profile", (a, b)


def everyone_twice(seed):
    w = world(seed, only=("genes",))
    pairs = list(zip(w.ids[:60], w.ids[60:], strict=True))
    return with_content(w, "genes", lambda t: noisy(0.02)(t, w.rng), pairs), "near-duplicate profile", ()


# --- columns that know the outcome --------------------------------------------------------------------------------------


def columns(make, names, *, name="clinical", outcome="death", evidence=None):
    """``make(w)`` gives (n, m) values of new columns."""

    def plant(seed):
        w = dataclasses.replace(world(seed, only=("clinical", "genes")), outcome=outcome)
        w = with_columns(w, make(w), names, name=name)
        plain = tuple(c if isinstance(c, str) else c.name for c in names)
        return w, "label-derived column", plain if evidence is None else evidence

    return plant


def coded(*levels):
    return [Column(name="text", kind="categorical", levels=levels)]


def binned(time, bins):
    return np.searchsorted(np.quantile(time, np.linspace(0, 1, bins + 1)[1:-1]), time).astype(float)


def disposition(w):
    """Categories in alphabetical order: alive, dead of disease, dead of other cause, lost: no order knows the event."""
    event, _ = truth(w)
    return np.where(event > 0, w.rng.integers(1, 3, size=len(event)), 3 * w.rng.integers(2, size=len(event)))


def two_flags(w):
    event, _ = truth(w)
    disease = event * w.rng.integers(2, size=len(event))
    return np.stack([disease, event - disease], axis=1)


def diagnosed(w):
    days = np.array([r.index_time for r in w.cohort.records], dtype="datetime64[D]")
    return (days - np.datetime64("2000-01-01")).astype(float)


def salvage(w):
    """Treatment of those who relapsed and died: 96 % of them, 1 % of the others."""
    event, _ = truth(w)
    return np.where(event > 0, w.rng.random(len(event)) < 0.96, w.rng.random(len(event)) < 0.01)


def autopsy_table(seed):
    w = world(seed, only=("clinical",))
    event, _ = truth(w)
    w.data["autopsy"] = table(
        "autopsy", w.ids, np.where(event[:, None] > 0, w.rng.normal(size=(len(event), 3)), np.nan)
    )
    return w, "label-derived column", ("autopsy",)


def embedding_knows(seed):
    w = world(seed, only=("clinical", "tiles"))
    event, _ = truth(w)
    modality = w.data["tiles"]
    samples = {}
    for k, (patient, sample) in enumerate(modality.samples.items()):
        tokens = np.array(sample.tokens)
        tokens[:, 5] = 0.3 * tokens[:, 5] + 4 * event[k]
        samples[patient] = ModalitySample(tokens=tokens, position=sample.position)
    w.data["tiles"] = dataclasses.replace(modality, samples=samples)
    return w, "label-derived column", ("tiles[5]",)


def two_tables(seed):
    w = world(seed, only=("clinical",))
    _, time = truth(w)
    start = diagnosed(w)
    w = with_records(w, index_time=dict.fromkeys(w.ids))
    w.data["visits"] = table("visits", w.ids, (start + time)[:, None], columns=(Column(name="last_contact"),))
    return with_columns(w, start, ["diagnosed"]), "label-derived column", ("last_contact", "diagnosed")


def receptor(w):
    return w.cohort.targets["receptor"].label


LEAKS = {
    "person: equal": same_person("x1", "x1"),
    "person: letter case": same_person("MRN-0042", "mrn-0042"),
    "person: zero padding": same_person("MRN 42", "MRN 0042"),
    "person: separators and spaces": same_person("hosp_17/3 ", "HOSP 17-3"),
    "person: full-width digits": same_person("\uff14\uff12", "42"),  # noqa: RUF001 of no matter: that is the leak
    "patient: float form": same_patient("12", "12.0", [str(k) for k in range(100, 218)]),
    "patient: padding and case": same_patient("pat7", "PAT007", [f"PAT{k:03d}" for k in range(100, 218)]),
    "person: tuning and held_out": in_between("tuning"),
    "person: train and external": in_between("external"),
    "site: asked for, not kept": sites(None),
    "site: spelled in two ways": sites(lambda site: f" {site.upper().replace(' ', '-0')}"),
    "genes: copy": copy("genes", lambda t, rng: t),
    "genes: noise": copy("genes", noisy(0.02)),
    "genes: rescaled": copy("genes", lambda t, rng: on_values(lambda v: 1.7 * v + 3)(t)),
    "genes: rounded": copy("genes", lambda t, rng: on_values(lambda v: np.round(v, 1))(t)),
    "genes: columns permuted": copy("genes", lambda t, rng: t[rng.permutation(len(t))], kind="duplicate content"),
    "genes: half of it missing, noise": copy("genes", lambda t, rng: half_missing(noisy(0.01)(t, rng), rng)),
    "genes: three copies": three_copies,
    "genes: everyone twice": everyone_twice,
    "laboratory: copy": labs_only(lambda t, rng: t),
    "laboratory: noise": labs_only(noisy(0.003)),
    "laboratory: some cells missing": labs_only(lambda t, rng: t * (rng.random(len(t)) > 0.25)[:, None]),
    "tiles: in another order": copy("tiles", lambda t, rng: t[rng.permutation(len(t))]),
    "tiles: a third of them": copy("tiles", lambda t, rng: t[rng.permutation(len(t))[: len(t) // 3]]),
    "tiles: half of them, half precision": copy("tiles", lambda t, rng: t[::2].astype(np.float16)),
    "tiles: noise": copy("tiles", lambda t, rng: t + 0.05 * rng.normal(size=t.shape)),
    "tiles: features permuted": one_vector(lambda t, rng: t[:, rng.permutation(t.shape[1])]),
    "vector: rescaled": one_vector(lambda t, rng: 0.5 * t - 1),
    "vector: noise": one_vector(lambda t, rng: t + 0.03 * rng.normal(size=t.shape)),
    "stains: one of four": one_stain,
    "event: recoded": columns(lambda w: 3 - 2 * truth(w)[0], ["status_code"]),
    "event: 2 % wrong": columns(lambda w: flipped(w, truth(w)[0], 0.02), ["flag"]),
    "event: as text": columns(disposition, coded("alive", "dead of disease", "dead otherwise", "lost")),
    "event: in two flags": columns(two_flags, ["died_of_disease", "died_otherwise"]),
    "event: filled only then": columns(
        lambda w: np.where(truth(w)[0] > 0, w.rng.integers(1, 9, size=len(w.ids)), np.nan),
        ["cause"],
        evidence=("cause",),
    ),
    "event: treatment after it": columns(salvage, ["salvage_therapy"]),
    "event: a table only then": autopsy_table,
    "event: in an embedding": embedding_knows,
    "event: among genes": columns(lambda w: flipped(w, truth(w)[0], 0.01), ["GENE_X"], name="genes"),
    "time: logarithm": columns(lambda w: -np.log1p(truth(w)[1]), ["x"]),
    "time: noise": columns(lambda w: truth(w)[1] * np.exp(0.05 * w.rng.normal(size=len(w.ids))), ["x"]),
    "time: quarters": columns(lambda w: binned(truth(w)[1], 4), ["x"]),
    "time: quarters as text": columns(
        lambda w: np.array([2.0, 0, 3, 1])[binned(truth(w)[1], 4).astype(int)], coded("1-2", "3+", "<1", "2-3")
    ),
    "time: years and days": columns(
        lambda w: np.stack([truth(w)[1] // 365.25, truth(w)[1] % 365.25], axis=1), ["y", "d"], evidence=("y",)
    ),
    "time: last contact, index time in the card": columns(lambda w: diagnosed(w) + truth(w)[1], ["last_contact"]),
    "time: two dates in two tables": two_tables,
    "time: among genes": columns(lambda w: truth(w)[1] ** 0.5, ["GENE_X"], name="genes"),
    "name: as the outcome's": columns(lambda w: w.rng.normal(size=len(w.ids)), ["OS days"]),
    "class: swapped codes": columns(
        lambda w: 1 - receptor(w), [Column(name="er", kind="categorical", levels=("n", "p"))], outcome="receptor"
    ),
    "class: 1 % wrong": columns(lambda w: flipped(w, receptor(w), 0.01), ["er"], outcome="receptor"),
    "value: other unit, noise": columns(
        lambda w: 0.1 * w.cohort.targets["marker"].value + 0.05 * w.rng.normal(size=len(w.ids)), ["m"], outcome="marker"
    ),
}


def caught(plant, seed) -> str:
    """Empty when the planted leak is found with its evidence, else what was found instead."""
    w, kind, named = plant(seed)
    report = audited(w)
    errors = [f for f in report.findings if f.severity == "error" and kind in f.kind]
    evidence = " ".join(text for f in errors for text in f.evidence)
    if errors and any(f.evidence for f in errors) and all(name in evidence for name in named):
        return ""
    return str([(f.kind, f.severity, f.evidence) for f in report.findings])


@pytest.mark.parametrize("name", LEAKS)
def test_a_planted_leak_is_found_and_named(name):
    assert caught(LEAKS[name], SEED) == ""
