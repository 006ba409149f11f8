"""Raw windows and patches: from files through the store to a batch, in one order, one step and one unit."""

import dataclasses
import json

import nibabel
import numpy as np
import pytest
import torch

from medfuse.batch import ModalityShape, TargetTensors, without_modality
from medfuse.card import CohortCard
from medfuse.cohort import read_cohort
from medfuse.dataset import load_modalities
from medfuse.errors import ConfigError, DataError, StoreError
from medfuse.extractors.raw import RawPatches, RawWindows
from medfuse.loaders.ecg import synthesise, write_wfdb
from medfuse.metrics.discrimination import auroc
from medfuse.models import HeadSettings, ModelSettings, build_model
from medfuse.preprocessing import dense_matrix, from_arrays, to_arrays, transform
from medfuse.sample import ModalityData, ModalitySample, RawSample
from medfuse.training.fit import fit_member
from medfuse.training.member import fit_preprocessings, make_batch, shapes_of, transform_patients
from medfuse.training.settings import TrainSettings

LEADS = ["II", "V2", "V5"]
FACTS = {"leads": ["I", "II", "V2", "V5"], "sampling_frequency": 50.0}


def windows(**options):
    return RawWindows(**{"leads": LEADS, "sampling_frequency": 50, "seconds": 2, **options})


def cohort_of(root, modalities, patients):
    (root / "patients.csv").write_text(
        "id,died,days\n" + "".join(f"{p},{k % 2},{k + 1}\n" for k, p in enumerate(patients))
    )
    card = {
        "name": "raw",
        "title": "Made up",
        "governance": dict.fromkeys(("licence", "source", "citation", "consent", "deidentification"), "made up"),
        "patients": {"file": "patients.csv", "id": "id"},
        "outcomes": {
            "os": {
                "kind": "survival",
                "time": "days",
                "unit": "days",
                "event": "died",
                "event_codes": ["1"],
                "censored_codes": ["0"],
            }
        },
        "modalities": modalities,
    }
    return read_cohort(CohortCard.model_validate(card), data_root=root)


# --- windows ---------------------------------------------------------------------------------------------------------


def test_leads_are_taken_by_name_in_the_order_wanted():
    items = np.random.default_rng(0).normal(size=(3, 4, 100)).astype(np.float32)
    found = windows()(items, FACTS).reshape(3, 3, 100)
    assert np.array_equal(found, items[:, 1:])
    turned = windows(leads=["V5", "I"])(items, FACTS).reshape(3, 2, 100)
    assert np.array_equal(turned, items[:, [3, 0]])


def test_what_is_not_there_is_refused_or_zero():
    items = np.ones((1, 4, 80), np.float32)
    with pytest.raises(DataError, match=r"expected leads II, V2, V5 of 100 samples, found .* of 80; set options.sec"):
        windows()(items, FACTS)
    found = windows(leads=["II", "V6"], absent="zero")(items, FACTS).reshape(2, 100)
    assert found[0, :80].all()
    assert not found[0, 80:].any()
    assert not found[1].any()
    with pytest.raises(DataError, match="of 120"):
        windows(absent="zero")(np.ones((1, 4, 120), np.float32), FACTS)
    with pytest.raises(DataError, match="expected windows at 50 Hz, found 100 Hz; set"):
        windows()(items, {**FACTS, "sampling_frequency": 100.0})
    with pytest.raises(DataError, match="finite"):
        windows()(np.full((1, 4, 100), np.nan, np.float32), FACTS)


@pytest.mark.parametrize(
    "options", [{"leads": []}, {"leads": ["I", "I"]}, {"seconds": 0}, {"absent": "skip"}, {"seconds": 1e6}]
)
def test_windows_that_cannot_be_are_refused(options):
    with pytest.raises(ConfigError, match="extractor windows: expected"):
        windows(**options)


# --- patches ---------------------------------------------------------------------------------------------------------


def test_patches_stand_channels_first():
    items = np.random.default_rng(0).normal(size=(2, 4, 5, 6, 3)).astype(np.float32)
    found = RawPatches(shape=[4, 5, 6])(items, {}).reshape(2, 3, 4, 5, 6)
    assert np.array_equal(found[:, 1], items[..., 1])


