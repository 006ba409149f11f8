"""The leak audit against planted leaks and clean cohorts: every leak is found, and nothing is found where none is."""

import dataclasses
import json

import numpy as np
import pytest
from clean import CLEAN
from leaks import bags, flipped, on_values, table, truth, with_columns, with_content, with_records, world

from medfuse.audit import AuditReport, audit, fit_isolation, outcome_isolation, require_clean, same_names
from medfuse.cohort import read_cohort
from medfuse.config import SplitsRecipe, read_card
from medfuse.dataset import load_modalities
from medfuse.errors import LeakError, MedfuseError
from medfuse.sample import Column, ModalitySample
from medfuse.splits import Split, generated_splits, make_splits

SEED = 7


def audited(w) -> AuditReport:
    return audit(w.cohort, w.data, w.splits, w.outcome, group_by_site=w.group_by_site)


# --- one person on two sides ------------------------------------------------------------------------------------------


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


# --- one person's content under two ids -------------------------------------------------------------------------------


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


def two_narrow_tables(seed):
    """Neither table clears the other: both are copies with noise."""
    w = world(seed, only=("clinical",))
    w.data["urine"] = table("urine", w.ids, w.rng.normal(size=(len(w.ids), 14)))
    a, b = w.pair
    rng = w.rng
    for name in ("clinical", "urine"):
        w = with_content(w, name, lambda t: noisy(0.003)(t, rng))
    return w, "near-duplicate profile", (a, b)


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


# --- columns that know the outcome ------------------------------------------------------------------------------------


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
    "person: full-width digits": same_person("\uff14\uff12", "42"),
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
    "two narrow tables: noise": two_narrow_tables,
    "laboratory: two cells missing": labs_only(lambda t, rng: t * ~np.isin(np.arange(len(t)), [1, 6])[:, None]),
    "laboratory: one cell corrected": labs_only(
        lambda t, rng: t * np.where(np.arange(len(t)) == 8, 1.3, 1.0)[:, None] ** [[1, 0]]
    ),
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


@pytest.mark.parametrize("name", CLEAN)
def test_a_clean_cohort_raises_no_alarm(name):
    assert audited(CLEAN[name](SEED)).findings == ()


# --- fitted on held-out rows ------------------------------------------------------------------------------------------


def _genes(data, ids):
    return np.stack([data["genes"].samples[i].tokens[:, 0] for i in ids if i in data["genes"].samples]).astype(float)


def scaler(data, ids):
    x = _genes(data, ids)
    return {"mean": x.mean(axis=0), "scale": x.std(axis=0)}


def components(data, ids):
    x = _genes(data, ids)
    return {"components": np.linalg.svd(x - x.mean(axis=0), full_matrices=False)[2][:3]}


def imputer(data, ids):
    tokens = np.stack([data["clinical"].samples[i].tokens[:, 0] for i in ids])
    return {"median": np.median(tokens, axis=0)}


def selection(data, ids):
    return {"chosen": np.sort(np.argsort(_genes(data, ids).var(axis=0))[-20:])}


def vocabulary(data, ids):
    stage = [c.name for c in data["clinical"].columns].index("stage")
    cells = [data["clinical"].samples[i].tokens[stage] for i in ids]
    return {"levels": np.array(sorted({f"level {v:.0f}" for v, known in cells if known}), dtype=object)}


def missing_filter(data, ids):
    return {"kept": np.mean([data["clinical"].samples[i].tokens[:, 1] for i in ids], axis=0) > 0.94}


def prototypes(data, ids):
    tokens = np.concatenate([data["tiles"].samples[i].tokens for i in ids])
    centres = tokens[:4]
    for _ in range(5):
        nearest = ((tokens[:, None] - centres) ** 2).sum(axis=-1).argmin(axis=1)
        centres = np.stack(
            [tokens[nearest == k].mean(axis=0) if (nearest == k).any() else centres[k] for k in range(4)]
        )
    return {"centres": centres}


def bag_length(data, ids):
    return {"longest": np.array(max(abs(data["tiles"].samples[i].tokens).max() for i in ids))}


def time_grid(cohort, ids):
    target = cohort.target("death", ids)
    return {"grid": np.quantile(target.time[target.event], np.linspace(0, 1, 9))}


def threshold(cohort, ids):
    target = cohort.target("receptor", ids)
    return {"threshold": np.array(target.label.mean())}


def value_scale(cohort, ids):
    return {"scale": np.array(cohort.target("marker", ids).value.std())}


ROWS = [scaler, components, imputer, selection, vocabulary, missing_filter, prototypes, bag_length]
OUTCOMES = [time_grid, threshold, value_scale]


@pytest.mark.parametrize("fit", ROWS, ids=lambda f: f.__name__)
def test_what_is_fitted_on_held_out_rows_is_named(fit):
    w = world(SEED)
    split = w.splits[0]
    assert fit_isolation(fit, w.data, split) == ()

    def on_everyone(data, ids):
        return fit(data, [i for i in w.ids if all(i in modality.samples for modality in data.values())])

    leaky = fit_isolation(on_everyone, w.data, split)
    assert leaky == tuple(sorted(fit(w.data, split.train)))


@pytest.mark.parametrize("fit", OUTCOMES, ids=lambda f: f.__name__)
def test_what_is_fitted_on_held_out_outcomes_is_named(fit):
    w = world(SEED)
    split = w.splits[0]
    assert outcome_isolation(fit, w.cohort, split) == ()
    leaky = outcome_isolation(lambda cohort, ids: fit(cohort, cohort.patient_ids), w.cohort, split)
    assert leaky == tuple(fit(w.cohort, split.train))


