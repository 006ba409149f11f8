"""Frozen models of others: their features are those of direct calls; nothing is fetched, unpickled or run."""

import json
import pickle
import shutil
import socket
import sys

import numpy as np
import pytest
import torch
from tiny_models import IMAGE, NETWORK, Maps, bert, bundle, export, resnet, vit, windows, windows_pt2

from medfuse.card import CohortCard
from medfuse.cohort import read_cohort
from medfuse.dataset import load_modalities
from medfuse.errors import ConfigError, DataError
from medfuse.extraction import extract
from medfuse.extractors import build_extractor
from medfuse.extractors.pretrained import Pretrained
from medfuse.loaders.ecg import synthesise, write_wfdb
from medfuse.sample import RawSample
from medfuse.store import FeatureStore

RNG = np.random.default_rng(0)
TILES = RNG.integers(0, 256, (7, 48, 40, 3)).astype(np.uint8)
SENTENCES = np.array(["no mass seen in the left lung .", "heart is enlarged .", "no mass seen .", "heart ."])
WINDOWS = RNG.normal(size=(7, 3, 100)).astype(np.float32)
PATCHES = RNG.normal(40, 100, size=(3, 16, 16, 16, 1)).astype(np.float32)
BOUND = 1e-5  # of the largest feature: what the number of items at once changes in float32


def close(found, expected):
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= BOUND * np.abs(expected).max()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def offline(monkeypatch):
    """Any connection is a failure."""

    def refuse(*args):
        pytest.fail("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def model_of(folder, kind):
    """The model's folder or file, made once."""
    path = folder / kind
    if kind in {"vit", "bert", "resnet"}:
        pytest.importorskip("transformers", reason="needs the extra: pip install 'medfuse[pretrained]'")
        return path if path.exists() else {"vit": vit, "bert": bert, "resnet": resnet}[kind](path)
    if kind == "bundle":
        return path if path.exists() else bundle(path)
    return path.with_suffix(".pt2") if path.with_suffix(".pt2").exists() else windows_pt2(path.with_suffix(".pt2"))


ITEMS = {"vit": TILES, "resnet": TILES, "bert": SENTENCES, "windows": WINDOWS, "bundle": PATCHES}
KINDS = list(ITEMS)


# --- the same as direct calls ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", [None, "cls", "mean", "pooler"])
def test_tiles_are_what_transformers_gives(folder, offline, output):
    path = model_of(folder, "vit")
    from transformers import ViTImageProcessorPil, ViTModel

    given = ViTImageProcessorPil.from_pretrained(path)(list(TILES), return_tensors="pt")
    with torch.no_grad():
        out = ViTModel.from_pretrained(path).eval()(**given)
    states = out.last_hidden_state
    expected = {"mean": states.mean(1), "pooler": out.pooler_output}.get(output, states[:, 0])
    close(Pretrained(model=str(path), output=output, batch=3)(TILES, {}), expected.numpy())


def test_tiles_through_a_convolutional_network_are_the_mean_of_its_maps(folder, offline):
    path = model_of(folder, "resnet")
    from transformers import AutoModel

    from medfuse.extractors._huggingface import ImageSettings

    pixels = ImageSettings(path / "preprocessor_config.json")(TILES)
    with torch.no_grad():
        maps = AutoModel.from_pretrained(path).eval()(pixel_values=pixels).last_hidden_state
    close(Pretrained(model=str(path))(TILES, {}), maps.mean((2, 3)).numpy())
    with pytest.raises(DataError, match="first token for pooling cls, found maps"):
        Pretrained(model=str(path), output="cls")(TILES, {})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "resample": 3,
            "size": {"shortest_edge": 36},
            "do_center_crop": True,
            "crop_size": {"height": 32, "width": 32},
        },
        {"do_resize": False, "do_center_crop": True, "crop_size": {"height": 33, "width": 30}},
        {"do_normalize": False},
        {"do_rescale": False},
    ],
)
def test_image_settings_are_read_as_transformers_reads_them(tmp_path, changes):
    pytest.importorskip("transformers", reason="needs the extra: pip install 'medfuse[pretrained]'")
    from transformers import CLIPImageProcessorPil

    from medfuse.extractors._huggingface import ImageSettings

    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({"do_center_crop": False, **IMAGE, **changes}))
    expected = CLIPImageProcessorPil(**{"do_center_crop": False, **IMAGE, **changes})(list(TILES), return_tensors="pt")
    found = ImageSettings(path)(TILES)
    assert found.shape == expected["pixel_values"].shape
    assert (found - expected["pixel_values"]).abs().max() <= 1e-5 * expected["pixel_values"].abs().max()