def test_patches_of_another_shape_spacing_or_unit_are_refused():
    items, facts = np.zeros((1, 4, 4, 4, 1), np.float32), {"spacing_mm": [1, 1, 2], "unit": "HU"}
    RawPatches(shape=[4, 4, 4], spacing_mm=[1, 1, 2], unit="HU")(items, facts)
    for options in ({"shape": [4, 4, 5]}, {"shape": [4, 4, 4], "spacing_mm": 1}, {"shape": [4, 4, 4], "unit": "SUV"}):
        with pytest.raises(DataError, match="expected patches"):
            RawPatches(**options)(items, facts)
    for options in (
        {"shape": [4, 4]},
        {"shape": [4, 4, 0]},
        {"shape": [4, 4, 4], "spacing_mm": -1},
        {"shape": [512] * 3},
    ):
        with pytest.raises(ConfigError, match="extractor patches: expected"):
            RawPatches(**options)


# --- through the store -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Six patients with windows (3, 100), four of whom also have patches (1, 8, 8, 8)."""
    root = tmp_path_factory.mktemp("raw")
    (root / "ecg").mkdir()
    patients = [f"p{k}" for k in range(6)]
    for k, patient in enumerate(patients):
        signal = synthesise(5.0, 50.0, st_mv=0.1 * k, seed=k)
        write_wfdb(root / "ecg", patient, signal, sampling_frequency=50.0)
        if k < 4:
            (root / "ct").mkdir(exist_ok=True)
            voxels = np.random.default_rng(k).normal(40, 100, (16, 8, 8)).astype(np.int16)
            image = nibabel.Nifti1Image(voxels, np.diag([2.0, 2.0, 2.0, 1.0]))
            image.header.set_xyzt_units("mm")
            nibabel.save(image, root / "ct" / f"{patient}.nii.gz")
    ecg = {"leads": LEADS, "sampling_frequency": 50, "seconds": 2}
    cohort = cohort_of(
        root,
        {
            "ecg": {
                "loader": "ecg",
                "path": "ecg/{patient_id}.*",
                "options": {"seconds": 2},
                "extractor": {"name": "windows", **ecg},
            },
            "ct": {
                "loader": "volume",
                "path": "ct/{patient_id}.nii.gz",
                "options": {"patch": [8, 8, 8], "coverage": 0},
                "extractor": {"name": "patches", "shape": [8, 8, 8], "spacing_mm": 2},
            },
        },
        patients,
    )
    return cohort, load_modalities(cohort, store_root=root / "store")


def test_items_come_back_with_their_shape(loaded):
    _, data = loaded
    assert (data["ecg"].item, data["ct"].item) == ((3, 100), (1, 8, 8, 8))
    signal = synthesise(5.0, 50.0, st_mv=0.2, seed=2)
    rows = [("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6").index(lead) for lead in LEADS]
    stored = data["ecg"].samples["p2"]
    assert stored.position[:, 0].tolist() == [0, 2, 3]  # of 5 s; the last window ends with the recording
    expected = np.stack([signal[rows][:, start : start + 100] for start in (0, 100, 150)])
    assert np.abs(stored.tokens.reshape(3, 3, 100) - expected).max() < 2e-3 + 2**-11 * np.abs(expected).max()
    assert set(data["ct"].samples) == {"p0", "p1", "p2", "p3"}
    assert json.loads(data["ecg"].meaning)["item"]["channels"] == LEADS
    assert json.loads(data["ct"].meaning)["item"]["step"] == [2, 2, 2]


def test_scaling_is_per_channel_and_drops_nothing(loaded):
    _, data = loaded
    flat = {i: s.tokens.astype(np.float32).reshape(-1, 3, 100).copy() for i, s in data["ecg"].samples.items()}
    for tokens in flat.values():
        tokens[:, 1] = 7.0  # a lead that says nothing
    changed = dataclasses.replace(
        data["ecg"],
        samples={
            i: ModalitySample(tokens=t.reshape(len(t), -1), position=data["ecg"].samples[i].position)
            for i, t in flat.items()
        },
    )
    p = fit_preprocessings({"ecg": changed}, list(flat))["ecg"]
    whole = np.concatenate(list(flat.values())).astype(np.float64)
    assert p.item == (3, 100)
    assert p.mean.reshape(3, 100) == pytest.approx(np.repeat(whole.mean(axis=(0, 2))[:, None], 100, axis=1), rel=1e-9)
    assert p.scale.reshape(3, 100)[0] == pytest.approx(np.full(100, whole[:, 0].std()), rel=1e-9)
    assert np.abs(transform(p, changed.samples["p1"]).tokens.reshape(-1, 3, 100)[:, 1]).max() < 1e-6
    back = from_arrays(*to_arrays(p))
    assert back.item == p.item
    x, has = dense_matrix(p, changed, ["p0", "p1"])
    assert x.shape == (2, 6)
    assert has.all()
    nothing = ModalityData(
        name="ecg",
        layout="vectors",
        features=6,
        item=(2, 3),
        samples={"a": ModalitySample(tokens=np.ones((1, 6), np.float32), position=np.zeros((1, 1), np.float32))},
    )
    with pytest.raises(DataError, match="expected a column that varies in train"):
        fit_preprocessings({"ecg": nothing}, ["a"])


