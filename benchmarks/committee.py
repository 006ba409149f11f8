"""Which fusions share the default recipe's seeds, whether forests stand beside the networks of single modalities, and
how experts are weighed: decided by cross-fitted inner scores.

On the training side of every outer fold, members are fitted on the inner folds; weights are fitted on all inner folds
but one and scored on that one, so that no score is of patients who chose the weights. Held-out C stands beside, and
chooses nothing. With --members, what members say is kept there and taken up again. Only aggregates are written.

python benchmarks/committee.py [--cohorts tcga_blca ...] [--members FOLDER] [--set key=value ...] [--out FILE]
"""

import argparse
import dataclasses
import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
from tcga import TCGA

from medfuse.cohort import read_cohort
from medfuse.config import read_card, read_recipe
from medfuse.dataset import load_modalities
from medfuse.jobs import fold_settings
from medfuse.metrics.discrimination import harrell_c
from medfuse.splits import inner_folds, make_splits
from medfuse.targets import event_time_grid
from medfuse.training import Outcomes, fit_fold
from medfuse.training.ensemble import SHARES, OutOfFold, expert_deviations, fit_ensembles
from medfuse.training.fold import chunks, presence, reads, speak

COMMITTEES = {
    "transformer x 3": ("transformer 0", "transformer 1", "transformer 2"),
    "transformer, stacked, latent": ("transformer 0", "stacked 1", "latent 2"),
    "transformer, late, stacked": ("transformer 0", "late 1", "stacked 2"),
    "transformer, stacked, concat": ("transformer 0", "stacked 1", "concat 2"),
    "transformer, late, concat": ("transformer 0", "late 1", "concat 2"),
}
FOREST = "forest"


def spoken(job, split, *, seeds) -> list[dict]:
    """What every member says of training patients it never saw, and of held-out patients."""
    cohort, data, recipe, outcome = job
    inner = inner_folds(split.train, cohort=cohort, outcome=outcome, folds=recipe.splits.inner_folds, seed=recipe.seed)
    outcomes = Outcomes(patient_ids=cohort.patient_ids, targets={outcome: cohort.targets[outcome]})
    settings = fold_settings(recipe, {outcome: cohort.card.outcomes[outcome]})
    settings = dataclasses.replace(settings, committee=(), forests=False)
    wanted = [(settings.model, settings.seeds[: len(seeds)], True)]
    for name, k in sorted({tuple(label.split()) for turns in COMMITTEES.values() for label in turns[1:]}):
        if name != settings.model.fusion["name"] and int(k) < len(seeds):
            fusion = read_recipe(name).model.fusion
            wanted.append((dataclasses.replace(settings.model, fusion=fusion), (settings.seeds[int(k)],), False))
    found = []
    for model, own_seeds, unimodal in wanted:
        own = dataclasses.replace(settings, model=model, seeds=own_seeds, unimodal=unimodal)
        for member in fit_fold(data, outcomes, train_ids=split.train, inner=inner, settings=own).members:
            label = member.expert or f"{model.fusion['name']} {settings.seeds.index(member.seed)}"
            found.append(said_by(member, label, job, split, inner))
    return found


def grown(job, split, *, seeds) -> list[dict]:
    """What forests of single modalities say of the same patients; networks get one epoch here and are not asked."""
    cohort, data, recipe, outcome = job
    inner = inner_folds(split.train, cohort=cohort, outcome=outcome, folds=recipe.splits.inner_folds, seed=recipe.seed)
    outcomes = Outcomes(patient_ids=cohort.patient_ids, targets={outcome: cohort.targets[outcome]})
    settings = fold_settings(recipe, {outcome: cohort.card.outcomes[outcome]})
    train = dataclasses.replace(settings.train, epochs=1)
    own = dataclasses.replace(settings, committee=(), forests=True, train=train, seeds=settings.seeds[: len(seeds)])
    members = fit_fold(data, outcomes, train_ids=split.train, inner=inner, settings=own).members
    return [said_by(member, FOREST, job, split, inner) for member in members if member.forest]


def said_by(member, label: str, job, split, inner) -> dict:
    """What a member says of training patients it never saw, and of held-out patients."""
    _, data, _, outcome = job
    unseen = sorted(set(split.train) - set(inner[member.inner].train), key=split.train.index)
    unseen = [i for i in unseen if not member.expert or i in data[member.expert].samples]
    return {
        "label": label,
        "expert": member.expert,
        "inner": member.inner,
        "rows": np.array([split.train.index(i) for i in unseen]),
        "link": speak(member, chunks(member, data, unseen))[outcome],
        "held_out": speak(member, chunks(member, data, split.held_out))[outcome],
    }


def kept(path: Path | None, make) -> list[dict]:
    """What members say, from a file where it is there."""
    if path is None or not path.is_file():
        found = make()
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, **{f"{k} {name}": np.asarray(v) for k, one in enumerate(found) for name, v in one.items()})
        return found
    with np.load(path, allow_pickle=False) as stored:
        count = 1 + max(int(name.split()[0]) for name in stored.files)
        names = ("label", "expert", "inner", "rows", "link", "held_out")
        found = [{name: stored[f"{k} {name}"] for name in names} for k in range(count)]
    return [{**one, **{n: one[n].item() for n in ("label", "expert", "inner")}} for one in found]