# --- refused before the audit: what files say -------------------------------------------------------------------------

CARD = """---
name: dated
title: A dated cohort
governance: {licence: CC0, source: made up, citation: none, consent: none needed, deidentification: made up}
patients: {file: patients.csv, id: id}
groups: {person: person}
outcomes:
  death: {kind: survival, time: days, unit: days, event: status, event_codes: ["1"], censored_codes: ["0"]}
modalities:
  labs: {loader: tabular, file: labs.csv, repeated_rows: mean, days_from_index: day, columns: {hb: {unit: g/dL}}}
  genes: {loader: expression, file: genes.csv, columns: "g_*", unit: tpm, days_from_index: day}
folds: {pattern: "fold{k}.csv", k: 1}
---

# Dated
"""


def written(folder, *, days=("-3", "-1", "0"), genes="-2", person="p3", held_out="p4", card=CARD):
    """Four files of a small cohort; patient p2 has several rows of laboratory values."""
    (folder / "dated.md").write_text(card)
    people = [f"p{k}" for k in range(1, 9)]
    rows = [f"{p},{person if p == 'p5' else p},{90 * k},{k % 2}" for k, p in enumerate(people, 1)]
    (folder / "patients.csv").write_text("\n".join(["id,person,days,status", *rows]))
    lab_rows = [f"{p},{10 + k},-1" for k, p in enumerate(people) if p != "p2"]
    lab_rows += [f"p2,{11 + k},{day}" for k, day in enumerate(days)]
    (folder / "labs.csv").write_text("\n".join(["id,hb,day", *lab_rows]))
    gene_rows = [f"{p},{k},{k * k},{genes if p == 'p6' else -1}" for k, p in enumerate(people)]
    (folder / "genes.csv").write_text("\n".join(["id,g_A,g_B,day", *gene_rows]))
    pairs = zip(["p1", "p2", "p3", held_out], ["p4", "p5", "p6", "p7"], strict=True)
    (folder / "fold0.csv").write_text("\n".join(["train,val", *(f"{a},{b}" for a, b in pairs)]))
    cohort = read_cohort(read_card(folder / "dated.md"), data_root=folder)
    make_splits(cohort, SplitsRecipe(), "death")
    return load_modalities(cohort, store_root=folder / "store")


REFUSED = {
    "index time: a table": ({"days": ("-1", "3", "12")}, "after index time"),
    "index time: one of several rows": ({"days": ("-9", "-5", "0.5")}, "after index time"),
    "index time: expression": ({"genes": "30"}, "after index time"),
    "index time: dated where rows are genes": (
        {"card": CARD.replace("loader: expression", "loader: expression, orientation: genes_by_patients")},
        "transpose",
    ),
    "folds: one person under two ids": ({"person": "p3", "held_out": "p8"}, "same person"),
    "folds: a patient twice": ({"held_out": "p4"}, "p4"),
}


def test_files_without_a_leak_are_read(tmp_path):
    assert set(written(tmp_path, person="p5", held_out="p8")) == {"labs", "genes"}


@pytest.mark.parametrize("name", REFUSED)
def test_a_leak_that_the_files_state_is_refused(tmp_path, name):
    changes, said = REFUSED[name]
    with pytest.raises(MedfuseError, match=said):
        written(tmp_path, **{"person": "p5", "held_out": "p8", **changes})


# --- around it --------------------------------------------------------------------------------------------------------


def test_there_are_forty_of_each():
    assert len(LEAKS) + len(ROWS) + len(OUTCOMES) + len(REFUSED) >= 40
    assert len(CLEAN) >= 40


def test_a_leak_stops_with_its_evidence_and_without_values():
    w, _, (a, b) = LEAKS["genes: noise"](SEED)
    report = audited(w)
    with pytest.raises(LeakError, match=rf"genes.*{min(a, b)} ~ {max(a, b)}.*allow_leaks"):
        require_clean(report, allow=False)
    require_clean(report, allow=True)
    said = json.dumps(report.to_dict())
    values = {f"{v:.4g}" for v in w.data["genes"].samples[a].tokens[:, 0]}
    assert not any(value in said for value in values if len(value) > 4)


def test_a_narrow_copy_that_other_modalities_contradict_is_a_warning():
    w = world(SEED)
    a, b = w.pair
    findings = audited(with_content(w, "clinical", lambda tokens: tokens)).findings
    assert [(f.severity, f.evidence) for f in findings] == [("warning", (f"{min(a, b)} ~ {max(a, b)}",))]


def test_copies_on_one_side_are_no_leak():
    w = world(SEED, only=("genes",))
    a, b = w.splits[0].train[:2]
    w = dataclasses.replace(with_content(w, "genes", lambda t: t, [(a, b)]), splits=w.splits[:1])
    assert audited(w).findings == ()


def test_a_check_without_splits_still_runs():
    w = dataclasses.replace(world(SEED, n=12), splits=[])
    assert audited(w).ok


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("P-001", "p 1", True),
        ("12.0", "12", True),
        ("1-11", "11-1", False),
        ("a01-1", "a1-01", False),
        ("A1", "B1", False),
    ],
)
def test_names_as_people_write_them(first, second, same):
    form = same_names([first, second])
    assert (form[first] == form[second]) is same
