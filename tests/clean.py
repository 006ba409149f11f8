"""Clean cohorts that look as if something leaked: what hospitals and laboratories do to honest data."""

import dataclasses

import numpy as np
from leaks import World, bags, cohort_of, survival, table, tiles, truth, with_columns, with_records, world

from medfuse.sample import Column
from medfuse.splits import Split, generated_splits
from medfuse.targets import Labels


def _risk(seed: int, make, *, n: int = 120, events: float = 0.5) -> World:
    """One column decides much of the risk: ``make(rng, n)`` gives the column and its log hazard."""
    w = world(seed, n=n, only=("clinical", "genes"))
    value, risk, column = make(w.rng, n)
    targets = {**w.cohort.targets, "death": survival(w.rng, risk, events=events)}
    w = dataclasses.replace(w, cohort=dataclasses.replace(w.cohort, targets=targets))
    w = with_columns(w, value, [column])
    return dataclasses.replace(w, splits=generated_splits(w.cohort, outcome="death", folds=4, seed=seed))


def _stage(rng, n):
    stage = rng.integers(4, size=n)
    return stage, 1.2 * stage, Column(name="ajcc", kind="ordinal", levels=("I", "II", "III", "IV"))


def _subtype(rng, n):
    mutant = rng.random(n) < 0.4
    return mutant, -3.4 * mutant, Column(name="idh", kind="categorical", levels=("wt", "mut"))


def _metastasis(rng, n):
    spread = rng.random(n) < 0.12
    return spread, 2.5 * spread, Column(name="m1", kind="categorical", levels=("m0", "m1"))


def _score(rng, n):
    score = rng.normal(size=n)
    return score, 1.8 * score, Column(name="prognostic_index")


def _added(make, *, n: int = 120, only=("clinical", "genes"), name: str = "extra", unit: str | None = None):
    """One more table: ``make(rng, n, severity)`` gives its (n, C) values."""

    def build(seed):
        w = world(seed, n=n, only=only)
        w.data[name] = table(name, w.ids, make(w.rng, n), unit=unit)
        return dataclasses.replace(w, cohort=cohort_of_world(w))

    return build


def cohort_of_world(w: World):
    """The same cohort with a card that names every modality."""
    sites = [r.site for r in w.cohort.records]
    times = [r.index_time for r in w.cohort.records]
    return cohort_of(w.ids, w.cohort.targets, w.data, sites=sites, index_times=times)


def _alone(make, *, n: int = 120, unit: str | None = None):
    """The only modality is a table."""
    return _added(make, n=n, only=(), unit=unit)


def _common_rows(rng, n):
    return np.column_stack([rng.integers(55, 75, size=n), rng.integers(2, size=n), rng.integers(1, 5, size=n)])


def _questionnaire(rng, n):
    return np.clip(np.round(6 + 2 * rng.normal(size=(n, 1)) + 1.5 * rng.normal(size=(n, 15))), 0, 10)


def _integers(rng, n):
    return np.round(100 + 8 * rng.normal(size=(n, 8)))


def _panel(rng, n):
    return rng.random((n, 300)) < rng.beta(0.3, 8, size=300)


def _arms(rng, n):
    arms = rng.choice([-1, 0, 0, 0, 0, 1], size=(n, 30))
    return np.repeat(arms, 10, axis=1)


def _constant(rng, n):
    return np.column_stack([np.ones(n), np.zeros((n, 30)), rng.normal(size=(n, 30))])


def _missing(rng, n):
    x = rng.normal(size=(n, 20)) @ rng.normal(size=(20, 20))
    return np.where(rng.random((n, 20)) < 0.65, np.nan, x)


