"""A training step of the modality transformer when half of the modalities are missing: packed tokens and masks.

    python benchmarks/packed.py [--threads N] [--repeats N] [--out FILE]

64 patients, 5 modalities of 1 + 16 + 50 + 20 + 1 tokens, D = 256, 4 layers of 8 heads, feed-forward 4 D, no dropout.
A step is forward, backward and AdamW. Candidates take turns in one process. "all tokens" computes every token in the
last layer, as nn.TransformerEncoder does; medfuse itself computes only the patient token there.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from _timing import load, machine, ratios, round_robin
from torch import Tensor, nn

from medfuse.models.fusion import TransformerFusion
from medfuse.models.packing import pack

LENGTHS = (1, 16, 50, 20, 1)
B, D, LAYERS, HEADS, RATIO = 64, 256, 4, 8, 4
NAMES = tuple(f"m{k}" for k in range(len(LENGTHS)))


def make(missing: float) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Tokens, masks and presence; every patient has at least the last modality, as in the prototype's measurement."""
    g = torch.Generator().manual_seed(1)
    present = torch.rand(B, len(LENGTHS), generator=g) >= missing
    present[present.sum(1) == 0, 4] = True
    tokens = [torch.randn(B, length, D, generator=g) for length in LENGTHS]
    return tokens, [present[:, k, None].expand(B, length) for k, length in enumerate(LENGTHS)], present


def fusion(*, packed: bool) -> TransformerFusion:
    torch.manual_seed(0)
    given = {"depth": LAYERS, "heads": HEADS, "ratio": RATIO, "dropout": 0.0, "token_dropout": 0.0}
    return TransformerFusion(modalities=NAMES, width=D, packed=packed, **given).train()


class Reference(nn.Module):
    """nn.TransformerEncoder with a padding mask over all slots, the same embedding and patient token."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(
            D, HEADS, RATIO * D, dropout=0.0, batch_first=True, norm_first=True, activation="gelu"
        )
        self.entry = fusion(packed=False)
        del self.entry.blocks
        self.encoder = nn.TransformerEncoder(layer, LAYERS, norm=nn.LayerNorm(D), enable_nested_tensor=False)

    def forward(self, tokens: list[Tensor], masks: list[Tensor], present: Tensor) -> Tensor:
        entered = [norm(t) + own for norm, t, own in zip(self.entry.norms, tokens, self.entry.modality, strict=True)]
        x = torch.cat([self.entry.patient.expand(B, 1, -1), *entered], dim=1)
        mask = torch.cat([present.new_ones(B, 1), *masks], dim=1)
        return self.encoder(x, src_key_padding_mask=~mask)[:, 0]


class AllTokens(nn.Module):
    """The packed layers, with every token computed in the last one too: like for like with the reference."""

    def __init__(self) -> None:
        super().__init__()
        self.fusion = fusion(packed=True)

    def forward(self, tokens: list[Tensor], masks: list[Tensor], present: Tensor) -> Tensor:
        f = self.fusion
        entered = [norm(t) + own for norm, t, own in zip(f.norms, tokens, f.modality, strict=True)]
        x = torch.cat([f.patient.expand(B, 1, -1), *entered], dim=1)
        packing = pack(torch.cat([present.new_ones(B, 1), *masks], dim=1))
        x = packing.take(x)
        for block in f.blocks:
            x = block.packed(x, packing)
        return f.norm(x)[packing.first][packing.back]


def step(model: nn.Module, data: tuple[list[Tensor], list[Tensor], Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        out = model(*data)
        state = out if isinstance(out, Tensor) else out.states[:, 0]
        state.square().mean().backward()
        optimizer.step()

    return run


def agreement(data: tuple[list[Tensor], list[Tensor], Tensor]) -> dict[str, float]:
    """Largest difference of packed and unpacked states, and of their gradients over the largest gradient."""
    found = []
    for packed in (False, True):
        model = fusion(packed=packed)
        states = model(*data).states
        (states * torch.linspace(-1, 1, D)).mean().backward()
        found.append((states.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
    (one, grad), (other, other_grad) = found
    return {
        "states": float((one - other).abs().max()),
        "gradients, relative": float((grad - other_grad).abs().max() / grad.abs().max()),
    }


def measure(missing: float, repeats: int) -> dict[str, object]:
    data = make(missing)
    masks = torch.cat(data[1], dim=1)
    times = round_robin(
        {
            "nn.TransformerEncoder, padding mask": step(Reference(), data),
            "medfuse unpacked": step(fusion(packed=False), data),
            "medfuse packed": step(fusion(packed=True), data),
            "medfuse packed, all tokens": step(AllTokens(), data),
        },
        repeats=repeats,
        budget=120.0,
    )
    agreed = agreement(data)
    assert agreed["states"] <= 1e-5, agreed
    return {
        "missing_modalities": round(float((~data[2]).float().mean()), 3),
        "slots_per_real_token": round(masks.numel() / float(masks.sum()), 3),
        "times": times,
        "times_ours": ratios(times, "medfuse packed"),
        "times_ours_all_tokens": ratios(times, "medfuse packed, all tokens"),
        "packed_minus_unpacked": agreed,
        "load": load(),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--small", action="store_true", help="a count for tests; no figure")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "packed.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    globals()["B"] = 4 if options.small else B
    results = {
        "format_version": 1,
        "half missing": measure(0.5, options.repeats),
        "nothing missing": measure(0.0, options.repeats),
        "machine": machine("torch") | {"threads": options.threads},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    for name in ("half missing", "nothing missing"):
        print(name, json.dumps(results[name], indent=1))


if __name__ == "__main__":
    main()