@pytest.mark.parametrize(
    "changes",
    [{"do_pad": True}, {"resample": None}, {"image_mean": [0.5]}, {"size": {"longest_edge": 9}}, {"resample": 9}],
)
def test_image_settings_that_are_not_known_are_refused(tmp_path, changes):
    from medfuse.extractors._huggingface import ImageSettings

    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({**IMAGE, **changes}))
    with pytest.raises(DataError, match=r"preprocessor_config.json: expected"):
        ImageSettings(path)


@pytest.mark.parametrize("output", [None, "cls", "pooler"])
def test_sentences_are_what_transformers_gives(folder, offline, output):
    path = model_of(folder, "bert")
    from transformers import AutoTokenizer, BertModel

    tokenizer, model = AutoTokenizer.from_pretrained(path), BertModel.from_pretrained(path).eval()
    expected = []
    for text in SENTENCES.tolist():  # one by one: no padding
        with torch.no_grad():
            out = model(**tokenizer(text, return_tensors="pt"))
        states = out.last_hidden_state[0]
        expected.append({"cls": states[0], "pooler": out.pooler_output[0]}.get(output, states.mean(0)))
    close(Pretrained(model=str(path), output=output)(SENTENCES, {}), torch.stack(expected).numpy())


def test_a_sentence_that_is_too_long_is_refused_or_cut(folder):
    path = str(model_of(folder, "bert"))
    long = np.array(["heart " * 40, "heart " * 60])
    with pytest.raises(DataError, match="at most 24 tokens, found 42; set truncate") as caught:
        Pretrained(model=path)(long, {})
    assert "heart" not in str(caught.value)
    first, second = Pretrained(model=path, truncate=True)(long, {})
    assert first == pytest.approx(second, abs=1e-6)


def test_windows_are_what_the_exported_network_gives(folder):
    path, network = model_of(folder, "windows"), windows()
    scaled = (WINDOWS / 2 - np.array([0.1, 0.2, 0.3], np.float32)[:, None]) / 0.5
    with torch.no_grad():
        expected = network(torch.from_numpy(scaled).float()).numpy()
    scaling = {"divide_by": 2, "mean": [0.1, 0.2, 0.3], "std": 0.5}
    close(Pretrained(model=str(path), scaling=scaling, batch=3)(WINDOWS, {}), expected)
    own = (WINDOWS - WINDOWS.mean(2, keepdims=True)) / WINDOWS.std(2, keepdims=True)
    with torch.no_grad():
        expected = network(torch.from_numpy(own)).numpy()
    close(Pretrained(model=str(path), scaling={"standardise": True})(WINDOWS, {}), expected)


def test_an_export_for_one_number_of_items_takes_any(tmp_path):
    torch.manual_seed(0)
    network = Maps(3, 2).eval()
    path = export(tmp_path / "four.pt2", network, torch.rand(4, 3, 48, 40), any_number=False)
    with torch.no_grad():
        expected = network(torch.from_numpy(TILES / np.float32(255)).movedim(-1, 1)).mean((2, 3)).numpy()
    close(Pretrained(model=str(path), scaling={"divide_by": 255}, batch=5)(TILES, {}), expected)


def test_patches_are_what_the_bundle_gives(folder):
    path = model_of(folder, "bundle")
    from monai.networks.nets import SegResNet
    from safetensors.torch import load_file

    network = SegResNet(spatial_dims=3, in_channels=1, out_channels=2, init_filters=8).eval()
    network.load_state_dict(load_file(path / "models/model.safetensors"))
    with torch.no_grad():
        x = torch.from_numpy(PATCHES / 100).movedim(-1, 1)
        maps, deep = network(x), network.encode(x)[0]
    scaling = {"divide_by": 100}
    close(Pretrained(model=str(path), scaling=scaling)(PATCHES, {}), maps.mean((2, 3, 4)).numpy())
    close(
        Pretrained(model=str(path), scaling=scaling, output="down_layers.3")(PATCHES, {}), deep.mean((2, 3, 4)).numpy()
    )