def _batches(rng, n):
    batch = np.minimum(np.arange(n) // 20, 5)
    batch[-2:] = 6  # two patients in a batch of their own
    x = rng.normal(size=(n, 10)) @ rng.normal(size=(10, 200)) + 0.7 * rng.normal(size=(n, 200))
    return 8 + x + 6 * rng.normal(size=(7, 200))[rng.permutation(batch)]


def _filled(how):
    def make(rng, n):
        x = np.round(rng.normal(size=(n, 16)) @ (np.eye(16) + 0.2 * rng.normal(size=(16, 16))) * 10 + 100, 3)
        absent = rng.random((n, 16)) < 0.15
        absent[: n // 8] = True
        fill = np.median(x, axis=0) if how == "median" else x.mean(axis=0)
        if how == "by sex":
            fill = np.where(rng.integers(2, size=n)[:, None] == 0, x[0], x[1])
        return np.where(absent, fill, x)

    return make


def _filled_genes(rng, n):
    x = rng.normal(size=(n, 8)) @ rng.normal(size=(8, 150)) + rng.normal(size=(n, 150)) + 7
    x[: n // 10] = x.mean(axis=0)
    return x


def _spectrum(rng, n):
    grid = np.linspace(0, 1, 80)
    a, b = rng.normal(size=(2, n, 1))
    return 5 + a * np.sin(3 * grid) + b * np.cos(3 * grid) + 0.3 * a * b * grid


def _counts(rng, n):
    rate = np.exp(rng.normal(size=(n, 1)) + rng.normal(size=100))
    return rng.poisson(rate * (rng.random((n, 100)) > 0.5)).astype(float)


def _body(rng, n):
    height, weight = 170 + 9 * rng.normal(size=n), 75 + 13 * rng.normal(size=n)
    bmi, bsa = weight / (height / 100) ** 2, np.sqrt(height * weight / 3600)
    age = rng.integers(40, 85, size=n)
    x = np.column_stack([height, weight, bmi, bsa, age, 12 * age, 2015 - age, weight * 2.2046])
    return np.round(x, 1)


def _outliers(rng, n):
    x = rng.normal(size=(n, 8)) @ rng.normal(size=(8, 150)) + rng.normal(size=(n, 150))
    x[rng.permutation(n)[:5], 3] = [9e4, 7e4, 4e4, 2e4, 1e4]
    return x


def _kindred(rng, n):
    """Monozygotic twins, one in each half of the cohort: half of every signal is shared."""
    shared = rng.normal(size=(n // 2, 10)) @ rng.normal(size=(10, 150)) + rng.normal(size=(n // 2, 150))
    own = rng.normal(size=(n, 10)) @ rng.normal(size=(10, 150)) + rng.normal(size=(n, 150))
    x = own.copy()
    x[:4], x[n // 2 : n // 2 + 4] = own[:4] + shared[:4], own[n // 2 : n // 2 + 4] + shared[:4]
    return x / np.r_[np.full(4, 1.4), np.ones(n // 2 - 4), np.full(4, 1.4), np.ones(n // 2 - 4)][:, None]


def _clusters(rng, n):
    centre = 5 * rng.normal(size=(15, 60))
    return centre[rng.integers(15, size=n)] + rng.normal(size=(n, 60))


def _heavy_tails(rng, n):
    return rng.standard_t(2, size=(n, 12))


def _blank_tiles(seed):
    w = world(seed, only=("clinical", "tiles"))
    blank = w.rng.normal(size=(3, 24)).astype(np.float32)
    rng = w.rng
    parts = [
        np.concatenate([m.tokens, blank[rng.integers(3, size=rng.integers(1, 9))]])
        for m in w.data["tiles"].samples.values()
    ]
    w.data["tiles"] = bags("tiles", w.ids, parts)
    return w


def _failed_stains(seed):
    w = world(seed, only=("clinical", "stains"))
    failed = w.rng.normal(size=24).astype(np.float32)
    parts = [np.array(sample.tokens) for sample in w.data["stains"].samples.values()]
    for k in (3, 40, 41, 77, 90):
        parts[k][:2] = failed
    w.data["stains"] = bags("stains", w.ids, parts, identities=("HE", "CD3", "CD8", "CD68"))
    return w


def _informative_absence(seed):
    """Perinodal invasion is judged where nodes are positive, and those die earlier."""
    w = world(seed, only=("clinical",))
    event, time = truth(w)
    nodes = w.rng.random(len(event)) < np.where(time < np.median(time), 0.65, 0.3)
    return with_columns(w, np.where(nodes, w.rng.integers(2, size=len(nodes)), np.nan), ["perinodal_invasion"])


def _accrual(seed):
    """Ten years of accrual, everyone followed to one date: earlier patients are followed longer."""
    w = world(seed, only=("clinical",))
    start = w.rng.uniform(0, 3650, size=len(w.ids))
    time = w.rng.exponential(2500, size=len(w.ids))
    end = 4400 - start
    target = dataclasses.replace(w.cohort.targets["death"], event=time <= end, time=np.round(np.minimum(time, end)))
    cohort = dataclasses.replace(w.cohort, targets={"death": target})
    w = with_columns(dataclasses.replace(w, cohort=cohort), np.floor(start / 365), ["year_of_diagnosis"])
    return dataclasses.replace(w, splits=generated_splits(w.cohort, outcome="death", folds=4, seed=seed))


def _hospitals(seed):
    """Forty hospitals as a category, each with an outcome of its own."""
    w = world(seed, n=160, only=("clinical",))
    _, time = truth(w)
    order = np.argsort(np.argsort(time + 1.0 * time.std() * w.rng.normal(size=len(time)))) * 40 // len(time)
    column = Column(name="hospital", kind="categorical", levels=tuple(f"h{k}" for k in range(40)))
    return with_columns(w, w.rng.permutation(40)[order], [column])


def _named(ids):
    def build(seed):
        names = ids(np.random.default_rng(seed))
        return world(seed, n=len(names), only=("clinical",), ids=names)

    return build


def _pseudonyms(rng):
    letters = list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    names = dict.fromkeys("".join(rng.choice(letters, size=6)) for _ in range(118))
    return [*names, "aBcDeF", "AbCdEf"]


def _hexadecimal(rng):
    return ["0a00", "00a0", "1b01", *(f"{k:04x}" for k in rng.permutation(np.arange(5000, 60000))[:117])]


def _hyphens(rng):
    return ["1-11", "11-1", "1-1-1", "1-12", "11-2", *(f"{k // 10}-{k % 10 + 20}" for k in range(100, 215))]


def _by_site(seed):
    w = dataclasses.replace(world(seed, only=("clinical",)), group_by_site=True)
    splits = generated_splits(w.cohort, outcome="death", folds=3, seed=seed, group_by_site=True)
    return dataclasses.replace(w, splits=splits)


def _same_person_one_side(seed):
    w = world(seed, only=("clinical", "genes"))
    a, b = w.splits[0].train[:2]
    genes = w.data["genes"]
    w.data["genes"] = dataclasses.replace(genes, samples={**genes.samples, b: genes.samples[a]})
    w = with_records(w, person={a: "x", b: "X"})
    return dataclasses.replace(w, splits=[Split(name="0", train=w.splits[0].train, held_out=w.splits[0].held_out)])


def _receptor_gene(seed):
    """ESR1 and the oestrogen receptor: one gene reads the class with an AUC of about 0.95."""
    w = dataclasses.replace(world(seed, only=("clinical", "genes")), outcome="receptor")
    label = w.cohort.targets["receptor"].label
    return with_columns(w, label * 2.3 + w.rng.normal(size=len(label)), ["ESR1"], name="genes")


def _earlier_value(seed):
    w = dataclasses.replace(world(seed, only=("clinical",)), outcome="marker")
    value = w.cohort.targets["marker"].value
    return with_columns(w, value + 0.35 * value.std() * w.rng.normal(size=len(value)), ["marker_at_baseline"])


def _rare_class(seed):
    w = dataclasses.replace(world(seed, only=("clinical",)), outcome="receptor")
    label = np.zeros(len(w.ids), dtype=np.int64)
    label[w.rng.permutation(len(label))[:9]] = 1
    targets = {**w.cohort.targets, "receptor": Labels(label=label, classes=("neg", "pos"))}
    cohort = dataclasses.replace(w.cohort, targets=targets)
    w = dataclasses.replace(w, cohort=cohort)
    return with_columns(w, w.rng.random(len(label)) < np.where(label > 0, 0.6, 0.04), ["symptom"])


def _absent(seed):
    w = world(seed)
    keep = {i for i in w.ids if w.rng.random() < 0.6}
    genes = w.data["genes"]
    w.data["genes"] = dataclasses.replace(genes, samples={i: s for i, s in genes.samples.items() if i in keep})
    return w


def _low_variance(seed):
    w = world(seed, only=("clinical", "tiles"))
    quiet = tiles(w.rng, len(w.ids), np.zeros(len(w.ids)))
    parts = [p * (0.15 if k % 3 == 0 else 1.0) for k, p in enumerate(quiet)]
    w.data["tiles"] = bags("tiles", w.ids, parts)
    return w


CLEAN = {
    "everything ordinary": world,
    "thirty patients": lambda seed: world(seed, n=30),
    "twenty-four patients, two modalities": lambda seed: world(seed, n=24, only=("clinical", "genes")),
    "four hundred patients": lambda seed: world(seed, n=400, only=("clinical", "genes")),
    "few events": lambda seed: world(seed, events=0.05, only=("clinical", "genes")),
    "nine of ten die": lambda seed: world(seed, events=0.9, only=("clinical", "genes")),
    "stage decides": lambda seed: _risk(seed, _stage),
    "stage decides, nine of ten die": lambda seed: _risk(seed, _stage, events=0.9),
    "molecular subtype of thirty-fold hazard": lambda seed: _risk(seed, _subtype),
    "metastasis in one of eight, forty patients": lambda seed: _risk(seed, _metastasis, n=40),
    "a good prognostic index": lambda seed: _risk(seed, _score),
    "narrow rows that agree": _alone(_common_rows),
    "a questionnaire": _alone(_questionnaire),
    "whole-numbered laboratory": _alone(_integers, n=200),
    "binary panel": _added(_panel),
    "copy number by arms": _added(_arms),
    "constant columns": _added(_constant),
    "two thirds missing": _alone(_missing),
    "batches, one of two patients": _added(_batches, unit="log2 tpm"),
    "filled with means": _alone(_filled("mean")),
    "filled with medians": _alone(_filled("median")),
    "filled by sex": _alone(_filled("by sex")),
    "genes filled with means": _added(_filled_genes, unit="log2 tpm"),
    "smooth curves of two shapes": _alone(_spectrum, unit="mV"),
    "sparse counts": _alone(_counts, unit="counts"),
    "columns that follow from each other": _alone(_body),
    "one extreme gene": _alone(_outliers, unit="log2 tpm"),
    "twins by birth": _alone(_kindred, unit="log2 tpm"),
    "tight clusters": _alone(_clusters, unit="a.u."),
    "heavy tails": _alone(_heavy_tails),
    "blank tiles": _blank_tiles,
    "failed stains": _failed_stains,
    "absence that means something": _informative_absence,
    "accrual over ten years": _accrual,
    "forty hospitals": _hospitals,
    "pseudonyms in two cases": _named(_pseudonyms),
    "hexadecimal ids": _named(_hexadecimal),
    "ids with hyphens": _named(_hyphens),
    "grouped by site": _by_site,
    "one person twice on one side": _same_person_one_side,
    "a receptor's gene": _receptor_gene,
    "an earlier value of the marker": _earlier_value,
    "a rare class and its symptom": _rare_class,
    "a third without genes": _absent,
    "quiet and loud patients": _low_variance,
}
