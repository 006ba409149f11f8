"""The promises of design 4, as assertions over any model; the contract tests run them on every component."""

import contextlib
from dataclasses import replace
from unittest import mock

import torch
from safetensors.torch import load, save
from torch.utils._python_dispatch import TorchDispatchMode

from medfuse.batch import Batch, drop_modalities

# Of what torch refuses on CUDA under deterministic algorithms (its documentation), all that networks could ask for.
REFUSED = {
    "_adaptive_avg_pool2d_backward",
    "_adaptive_avg_pool3d_backward",
    "_embedding_bag_dense_backward",
    "adaptive_max_pool2d_backward",
    "avg_pool3d_backward",
    "grid_sampler_2d_backward",
    "grid_sampler_3d_backward",
    "histc",
    "put_",
    "reflection_pad1d_backward",
    "reflection_pad2d_backward",
    "reflection_pad3d_backward",
    "upsample_bicubic2d_backward",
    "upsample_bilinear2d_backward",
    "upsample_linear1d_backward",
    "upsample_trilinear3d_backward",
}


def outputs(model, batch):
    """All logits side by side, in evaluation."""
    model.eval()
    with torch.no_grad():
        return torch.cat(list(model(batch).values()), dim=1)


def refill(batch: Batch, value: float, *, present=None) -> Batch:
    """The batch with ``value`` wherever no model may look."""
    present = batch.present if present is None else present
    tokens, position = {}, {}
    for i, name in enumerate(batch.modalities):
        real = (batch.token_mask[name] & present[:, i, None])[..., None]
        tokens[name] = torch.where(real, batch.tokens[name], value)
        position[name] = torch.where(real, batch.position[name], value)
    return replace(batch, tokens=tokens, position=position, present=present)


def pad(batch: Batch, extra: int, names) -> Batch:
    """Longer bags, the new tokens full of NaN."""

    def longer(t, fill):
        return torch.cat([t, torch.full((t.shape[0], extra, *t.shape[2:]), fill, dtype=t.dtype)], dim=1)

    return replace(
        batch,
        tokens={m: longer(t, torch.nan) if m in names else t for m, t in batch.tokens.items()},
        token_mask={m: longer(t, False) if m in names else t for m, t in batch.token_mask.items()},
        position={m: longer(t, torch.nan) if m in names else t for m, t in batch.position.items()},
    )


def assert_absent_content_is_inert(model, batch):
    expected = outputs(model, refill(batch, 0.0))
    assert torch.isfinite(expected).all()
    for value in (float("nan"), 1e30, float("-inf")):
        assert torch.equal(outputs(model, refill(batch, value)), expected)
    # also when a present modality is hidden by ``present`` alone, as modality dropout does
    hidden = batch.present & (torch.arange(len(batch))[:, None] % 3 != 0)
    expected = outputs(model, refill(batch, 0.0, present=hidden))
    assert torch.equal(outputs(model, replace(batch, present=hidden)), expected)
    assert torch.equal(outputs(model, refill(batch, float("nan"), present=hidden)), expected)