# --- batches, threads, workers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_neighbours_change_nothing_above_the_bound(folder, kind):
    items = ITEMS[kind]
    path = str(model_of(folder, kind))
    together = Pretrained(model=path)(items, {})
    for batch in (1, 2):
        close(Pretrained(model=path, batch=batch)(items, {}), together)
    close(Pretrained(model=path)(items[::-1], {})[::-1], together)


def misaligned(array, by):
    """A copy that begins ``by`` bytes after a multiple of 64."""
    buffer = np.empty(array.nbytes + 128, np.uint8)
    start = -buffer.ctypes.data % 64 + by
    out = buffer[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    out[...] = array
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_threads_and_the_place_in_memory_change_no_bit(folder, kind, monkeypatch):
    path, plain, seen = str(model_of(folder, kind)), np.ascontiguousarray, []
    expected = Pretrained(model=path)(ITEMS[kind], {})
    for threads, by in ((1, 4), (2, 16), (2, 20), (1, 60)):

        def elsewhere(array, dtype=None, by=by):
            seen.append(by)
            return misaligned(plain(array, dtype=dtype), by)

        with monkeypatch.context() as patch:
            patch.setattr(np, "ascontiguousarray", elsewhere)
            before = torch.get_num_threads()
            torch.set_num_threads(threads)
            found = Pretrained(model=path)(ITEMS[kind], {})
            assert torch.get_num_threads() == threads
            torch.set_num_threads(before)
        np.testing.assert_array_equal(found, expected)
    assert set(seen) == (set() if kind == "bert" else {4, 16, 20, 60})  # sentences enter as whole numbers


def cohort_of(root, models):
    patients = [f"p{k}" for k in range(4)]
    (root / "ecg").mkdir(parents=True)
    (root / "notes").mkdir()
    for k, patient in enumerate(patients):
        write_wfdb(root / "ecg", patient, synthesise(6.0, 50.0, st_mv=0.1 * k, seed=k), sampling_frequency=50.0)
        (root / "notes" / f"{patient}.txt").write_text(
            "No mass seen. Heart is enlarged. No mass seen in the left lung.\n"
        )
    (root / "patients.csv").write_text(
        "id,died,days\n" + "".join(f"{p},{k % 2},{k + 1}\n" for k, p in enumerate(patients))
    )
    ecg = {
        "loader": "ecg",
        "path": "ecg/{patient_id}.*",
        "options": {"seconds": 2, "leads": ["II", "V2", "V5"]},
        "extractor": {
            "name": "pretrained",
            "model": str(models["windows"]),
            "expects": {"sampling_frequency": 50, "leads": ["II", "V2", "V5"]},
        },
    }
    modalities = {"ecg": ecg}
    if "bert" in models:
        extractor = {"name": "pretrained", "model": str(models["bert"]), "truncate": True}
        modalities["notes"] = {"loader": "text", "path": "notes/{patient_id}.txt", "extractor": extractor}
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


@pytest.mark.parametrize("kinds", [("windows",), pytest.param(("windows", "bert"), marks=pytest.mark.slow)])
def test_the_number_of_workers_changes_no_byte(folder, tmp_path, kinds):
    models = {kind: model_of(folder, kind) for kind in kinds}
    cohort = cohort_of(tmp_path / "cohort", models)
    reports = {n: extract(cohort, store_root=tmp_path / f"store{n}", workers=n) for n in (0, 2)}
    assert [item.reason for report in reports.values() for item in report.failed] == []
    assert [i.key for i in reports[0].items] == [i.key for i in reports[2].items]
    for item in reports[0].items:
        one, two = (FeatureStore(tmp_path / f"store{n}").get_item(item.key) for n in (0, 2))
        assert one.sample.tokens.dtype == np.float16
        np.testing.assert_array_equal(one.sample.tokens, two.sample.tokens)
        assert len(one.names) == one.sample.tokens.shape[1]
        path = models["windows" if item.modality == "ecg" else "bert"]
        assert one.facts["model"]["sha256"] == Pretrained(model=str(path)).settings["sha256"]
    assert {item.status for item in extract(cohort, store_root=tmp_path / "store0", workers=0).items} == {"kept"}
    assert '"sha256"' in load_modalities(cohort, names=["ecg"], store_root=tmp_path / "store0")["ecg"].meaning


# --- the key ---------------------------------------------------------------------------------------------------------


def key(path, **options):
    return json.dumps(Pretrained(model=str(path), **options).settings, sort_keys=True)


def test_weights_configuration_and_preprocessing_are_in_the_key(folder, tmp_path):
    first = shutil.copytree(model_of(folder, "vit"), tmp_path / "a")
    same = shutil.copytree(first, tmp_path / "elsewhere")
    known = Pretrained(model=str(first))
    expected = json.dumps(known.settings, sort_keys=True)
    (same / "README.md").write_text("not part of the model")
    assert key(same) == expected
    assert key(same, output="mean") != expected
    assert key(same, expects={"mpp": 0.5}) != expected
    assert key(same, batch=2, device="cpu") == expected
    found = known(TILES, {})
    (same / "preprocessor_config.json").write_text(json.dumps({**IMAGE, "resample": 3}))
    assert key(same) != expected
    vit(first, seed=1)  # a weight changes under an extractor that was used already
    assert json.dumps(known.settings, sort_keys=True) != expected
    assert np.abs(known(TILES, {}) - found).max() > 0.01


def test_one_weight_of_an_export_and_of_a_bundle_is_in_the_key(folder, tmp_path):
    one, two = model_of(folder, "windows"), windows_pt2(tmp_path / "two.pt2", seed=1)
    assert key(one) != key(two)
    assert key(one) != key(one, scaling={"mean": 0.1})
    path = shutil.copytree(model_of(folder, "bundle"), tmp_path / "bundle")
    expected = key(path)
    weights = path / "models/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert key(path) != expected


# --- what is refused -------------------------------------------------------------------------------------------------


class Payload:
    """A pickle that leaves a mark when it is read."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.ckpt"])
def test_pickles_are_refused_with_the_command_that_converts_them(folder, tmp_path, name):
    path = shutil.copytree(model_of(folder, "vit"), tmp_path / "vit")
    (path / "model.safetensors").unlink()
    (path / name).write_bytes(pickle.dumps(Payload(tmp_path / "mark")))
    extractor = Pretrained(model=str(path))
    for call in (lambda: extractor.settings, lambda: extractor(TILES, {})):
        command = "AutoModel.from_pretrained" if name == "pytorch_model.bin" else "torch.load"
        with pytest.raises(DataError, match=rf"found {name}, which can run code .*{command}\("):
            call()
    with pytest.raises(ConfigError, match=r"can run code when it is read.*torch.load\('OLD', weights_only=True\)"):
        Pretrained(model=str(path / name))
    assert not (tmp_path / "mark").exists()


def command_in(error) -> str:
    """The Python of ``python -c "..."`` in a message."""
    return str(error.value).split('python -c "')[1].split('"')[0]


def test_the_commands_that_convert_models_do(folder, tmp_path):
    path = shutil.copytree(model_of(folder, "vit"), tmp_path / "vit")
    from safetensors.torch import load_file

    expected = Pretrained(model=str(path))(TILES, {})
    for name in ("pytorch_model.bin", "model.pt"):
        torch.save(load_file(path / "model.safetensors"), path / name)
        (path / "model.safetensors").unlink()
        with pytest.raises(DataError) as caught:
            _ = Pretrained(model=str(path)).settings
        command = command_in(caught).replace("DIR", str(path)).replace("OLD", str(path / name))
        exec(command.replace("NEW", str(path / "model.safetensors")))
        close(Pretrained(model=str(path))(TILES, {}), expected)
        (path / name).unlink()


def test_a_bundle_with_a_pickle_is_refused(folder, tmp_path):
    path = shutil.copytree(model_of(folder, "bundle"), tmp_path / "bundle")
    (path / "models/model.safetensors").rename(path / "models/model.pt")
    with pytest.raises(DataError, match=r"found model.pt, which can run code .*torch.load\('OLD', weights_only=True\)"):
        _ = Pretrained(model=str(path)).settings


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        ({**NETWORK, "in_channels": "$__import__('os').system('true')"}, "an expression, which is never run"),
        ({**NETWORK, "_target_": "os.system"}, "a class of monai.networks.nets"),
        ({**NETWORK, "_target_": "monai.networks.nets.resnet10"}, "a class of monai.networks.nets"),
        ({**NETWORK, "in_channels": {"_target_": "os.getpid"}}, "found an object"),
        ({**NETWORK, "in_channels": "@nowhere"}, "one to 'nowhere'"),
        ({**NETWORK, "in_channels": "@network_def::in_channels"}, "a circle"),
        ({**NETWORK, "in_channels": 3}, "weights of the network that it names, found others"),
        ({**NETWORK, "colour": 3}, "options of SegResNet, found TypeError"),
    ],
)
def test_a_configuration_of_a_bundle_is_never_run(folder, tmp_path, network, reason):
    path = bundle(tmp_path / "bundle", network=network)
    with pytest.raises(DataError, match=reason):
        Pretrained(model=str(path))(PATCHES, {})


@pytest.mark.parametrize("kind", ["vit", "bundle"])
def test_damaged_weights_are_refused(folder, tmp_path, kind):
    path = shutil.copytree(model_of(folder, kind), tmp_path / "model")
    weights = path / ("model.safetensors" if kind == "vit" else "models/model.safetensors")
    content = weights.read_bytes()
    for bad in (content[:-7], content[:100], b"", b"\xff" * 64):
        weights.write_bytes(bad)
        with pytest.raises(DataError, match="expected"):
            Pretrained(model=str(path))(ITEMS[kind], {})


def test_a_model_that_brings_code_or_fetches_a_part_is_refused(folder, tmp_path):
    path = shutil.copytree(model_of(folder, "vit"), tmp_path / "vit")
    config = json.loads((path / "config.json").read_text())
    (path / "own.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')")
    (path / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "own.Model"}}))
    with pytest.raises(DataError, match=r"brings its own code \(auto_map\); it is never run"):
        Pretrained(model=str(path))(TILES, {})
    (path / "config.json").write_text(json.dumps({**config, "use_pretrained_backbone": True}))
    with pytest.raises(DataError, match="fetches its backbone"):
        Pretrained(model=str(path))(TILES, {})
    assert not (tmp_path / "mark").exists()


def test_weights_that_are_not_there_are_not_drawn_at_random(folder, tmp_path):
    path = shutil.copytree(model_of(folder, "vit"), tmp_path / "vit")
    from safetensors.torch import load_file, save_file

    weights = load_file(path / "model.safetensors")
    pooler = {name: t for name, t in weights.items() if not name.startswith("pooler")}
    save_file(pooler, path / "model.safetensors", metadata={"format": "pt"})
    Pretrained(model=str(path))(TILES, {})  # it is not asked for
    with pytest.raises(DataError, match="weights for the whole model"):
        Pretrained(model=str(path), output="pooler")(TILES, {})
    pooler.pop(next(name for name in pooler if "layer" in name))
    save_file(pooler, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match="weights for the whole model, found none for 1 of its parts"):
        Pretrained(model=str(path))(TILES, {})


def test_a_model_that_is_not_on_this_machine_is_not_fetched(tmp_path, offline, monkeypatch):
    pytest.importorskip("transformers", reason="needs the extra: pip install 'medfuse[pretrained]'")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        DataError, match=r"'owner/model' \(main\) in the local cache.*run hf download owner/model --rev"
    ):
        Pretrained(model="hub:owner/model")
    with pytest.raises(DataError, match=r"\(v2\)"):
        Pretrained(model="hub:owner/model@v2")


def test_a_model_in_the_local_cache_is_found(folder, tmp_path, offline):
    source = model_of(folder, "vit")
    commit = "0" * 40
    home = tmp_path / "models--owner--model"
    shutil.copytree(source, home / "snapshots" / commit)
    (home / "refs").mkdir()
    (home / "refs/main").write_text(commit)
    from medfuse.extractors import _huggingface

    found = _huggingface.from_cache("owner/model", "main", cache=tmp_path)
    assert key(found) == key(source)


@pytest.mark.parametrize("missing", ["transformers", "huggingface_hub"])
def test_without_the_extra_its_name_is_said(folder, monkeypatch, missing):
    path = folder / "config_only"
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(b"")
    monkeypatch.setitem(sys.modules, missing, None)
    call = {
        "transformers": lambda: Pretrained(model=str(path))(TILES, {}),
        "huggingface_hub": lambda: Pretrained(model="hub:owner/model"),
    }[missing]
    with pytest.raises(ConfigError, match=rf"the package {missing} .*found none; pip install 'medfuse\[pretrained\]'"):
        call()


def test_facts_that_the_model_was_not_trained_on_are_refused(folder):
    extractor = Pretrained(
        model=str(model_of(folder, "windows")), expects={"sampling_frequency": 400, "leads": ["I", "II"]}
    )
    extractor(WINDOWS, {"sampling_frequency": 401.0, "leads": ["I", "II"]})
    for facts in (
        {"sampling_frequency": 500.0, "leads": ["I", "II"]},
        {"sampling_frequency": 400, "leads": ["II", "I"]},
        {},
    ):
        with pytest.raises(DataError, match="as the model was trained, found"):
            extractor(WINDOWS, facts)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("windows", {"output": "cls"}),
        ("windows", {"truncate": True}),
        ("windows", {"batch": 0}),
        ("windows", {"device": "tpu"}),
        ("windows", {"scaling": {"std": 0}}),
        ("windows", {"scaling": {"divide": 2}}),
        ("windows", {"scaling": {"mean": "large"}}),
        ("vit", {"scaling": {"mean": 1}}),
        ("vit", {"output": "last"}),
    ],
)
def test_options_that_would_not_be_read_are_refused(folder, kind, options):
    with pytest.raises(ConfigError, match="extractor pretrained: "):
        Pretrained(model=str(model_of(folder, kind)), **options)


def test_items_that_the_model_does_not_take_are_refused(folder):
    for kind, items in (
        ("vit", WINDOWS),
        ("vit", SENTENCES),
        ("bert", TILES),
        ("windows", SENTENCES),
        ("windows", TILES),
    ):
        with pytest.raises(DataError, match="expected"):
            Pretrained(model=str(model_of(folder, kind)))(items, {})
    with pytest.raises(DataError, match="expected a batch of any x 3 x 100, found 7 x 3 x 90"):
        Pretrained(model=str(model_of(folder, "windows")))(WINDOWS[..., :90], {})
    with pytest.raises(DataError, match="mean and std of 3 channels, found 2, 1"):
        Pretrained(model=str(model_of(folder, "windows")), scaling={"mean": [1, 2]})(WINDOWS, {})
    with pytest.raises(ConfigError, match=r"no layer 'head' in SegResNet; its parts: .*down_layers"):
        Pretrained(model=str(model_of(folder, "bundle")), output="head")(PATCHES, {})
    network = Pretrained(model=str(model_of(folder, "bundle")))
    with pytest.raises(DataError, match="expected items of 1 channels, found 3"):
        network(np.repeat(PATCHES, 3, axis=4), {})
    with pytest.raises(DataError, match="a network that runs on these items, found RuntimeError"):
        network(PATCHES[:, :9, :13], {})
    broken = WINDOWS.copy()
    broken[2] = np.nan
    with pytest.raises(DataError, match="finite features"):
        Pretrained(model=str(model_of(folder, "windows")))(broken, {})


def test_models_are_found_below_their_folder(folder, tmp_path, monkeypatch):
    path = model_of(folder, "windows")
    monkeypatch.setenv("MEDFUSE_MODELS", str(path.parent))
    extractor = build_extractor({"name": "pretrained", "model": path.name}, where="modality ecg")
    assert extractor.settings == Pretrained(model=str(path)).settings
    raw = RawSample(
        item="window",
        shape=(3, 100),
        position=np.zeros((7, 1), np.float32),
        unit="s",
        fetch=lambda rows: WINDOWS[list(rows)],
    )
    assert extractor.extract(raw).tokens.shape == (7, 6)
    assert extractor.names(raw) == tuple(f"embedding{k}" for k in range(6))
    for model in ("nothing.pt2", str(tmp_path)):
        with pytest.raises(ConfigError, match="extractor pretrained: expected a"):
            Pretrained(model=model)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_gives_the_same_features(folder, kind):
    path = str(model_of(folder, kind))
    expected = Pretrained(model=path, device="cpu")(ITEMS[kind], {})
    found = Pretrained(model=path, device="cuda")(ITEMS[kind], {})
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
