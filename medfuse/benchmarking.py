"""``medfuse benchmark``: many ways of fusing, and the baselines, on one cohort under one budget.

Every model gets the same folds, inner folds, members and tuning trials. A cell is one model on one fold, written as it
finishes, so that an interrupted benchmark goes on. What carries a claim is chosen in each fold by inner (tuning) scores
of that fold's training side alone, the fusion as well as the baseline it must beat; the best row of the table is never
a result.
"""

import resource
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from medfuse.baselines import BASELINES, fit_baselines
from medfuse.benchmark_table import benchmark_table, table_text
from medfuse.config import Recipe, read_card, read_recipe, recipe_names
from medfuse.errors import ConfigError, MedfuseError, StoreError, nearest
from medfuse.evaluation import EvaluationSettings, FoldPrediction
from medfuse.files import json_bytes, read_json, sha256_bytes, write_bytes, write_json, write_text
from medfuse.folds import baseline_data, inner_score, training_score
from medfuse.jobs import Job, check_job, fold_settings, inner_of, keys_of, outcomes_of, prepare_job
from medfuse.models import FUSIONS
from medfuse.models.cost import cost
from medfuse.outputs import require_free
from medfuse.prediction import Prediction
from medfuse.run import now, only_writer, versions
from medfuse.splits import Split
from medfuse.training import CHOSEN, JOINT, FoldModel, cpu_threads, fit_fold, predict_fold
from medfuse.training.fold import chunks
from medfuse.types import PatientId

