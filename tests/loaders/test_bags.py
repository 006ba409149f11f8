"""Features of other tools, one HDF5 file per slide: from and to the store, broken files, mutants and bombs."""

import shutil
import tracemalloc

import h5py
import numpy as np
import pytest
from clock import Watch

from medfuse.card import CohortCard, ModalityCard
from medfuse.cohort import read_cohort
from medfuse.dataset import load_modalities
from medfuse.errors import ConfigError, DataError, MedfuseError
from medfuse.extraction import extract
from medfuse.inspection import inspect
from medfuse.loaders import bags, slide
from medfuse.sample import ModalitySample
from medfuse.store import FeatureStore


def cohort_of(folder, card, *more):
    """A cohort of three patients and more, whose only modality is the card's."""
    (folder / "patients.csv").write_text("id,days,died\n001,100,1\n002,250,0\n003,30,1\n" + "".join(more))
    codes = {"event_codes": ["1"], "censored_codes": ["0"]}
    content = {
        "name": "example",
        "title": "Example",
        "governance": dict.fromkeys(("licence", "source", "citation", "consent", "deidentification"), "none"),
        "patients": {"file": "patients.csv", "id": "id"},
        "outcomes": {"os": {"kind": "survival", "time": "days", "unit": "days", "event": "died", **codes}},
        "modalities": {"m": card.model_dump(exclude_defaults=True)},
    }
    return read_cohort(CohortCard.model_validate(content), data_root=folder)


def write(path, features, coords=None, **attributes):
    with h5py.File(path, "w") as file:
        file["features"] = features
        if coords is not None:
            file["coords"] = coords
            file["coords"].attrs.update(attributes)
    return path


@pytest.fixture
def sound(tmp_path):
    rng = np.random.default_rng(1)
    return write(tmp_path / "s.h5", rng.normal(size=(9, 4)).astype("f4"), rng.integers(0, 9999, (9, 2)), patch_size=256)


def test_slides_of_a_patient_are_joined_and_each_is_an_item_of_its_own(tmp_path):
    card = bags.write_example(tmp_path)
    write(tmp_path / "features" / "001_B.h5", np.arange(24, dtype="f4").reshape(3, 8), np.full((3, 2), 9999))
    cohort = cohort_of(tmp_path, card)
    data = load_modalities(cohort, store_root=tmp_path / "store")["m"]
    tokens, position = np.asarray(data.samples["001"].tokens, dtype="f4"), data.samples["001"].position
    second = position[:, 0] == 9999
    np.testing.assert_array_equal(tokens[second], np.arange(24).reshape(3, 8))
    with h5py.File(tmp_path / "features" / "001_A.h5") as file:
        np.testing.assert_allclose(tokens[~second], file["features"][()], rtol=1e-3, atol=1e-6)  # float16 on disk
        np.testing.assert_array_equal(position[~second], file["coords"][()])
    assert data.samples["002"].tokens.shape == (4, 8)
    assert len(extract(cohort, store_root=tmp_path / "store").items) == 3
    write(tmp_path / "features" / "002_A.h5", np.zeros((2, 8)))  # another content is another entry
    again = load_modalities(cohort, store_root=tmp_path / "store")["m"]
    assert again.samples["002"].tokens.shape == (2, 8)


def test_a_pattern_that_gives_a_file_to_two_patients_is_refused(tmp_path):
    card = bags.write_example(tmp_path).model_copy(update={"path": "features/{patient_id}*.h5"})
    (tmp_path / "features" / "0012_A.h5").write_bytes((tmp_path / "features" / "001_A.h5").read_bytes())
    cohort = cohort_of(tmp_path, card)
    load_modalities(cohort, store_root=tmp_path / "store")  # nobody is patient 0012
    with pytest.raises(ConfigError, match=r"of patient 0012\) for patients 001 and 0012.*such as"):
        load_modalities(cohort_of(tmp_path, card, "0012,9,1\n"), store_root=tmp_path / "store")