def assert_absent_content_gets_no_gradient(model, batch):
    model.train()
    tokens = {m: t.clone().requires_grad_() for m, t in refill(batch, float("nan")).tokens.items()}
    model.loss(replace(batch, tokens=tokens)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name
    for i, name in enumerate(batch.modalities):
        real = batch.token_mask[name] & batch.present[:, i, None]
        assert (tokens[name].grad[~real] == 0).all()
        assert (tokens[name].grad[real] != 0).any()


def assert_padding_is_inert(model, batch, names):
    expected = outputs(model, batch)
    assert (outputs(model, pad(batch, 5, names)) - expected).abs().max() <= 1e-5


def assert_bag_order_is_inert(model, batch, names):
    order = {m: torch.randperm(batch.tokens[m].shape[1], generator=torch.Generator().manual_seed(0)) for m in names}

    def mixed(found):
        return {m: t[:, order[m]] if m in names else t for m, t in found.items()}

    shuffled = replace(
        batch, tokens=mixed(batch.tokens), token_mask=mixed(batch.token_mask), position=mixed(batch.position)
    )
    assert (outputs(model, shuffled) - outputs(model, batch)).abs().max() <= 1e-5


def assert_neighbours_are_inert(model, batch):
    expected = outputs(model, batch)
    for row in range(len(batch)):
        assert (outputs(model, batch.select([row]))[0] - expected[row]).abs().max() <= 1e-5
    reverse = list(range(len(batch)))[::-1]
    assert (outputs(model, batch.select(reverse)).flip(0) - expected).abs().max() <= 1e-5


def assert_patients_differ(model, batch):
    """The rest would hold for a constant, too."""
    full = outputs(model, batch)[batch.present.any(1)]
    assert full.unique(dim=0).shape[0] == len(full)


def assert_gradients_reach_every_parameter(model, batch):
    model.train()
    model.zero_grad()
    torch.manual_seed(0)
    model.loss(batch).backward()
    without = {name for name, p in model.named_parameters() if p.grad is None or not (p.grad != 0).any()}
    assert without == idle_parameters(model)


def idle_parameters(model):
    """What a component itself says gets no gradient."""
    parts = [("fusion", model.fusion), *((f"encoders.{i}", e) for i, e in enumerate(model.encoders))]
    return {f"{where}.{name}" for where, part in parts for name in part.idle}


def assert_evaluation_is_pure(model, batch):
    """No labels, no random state, the same answer twice."""
    model.eval()
    before = torch.random.get_rng_state()
    with torch.no_grad():
        labelled = model(batch)
    unlabelled = model.predict(replace(batch, targets={}))
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, logits in labelled.items():
        again = model.head(name).predict(logits)
        assert all(torch.equal(again[key], unlabelled[name][key]) for key in again)


def assert_saves_and_loads_exactly(build, batch):
    torch.manual_seed(0)
    model = build()
    torch.manual_seed(1)
    other = build()
    assert not torch.equal(outputs(model, batch), outputs(other, batch))
    other.load_state_dict(load(save(model.state_dict())), strict=True)
    assert torch.equal(outputs(model, batch), outputs(other, batch))


def assert_never_waits_for_the_device(model, batch):
    """A training step, with the values on a device that cannot be asked for one.

    On "meta" tensors have shapes alone: a size that depends on values, a number read back (on CUDA both make the CPU
    wait) or a tensor left on the CPU raises. It has no autocast, whose switches are no part of this.
    """
    model, batch = model.train().to("meta"), batch.to("meta")
    with mock.patch("torch.autocast", return_value=contextlib.nullcontext()):
        batch = drop_modalities(batch, generator=torch.Generator().manual_seed(0), keep_all=0.5)
        model.loss(batch).backward()
    assert all(p.grad is None or p.grad.is_meta for p in model.parameters())


class RefusesAsOnCuda(TorchDispatchMode):
    """Raises where torch would on CUDA: deterministic training must ask for nothing of it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        sums = name in ("cumsum", "cumsum_") and args[0].is_floating_point()
        weighted = name == "bincount" and len(args) > 1 and args[1] is not None
        middle = name == "median" and func._overloadname == "dim"
        if name in REFUSED or sums or weighted or middle:
            raise RuntimeError(f"{name} does not have a deterministic implementation")
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def as_deterministic_cuda():
    torch.use_deterministic_algorithms(True)
    try:
        with RefusesAsOnCuda():
            yield
    finally:
        torch.use_deterministic_algorithms(False)


def assert_keeps_its_promises(build, batch, *, bags=()):
    """All of the above. ``bags``: modalities whose token order and padding must not matter."""
    torch.manual_seed(0)
    model = build()
    with torch.no_grad():  # what starts at zero may hide a leak
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    assert_gradients_reach_every_parameter(model, batch)
    assert_absent_content_gets_no_gradient(model, batch)
    assert_absent_content_is_inert(model, batch)
    assert_neighbours_are_inert(model, batch)
    assert_patients_differ(model, batch)
    assert_evaluation_is_pure(model, batch)
    if bags:
        assert_padding_is_inert(model, batch, bags)
        assert_bag_order_is_inert(model, batch, bags)
    assert_saves_and_loads_exactly(build, batch)
