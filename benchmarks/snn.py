"""The genomics-only row (SNN) of MCAT, made again on its tables and its exact folds.

A self-normalising network on all genomic columns, as published: four layers of 256 (ELU, alpha dropout .25), 4
intervals at quartiles of the event times, the negative log likelihood in which a patient censored in interval k
survives it, Adam 2e-4 with weight decay 1e-5, an L1 penalty of 1e-4 on all parameters at every patient, 32 patients
per step, patients drawn with equal chances of interval and censoring, 20 epochs, the last one reported. Deliberately
with the published weakness that interval edges come from all patients; our default does none of this and stands in
``results/zoo.json``.

Sources: Chen et al. 2021 (MCAT), ICCV; Klambauer et al. 2017, Self-normalizing neural networks, NeurIPS.

python benchmarks/snn.py [--seeds 3] [--epochs 20] [--out FILE]
"""

import argparse
import json
import platform
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from medfuse.cohort import read_cohort
from medfuse.config import read_card, read_recipe
from medfuse.dataset import load_modalities
from medfuse.metrics.discrimination import harrell_c
from medfuse.splits import make_splits

CARDS = {"mcat_blca": ("blca", 0.540659), "mcat_luad": ("luad", 0.538747)}  # published means
OUTCOME = "overall_survival"
HIDDEN, LAYERS, INTERVALS, STEP = 256, 4, 4, 32


def network(columns: int) -> nn.Sequential:
    """Weights from N(0, 1 / fan in), biases 0."""
    blocks: list[nn.Module] = []
    for inputs in (columns, *[HIDDEN] * (LAYERS - 1)):
        blocks += [nn.Linear(inputs, HIDDEN), nn.ELU(), nn.AlphaDropout(0.25)]
    blocks.append(nn.Linear(HIDDEN, INTERVALS))
    for layer in blocks:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0, layer.in_features**-0.5)
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*blocks)


def loss_of(logits: torch.Tensor, interval: torch.Tensor, event: torch.Tensor) -> torch.Tensor:
    """-log of h_k prod_{j<k} (1 - h_j) for events, of prod_{j<=k} (1 - h_j) for censored patients; summed."""
    survive = nn.functional.logsigmoid(-logits).cumsum(1)
    before = torch.cat([torch.zeros_like(survive[:, :1]), survive], 1).gather(1, interval[:, None])[:, 0]
    through = survive.gather(1, interval[:, None])[:, 0]
    died = nn.functional.logsigmoid(logits).gather(1, interval[:, None])[:, 0]
    return -torch.where(event, before + died, through).sum()


def fit(x: torch.Tensor, interval: torch.Tensor, event: torch.Tensor, *, epochs: int, seed: int) -> nn.Sequential:
    """The network after its last epoch."""
    torch.manual_seed(seed)
    model = network(x.shape[1])
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-4, weight_decay=1e-5)
    group = interval * 2 + event.long()
    chance = 1.0 / torch.bincount(group).float()[group]
    for _ in range(epochs):
        order = torch.multinomial(chance, len(x), replacement=True)
        for rows in order.split(STEP):
            # The published loop adds the penalty to each of 32 patients, and divides only the likelihood by 32.
            penalty = len(rows) * 1e-4 * sum(p.abs().sum() for p in model.parameters())
            loss = loss_of(model(x[rows]), interval[rows], event[rows]) / STEP + penalty
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return model.eval()


def run(name: str, *, seeds: int, epochs: int) -> list[list[float]]:
    """C per seed and fold."""
    cohort = read_cohort(read_card(name))
    data = load_modalities(cohort)
    values = {i: np.concatenate([m.samples[i].tokens[:, 0] for m in data.values()]) for i in cohort.patient_ids}
    whole = cohort.target(OUTCOME, cohort.patient_ids)
    edges = np.unique(pd.qcut(whole.time[whole.event], INTERVALS, retbins=True)[1])[1:-1]
    scores = []
    for seed in range(seeds):
        scores.append([])
        for split in make_splits(cohort, read_recipe("default").splits, OUTCOME):
            train = np.stack([values[i] for i in split.train])
            mean, spread = train.mean(0), train.std(0)
            spread[spread == 0] = 1
            target, held = cohort.target(OUTCOME, split.train), cohort.target(OUTCOME, split.held_out)
            model = fit(
                torch.from_numpy((train - mean) / spread).float(),
                torch.from_numpy(np.searchsorted(edges, target.time, side="right")),
                torch.from_numpy(target.event),
                epochs=epochs,
                seed=1000 * seed + len(scores[-1]),
            )
            other = torch.from_numpy((np.stack([values[i] for i in split.held_out]) - mean) / spread).float()
            with torch.no_grad():
                risk = -nn.functional.logsigmoid(-model(other)).cumsum(1).exp().sum(1)
            scores[-1].append(harrell_c(held, risk.double().numpy()).value)
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cohorts", nargs="+", default=list(CARDS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = {}
    for name in arguments.cohorts:
        started = time.perf_counter()
        scores = np.array(run(name, seeds=arguments.seeds, epochs=arguments.epochs))
        rows[name] = {
            "c_per_seed_and_fold": scores.tolist(),
            "mean_c": float(scores.mean()),
            "sd_of_seed_means": float(scores.mean(1).std(ddof=1)) if len(scores) > 1 else None,
            "published_mean_c": CARDS[name][1],
            "seconds": round(time.perf_counter() - started, 1),
        }
        print(name, f"{rows[name]['mean_c']:.4f}", f"published {CARDS[name][1]:.4f}", flush=True)
    result = {
        "epochs": arguments.epochs,
        "machine": platform.processor() or platform.machine(),
        "versions": {p: version(p) for p in ("medfuse", "torch", "numpy")},
        "cohorts": rows,
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
