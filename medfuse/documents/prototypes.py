"""What a model card says of prototypes: how many, how many are of effect, and whom they were fitted on."""

from medfuse.documents.facts import Row, RunFacts
from medfuse.explain.prototype_record import PrototypeRecord
from medfuse.explaining_prototypes import effective_numbers

ASKS = "Prototypes of each fold: how many, how many are of effect, whom they were fitted on."
_NOT_STORED = "The fusion has prototypes; none are stored that can be read: medfuse explain RUN stores them."


def prototype_text(facts: RunFacts) -> str:
    """Prototypes of the network shown of each fold, in words; that they were not stored where that is so."""
    if not facts.prototypes:
        return _NOT_STORED
    splits = {str(split["name"]): split for split in facts.splits}
    folds = [f"Fold {name}: {_fold(one, splits[name])}" for name, one in facts.prototypes.items()]
    missing = [name for name in splits if name not in facts.prototypes]
    if missing:
        folds.append(f"Not stored: fold {', '.join(missing)}.")
    one = next(iter(facts.prototypes.values()))
    about = (
        "Each joint network has prototypes of its own; said is what the first of each fold has. In effect: those that "
        f"some training patient is nearest to, of which two with a cosine of {one.collapsed:g} or more are one."
    )
    return " ".join([about, *folds])


def _fold(found: PrototypeRecord, split: Row) -> str:
    count, pairs = len(found.names), collapsed_text(found)
    effect = ", ".join(f"{name} {number}" for name, number in effective_numbers(found).items())
    others = sum(bool(found.pairs(k)) for k in range(1, len(found.members)))
    more = f"; of {len(found.members) - 1} other networks {others} have a collapsed pair" if found.members[1:] else ""
    return (
        f"{count} per modality ({len(found.levels)} levels x {found.each}), network {found.members[0]} of "
        f"{len(found.members)}, together {found.share:.0%} of the prediction; in effect: {effect}; collapse check: "
        f"{f'FAILED, {pairs}' if pairs else 'passed, no pair is one'}{more}; {_fitted(found, split)}."
    )


def collapsed_text(found: PrototypeRecord) -> str:
    """Pairs of prototypes of the network shown that are one; empty where there are none."""
    return ", ".join(
        f"{name} {found.names[i]} and {found.names[j]} ({cosine:.2f})"
        for name, pairs in found.pairs().items()
        for i, j, cosine in pairs
    )


def _fitted(found: PrototypeRecord, split: Row) -> str:
    """Whom the network was fitted on, as its record says, compared with the sides of the split."""
    stopping = int(found.unseen.sum())
    fitted = len(found.train_ids) - stopping
    outside = len(set(found.train_ids) - set(split["train"]))
    also = f", its early stopping on {stopping} more" if stopping else ""
    if outside:
        return f"fitted on {fitted} patients{also}, of whom {outside} are NOT OF THE TRAINING SIDE"
    return f"fitted on {fitted} patients of the training side alone{also}; no held-out patient among them"
