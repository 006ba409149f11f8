"""Training steps on 8 bags of 4,000 to 20,000 x 1,024 (P14): medfuse bag by bag beside a padded batch of attention-MIL.

Forward, backward and AdamW. Usage: python benchmarks/bags.py [--threads 1] [--repeats 5] [--out FILE.json]
The peer is gated attention over a padded batch with a mask, written as public MIL code writes it, of the same sizes as
medfuse's encoder ``bag``: 1,024 -> 512, gate 256. Candidates take turns, so that noise hits all alike, and ratios are
of processor time. Before timing, medfuse's pooling must agree with the peer's on the same weights. In "one bag a batch"
every bag is a batch of its own, so nothing is padded in memory; "accumulate 8" cuts them from one padded batch, as
``fit_member`` does. ``prototype_tokens`` is timed with its summary computed in every step, nothing cached.
Goals: P14 of ../shared/performance.md.
"""

import argparse
import datetime
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from _timing import load, machine, ratios, round_robin
from torch import nn

from medfuse.batch import Batch, Item, ModalityShape, collate
from medfuse.models import HeadSettings, ModelSettings, build_model
from medfuse.sample import ModalitySample
from medfuse.targets import Labels

FEATURES, HIDDEN, GATE = 1024, 512, 256
GOALS = {"one bag a batch": 1.7, "one bag a batch, bf16": 4.0, "prototype_tokens": 12.0}


class PaddedAttention(nn.Module):
    """Gated-attention MIL over a padded batch."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(FEATURES, HIDDEN)
        self.content, self.gate = nn.Linear(HIDDEN, GATE), nn.Linear(HIDDEN, GATE)
        self.score, self.classify = nn.Linear(GATE, 1, bias=False), nn.Linear(HIDDEN, 2)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        h = self.project(x)
        a = self.score(torch.tanh(self.content(h)) * torch.sigmoid(self.gate(h)))[..., 0]
        a = a.masked_fill(~mask, -torch.inf).softmax(1)
        return torch.einsum("bt,btd->bd", a, h)


def bags(least: int = 4000, most: int = 20_000) -> list[Item]:
    draw = np.random.default_rng(2)
    items = []
    for k, n in enumerate(np.linspace(least, most, 8).astype(int)):
        tokens = draw.standard_normal((n, FEATURES), dtype=np.float32)
        sample = ModalitySample(tokens=tokens, position=np.zeros((n, 1), np.float32))
        target = Labels(label=np.array([k % 2]), classes=("no", "yes"), observed=np.array([True]))
        items.append(Item(patient_id=f"p{k}", samples={"slides": sample}, targets={"y": target}))
    return items


def model(encoder: dict, shape: ModalityShape, *, width: int) -> nn.Module:
    torch.manual_seed(0)
    head = HeadSettings(kind="binary", name="classification", n_classes=2)
    settings = ModelSettings(width=width, encoders={"slides": encoder}, fusion={"name": "late", "dropout": 0.0})
    return build_model(settings, shapes={"slides": shape}, heads={"y": head}).train()


def accumulated(net: nn.Module, parts: Callable[[], list[Batch]], *, bf16: bool = False) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(net.parameters(), 1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        for part in parts():
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = net.loss(part) / 8
            loss.backward()
        optimizer.step()

    return step


def padded_step(net: PaddedAttention, batch: Batch) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(net.parameters(), 1e-4)
    tokens, mask, label = batch.tokens["slides"], batch.token_mask["slides"], batch.targets["y"].label

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(net.classify(net(tokens, mask)), label).backward()
        optimizer.step()

    return step


@torch.no_grad()
def must_agree(peer: PaddedAttention, net: nn.Module, batch: Batch) -> float:
    """Largest difference of the pooled vectors on the peer's weights."""
    encoder = net.encoders[0]
    encoder.body[0].load_state_dict(peer.project.state_dict())
    for name in ("content", "gate", "score"):
        getattr(encoder.pool, name).load_state_dict(getattr(peer, name).state_dict())
    one = batch.select([0])
    encoder.eval()
    ours = encoder(one.tokens["slides"], one.token_mask["slides"], one.position["slides"])[0][:, 0]
    encoder.train()
    return float((ours - peer(one.tokens["slides"], one.token_mask["slides"])).abs().max())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="a count for tests; no figure")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "bags.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    before, items = load(), bags(40, 200) if options.small else bags()
    shape = ModalityShape(layout="vectors", features=FEATURES)
    single = [collate([item], shapes={"slides": shape}) for item in items]
    padded = collate(items, shapes={"slides": shape})
    attention = {"name": "bag", "pooling": "attention", "hidden": GATE, "layers": 0, "input_dropout": 0.0}
    peer, nets = PaddedAttention(), [model(attention, shape, width=HIDDEN) for _ in range(3)]
    summary = model({"name": "prototype_tokens", "prototypes": 16}, shape, width=256)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        summary.begin(single[0])
    difference = must_agree(peer, nets[0], padded)
    assert difference < 1e-4, difference
    times = round_robin(
        {
            "padded batch (peer)": padded_step(peer, padded),
            "one bag a batch": accumulated(nets[0], lambda: single),
            "accumulate 8 of one padded batch": accumulated(nets[1], lambda: [padded.select([k]) for k in range(8)]),
            "one bag a batch, bf16": accumulated(nets[2], lambda: single, bf16=True),
            "prototype_tokens": accumulated(summary, lambda: single),
        },
        repeats=options.repeats,
        budget=60.0,
    )
    result = {
        "format_version": 1,
        "date": datetime.date.today().isoformat(),
        "bags": [len(item.samples["slides"].tokens) for item in items],
        "threads": options.threads,
        "load_before": before,
        "input_mib": {
            "padded batch": round(padded.nbytes / 2**20, 1),
            "bags as they are": round(sum(b.nbytes for b in single) / 2**20, 1),
        },
        "pooling_differs_by": difference,
        "times": times,
        "times_as_fast_as_the_padded_batch": {
            name: round(ratios(times, name)["padded batch (peer)"], 2) for name in times if "peer" not in name
        },
        "goals": GOALS,
        "machine": machine("torch"),
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: result[k] for k in ("times", "times_as_fast_as_the_padded_batch", "load_before")}, indent=1))


if __name__ == "__main__":
    main()