FORMAT_VERSION = 1
ENSEMBLE = "ensemble"  # the base recipe as it stands: its fusion with a network per modality beside it
NOT_ONE_PATIENT = "rank_average"  # a rank needs the other held-out patients: it predicts no single patient
_HARMLESS = {"tracking", "baselines", "evaluation", "allow_leaks"}  # parts of a recipe that change no cell
_BUDGET = ("seeds", "epochs", "patience", "precision", "device", "threads", "deterministic")
_COUNTED = 32  # held-out patients, over whom the arithmetic of a prediction is averaged
_ARRAYS = ("risk_score", "times", "survival", "probability", "value")


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A finished benchmark.

    Attributes:
        path: its folder: ``benchmark.json``, ``table.csv``, ``table.md`` and ``cells/MODEL/FOLD.json``.
        content: of ``benchmark.json``: facts, and per outcome ``rows``, ``chosen`` and ``verdict``.
    """

    path: Path
    content: dict[str, Any]

    def lines(self) -> list[str]:
        """The tables and verdicts as lines of text."""
        lines: list[str] = []
        for name, one in self.content["outcomes"].items():
            lines += [f"{self.content['cohort']}, {name} ({one['score']})", *table_text(one["rows"])]
            lines.append(one["verdict"])
        return lines


@dataclass(frozen=True, kw_only=True)
class _Plan:
    job: Job
    keys: dict[str, Any]  # of the job's patients, outcomes, folds and data
    recipes: dict[str, Recipe]
    baselines: dict[str, list[str]]  # by outcome
    trials: int
    path: Path


def recipe_of(name: str, base: Recipe, overrides: Sequence[str]) -> Recipe:
    """The recipe of one model of the zoo, under the base recipe's budget.

    A recipe of that name where there is one, else the base recipe with the fusion of that name. The joint network
    alone, except for ``ensemble``. Folds, inner folds, seeds, epochs, patience, outcomes and modalities are those of
    the base.

    Raises:
        ConfigError: neither a recipe nor a fusion, or overrides that make another fusion of it.
    """
    if name == ENSEMBLE:
        return base.model_copy(update={"name": name})
    if name in recipe_names():
        wanted, plain = (read_recipe(name, words).model.fusion["name"] for words in (overrides, ()))
        if wanted != plain:
            msg = (
                f"benchmark --set model.fusion: expected {name} to stay the fusion {plain}, found {wanted}, which "
                "would stand in the table under another name; name fusions with --models, or set it for ensemble alone"
            )
            raise ConfigError(msg)
        own = read_recipe(name, overrides)
    elif name in FUSIONS:
        fusion = base.model.fusion if base.model.fusion.get("name") == name else {"name": name}
        own = base.model_copy(update={"model": base.model.model_copy(update={"fusion": fusion, "committee": []})})
    else:
        msg = (
            f"benchmark --models: no fusion or recipe {name!r}; {nearest(name, [*FUSIONS, *recipe_names(), ENSEMBLE])}"
        )
        raise ConfigError(msg)
    shared = {key: getattr(base, key) for key in ("seed", "outcomes", "modalities", "splits", "evaluation")}
    # What is merged from networks per modality needs them; the merged network alone is then what stands in the table.
    alone = {"unimodal": own.train.merge}
    train = own.train.model_copy(update={key: getattr(base.train, key) for key in _BUDGET} | alone)
    return own.model_copy(update={**shared, "name": name, "train": train})


def trial(recipe: Recipe, number: int) -> Recipe:
    """The recipe of one tuning trial: the first is the recipe itself, the others draw learning rate and weight decay.

    Every model draws the same factors: learning rate within half a decade, weight decay within one.
    """
    if number == 0:
        return recipe
    draw = np.random.default_rng([recipe.seed, number])
    lr, decay = recipe.train.lr * 10 ** draw.uniform(-0.5, 0.5), recipe.train.weight_decay * 10 ** draw.uniform(-1, 1)
    return recipe.model_copy(
        update={"train": recipe.train.model_copy(update={"lr": float(lr), "weight_decay": float(decay)})}
    )


def benchmark(
    cohort: str | Path,
    *,
    models: Sequence[str] | None = None,
    recipe: str | Path = "default",
    overrides: Sequence[str] = (),
    trials: int = 1,
    data_root: Path | None = None,
    store_root: Path | None = None,
    out: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Benchmark:
    """Train a set of models and the baselines on one cohort's folds, and compare them.

    Args:
        cohort: name of a data card, or a path to one.
        models: names of fusions and recipes, and ``ensemble``; default: every fusion, and the ensemble.
        recipe: base recipe, whose budget all models share.
        overrides: ``section.key=value`` texts, for all models.
        trials: tuning trials per model and fold; the inner score chooses.
        data_root: folder of the cohort's files.
        store_root: folder of the feature store.
        out: new or empty folder; default ``runs/benchmark-COHORT``. Started again with the same folder, it goes on.
        say: called with each line of progress.

    Raises:
        ConfigError: an unknown model, or fewer than one trial.
        StoreError: ``out`` holds cells of other settings, data, patients or outcomes, or other files.
        MedfuseError: as for ``train``.
    """
    if trials < 1:
        msg = f"benchmark --trials: expected at least 1, found {trials}"
        raise ConfigError(msg)
    base = read_recipe(recipe, list(overrides))
    card = read_card(cohort)
    path = out or Path("runs") / f"benchmark-{card.name}"
    require_free(path, own=("cells", "work"))
    names = list(dict.fromkeys(models or (*FUSIONS, ENSEMBLE)))
    recipes = {name: recipe_of(name, base, overrides) for name in names}
    job = prepare_job(card, base, data_root=data_root, store_root=store_root, say=say)
    _check(job, recipes, say=say)
    plan = _Plan(
        job=job,
        keys=keys_of(job),
        recipes=recipes,
        baselines={o: _baselines(base, card.outcomes[o].kind) for o in job.outcomes},
        trials=trials,
        path=path,
    )
    with only_writer(plan.path):
        cells = _run(plan, say=say)
        content = _results(plan, cells, cohort=card.name)
        write_json(plan.path / "benchmark.json", content)
        for name, one in content["outcomes"].items():
            stem = "table" if len(content["outcomes"]) == 1 else f"table-{name}"
            import pandas as pd

            write_bytes(plan.path / f"{stem}.csv", pd.DataFrame(one["rows"]).to_csv(index=False).encode())
            write_text(plan.path / f"{stem}.md", "\n".join([*table_text(one["rows"]), "", one["verdict"], ""]))
    return Benchmark(path=plan.path, content=content)


def _check(job: Job, recipes: Mapping[str, Recipe], *, say: Callable[[str], None]) -> None:
    """Raise what a cell would raise, before the first one; what the models share is said once."""
    said: dict[str, None] = {}
    for name, recipe in recipes.items():
        shared = {"baselines": job.recipe.baselines}  # the base's stand beside all models
        try:
            check_job(replace(job, recipe=recipe.model_copy(update=shared)), say=lambda line: said.update({line: None}))
        except MedfuseError as error:
            error.add_note(f"model {name}")
            raise
    for line in said:
        say(line)


def _baselines(base: Recipe, kind: str) -> list[str]:
    wanted = BASELINES[kind] if base.baselines is None else base.baselines
    return [name for name in wanted if name in BASELINES[kind] and name != NOT_ONE_PATIENT]


# --- cells ------------------------------------------------------------------------------------------------------


def _run(plan: _Plan, *, say: Callable[[str], None]) -> dict[str, list[dict[str, Any]]]:
    """Every cell, by model or baseline, fold after fold; finished ones are read."""
    cells: dict[str, list[dict[str, Any]]] = {}
    total = len(plan.recipes) * len(plan.job.splits)
    done = 0
    for split in plan.job.splits:
        inner = inner_of(plan.job, split)
        for outcome in plan.job.outcomes:
            name = f"baselines {outcome}"
            key = _key(plan, split, what=plan.baselines[outcome])

            def compare(outcome: str = outcome, split: Split = split, inner: Sequence[Split] = inner) -> dict[str, Any]:
                return _baseline_cell(plan, outcome, split, inner)

            cells.setdefault(name, []).append(_cell(plan.path, name, split.name, key=key, make=compare))
        for name, recipe in plan.recipes.items():
            key = _key(plan, split, what=recipe.model_dump(mode="json", exclude=_HARMLESS))

            def fit(name: str = name, split: Split = split, inner: Sequence[Split] = inner) -> dict[str, Any]:
                with cpu_threads(plan.recipes[name].train.threads):
                    return _network_cell(plan, name, split, inner)

            cells.setdefault(name, []).append(_cell(plan.path, name, split.name, key=key, make=fit))
            done += 1
            say(f"{name}, fold {split.name}: {cells[name][-1]['seconds']:.0f} s ({done}/{total})")
    return cells


def _key(plan: _Plan, split: Split, *, what: object) -> str:
    return sha256_bytes(json_bytes([what, plan.trials, plan.keys, split.name]))


def _cell(path: Path, name: str, fold: str, *, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    file = path / "cells" / name.replace(" ", "-") / f"{fold}.json"
    if file.is_file():
        content = cast(dict[str, Any], read_json(file))
        if content.get("key") != key:
            msg = (
                f"{file}: expected a cell of these settings, data, patients, outcomes and folds, found another; choose "
                "another --out"
            )
            raise StoreError(msg)
        return content
    content = {"format_version": FORMAT_VERSION, "key": key, "model": name, "fold": fold, "finished": now(), **make()}
    write_json(file, content)
    return cast(dict[str, Any], read_json(file))  # as a later process reads it


def _network_cell(plan: _Plan, name: str, split: Split, inner: Sequence[Split]) -> dict[str, Any]:
    """Fit every trial, keep the one with the best inner score, predict the held-out patients with it alone."""
    job, cards = plan.job, {o: plan.job.cohort.card.outcomes[o] for o in plan.job.outcomes}
    started, memory = time.perf_counter(), peak_memory(reset=True)
    tried: list[tuple[float, int, FoldModel]] = []
    work = plan.path / "work" / name / split.name
    interrupted = work.is_dir()  # networks of an earlier process, whose seconds nobody counted
    for number in range(plan.trials):
        fold = fit_fold(
            job.data,
            outcomes_of(job),
            train_ids=split.train,
            inner=inner,
            settings=fold_settings(trial(plan.recipes[name], number), cards),
            folder=work / str(number),
        )
        score = inner_score(job, fold, job.outcomes[0], variant=_variant(plan.recipes[name], fold))
        tried.append((score if np.isfinite(score) else -np.inf, -number, fold))
    number, fold = max(tried, key=lambda t: t[:2])[1:]
    fitted = time.perf_counter() - started
    variant = _variant(plan.recipes[name], fold)
    predicted = predict_fold(fold, job.data, split.held_out, variant=variant)
    said = [
        {o: model.cross_fitted[o][_variant(plan.recipes[name], model)] for o in job.outcomes} for _, _, model in tried
    ]
    judged = _judged(job, said, inner)
    joint = next((member for member in fold.members if not member.expert), fold.members[0])
    found = cost(joint.build(), chunks(joint, job.data, split.held_out[:_COUNTED])[0])
    content = {
        "seconds": round(fitted, 3),
        "interrupted": interrupted,
        "peak_memory_mb": peak_memory() or memory,
        "parameters": found.parameters,
        "flops": round(found.flops),
        "members": len(fold.members),
        "trial": -number,
        "trial_scores": [_defined(t[0]) for t in tried],
        "results": {
            name: {o: {"tuning": _defined(judged[o]), **_to_json(predicted[o])} for o in job.outcomes},
        },
    }
    shutil.rmtree(plan.path / "work" / name, ignore_errors=True)
    return content


def _judged(job: Job, tried: Sequence[Mapping[str, Prediction]], inner: Sequence[Split]) -> dict[str, float]:
    """Inner score, per outcome, of the trial that the other inner folds choose for each one, by the first outcome.

    The score of the best of several trials flatters it.

    Args:
        job: for outcomes.
        tried: cross-fitted predictions of the same training patients by each trial, per outcome.
        inner: folds inside the training side.
    """
    first = [said[job.outcomes[0]] for said in tried]
    ids = first[0].patient_ids
    fold_of = np.zeros(len(ids), dtype=np.int64)
    for number, side in enumerate(inner):
        fitted = set(side.train)
        fold_of[[row for row, i in enumerate(ids) if i not in fitted]] = number
    taken = np.zeros(len(ids), dtype=np.int64)
    for number in np.unique(fold_of) if len(tried) > 1 else ():
        others = np.flatnonzero(fold_of != number) if (fold_of != number).any() else np.arange(len(ids))
        scores = [training_score(job, _rows(said, others), job.outcomes[0]) for said in first]
        taken[fold_of == number] = int(np.argmax(np.nan_to_num(scores, nan=-np.inf)))
    return {o: training_score(job, _mixed([said[o] for said in tried], taken), o) for o in job.outcomes}


def _mixed(said: Sequence[Prediction], taken: NDArray[np.int64]) -> Prediction:
    """Of each patient (n,) the prediction that is ``taken``."""
    rows = np.arange(len(taken))
    arrays: dict[str, Any] = {f: [getattr(one, f) for one in said] for f in _ARRAYS if f != "times"}
    mixed: dict[str, Any] = {f: np.stack(own)[taken, rows] for f, own in arrays.items() if own[0] is not None}
    return replace(said[0], **mixed)


def _rows(said: Prediction, rows: NDArray[np.intp]) -> Prediction:
    """What is said of some patients."""
    ids = tuple(said.patient_ids[row] for row in rows)
    arrays: dict[str, Any] = {f: getattr(said, f) for f in _ARRAYS if f != "times"}
    kept = {f: array[rows] for f, array in arrays.items() if array is not None}
    return replace(said, patient_ids=ids, present=said.present[rows], **kept)


def _defined(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _variant(recipe: Recipe, fold: FoldModel) -> str:
    """Which of the fold's models the row is about: the merged network, where the recipe merges, else what it chose."""
    merged = recipe.train.merge and recipe.name != ENSEMBLE
    return JOINT if merged and all(JOINT in variants for variants in fold.ensembles.values()) else CHOSEN


