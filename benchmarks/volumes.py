"""Goal P9 of performance.md: a CT series and a NIfTI to float32, against the readers that people use.

``python benchmarks/volumes.py [--peers FOLDER] [--nifti]``; --nifti measures the NIfTI alone and leaves the figures of
the series as they are. FOLDER is where SimpleITK and isal were put with
``pip install --no-deps --target FOLDER SimpleITK isal``, where the environment has not got them.
Readers take turns in one process; the voxels of all are compared first; each one's peak memory is that of a process of
its own. Limits: reading the bytes, reading and converting them into fresh memory, inflating alone, fresh memory alone.
Before every turn of the NIfTI readers memory is used and freed, which makes its price the same for all (_timing.py).
"""

import argparse
import datetime
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from _timing import load, machine, ratios, round_robin, touch_memory

from medfuse.loaders import _volume_files, dicom, volume

GOALS = {"naive pydicom": 3.0, "SimpleITK": 2.2, "MONAI PydicomReader": 10.0}
GOAL_NIFTI, GOAL_MEMORY = 2.2, 1.5  # times nibabel; peak over the size of the float32 volume
AFFINE = np.array([[-0.7, 0, 0, 180], [0, -0.7, 0, 180], [0, 0, 1, -150], [0, 0, 0, 1.0]])
HAS_ISAL = "medfuse (isal)"


def body(slices: int) -> np.ndarray[Any, Any]:
    """(512, 512, slices) int16 HU: an ellipse of tissue with noise in air with less noise."""
    rng, x = np.random.default_rng(0), np.arange(512) - 255.5
    inside = (x[:, None] / 230) ** 2 + (x[None, :] / 180) ** 2 < 1
    out = np.empty((512, 512, slices), np.int16)
    for k in range(slices):
        noise = rng.normal(0, 1, (512, 512))
        out[:, :, k] = np.where(inside, 40 + 12 * noise, -1000 + 4 * noise)
    return out


# --- readers: all give (slices, rows, columns) of rising z ------------------------------------------------------------


def naive(files: list[Path]) -> np.ndarray[Any, Any]:
    """The way of the pydicom tutorials."""
    slices = sorted((pydicom.dcmread(f) for f in files), key=lambda d: float(d.ImagePositionPatient[2]))
    planes = [d.pixel_array * float(d.RescaleSlope) + float(d.RescaleIntercept) for d in slices]
    return np.stack(planes).astype(np.float32)


def simple_itk(files: list[Path]) -> np.ndarray[Any, Any]:
    import SimpleITK

    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(files[0].parent)))
    return SimpleITK.GetArrayFromImage(reader.Execute()).astype(np.float32)


def monai(files: list[Path]) -> np.ndarray[Any, Any]:
    from monai.transforms import LoadImage

    return np.asarray(LoadImage(reader="PydicomReader", image_only=True)(str(files[0].parent))).transpose(2, 1, 0)


def ours(files: list[Path]) -> np.ndarray[Any, Any]:
    """Grouping, all checks, geometry and values; as it would be for files that nobody has looked at."""
    (found,) = dicom.group(files)
    values, _ = dicom.read_volume(found)
    return values[::-1, ::-1, :, 0].transpose(2, 1, 0)


def patches(files: list[Path]) -> int:
    """What extraction does: all patches of 32 mm, in batches."""
    (found,) = dicom.group(files)
    return sum(len(batch) for batch in dicom.read(found, {}).batches(64))


def limit_read(files: list[Path]) -> None:
    for file in files:
        with file.open("rb", buffering=0) as stream:
            stream.read()


def limit_convert(files: list[Path]) -> None:
    """No header is read: the last bytes of each file become a plane of fresh memory."""
    size = 512 * 512 * 2
    out, buffer = np.empty((len(files), 512, 512), np.float32), np.empty((512, 512), "<i2")
    for k, file in enumerate(files):
        with file.open("rb", buffering=0) as stream:
            stream.seek(-size, 2)
            stream.readinto(buffer.data.cast("B"))
        np.add(buffer, np.float32(-1024), out=out[k])