@pytest.mark.parametrize("layout", ["clam", "trident"])
def test_a_stored_bag_goes_to_hdf5_and_comes_back_through_a_card(tmp_path, layout):
    folder = tmp_path / "slides"
    folder.mkdir()
    cohort = cohort_of(folder, slide.write_example(folder))
    report = extract(cohort, store_root=tmp_path / "store")
    stored = {i.patient_id: FeatureStore(tmp_path / "store").get_item(i.key) for i in report.items}
    other = tmp_path / "other"
    (other / "features").mkdir(parents=True)
    for patient, item in stored.items():
        slide.write_features(other / "features" / f"{patient}.h5", item.sample, facts=item.facts, layout=layout)
    card = ModalityCard(loader="bags", path="features/{patient_id}.h5")
    data = load_modalities(cohort_of(other, card), store_root=tmp_path / "store")["m"]
    assert set(data.samples) == set(stored)
    for patient, item in stored.items():
        np.testing.assert_array_equal(data.samples[patient].tokens, np.asarray(item.sample.tokens, dtype=np.float32))
        np.testing.assert_array_equal(data.samples[patient].position, item.sample.position)
    (found,) = inspect([other / "features" / f"{next(iter(stored))}.h5"])
    assert (found.loader, found.refusal) == ("bags", "")
    assert found.holds["patch_size"] > 0
    assert "attribute name of coords" in found.identifying[0]


def test_other_layouts_of_the_same_numbers(tmp_path, sound):
    with h5py.File(sound) as file:
        features, coords = file["features"][()], file["coords"][()]
    expected = bags.read((sound,), {})
    assert expected.unit == "level-0 pixels"
    assert expected.facts == {"patch_size": 256.0}
    rows = [8, 0, 3]
    for k, path in enumerate(
        (
            write(tmp_path / "a.h5", features[None], coords[None]),  # TRIDENT keeps a leading axis of one
            write(tmp_path / "b.h5", features.astype("f8"), coords.astype("i4")),
        )
    ):
        raw = bags.read((path,), {})
        np.testing.assert_array_equal(raw.fetch(rows), features[rows], err_msg=str(k))
        np.testing.assert_array_equal(raw.position, coords)
    raw = bags.read((write(tmp_path / "c.h5", features),), {})
    assert (raw.unit, raw.position.tolist()) == ("index", [[k] for k in range(9)])
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file["feats"], file["xy"] = features, coords
    raw = bags.read((tmp_path / "d.h5",), {"features": "feats", "coordinates": "xy"})
    np.testing.assert_array_equal(raw.position, coords)
    with pytest.raises(ConfigError, match="unknown 'feature'"):
        bags.read((sound,), {"feature": "x"})


def test_tokens_that_are_not_finite_are_left_out_and_counted(tmp_path):
    features = np.arange(40, dtype="f4").reshape(10, 4)
    features[[2, 5], [0, 1]] = np.nan, np.inf
    raw = bags.read((write(tmp_path / "a.h5", features, np.zeros((10, 2))),), {})
    assert raw.warnings == ("2 tokens that are not finite were left out",)
    kept = [0, 1, 3, 4, 6, 7, 8, 9]
    np.testing.assert_array_equal(raw.fetch(range(8)), features[kept])
    np.testing.assert_array_equal(raw.fetch([7, 2]), features[[9, 3]])


def test_blocks_of_rows_are_put_together(tmp_path, monkeypatch):
    monkeypatch.setattr(bags, "_BLOCK", 3)
    features = np.random.default_rng(0).normal(size=(20, 2)).astype("f4")
    raw = bags.read((write(tmp_path / "a.h5", features),), {})
    rows = np.random.default_rng(1).permutation(20)
    np.testing.assert_array_equal(raw.fetch(rows), features[rows])


# --- broken files -----------------------------------------------------------------------------------------------------


def instead(name, value):
    def change(file):
        if name in file:
            del file[name]
        if value is not None:
            file[name] = value

    return change


def virtual(file):
    del file["features"]
    layout = h5py.VirtualLayout(shape=(9, 4), dtype="f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", shape=(9, 4))
    file.create_virtual_dataset("features", layout)


def external(file):
    del file["features"]
    file.create_dataset("features", shape=(9, 4), dtype="f4", external=[("/etc/passwd", 0, 144)])


