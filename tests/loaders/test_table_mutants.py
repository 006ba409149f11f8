"""Random damage of tables, vectors and texts: read or refused by an error of ours, soon, and never by another."""

import h5py
import numpy as np
import pandas as pd
import pytest
from clock import Watch

from medfuse import loaders
from medfuse.card import ModalityCard
from medfuse.errors import MedfuseError
from medfuse.inspection import inspect
from medfuse.loaders import text

IDS = [f"{k:03d}" for k in range(1, 31)]
COLUMNS = {"age": {"unit": "years"}, "sex": {"kind": "categorical", "levels": ["f", "m"]}}
ARFF = "@relation t\n@attribute id string\n@attribute age numeric\n@attribute sex {f,m}\n@data\n"


def sound(folder):
    """Loader, file and what the card says besides, for each format."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"id": IDS, "age": rng.normal(60, 9, 30).round(1), "sex": list("fm") * 15})
    frame.to_csv(folder / "t.csv", index=False)
    frame.to_csv(folder / "t.csv.gz", index=False)
    frame.to_csv(folder / "t.csv.zip", index=False)
    frame.to_parquet(folder / "t.parquet")
    (folder / "t.arff").write_text(ARFF + frame.to_csv(index=False, header=False))
    arrays = {i: rng.normal(size=(4, 5)).astype(np.float32) for i in IDS}
    np.savez(folder / "v.npz", **arrays)
    np.savez_compressed(folder / "z.npz", **arrays)
    with h5py.File(folder / "v.h5", "w") as file:
        for i, array in arrays.items():
            file.create_dataset(f"{i}/features", data=array, compression="gzip")
            file.create_dataset(f"{i}/coords", data=np.arange(8).reshape(4, 2))
    vectors = pd.DataFrame(rng.normal(size=(30, 6)), columns=[f"f{k}" for k in range(6)])
    vectors.assign(id=IDS).to_csv(folder / "v.csv", index=False)
    report = "FINDINGS: No mass. Margins are free, größer nicht.\n\nIMPRESSION: see above.\n"
    (folder / "r.txt").write_text(report * 5, encoding="utf-8")
    tables = [("tabular", n, {"columns": COLUMNS}) for n in ("t.csv", "t.csv.gz", "t.csv.zip", "t.parquet", "t.arff")]
    return [*tables, *(("vectors", n, {}) for n in ("v.npz", "z.npz", "v.h5", "v.csv")), ("text", "r.txt", {})]


def damaged(content, rng):
    """Flipped bits, a cut, a stretch of zeros, or a piece that stands where it does not belong."""
    data = bytearray(content)
    at, other = (int(v) for v in rng.integers(0, len(data), 2))
    kind = int(rng.integers(4))
    if kind == 0:
        for place in rng.integers(0, len(data), int(rng.integers(1, 6))):
            data[place] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        data = data[:at]
    elif kind == 2:
        data[at : at + 64] = bytes(min(64, len(data) - at))
    else:
        data[at:at] = data[other : other + int(rng.integers(1, 200))]
    return bytes(data)


def read(folder, loader, name, said):
    if loader == "text":
        return text.read((folder / name,), {}).fetch([0])
    card = ModalityCard(loader=loader, file=name, **said)
    return loaders.read("m", card, resolve=lambda file: folder / file, patients=("id", ""))


def attack(folder, count, *, seed, only):
    """Refusals of ``count`` mutants of the formats of one loader."""
    rng = np.random.default_rng(seed)
    cases = [case for case in sound(folder) if case[0] == only]
    refusals = []
    for number in range(count):
        _, name, said = cases[number % len(cases)]
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(damaged(content, rng))
        watch = Watch()
        assert not [one for one in inspect([folder / name]) if "failed on it" in one.refusal], (number, name)
        try:
            read(folder, only, name, said)
        except MedfuseError as error:
            refusals.append(str(error))
        assert watch.spent() < 5, (number, name)
        (folder / name).write_bytes(content)
    assert min(map(len, refusals)) > 30
    return len(refusals)


@pytest.mark.parametrize("loader", ["tabular", "vectors", "text"])
def test_mutants_are_read_or_refused(tmp_path, loader):
    for case in sound(tmp_path):
        read(tmp_path, *case)  # all are sound before
    assert attack(tmp_path, 60, seed=3, only=loader) > 5


@pytest.mark.slow
@pytest.mark.parametrize("loader", ["tabular", "vectors", "text"])
def test_a_thousand_mutants_are_read_or_refused(tmp_path, loader, many):
    count = many(1000, 10_000)
    assert attack(tmp_path, count, seed=4, only=loader) > count / 20


def test_a_value_that_float32_cannot_hold_is_refused_and_not_stored_as_infinity(tmp_path):
    (tmp_path / "t.csv").write_text("id,age,sex\n001,61,f\n002,1e39,m\n")
    with pytest.raises(MedfuseError, match=r"values up to 3\.4e38, found 1 larger ones, the first in column 1 of 2"):
        read(tmp_path, "tabular", "t.csv", {"columns": COLUMNS})