def nifti_ours(files: list[Path], module: Any = None) -> np.ndarray[Any, Any]:
    before = _volume_files.inflater
    if module is not None:
        _volume_files.inflater = lambda: (module, module.__name__)
    try:
        return volume.read_volume(files)[0][::-1, ::-1, :, 0].transpose(2, 1, 0)
    finally:
        _volume_files.inflater = before


def nifti_zlib(files: list[Path]) -> np.ndarray[Any, Any]:
    return nifti_ours(files, zlib)


def nifti_nibabel(files: list[Path]) -> np.ndarray[Any, Any]:
    return nibabel.load(files[0]).get_fdata(dtype=np.float32).transpose(2, 1, 0)


def nifti_stored(files: list[Path]) -> np.ndarray[Any, Any]:
    return np.asarray(nibabel.load(files[0]).dataobj).transpose(2, 1, 0)


def nifti_itk(files: list[Path]) -> np.ndarray[Any, Any]:
    import SimpleITK

    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(files[0]))).astype(np.float32)


def limit_inflate(files: list[Path]) -> None:
    """The fastest inflater that is here, its output thrown away."""
    engine, rest = _volume_files.inflater()[0].decompressobj(wbits=31), b""
    with files[0].open("rb", buffering=0) as stream:
        while not engine.eof:
            engine.decompress(rest or stream.read(1 << 18), 1 << 20)
            rest = engine.unconsumed_tail


def limit_fresh(files: list[Path]) -> None:
    """The memory of the float32 volume, each page used once."""
    np.empty(300 << 20, np.uint8)[:: 1 << 12] = 1


def rested(turns: int) -> list[float]:
    """Milliseconds of processor time of fresh memory of 300 MiB, three seconds after it was last used."""
    found = []
    for _ in range(turns):
        time.sleep(3)
        start = time.process_time()
        limit_fresh([])
        found.append(round((time.process_time() - start) * 1e3, 1))
    return found


SERIES: dict[str, Callable[[list[Path]], object]] = {
    "medfuse": ours,
    "naive pydicom": naive,
    "SimpleITK": simple_itk,
    "MONAI PydicomReader": monai,
}
NIFTI: dict[str, Callable[[list[Path]], object]] = {
    HAS_ISAL: nifti_ours,
    "medfuse (zlib)": nifti_zlib,
    "nibabel get_fdata float32": nifti_nibabel,
    "nibabel dataobj int16": nifti_stored,
    "SimpleITK": nifti_itk,
}


def peak(group: str, name: str, files: list[Path], peers: str) -> float:
    """Most resident memory of a fresh process while it reads, beyond what it had before, MiB."""
    call = [sys.executable, __file__, "--peers", peers, "--alone", group, name, str(files[0].parent)]
    done = subprocess.run(call, check=True, capture_output=True, text=True)
    return float(done.stdout.strip().splitlines()[-1])


def alone(group: str, name: str, folder: str) -> None:
    files = sorted(Path(folder).iterdir())
    run = (SERIES if group == "series" else NIFTI)[name]
    importlib.import_module("monai.transforms" if "MONAI" in name else "nibabel")
    pydicom.dcmread(files[0]) if group == "series" else None
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again

    def status(key: str) -> float:
        return int(Path("/proc/self/status").read_text().split(key + ":")[1].split()[0]) / 1024

    before = status("VmRSS")
    kept = run(files)
    sys.stdout.write(f"{status('VmHWM') - before:.1f}\n")
    del kept


def compare(runs: dict[str, Callable[[list[Path]], object]], files: list[Path], truth: np.ndarray[Any, Any]) -> None:
    for name, run in runs.items():
        found = np.asarray(run(files))
        assert found.shape == truth.shape, (name, found.shape)
        assert np.array_equal(found, truth), f"{name}: other voxels"


def _readers(group: dict[str, Callable[[list[Path]], object]]) -> dict[str, Callable[[list[Path]], object]]:
    """Those whose packages are here."""
    absent = [name for name, needs in ((HAS_ISAL, "isal"), ("SimpleITK", "SimpleITK")) if not _has(needs)]
    return {name: run for name, run in group.items() if name not in absent}


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _bound(runs: dict[str, Any], given: list[Path]) -> dict[str, Any]:
    return {k: lambda run=run: run(given) for k, run in runs.items()}