def _baseline_cell(plan: _Plan, outcome: str, split: Split, inner: Sequence[Split]) -> dict[str, Any]:
    job = plan.job
    context = baseline_data(job, split, inner, outcome=outcome)
    results: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    memory: dict[str, float | None] = {}
    for name in plan.baselines[outcome]:
        started = time.perf_counter()
        peak_memory(reset=True)
        found = fit_baselines(context, kind=job.cohort.card.outcomes[outcome].kind, names=[name])
        for result in found:
            seconds[result.name] = (time.perf_counter() - started) / len(found)
            memory[result.name] = peak_memory()
            results[result.name] = {outcome: {"tuning": _defined(result.tuning_score), **_to_json(result.prediction)}}
    return {"seconds": sum(seconds.values()), "each_seconds": seconds, "each_memory_mb": memory, "results": results}


def peak_memory(*, reset: bool = False) -> float | None:
    """Largest resident memory of this process in MB, since the last reset where the system allows one (Linux)."""
    if reset:
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return None
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _to_json(p: Prediction) -> dict[str, Any]:
    arrays = {name: getattr(p, name) for name in _ARRAYS}
    return {"present": p.present.tolist(), **{k: None if a is None else a.tolist() for k, a in arrays.items()}}


def _from_json(content: Mapping[str, Any], ids: tuple[PatientId, ...], modalities: tuple[str, ...]) -> Prediction:
    arrays: dict[str, Any] = {k: None if content[k] is None else np.array(content[k], dtype=float) for k in _ARRAYS}
    present: NDArray[np.bool_] = np.array(content["present"], dtype=bool).reshape(len(ids), len(modalities))
    return Prediction(patient_ids=ids, present=present, modalities=modalities, **arrays)


