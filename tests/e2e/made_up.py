"""A small made-up cohort as files and card: a table, genes with gene sets, stains, and outcomes of every kind."""

from pathlib import Path

import numpy as np

from medfuse.run import Run
from medfuse.workflow import train

STAINS = ("HE", "CD8", "PDL1")
OUTCOMES = {
    "survival": '{kind: survival, time: days, unit: days, event: status, event_codes: ["1"], censored_codes: ["0"]}',
    "response": '{kind: binary, column: response, classes: ["no", "yes"]}',
    "subtype": "{kind: multiclass, column: subtype, classes: [A, B, C]}",
    "size": "{kind: continuous, column: size, unit: mm}",
}
MODALITIES = {
    "stains": "{loader: vectors, files: {HE: he.npz, CD8: cd8.npz, PDL1: pdl1.npz}}",
    "genes": '{loader: expression, file: genes.csv, columns: "g_*", unit: tpm, log_base: 2, gmt: sets.gmt}',
    "clinical": (
        "{loader: tabular, file: patients.csv, columns: {age: {kind: numeric, unit: years}, "
        "stage: {kind: ordinal, levels: [I, II, III]}, sex: {kind: categorical, levels: [f, m]}}}"
    ),
}
# G27 is constant; NOT_HERE is in no table; the order is not alphabetical
GENE_SETS = {
    "ZETA": ("G0", "G1", "G2", "G3", "G27"),
    "ALPHA": ("G4", "G5", "G6", "G7"),
    "CONSTANT": ("G27", "NOT_HERE"),
    "ELSEWHERE": ("NOT_HERE", "NOR_HERE"),
}
QUICK = (
    "train.epochs=3",
    "train.seeds=1",
    "train.unimodal=false",
    "model.width=8",
    "evaluation.bootstrap=20",
    "tracking.mlflow=false",
)
# enough to find the planted signal
LEARN = ("train.epochs=30", "train.lr=1e-2", "train.batch_size=16", "train.patience=0", "train.modality_dropout=false")


def card_text(*, name="toy", outcomes=("survival",), modalities=("stains", "genes", "clinical")) -> str:
    lines = [
        "---",
        f"name: {name}",
        "title: A made-up cohort",
        "governance: {licence: CC0, source: made up, citation: none, consent: none needed, deidentification: made up}",
        "patients: {file: patients.csv, id: id}",
        "subgroups: [sex]",
        "outcomes:",
        *(f"  {outcome}: {OUTCOMES[outcome]}" for outcome in outcomes),
        "modalities:",
        *(f"  {modality}: {MODALITIES[modality]}" for modality in modalities),
        "---",
        "",
        "# Made up",
    ]
    return "\n".join(lines) + "\n"


def write(folder: Path, *, n=80, seed=0, prefix="p", missing=0.0, **card) -> Path:
    """Write the cohort's files and card into ``folder``; ``missing`` is the share of unknown cells of each outcome."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    ids = [f"{prefix}{i:03d}" for i in range(n)]
    genes = rng.normal(size=(n, 28))
    genes[:, 27] = 1.0
    age, stage = rng.normal(60, 9, size=n), rng.integers(0, 3, size=n)
    signal = 0.12 * (age - 60) + 0.5 * genes[:, :3].sum(1)
    days = 900 * rng.exponential(size=n) * np.exp(-2 * signal)
    follow_up = rng.exponential(1500, size=n)

    def unless_missing(cells):
        return [cell if rng.random() >= missing else "" for cell in cells]

    known = [rng.random() >= missing for _ in ids]
    columns = {
        "id": ids,
        "age": [f"{a:.1f}" if i % 9 else "" for i, a in enumerate(age)],
        "stage": [("I", "II", "III")[s] for s in stage],
        "sex": [("f", "m")[i % 2] for i in range(n)],
        "days": [f"{min(d, f) + 1:.2f}" if k else "" for d, f, k in zip(days, follow_up, known, strict=True)],
        "status": [str(int(d < f)) if k else "" for d, f, k in zip(days, follow_up, known, strict=True)],
        "response": unless_missing(["yes" if s > 0 else "no" for s in signal]),
        "subtype": unless_missing(["A" if s < -1 else "B" if s < 1 else "C" for s in signal]),
        "size": unless_missing([f"{30 + 5 * s:.3f}" for s in signal]),
    }
    rows = [",".join(row) for row in zip(*columns.values(), strict=True)]
    (folder / "patients.csv").write_text("\n".join([",".join(columns), *rows]) + "\n")
    table = ["id," + ",".join(f"g_G{k}" for k in range(28))]
    table += [f"{i}," + ",".join(f"{v:.5f}" for v in row) for i, row in list(zip(ids, genes, strict=True))[4:]]
    (folder / "genes.csv").write_text("\n".join(table) + "\n")
    (folder / "sets.gmt").write_text("".join("\t".join([k, "made up", *v]) + "\n" for k, v in GENE_SETS.items()))
    vectors = rng.normal(size=(n, len(STAINS), 5)).astype(np.float32)
    for s, stain in enumerate(STAINS):  # each stain misses other patients; p000 and its like have none
        np.savez(folder / f"{stain.lower()}.npz", **{p: vectors[i, s] for i, p in enumerate(ids) if i % 5 > s})
    (folder / "card.md").write_text(card_text(**card))
    return folder / "card.md"


def trained(card: Path, *more: str, **options) -> Run:
    """A quick run beside a card, with its feature store."""
    here = card.parent
    places = {"data_root": here, "store_root": here / "store", "out": here / "run"}
    return train(card, recipe="smoke", overrides=(*QUICK, *more), **places, **options)
