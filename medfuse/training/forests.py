"""Random forests as members: beside the networks of one modality, trees grown on the same patients.

Trees err differently from networks, and on hundreds of patients with coded columns (mutations, copy numbers) they are
often the better learner of a single modality. A grown forest becomes an ordinary member: its splits, softened, are an
encoder (:class:`medfuse.models.encoders.forest.ForestEncoder`), so that whatever works with members (prediction, absent
modalities, explanation, storage) works with it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medfuse.batch import Batch
from medfuse.models import ModelSettings, MultimodalModel, build_model
from medfuse.models.encoders.forest import ForestEncoder
from medfuse.targets import Labels, Survival, Target
from medfuse.training.member import Member

Array = NDArray[np.float64]
TREES, DEPTH, LEAST = 34, 6, 10  # trees per outcome; splits one below another; patients in a leaf
MOST = 1000  # patients of whom one forest is grown: time grows with their square, and each seed draws others
FORESTS = "forests"  # what stands for them among the parts that a fold left out
SOFTNESS = 0.02  # of splits, in standard deviations: contributions by gradients still sum, and hardly a risk changes
_NOWHERE = 1e30  # threshold of a split that is none: everybody goes left


def no_forests() -> str:
    """Why no trees can be grown here; empty when they can."""
    return "" if find_spec("sksurv") else "scikit-survival, which grows them, is not installed"


def forest_settings(modality: str, targets: Mapping[str, Target]) -> ModelSettings:
    """A forest of one modality as the slots of a model; a leaf holds a number per value, event or class to predict."""
    encoder = {"name": "forest", "trees": TREES * len(targets), "depth": DEPTH, "softness": SOFTNESS}
    return ModelSettings(
        width=sum(_width(target) for target in targets.values()),
        encoders={modality: encoder},
        fusion={"name": "late", "norm": False, "dropout": 0.0},
    )


def grow(blank: Member, batches: Sequence[Batch], targets: Mapping[str, Target], *, seed: int) -> Member:
    """Grow the trees of a member: random survival forests, or forests of classification or regression trees.

    A leaf of a survival tree holds its mortality, in standard deviations over the leaves; of a regression tree its
    mean, in standard deviations of the outcome; of a classification tree the logarithms of the class frequencies,
    shrunk towards those of all patients by the weight of one.

    Args:
        blank: with :func:`forest_settings`, without weights.
        batches: of its training patients, who all have its modality.
        targets: of the same patients, in their order; one with an unknown outcome is left out for this outcome.
        seed: of the trees.

    References:
        Breiman (2001), Random forests; Ishwaran, Kogalur, Blackstone, Lauer (2008), Random survival
        forests, section 3, for the mortality. NOTE[DIFF]: at most 2^6 leaves, and splits are a little soft.
    """
    with torch.random.fork_rng(devices=[]):  # what is drawn here is replaced below
        model = build_model(blank.settings, shapes=blank.shapes, heads=blank.heads).eval()
    encoder = cast(ForestEncoder, model.encoders[0])
    x = np.concatenate([_inputs(model, batch).numpy() for batch in batches])
    with torch.no_grad():
        encoder.feature.zero_()
        encoder.threshold.fill_(_NOWHERE)
        encoder.leaf.zero_()
        column = 0
        for number, (outcome, target) in enumerate(targets.items()):
            seen, width = _drawn(target, seed=seed), _width(target)
            trees = _grown(x[seen], target.take(seen), seed=seed)
            for k, tree in enumerate(trees, start=number * TREES):
                # The mean goes over the trees of all outcomes, and those of the others say 0 of this one.
                _plant(encoder, k, tree, scale=len(targets), columns=slice(column, column + width))
            _pass_on(model.head(outcome), slice(column, column + width))
            column += width
    return dataclasses.replace(
        blank, state={name: value.detach().clone() for name, value in model.state_dict().items()}
    )


def _width(target: Target) -> int:
    return len(target.classes) if isinstance(target, Labels) else 1


@torch.no_grad()
def _inputs(model: MultimodalModel, batch: Batch) -> Tensor:
    tokens, mask, position = model.door(batch, 0)
    return cast(ForestEncoder, model.encoders[0]).inputs(tokens, mask, position)


def _drawn(target: Target, *, seed: int) -> NDArray[np.intp]:
    """Rows with a known outcome, at most ``MOST`` of them: of events and of every class in proportion, never few."""
    seen = np.flatnonzero(target.observed)
    if len(seen) <= MOST:
        return seen
    known = target.take(seen)
    kind = known.event if isinstance(known, Survival) else known.label if isinstance(known, Labels) else seen * 0
    rng, kept = np.random.default_rng(seed), []
    for one in np.unique(kind):
        rows = seen[kind == one]
        kept.append(rng.permutation(rows)[: max(MOST * len(rows) // len(seen), LEAST)])
    return np.sort(np.concatenate(kept))


def _pass_on(head: nn.Module, columns: slice) -> None:
    """Let a head say what stands in some columns of the state: its first number, or one per class."""
    linear = next(part for part in head.modules() if isinstance(part, nn.Linear))
    width = columns.stop - columns.start
    linear.weight.zero_()
    linear.weight[:, columns] = torch.eye(width) if width > 1 else 1.0


@dataclass(frozen=True, kw_only=True)
class _Tree:
    """A grown tree: node 0 is the root, children are -1 at leaves, and who is at most the threshold goes left."""

    left: NDArray[np.int64]
    right: NDArray[np.int64]
    feature: NDArray[np.int64]
    threshold: Array
    value: Array  # (nodes, width)


def _grown(x: NDArray[np.float32], target: Target, *, seed: int) -> list[_Tree]:
    options: dict[str, Any] = {
        "n_estimators": TREES,
        "max_depth": DEPTH,
        "min_samples_leaf": min(LEAST, max(1, len(x) // 3)),
        "max_features": "sqrt",
        "n_jobs": 1,
        "random_state": seed,
    }
    if isinstance(target, Survival):
        from sksurv.ensemble import RandomSurvivalForest

        # scikit-survival refuses times of 0: half a day is before every other day.
        outcome = np.empty(len(target), dtype=[("event", bool), ("time", float)])
        outcome["event"], outcome["time"] = target.event, np.maximum(target.time, 0.5)
        forest = RandomSurvivalForest(**options, low_memory=True).fit(x, outcome)
    elif isinstance(target, Labels):
        from sklearn.ensemble import RandomForestClassifier

        forest = RandomForestClassifier(**options).fit(x, target.label)
    else:
        from sklearn.ensemble import RandomForestRegressor

        value = target.value
        forest = RandomForestRegressor(**options).fit(x, (value - value.mean()) / (value.std() or 1.0))
    return [_read(one.tree_, target) for one in forest.estimators_]


def _read(tree: Any, target: Target) -> _Tree:  # noqa: ANN401  # scikit-learn's, which has no type
    value = tree.value.reshape(tree.node_count, -1).astype(np.float64)
    count = tree.weighted_n_node_samples[:, None]
    if isinstance(target, Labels):
        found = np.full((tree.node_count, len(target.classes)), 0.5 / len(target))  # of classes nobody here is in
        found[:, np.unique(target.label)] += value / value.sum(axis=1, keepdims=True)
        value = np.log((count * found + found[:1]) / (count + 1))
    if isinstance(target, Survival):
        leaves = tree.children_left < 0
        mean, spread = _moments(value[leaves, 0], count[leaves, 0])
        value = (value - mean) / (spread or 1.0)
    return _Tree(
        left=tree.children_left, right=tree.children_right, feature=tree.feature, threshold=tree.threshold, value=value
    )


def _moments(value: Array, weight: Array) -> tuple[float, float]:
    """Weighted mean and standard deviation."""
    mean = float(np.average(value, weights=weight))
    return mean, float(np.sqrt(np.average((value - mean) ** 2, weights=weight)))


def _plant(encoder: ForestEncoder, number: int, tree: _Tree, *, scale: float, columns: slice) -> None:
    """Put a grown tree in its place, where splits and leaves stand level by level."""
    splits = encoder.threshold.shape[1]
    where = [(0, 0)]  # a node of the tree, and its place
    while where:
        node, place = where.pop()
        if place >= splits:
            encoder.leaf[number, place - splits, columns] = torch.from_numpy(scale * tree.value[node]).float()
        elif tree.left[node] < 0:
            where.append((node, 2 * place + 1))  # a leaf above the lowest level: everybody goes left to it
        else:
            encoder.feature[number, place] = int(tree.feature[node])
            encoder.threshold[number, place] = float(tree.threshold[node])
            where += [(int(tree.left[node]), 2 * place + 1), (int(tree.right[node]), 2 * place + 2)]
