"""Real files through the raw extractors: items of the stated shape, or a refusal; the same numbers as the loader's."""

import os
from pathlib import Path

import numpy as np
import pytest

from medfuse.errors import MedfuseError
from medfuse.extractors.raw import RawPatches, RawWindows
from medfuse.loaders import ecg, volume

DATA = Path(os.environ.get("MEDFUSE_DATA", Path(__file__).parents[3] / "shared" / "data"))
pytestmark = pytest.mark.realdata
OPTIONS = {"sampling_frequency": 100, "seconds": 10, "gaps": "zero"}


def test_every_real_ecg_becomes_windows_or_is_refused():
    made, refused = 0, 0
    for folder in sorted({p.parent for p in (DATA / "ecg").rglob("*") if p.is_file()}):
        for group in ecg.group(sorted(p for p in folder.iterdir() if p.is_file())):
            try:
                raw = ecg.read(group, OPTIONS)
                found = RawWindows(absent="zero")(raw.fetch([0]), raw.facts)
            except MedfuseError:
                refused += 1
                continue
            made += 1
            items = raw.fetch([0])
            leads = list(raw.facts["leads"])
            assert found.shape == (1, 12 * 1000)
            if "II" in leads:
                assert np.array_equal(found.reshape(12, 1000)[1, : items.shape[2]], items[0, leads.index("II")])
    assert made > 20, (made, refused)


def test_real_volumes_become_patches():
    made = 0
    for path in sorted((DATA / "volumes").rglob("*.nii.gz")):
        try:
            raw = volume.read((path,), {"patch": [16, 16, 16], "spacing": 2.0, "coverage": 0, "volumes": 0})
            found = RawPatches(shape=[16, 16, 16], spacing_mm=2)(raw.fetch([0]), raw.facts)
        except MedfuseError:
            continue
        made += 1
        assert np.array_equal(found.reshape(-1, 16, 16, 16), np.moveaxis(raw.fetch([0])[0], -1, 0))
    assert made >= 1
