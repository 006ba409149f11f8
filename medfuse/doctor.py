"""What this machine has, what medfuse needs, and what to do about each difference."""

import importlib.metadata
import importlib.util
import os
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path

REMEDY = 'pip install "{requirement}"'


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the doctor's report: what was looked at, what was found, and the remedy if it is not well."""

    name: str
    found: str
    ok: bool
    remedy: str = ""


def _release(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: ``2.13.0+cpu`` is (2, 13, 0)."""
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])


def _requirements() -> list[tuple[str, str, bool]]:
    """(distribution, floor, required) of medfuse's own metadata, so that no floor is written twice."""
    rows = []
    for line in importlib.metadata.requires("medfuse") or []:
        match = re.match(r"([A-Za-z0-9_.-]+)\s*>=\s*([0-9.]+)", line)
        if match:
            extra = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
            if extra is None or extra.group(1) == "slides":
                rows.append((match.group(1), match.group(2), extra is None))
    return rows


def packages() -> list[Check]:
    """One check per dependency against the floor in medfuse's metadata."""
    checks = []
    for name, floor, required in _requirements():
        requirement = f"{name}>={floor}"
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            checks.append(
                Check(
                    name=name,
                    found="not installed" if required else "not installed (optional)",
                    ok=not required,
                    remedy=REMEDY.format(requirement=requirement),
                )
            )
            continue
        ok = _release(version) >= _release(floor)
        remedy = "" if ok else REMEDY.format(requirement=requirement)
        checks.append(Check(name=name, found=f"{version} (floor {floor})", ok=ok, remedy=remedy))
    return checks


def interpreter() -> Check:
    """The Python that runs."""
    ok = sys.version_info >= (3, 11)
    return Check(
        name="python",
        found=f"{platform.python_version()} at {sys.executable}",
        ok=ok,
        remedy="" if ok else "make PYTHON=/path/to/python3.11 demo",
    )


def device() -> Check:
    """The device that training would use, and which torch build is here."""
    if importlib.util.find_spec("torch") is None:
        return Check(name="device", found="torch is not installed", ok=False, remedy=REMEDY.format(requirement="torch"))
    import torch

    build = f"torch {torch.__version__}"
    if torch.cuda.is_available():
        bf16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bf16"
        return Check(name="device", found=f"{torch.cuda.get_device_name(0)}, {bf16} ({build})", ok=True)
    why = "" if torch.version.cuda is None else "; this build has CUDA but finds no GPU: see nvidia-smi"
    found = f"CPU, {torch.get_num_threads()} threads ({build}{why})"
    return Check(
        name="device",
        found=found,
        ok=True,
        remedy="for a GPU: pip install torch from the registry (several GB of CUDA packages on Linux); for a small CPU "
        "build: make demo TORCH_INDEX=URL of an index that has one",
    )


def data_root() -> Check:
    """Where real cohorts are looked for."""
    root = os.environ.get("MEDFUSE_DATA")
    if root is None:
        return Check(
            name="data",
            found="MEDFUSE_DATA is not set; only cards with a package: source (transbig) need no data root",
            ok=True,
            remedy="export MEDFUSE_DATA=/path/to/cohorts, or pass --data-root",
        )
    ok = Path(root).is_dir()
    return Check(
        name="data",
        found="MEDFUSE_DATA is a folder" if ok else "MEDFUSE_DATA names no folder",
        ok=ok,
        remedy="" if ok else "export MEDFUSE_DATA=/path/to/cohorts",
    )


def diagnose() -> list[Check]:
    """Every check, in the order in which a person would mend them."""
    return [interpreter(), *packages(), device(), data_root()]
