import os

import pytest
import torch

from medfuse.errors import ConfigError
from medfuse.training import device
from medfuse.training.device import full_precision, make_fabric, own_global_state
from medfuse.training.settings import TrainSettings, learning_rate


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"weight_decay": -1.0},
        {"keep_all": 1.1},
        {"ema": 1.0},
        {"patience": -1},
        {"schedule": "linear"},
        {"precision": "16-mixed"},
        {"device": "tpu"},
        {"select_by": "held_out"},
    ],
)
def test_a_setting_out_of_range_is_named(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        TrainSettings(**wrong)


def test_the_learning_rate_rises_then_falls():
    settings = TrainSettings(lr=1.0, warmup=0.1)
    rates = [learning_rate(settings, step=step, steps=100) for step in range(100)]
    assert rates[:3] == pytest.approx([1 / 11, 2 / 11, 3 / 11])
    assert max(rates) == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.001
    constant = TrainSettings(lr=1.0, warmup=0.0, schedule="constant")
    assert {learning_rate(constant, step=step, steps=10) for step in range(10)} == {1.0}


def test_auto_precision_is_full_on_a_cpu(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")  # a cluster's variables do not turn one member into four processes
    fabric = make_fabric(TrainSettings(device="cpu"))
    assert fabric.device == torch.device("cpu")
    assert fabric.world_size == 1
    with fabric.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_a_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no such device"):
        make_fabric(TrainSettings(device="cuda"))


def test_global_state_comes_back_also_after_an_error():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    draws = []

    def fails():
        with own_global_state(TrainSettings(threads=1), device=torch.device("cpu"), seed=9):
            draws.append(torch.rand(1))
            raise RuntimeError

    for _ in range(2):
        with pytest.raises(RuntimeError):
            fails()
    assert draws[0] == draws[1]
    assert torch.equal(before, torch.get_rng_state())


def test_bfloat16_only_where_the_gpu_has_it(monkeypatch):
    asked = []

    class Asked:
        def __init__(self, **given):
            asked.append(given["precision"])

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(device, "Fabric", Asked)
    for there in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, there=there: there)
        make_fabric(TrainSettings())
    make_fabric(TrainSettings(precision="bf16-mixed"))
    assert asked == ["bf16-mixed", "32-true", "bf16-mixed"]


def test_deterministic_products_are_asked_for_before_the_first_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(device, "Fabric", lambda **given: None)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "old")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    make_fabric(TrainSettings())
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    make_fabric(TrainSettings(deterministic=True))
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_full_precision_inside_and_as_before_outside():
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.enabled, torch.backends.cudnn.deterministic
    with full_precision():
        assert not torch.backends.cudnn.allow_tf32
        assert (torch.backends.cudnn.enabled, torch.backends.cudnn.deterministic) == before[1:]
    assert (
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.enabled,
        torch.backends.cudnn.deterministic,
    ) == before