def test_every_subset_of_raw_modalities_goes_through_a_model(loaded):
    """Encoders are chosen by the axes of the items; what a patient lacks changes nothing, bit for bit."""
    cohort, data = loaded
    ids = list(cohort.patient_ids)
    p = fit_preprocessings(data, ids)
    shapes = shapes_of(p, data)
    batch = make_batch(transform_patients(data, p, ids), ids, shapes=shapes)
    assert batch.present.tolist() == [[True, k < 4] for k in range(6)]
    head = HeadSettings(kind="binary", name="classification", n_classes=2)
    torch.manual_seed(0)
    settings = ModelSettings(width=8, encoders={"ct": {"filters": 2}, "ecg": {"blocks": 1}}, fusion={"name": "late"})
    model = build_model(settings, shapes=shapes, heads={"died": head}).eval()
    assert [type(encoder).__name__ for encoder in model.encoders] == ["EcgResnetEncoder", "VolumeResnetEncoder"]
    with torch.no_grad():
        expected = model(batch)["died"]
        hidden = without_modality(batch, "ct")
        filled = {**hidden.tokens, "ct": torch.full_like(hidden.tokens["ct"], torch.nan)}
        garbage = dataclasses.replace(hidden, tokens=filled)
        assert torch.equal(model(hidden)["died"], model(garbage)["died"])
        assert not torch.equal(model(hidden)["died"][:4], expected[:4])
        nobody = without_modality(hidden, "ecg")
        alone = model(nobody)["died"]
    assert torch.isfinite(alone).all()
    assert torch.equal(alone, alone[:1].expand_as(alone))


def test_items_that_mean_something_else_are_not_mixed(tmp_path):
    """A CT of another spacing has patches of the same shape."""
    (tmp_path / "ct").mkdir()
    for patient, mm in (("a", 1.0), ("b", 3.0)):
        image = nibabel.Nifti1Image(np.arange(512).reshape(8, 8, 8).astype(np.int16), np.diag([mm, mm, mm, 1.0]))
        image.header.set_xyzt_units("mm")
        nibabel.save(image, tmp_path / "ct" / f"{patient}.nii.gz")
    modality = {
        "loader": "volume",
        "path": "ct/{patient_id}.nii.gz",
        "options": {"patch": [8, 8, 8], "coverage": 0},
        "extractor": {"name": "patches", "shape": [8, 8, 8]},
    }
    cohort = cohort_of(tmp_path, {"ct": modality}, ["a", "b"])
    with pytest.raises(
        StoreError, match="modality ct: expected items alike in shape, channels, step and unit, found 2"
    ):
        load_modalities(cohort, store_root=tmp_path / "store")


def test_an_encoder_of_raw_items_refuses_features():
    heads = {"died": HeadSettings(kind="binary", name="classification", n_classes=2)}
    for name, kind in (("ecg_resnet", "windows"), ("volume_resnet", "patches")):
        settings = ModelSettings(encoders={"x": {"name": name}})
        with pytest.raises(ConfigError, match=f'encoder "{name}": expected raw items .*set the extractor {kind}'):
            build_model(settings, shapes={"x": ModalityShape(layout="vectors", features=6)}, heads=heads)
    shapes = {"x": ModalityShape(layout="vectors", features=8, item=(1, 2, 2, 2))}
    settings = ModelSettings(encoders={"x": {"name": "volume_resnet", "layers": [1]}})
    with pytest.raises(ConfigError, match="four numbers of blocks"):
        build_model(settings, shapes=shapes, heads=heads)


def test_facts_of_an_item_are_stored_beside_those_of_its_file():
    raw = RawSample(
        item="window",
        shape=(4, 100),
        position=np.zeros((1, 1), np.float32),
        unit="s",
        fetch=lambda rows: np.zeros((1, 4, 100), np.float32),
        facts=FACTS,
    )
    item = windows().facts(raw)["item"]
    assert item == {"shape": [3, 100], "channels": LEADS, "step": [0.02], "step_unit": "s", "unit": "mV"}
    assert windows().facts(raw)["leads"] == FACTS["leads"]


# --- a latent that only training finds -------------------------------------------------------------------------------


