"""A cohort of random tokens in every layout, shared by the tests of models and their contracts."""

import torch

from medfuse.batch import Batch, ModalityShape, TargetTensors
from medfuse.models import HeadSettings, ModelSettings

GENES = tuple(f"g{i}" for i in range(30))
SHAPES = {
    "table": ModalityShape(layout="columns", features=6, columns=4, column_of_feature=(0, 1, 1, 1, 2, 3)),
    "wide": ModalityShape(layout="columns", features=30, missing_features=(4, 5), names=GENES),
    "bag": ModalityShape(layout="vectors", features=5, coordinates=2),
    "stains": ModalityShape(layout="vectors", features=3, identities=("he", "cd3", "cd8")),
}
RAW_SHAPES = {  # raw items; apart, so that only the tests of encoders pay for their networks
    "ecg": ModalityShape(layout="vectors", features=3 * 40, item=(3, 40)),
    "ct": ModalityShape(layout="vectors", features=2 * 8 * 8 * 6, coordinates=3, item=(2, 8, 8, 6)),
    "views": ModalityShape(layout="vectors", features=2 * 32, identities=("rest", "stress"), item=(2, 32)),
}
HEADS_OF = {
    "os": HeadSettings(kind="survival", name="discrete_hazard", time_grid=(5.0, 10.0, 20.0), prior=(-1.0, -2.0, -1.5)),
    "dfs": HeadSettings(kind="survival", name="cox"),
    "recurrence": HeadSettings(kind="binary", name="classification", n_classes=2, prior=(-0.3, -1.3)),
    "grade": HeadSettings(kind="multiclass", name="classification", n_classes=3),
    "score": HeadSettings(kind="continuous", name="regression", mean=10.0, scale=2.0),
}
PATHWAYS = {"one": GENES[:3], "two": (*GENES[2:9], "not measured"), "tiny": ("g1",)}


def tokens_of(shape: ModalityShape, n: int, g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random tokens, mask and position for n patients who all have the modality."""
    if shape.layout == "columns":
        value = torch.randn(n, shape.features, generator=g)
        column = torch.rand(n, shape.columns, generator=g) < 0.7
        flag = column[:, torch.tensor(shape.column_of_feature)].float()
        tokens = torch.stack([value * flag, flag], dim=-1)
        mask = torch.ones(n, shape.features, dtype=torch.bool)
        return tokens, mask, torch.arange(shape.features).float().expand(n, -1)[..., None].clone()
    length = len(shape.identities) or 6
    mask = torch.rand(n, length, generator=g) < 0.7
    mask[:, 0] = True
    tokens = torch.randn(n, length, shape.features, generator=g) * mask[..., None]
    if shape.identities:
        return tokens, mask, torch.arange(length).float().expand(n, -1)[..., None].clone()
    return tokens, mask, torch.rand(n, length, shape.coordinates, generator=g)


def targets_of(n: int, g: torch.Generator) -> dict[str, TargetTensors]:
    """All kinds of outcomes, each with a few unobserved patients."""

    def observed() -> torch.Tensor:
        seen = torch.rand(n, generator=g) < 0.8
        seen[:2] = True
        return seen

    event, time = torch.rand(n, generator=g) < 0.6, torch.rand(n, generator=g) * 25
    event[0] = True
    return {
        "os": TargetTensors(kind="survival", observed=observed(), event=event, time=time),
        "dfs": TargetTensors(kind="survival", observed=observed(), event=event, time=torch.ceil(time / 3)),
        "recurrence": TargetTensors(kind="binary", observed=observed(), label=torch.randint(0, 2, (n,), generator=g)),
        "grade": TargetTensors(kind="multiclass", observed=observed(), label=torch.randint(0, 3, (n,), generator=g)),
        "score": TargetTensors(kind="continuous", observed=observed(), value=10 + torch.randn(n, generator=g)),
    }


def make_batch(n: int = 24, *, names: tuple[str, ...] = tuple(SHAPES), seed: int = 0) -> Batch:
    """n patients with every subset of the modalities among the first 2^M, and every kind of outcome."""
    g = torch.Generator().manual_seed(seed)
    parts = {name: tokens_of({**SHAPES, **RAW_SHAPES}[name], n, g) for name in names}
    present = (torch.arange(n)[:, None] >> torch.arange(len(names))) % 2 == 1  # patient 0 has none
    masks = {name: parts[name][1] & present[:, i, None] for i, name in enumerate(names)}
    return Batch(
        tokens={name: torch.where(masks[name][..., None], parts[name][0], 0.0) for name in names},
        token_mask=masks,
        position={name: torch.where(masks[name][..., None], parts[name][2], 0.0) for name in names},
        present=present,
        modalities=names,
        targets=targets_of(n, g),
        patient_ids=tuple(f"p{i}" for i in range(n)),
    )


def settings_for(fusion: str, **encoders: dict) -> ModelSettings:
    """A small model."""
    return ModelSettings(width=16, encoders=encoders, fusion={"name": fusion})