BROKEN = {
    "no features": (instead("features", None), "expected a dataset 'features', found 1 others; name it"),
    "a group": (lambda file: (instead("features", None)(file), file.create_group("features")), "numbers (T, N)"),
    "text": (instead("features", np.array([[b"a"]])), "numbers (T, N)"),
    "one vector": (instead("features", np.zeros(4)), "numbers (T, N)"),
    "two bags": (instead("features", np.zeros((2, 9, 4))), "numbers (T, N)"),
    "no token": (instead("features", np.zeros((0, 4))), "numbers (T, N)"),
    "complex": (instead("features", np.zeros((9, 4), dtype="c8")), "numbers (T, N)"),
    "only NaN": (instead("features", np.full((9, 4), np.nan)), "expected finite features, found none in 9"),
    "fewer coordinates": (instead("coords", np.zeros((8, 2))), "expected coordinates of 9 tokens, found 8"),
    "a coordinate": (instead("coords", np.zeros(9)), "expected numbers (T, N) as 'coords'"),
    "named coordinates": (instead("coords", np.array([[b"x"]] * 9)), "expected numbers (T, N) as 'coords'"),
    "soft link": (instead("features", h5py.SoftLink("/coords")), "found a link to 'features'"),
    "external link": (instead("features", h5py.ExternalLink("/etc/passwd", "/x")), "found a link"),
    "external storage": (external, "found a link"),
    "virtual": (virtual, "found a link"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_by_name(sound, name):
    import re

    change, said = BROKEN[name]
    with h5py.File(sound, "r+") as file:
        change(file)
    with pytest.raises(DataError, match=re.escape(said)):
        bags.read((sound,), {})
    assert not any("medfuse failed on it" in one.refusal for one in inspect([sound]))


def mutants(sound, folder, count, seed):
    rng = np.random.default_rng(seed)
    content = sound.read_bytes()
    refused = 0
    for number in range(count):
        out = bytearray(content)
        at = int(rng.integers(len(out)))
        match number % 4:
            case 0:
                for k in rng.integers(0, len(out), 6):
                    out[k] = int(rng.integers(256))
            case 1:
                del out[at:]
            case 2:
                out[at:at] = out[: int(rng.integers(1, 200))]
            case _:
                out[at : at + 64] = bytes(min(64, len(out) - at))
        path = folder / "m.h5"
        path.write_bytes(bytes(out))
        watch = Watch()
        for call in (
            lambda path=path: bags.read((path,), {}).fetch([0]),
            lambda path=path: bags.describe((path,)),
            lambda path=path: bags.identifying((path,)),
            lambda path=path: inspect([path]),
        ):
            try:
                call()
            except MedfuseError:
                refused += 1
        assert watch.spent() < 2
    return refused


def test_mutants_are_read_or_refused(sound, tmp_path):
    assert mutants(sound, tmp_path, 60, 3) > 20


@pytest.mark.slow
def test_a_thousand_mutants(sound, tmp_path, many):
    count = many(1000, 10_000)
    assert mutants(sound, tmp_path, count, 4) > 0.3 * count


def test_bombs_are_refused_in_two_seconds_and_300_mb(tmp_path):
    for name, shape, chunks in (("features", (10**9, 1024), (64, 1024)), ("coords", (50, 10**8), (1, 1 << 20))):
        path = write(tmp_path / "b.h5", np.zeros((50, 4), dtype="f4"))
        with h5py.File(path, "r+") as file:
            if name in file:
                del file[name]
            file.create_dataset(name, shape=shape, dtype="f4", chunks=chunks, compression="gzip")
        watch = Watch()
        tracemalloc.start()
        with pytest.raises(DataError, match="a decompression bomb"):
            bags.read((path,), {})
        assert not any("medfuse failed" in one.refusal for one in inspect([path]))
        assert watch.spent() < 2
        assert tracemalloc.get_traced_memory()[1] < 300e6
        tracemalloc.stop()


def test_example_files_can_be_copied_anywhere(tmp_path):
    bags.write_example(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    one, other = (bags.read((tmp_path / k / "features" / "001_A.h5",), {}) for k in "ab")
    np.testing.assert_array_equal(one.fetch(range(len(one))), other.fetch(range(len(other))))
    with pytest.raises(DataError, match="tiles of a slide"):
        slide.write_features(
            tmp_path / "x.h5", ModalitySample(tokens=one.fetch([0]), position=one.position[:1]), facts={}
        )
