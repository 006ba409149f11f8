"""Feature vectors as other tools write them, and every way in which such a file is damaged."""

import zipfile

import h5py
import numpy as np
import pandas as pd
import pytest

from medfuse.card import ModalityCard
from medfuse.errors import DataError
from medfuse.loaders import read
from medfuse.preprocessing import fit_preprocessing

RNG = np.random.default_rng(0)


def loaded(folder, patients=("id", ""), **card):
    return read("m", ModalityCard(loader="vectors", **card), resolve=lambda s: folder / s, patients=patients)


def clam(path, tiles=7, features=4):
    """CLAM: features (T, F), coords (T, 2) with attributes."""
    x = RNG.normal(size=(tiles, features)).astype(np.float32)
    xy = RNG.integers(0, 40000, size=(tiles, 2))
    with h5py.File(path, "w") as file:
        file["features"] = x
        file["coords"] = xy
        file["coords"].attrs["patch_size"] = 256
    return x, xy


def test_clam_is_one_patient_called_like_its_file(tmp_path):
    x, xy = clam(tmp_path / "TCGA-01.h5")
    data = loaded(tmp_path, file="TCGA-01.h5")
    assert (data.layout, data.features, data.identities) == ("vectors", 4, ())
    assert list(data.samples) == ["TCGA-01"]
    np.testing.assert_array_equal(data.samples["TCGA-01"].tokens, x)
    np.testing.assert_array_equal(data.samples["TCGA-01"].position, xy.astype(np.float32))


def test_trident_keeps_a_leading_axis_and_attributes(tmp_path):
    x, xy = RNG.normal(size=(1, 5, 3)).astype(np.float16), RNG.integers(0, 999, size=(1, 5, 2))
    with h5py.File(tmp_path / "s1.h5", "w") as file:
        file["features"], file["coords"] = x, xy
        file["features"].attrs["encoder"] = "uni_v1"
        file["coords"].attrs.update({"patch_size_level0": 512, "level0_magnification": 40, "overlap": 0})
    sample = loaded(tmp_path, file="s1.h5").samples["s1"]
    np.testing.assert_array_equal(sample.tokens, x[0].astype(np.float32))
    np.testing.assert_array_equal(sample.position, xy[0].astype(np.float32))
    assert sample.tokens.dtype == sample.position.dtype == np.float32


def test_trident_slide_vectors_and_groups_of_patients(tmp_path):
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file["b"] = RNG.normal(size=6)  # a slide vector (F,)
        file.create_group("a")["emb"] = RNG.normal(size=(3, 6))
        file["a"]["xy"] = np.arange(3)[:, None]
    data = loaded(tmp_path, file="all.h5", features="emb", coordinates="xy")
    assert {i: s.tokens.shape for i, s in data.samples.items()} == {"a": (3, 6), "b": (1, 6)}
    assert data.samples["a"].position[:, 0].tolist() == [0, 1, 2]


def test_numbers_that_stand_outside_an_hdf5_file_are_not_read(tmp_path):
    clam(tmp_path / "secret.h5")
    (tmp_path / "raw.bin").write_bytes(np.zeros(8).tobytes())
    layout = h5py.VirtualLayout(shape=(7, 4), dtype="f4")
    layout[:] = h5py.VirtualSource(tmp_path / "secret.h5", "features", shape=(7, 4))

    def outside(file):
        file.create_dataset("features", (2, 4), "f8", external=[(str(tmp_path / "raw.bin"), 0, 64)])

    ways = {
        "top.h5": lambda f: f.__setitem__("features", h5py.ExternalLink(tmp_path / "secret.h5", "features")),
        "patient.h5": lambda f: f.__setitem__("p1", h5py.ExternalLink(tmp_path / "secret.h5", "/")),
        "group.h5": lambda f: f.create_group("p1").__setitem__(
            "features", h5py.ExternalLink(tmp_path / "secret.h5", "features")
        ),
        "external.h5": outside,
        "virtual.h5": lambda f: f.create_virtual_dataset("features", layout),
    }
    for name, write in ways.items():
        with h5py.File(tmp_path / name, "w") as file:
            write(file)
        with pytest.raises(DataError, match=rf"{name}.*numbers inside the file, found a link.*copy"):
            loaded(tmp_path, file=name)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_rows_are_vectors_and_several_rows_are_a_bag(tmp_path, suffix):
    frame = pd.DataFrame(
        {"id": ["001", "002", "001"], "f0": [1.5, np.nan, 3.0], "f1": [0.25, 2.0, -1.0], "f2": [0.0, 1.0, 2.0]}
    )
    if suffix == ".parquet":
        frame.to_parquet(tmp_path / "v.parquet")
    else:
        frame.to_csv(tmp_path / f"v{suffix}", index=False, sep="," if suffix == ".csv" else "\t")
    data = loaded(tmp_path, file=f"v{suffix}")
    assert list(data.samples) == ["001"]  # 002 has a cell missing: no vector
    assert data.samples["001"].tokens.tolist() == [[1.5, 0.25, 0.0], [3.0, -1.0, 2.0]]
    assert data.warnings == ("1 patients had tokens that are not finite and were left out: 002",)