def weights(oof: OutOfFold) -> dict[str, np.ndarray]:
    """Weights of the experts by the three rules."""
    ensembles = fit_ensembles(oof)
    joint, unimodal, score = ensembles["joint"].weight, ensembles["unimodal"].weight, ensembles["joint"].score
    merit = np.maximum(score - 0.5, 1e-3)
    one = ensembles["joint"]
    z = expert_deviations(oof.links, oof.has, expert_of=oof.expert_of, centre=one.centre, spread=one.spread)
    tried = [s * joint + (1 - s) * unimodal for s in SHARES]
    best = max(tried, key=lambda w: oof.concordance(np.einsum("e,enl->nl", w, z)))
    return {"best share": best, "merit": merit / merit.sum(), "merit, unless": ensembles["chosen"].weight}


def scores(job, split, said: list[dict]) -> dict:
    """Cross-fitted inner C and held-out C, per committee and rule, of one outer fold."""
    cohort, data, _, outcome = job
    train, held_out = cohort.target(outcome, split.train), cohort.target(outcome, split.held_out)
    experts = tuple(dict.fromkeys(one["expert"] for one in said))
    has = reads(experts, tuple(data), presence(data, tuple(data), split.train))
    has_held = reads(experts, tuple(data), presence(data, tuple(data), split.held_out))
    times, everyone, found = event_time_grid(train, intervals=20), np.arange(len(split.held_out)), {}
    choices = [(name, turns, forests) for name, turns in COMMITTEES.items() for forests in (False, True)]
    for name, turns, forests in choices:
        committee = name + (" + forests" if forests else "")
        own = [one for one in said if one["label"] in turns or (one["expert"] and (forests or one["label"] != FOREST))]
        oof = OutOfFold(
            links=[(k, one["rows"], one["link"]) for k, one in enumerate(own)],
            has=has,
            expert_of=np.array([experts.index(one["expert"]) for one in own]),
            inner_of=np.array([one["inner"] for one in own]),
            target=train,
            times=times,
        )
        whole = fit_ensembles(oof)["joint"]
        scale = {"expert_of": oof.expert_of, "centre": whole.centre, "spread": whole.spread}
        z = expert_deviations(oof.links, has, **scale)
        held = expert_deviations([(k, everyone, one["held_out"]) for k, one in enumerate(own)], has_held, **scale)
        inner: dict[str, list[float]] = {}
        for fold, rows in enumerate(oof.folds()):
            for rule, weight in weights(oof.without(fold)).items():
                mixed = np.einsum("e,enl->nl", weight, z)[rows].mean(axis=1)
                inner.setdefault(rule, []).append(harrell_c(train.take(rows), mixed).value)
        for rule, weight in weights(oof).items():
            mixed = np.einsum("e,enl->nl", weight, held).mean(axis=1)
            found[f"{committee}: {rule}"] = (float(np.mean(inner[rule])), harrell_c(held_out, mixed).value)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cohorts", nargs="+", default=[*TCGA, "hancock"])
    parser.add_argument("--outcome", default="overall_survival")
    parser.add_argument("--members", type=Path)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    recipe = read_recipe("default", arguments.set)
    cohorts: dict[str, dict] = {}
    for name in arguments.cohorts:
        cohort = read_cohort(read_card(name))
        job = (cohort, load_modalities(cohort, names=recipe.modalities), recipe, arguments.outcome)
        folds = []
        for split in make_splits(cohort, recipe.splits, arguments.outcome):
            path = arguments.members / f"{name}-{split.name}.npz" if arguments.members else None
            seeds = range(recipe.train.seeds)
            said = kept(path, lambda: spoken(job, split, seeds=seeds))  # noqa: B023
            trees = path and path.with_name(f"{name}-{split.name}-forests.npz")
            said = said + kept(trees, lambda: grown(job, split, seeds=seeds))  # noqa: B023
            folds.append(scores(job, split, said))
        cohorts[name] = {
            key: {
                "inner": float(np.mean([f[key][0] for f in folds])),
                "held_out": float(np.mean([f[key][1] for f in folds])),
            }
            for key in folds[0]
        }
        print(name, len(folds), flush=True)
    mean = {
        key: {side: float(np.mean([c[key][side] for c in cohorts.values()])) for side in ("inner", "held_out")}
        for key in next(iter(cohorts.values()))
    }
    for key, one in sorted(mean.items(), key=lambda item: -item[1]["inner"]):
        print(f"{key:<60} inner {one['inner']:.4f}  held-out {one['held_out']:.4f}")
    result = {
        "what": "Harrell C; weights fitted on all inner folds but one, scored on that one; mean over all folds",
        "versions": {p: version(p) for p in ("medfuse", "torch", "numpy")},
        "overrides_of_the_default_recipe": arguments.set,
        "cohorts": cohorts,
        "mean": mean,
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