def measure_series(values: np.ndarray[Any, Any], folder: Path, repeats: int, peers: str) -> dict[str, Any]:
    runs = _readers(SERIES)
    dicom.write_ct_series(folder / "ct", values, AFFINE)
    files = sorted((folder / "ct").iterdir())
    compare(runs, files, values.transpose(2, 1, 0).astype(np.float32))
    limits = {"limit: read": limit_read, "limit: read and convert": limit_convert}
    times = round_robin(_bound(runs | limits | {"medfuse, all patches of 32 mm": patches}, files), repeats=repeats)
    peaks = {k: peak("series", k, files, peers) for k in runs}
    size = values.size * 4 / 2**20
    return {
        "series": times,
        "peak_mib": peaks,
        "times_ours_series": ratios(times, "medfuse"),
        "peak_over_volume": {k: round(v / size, 2) for k, v in peaks.items()},
    }


def measure_nifti(values: np.ndarray[Any, Any], folder: Path, repeats: int, peers: str) -> dict[str, Any]:
    runs = _readers(NIFTI)
    (folder / "nifti").mkdir()
    one = [folder / "nifti" / "ct.nii.gz"]
    nibabel.save(nibabel.Nifti1Image(values, AFFINE), one[0])
    compare(runs, one, values.transpose(2, 1, 0).astype(np.float32))
    before = load()
    limits = {"limit: inflate": limit_inflate, "limit: fresh memory": limit_fresh}
    times = round_robin(_bound(runs | limits, one), repeats=repeats, budget=120, before=touch_memory)
    fast = HAS_ISAL if HAS_ISAL in runs else "medfuse (zlib)"
    return {
        "packed_mib": round(one[0].stat().st_size / 2**20, 1),
        "nifti": times,
        "nifti_ours_is": fast,
        "times_ours_nifti": ratios(times, fast),
        "nifti_run": {
            "date": datetime.date.today().isoformat(),
            "load": [before, load()],
            "fresh_300_mib_after_three_seconds_cpu_ms": rested(min(repeats, 7)),
        },
        "peak_mib_nifti": {k: peak("nifti", k, one, peers) for k in runs},
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--peers", default="")
    parser.add_argument("--nifti", action="store_true", help="the NIfTI alone")
    parser.add_argument("--alone", nargs=3)
    parser.add_argument("--small", action="store_true", help="a count for tests; no figure")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "volumes.json")
    options = parser.parse_args()
    if options.peers:
        sys.path.append(options.peers)
    if options.alone:
        alone(*options.alone)
        return
    if options.small:
        options.slices, options.repeats = 6, 1
    before, values = load(), body(options.slices)
    packages = ["numpy", "pydicom", "nibabel", "monai", *(p for p in ("SimpleITK", "isal") if _has(p))]
    result: dict[str, Any] = {}
    if options.nifti and options.out.exists():
        result = json.loads(options.out.read_text())
    with tempfile.TemporaryDirectory() as name:
        if not options.nifti:
            result |= {
                "format_version": 1,
                "date": datetime.date.today().isoformat(),
                "goal": {"series": GOALS, "nifti_vs_nibabel": GOAL_NIFTI, "peak_over_volume": GOAL_MEMORY},
                "slices": options.slices,
                "volume_mib": round(values.size * 4 / 2**20, 1),
                **measure_series(values, Path(name), options.repeats, options.peers),
            }
            result["machine"] = machine(*packages) | {"load_before": before, "load_after": load()}
        result |= measure_nifti(values, Path(name), options.repeats, options.peers)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    sys.stdout.write(json.dumps(result, indent=1) + "\n")
    if options.small:
        return
    for name, goal in GOALS.items():
        assert result.get("times_ours_series", {}).get(name, goal) >= goal, f"goal P9: {name}"
    assert result.get("peak_over_volume", {}).get("medfuse", 0) <= GOAL_MEMORY, "goal P9: peak memory"
    assert (
        result["nifti_ours_is"] != HAS_ISAL or result["times_ours_nifti"]["nibabel get_fdata float32"] >= GOAL_NIFTI
    ), "goal: NIfTI"


if __name__ == "__main__":
    main()