def test_npz_by_patient_or_as_matrix_with_ids(tmp_path):
    np.savez(tmp_path / "one.npz", **{"001": np.arange(3.0), "002": np.ones((2, 3))})
    by_key = loaded(tmp_path, file="one.npz")
    assert {i: s.tokens.shape for i, s in by_key.samples.items()} == {"001": (1, 3), "002": (2, 3)}
    x = RNG.normal(size=(3, 4))
    np.savez(tmp_path / "two.npz", emb=x, who=np.array(["001", "002", "001"]))
    as_matrix = loaded(tmp_path, file="two.npz", id="who", features="emb")
    np.testing.assert_array_equal(as_matrix.samples["001"].tokens, x[[0, 2]].astype(np.float32))
    assert set(as_matrix.samples) == {"001", "002"}


def test_token_identities_are_files_and_a_patient_may_miss_some(tmp_path):
    np.savez(tmp_path / "he.npz", a=np.ones(3), b=np.ones(3))
    np.savez(tmp_path / "cd8.npz", b=np.full(3, 2.0), c=np.array([1.0, np.inf, 0.0]))
    data = loaded(tmp_path, files={"HE": "he.npz", "CD8": "cd8.npz"})
    assert data.identities == ("HE", "CD8")
    assert {i: s.position[:, 0].tolist() for i, s in data.samples.items()} == {"a": [0], "b": [0, 1]}
    assert "c (CD8)" in data.warnings[0]


def test_a_constant_feature_is_dropped_and_listed(tmp_path):
    values = RNG.normal(size=(6, 3))
    values[:, 1] = 0.1
    np.savez(tmp_path / "v.npz", **{f"p{i}": row for i, row in enumerate(values)})
    fitted = fit_preprocessing(loaded(tmp_path, file="v.npz"), [f"p{i}" for i in range(6)])
    assert fitted.dropped == (("m[1]", "constant in train"),)
    assert fitted.feature_names == ("m[0]", "m[2]")


def pickled(path):
    np.savez(path, a=np.array([{"x": 1}], dtype=object))


def flipped(path):
    np.savez_compressed(path, a=RNG.normal(size=(50, 8)))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def not_a_zip(path):
    np.save(path.with_suffix(".npy"), np.ones(3))
    path.with_suffix(".npy").rename(path)


def encrypted_flag(path):
    np.savez(path, a=np.ones(3))
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + offset] |= 1
    path.write_bytes(content)


def unequal(path):
    np.savez(path, emb=np.ones((3, 2)), who=np.array(["a", "b"]))


@pytest.mark.parametrize("write", [pickled, flipped, not_a_zip, encrypted_flag, unequal])
def test_damaged_npz_is_named(tmp_path, write):
    write(tmp_path / "v.npz")
    with pytest.raises(DataError, match=r"v\.npz: expected an NPZ file of plain arrays, found .*fetch"):
        loaded(tmp_path, file="v.npz", id="who", features="emb")


