"""Where a member is fitted, and the guards around what torch keeps for the whole process."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment

from medfuse.errors import ConfigError, ModelError
from medfuse.training.settings import TrainSettings


def device_of(name: str) -> str:
    """The device that ``train.device`` means here: ``auto`` is a CUDA GPU where there is one, else the CPU.

    Raises:
        ConfigError: when the asked device is not there.
    """
    device = name
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there[device]:
        msg = f"train.device: expected {device}, found no such device here; use device: auto"
        raise ConfigError(msg)
    return device


def make_fabric(settings: TrainSettings) -> Fabric:
    """Fabric on one device, deaf to cluster variables: one process fits one member.

    With ``precision: auto`` a GPU computes in bfloat16 where it has that in hardware (from Ampere on).

    Raises:
        ConfigError: when the asked device is not there.
    """
    device = device_of(settings.device)
    precision: Any = settings.precision
    if precision == "auto":
        fast = device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16-mixed" if fast else "32-true"
    if settings.deterministic and device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, at the first product of two matrices
    return Fabric(accelerator=device, devices=1, precision=precision, plugins=[LightningEnvironment()])


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """No TensorFloat-32 in convolutions inside, which cuDNN uses by default: ten bits of each factor would be left."""
    cudnn = torch.backends.cudnn
    with cudnn.flags(
        enabled=cudnn.enabled, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False
    ):
        yield


@contextlib.contextmanager
def enough_memory(what: str) -> Iterator[None]:
    """Where the memory of a GPU does not suffice inside, a sentence says what to do.

    Raises:
        ModelError: in place of torch's error.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        msg = (
            f"{what}: the memory of the GPU does not suffice; lower train.most_tokens, train.batch_size or "
            "model.width, end what else runs there, or set train.device to cpu"
        )
        raise ModelError(msg) from error


@contextlib.contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Let torch use ``count`` CPU threads inside (0: as many as now), and give the caller's number back.

    Other libraries move torch's number behind its back: numba's pool sets OpenMP's to all cores, whatever
    ``OMP_NUM_THREADS`` says, and small models are then slower by an order of magnitude beside other jobs.
    """
    before = torch.get_num_threads()
    try:
        if count:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def own_global_state(settings: TrainSettings, *, device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch inside, and give the caller's random state, thread count and switches back afterwards.

    Dropout and initialisation can only draw from torch's global generators; inside, those are ours.
    """
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    planned = bool(torch.backends.cuda.cudnn_sdp_enabled())  # type: ignore[no-untyped-call]
    cuda = list(range(torch.cuda.device_count())) if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        try:
            if settings.threads:
                torch.set_num_threads(settings.threads)
            if device.type == "cuda":
                # cuDNN makes a plan for every new shape, and batches of bags have many; the other kernels need none.
                torch.backends.cuda.enable_cudnn_sdp(False)  # noqa: FBT003  # torch's own signature
            if settings.deterministic and device.type == "cuda":
                torch.use_deterministic_algorithms(True)  # noqa: FBT003
            torch.manual_seed(seed)
            yield
        finally:
            torch.set_num_threads(threads)
            torch.backends.cuda.enable_cudnn_sdp(planned)
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