# --- results ----------------------------------------------------------------------------------------------------


def _results(plan: _Plan, cells: Mapping[str, Sequence[Mapping[str, Any]]], *, cohort: str) -> dict[str, Any]:
    job, outcomes = plan.job, {}
    settings = EvaluationSettings(
        horizons=None if job.recipe.evaluation.horizons is None else tuple(job.recipe.evaluation.horizons),
        bootstrap=job.recipe.evaluation.bootstrap,
        minimum_cell=job.recipe.evaluation.minimum_cell,
        seed=job.recipe.seed,
    )
    for outcome in job.outcomes:
        predictions: dict[str, list[FoldPrediction]] = {}
        tuning: dict[str, list[float]] = {}
        spent: dict[str, dict[str, Any]] = {}
        for name in (*plan.recipes, f"baselines {outcome}"):
            for cell, split in zip(cells[name], job.splits, strict=True):
                for model, by_outcome in cell["results"].items():
                    said = by_outcome[outcome]
                    prediction = _from_json(said, split.held_out, tuple(job.data))
                    fold = FoldPrediction(fold=split.name, prediction=prediction, train_ids=split.train)
                    predictions.setdefault(model, []).append(fold)
                    tuning.setdefault(model, []).append(np.nan if said["tuning"] is None else said["tuning"])
                    _add_cost(spent.setdefault(model, {}), cell, model)
        outcomes[outcome] = benchmark_table(
            predictions,
            tuning,
            cohort=job.cohort,
            outcome=outcome,
            fusions=list(plan.recipes),
            settings=settings,
            cost=spent,
            overlapping=job.overlapping,
        )
    return {
        "format_version": FORMAT_VERSION,
        "cohort": cohort,
        "finished": now(),
        "versions": versions(),
        "data": {name: m.key for name, m in job.data.items()},
        "folds": [split.name for split in job.splits],
        "budget": {
            "inner_folds": job.recipe.splits.inner_folds,
            "seeds": job.recipe.train.seeds,
            "epochs": job.recipe.train.epochs,
            "tuning_trials": plan.trials,
            "seed": job.recipe.seed,
        },
        "recipes": {name: r.model_dump(mode="json", exclude={"tracking"}) for name, r in plan.recipes.items()},
        "outcomes": outcomes,
    }


def _add_cost(spent: dict[str, Any], cell: Mapping[str, Any], model: str) -> None:
    each = cell.get("each_seconds", {}).get(model)
    memory = cell["each_memory_mb"][model] if each is not None else cell["peak_memory_mb"]
    spent["seconds"] = spent.get("seconds", 0.0) + (cell["seconds"] if each is None else each)
    spent["peak_memory_mb"] = max(spent.get("peak_memory_mb", 0.0), memory or 0.0) or None
    spent["interrupted"] = spent.get("interrupted", False) or cell.get("interrupted", False)
    spent |= {key: cell.get(key) for key in ("parameters", "flops", "members")}