def held_out_auroc(data, label, encoder, *, parts, seed):
    """Of patients that were not trained on; the label of each patient, and the encoder of the one modality."""
    ids = list(data.samples)
    name = data.name
    names = dict(zip(("train", "tuning", "held_out"), np.split(np.array(ids), np.cumsum(parts)[:2]), strict=True))
    p = fit_preprocessings({name: data}, names["train"].tolist())
    shapes, tokens = shapes_of(p, {name: data}), transform_patients({name: data}, p, ids)
    batches = {}
    for part, found in names.items():
        rows = torch.tensor([ids.index(i) for i in found])
        target = TargetTensors(
            kind="binary", observed=torch.ones(len(found), dtype=torch.bool), label=torch.tensor(label)[rows]
        )
        batches[part] = dataclasses.replace(
            make_batch(tokens, found.tolist(), shapes=shapes), targets={"planted": target}
        )
    settings = ModelSettings(width=16, encoders={name: encoder}, fusion={"name": "late"})
    head = HeadSettings(kind="binary", name="classification", n_classes=2)

    def build():
        return build_model(settings, shapes=shapes, heads={"planted": head})

    train = TrainSettings(epochs=12, batch_size=20, lr=3e-3, device="cpu", patience=0, modality_dropout=False)
    fitted = fit_member(batches["train"], batches["tuning"], build=build, settings=train, seed=seed)
    model = build()
    model.load_state_dict(dict(fitted.state))
    with torch.no_grad():
        score = model.eval()(batches["held_out"])["planted"]
    score = (score[:, -1] - score[:, 0] if score.shape[1] > 1 else score[:, 0]).double().numpy()
    return auroc(np.asarray(label)[-parts[2] :].astype(bool), score)


def learned(seed, *, planted):
    """AUROC of windows of 2 s whose ST level is the label, or is not."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, 240)
    level = 0.1 * label if planted else 0.1 * rng.integers(0, 2, 240)
    samples = {}
    for k in range(240):
        signal = synthesise(
            2.0, 50.0, heart_rate=float(rng.uniform(55, 100)), st_mv=float(level[k]), noise_mv=0.05, seed=k
        )
        tokens = signal[[1, 7, 10]].reshape(1, -1).astype(np.float32)
        samples[f"p{k}"] = ModalitySample(tokens=tokens, position=np.zeros((1, 1), np.float32))
    data = ModalityData(name="ecg", layout="vectors", features=300, item=(3, 100), samples=samples)
    encoder = {"name": "ecg_resnet", "blocks": 2, "filters": 8}
    return held_out_auroc(data, label, encoder, parts=(140, 30, 70), seed=seed)


def test_a_planted_st_level_is_learned_from_raw_windows_and_an_unrelated_one_is_not():
    assert learned(0, planted=True) > 0.85
    assert abs(learned(0, planted=False) - 0.5) < 0.2  # 70 patients: standard error 0.07


SIDE = 12  # voxels of a patch


def patch_with_lesion(rng, *, together):
    """Noise and 123 brighter voxels: a ball of radius 3 at a place of its own, or the same voxels scattered.

    Every voxel's value has the same distribution in both, so no intensity, mean or histogram tells them apart.
    """
    volume = rng.normal(0, 1, SIDE**3)
    near = rng.integers(3, SIDE - 3, 3)
    ball = ((np.indices((SIDE,) * 3).reshape(3, -1) - near[:, None]) ** 2).sum(0) <= 9
    volume[ball] += 4
    return volume if together else rng.permutation(volume)


def learned_lesion(seed, *, planted):
    """AUROC of two patches per patient, one of which shows the lesion, if the label says so (or says nothing)."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, 300)
    shown = label if planted else rng.integers(0, 2, 300)
    samples = {}
    for k in range(300):
        where = int(rng.integers(2))
        patches = [patch_with_lesion(rng, together=bool(shown[k]) and j == where) for j in range(2)]
        position = np.array([[0, 0, 0], [SIDE, 0, 0]], np.float32)
        samples[f"p{k}"] = ModalitySample(tokens=np.stack(patches).astype(np.float32), position=position)
    data = ModalityData(name="ct", layout="vectors", features=SIDE**3, item=(1, SIDE, SIDE, SIDE), samples=samples)
    encoder = {"name": "volume_resnet", "layers": [1, 1, 1, 1], "filters": 8}
    return held_out_auroc(data, label, encoder, parts=(180, 30, 90), seed=seed)


@pytest.mark.slow
def test_a_planted_lesion_is_learned_from_raw_patches_and_scattered_voxels_are_not():
    assert learned_lesion(0, planted=True) > 0.9
    assert abs(learned_lesion(0, planted=False) - 0.5) < 0.2  # 90 patients: standard error 0.06