def test_every_cut_of_every_format_is_refused_by_name(tmp_path):
    """Cut at many places: always a typed error that names the file, never a shorter bag."""
    x = RNG.normal(size=(40, 6))
    clam(tmp_path / "v.h5", tiles=40, features=6)
    np.savez(tmp_path / "v.npz", **{f"p{i}": row for i, row in enumerate(x)})
    frame = pd.DataFrame(x, columns=[f"f{j}" for j in range(6)]).assign(id=[f"p{i}" for i in range(40)])
    frame.to_csv(tmp_path / "v.csv", index=False, columns=["id", *frame.columns[:6]])
    frame.to_parquet(tmp_path / "v.parquet")
    for name in ("v.h5", "v.npz", "v.parquet", "v.csv"):
        content = (tmp_path / name).read_bytes()
        assert loaded(tmp_path, file=name).samples
        cuts = [0, 1, 7, *RNG.integers(10, len(content) - 2, size=25).tolist()]
        if name == "v.csv":  # a text cut at the end of a row or inside its last cell is a shorter, valid text
            text = content.decode()
            cuts = [c for c in cuts if text[text.rfind("\n", 0, c) + 1 : c].count(",") not in (0, 6)] + [0]
        for cut in cuts:
            (tmp_path / f"cut-{name}").write_bytes(content[:cut])
            with pytest.raises(DataError, match=rf"cut-{name}.*(again|correct|card)"):
                loaded(tmp_path, file=f"cut-{name}")


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"a": np.ones((2, 2, 2))}, r"v\.npz, patient a: expected a vector .*found float64 \(2, 2, 2\).*card"),
        ({"a": np.ones((0, 3))}, r"found float64 \(0, 3\)"),
        ({"a": np.ones((3, 0))}, r"found float64 \(3, 0\)"),
        ({"a": np.array(["x"])}, r"expected a vector"),
        ({"a": np.array([True])}, r"expected a vector"),
        ({"a": np.ones(3), "b": np.ones(4)}, r"v\.npz, patient b: expected 3 features per token as before, found 4"),
    ],
)
def test_arrays_that_are_no_vectors_are_refused(tmp_path, arrays, said):
    np.savez(tmp_path / "v.npz", **arrays)
    with pytest.raises(DataError, match=said):
        loaded(tmp_path, file="v.npz")


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"feats": np.ones((2, 3))}, None),  # one patient called feats
        ({"p/other": np.ones(3)}, r"v\.h5: expected an HDF5 file with 'features', found .*card"),
        ({"features": np.ones((2, 3)), "coords": np.ones((3, 2))}, r"expected coordinates of 2 tokens, found \(3, 2\)"),
        ({"p/features/deep": np.ones(3)}, r"v\.h5: expected an HDF5 file"),
    ],
)
def test_hdf5_of_another_layout_is_refused(tmp_path, arrays, said):
    with h5py.File(tmp_path / "v.h5", "w") as file:
        for name, array in arrays.items():
            file[name] = array
    if said is None:
        assert list(loaded(tmp_path, file="v.h5").samples) == ["feats"]
        return
    with pytest.raises(DataError, match=said):
        loaded(tmp_path, file="v.h5")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('id,f0\n1,"0,5"\n', r"v\.csv, data row 1, column 'f0': expected a number, found a decimal comma"),
        ("id\n1\n", r"v\.csv: expected columns of features beside 'id', found none"),
        ("id,f0\n,1\n", r"v\.csv, data row 1, column 'id': expected a patient id"),
        ("who,f0\n1,1\n", r"v\.csv: expected a column 'id', found none"),
    ],
)
def test_bad_rows_are_refused_by_place(tmp_path, text, said):
    (tmp_path / "v.csv").write_text(text)
    with pytest.raises(DataError, match=said):
        loaded(tmp_path, file="v.csv")


def test_an_unknown_format_names_the_known_ones(tmp_path):
    (tmp_path / "v.pt").write_bytes(b"x")
    with zipfile.ZipFile(tmp_path / "v.zip", "w") as archive:
        archive.writestr("x", "x")
    for name in ("v.pt", "v.zip"):
        with pytest.raises(DataError, match=r"expected \.npz, \.h5, \.hdf5, \.csv"):
            loaded(tmp_path, file=name)
