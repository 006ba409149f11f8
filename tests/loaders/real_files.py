"""The table of the real DICOM files and volumes: what reads them, what they hold, or why they are refused.

``python tests/loaders/real_files.py`` writes ``tests/reference/real_volumes.csv``; a test compares them.
"""

import csv
import os
import sys
from pathlib import Path

import numpy as np

from medfuse.errors import MedfuseError
from medfuse.limits import read_head
from medfuse.loaders import dicom, volume
from medfuse.loaders.base import Head

DATA = Path(os.environ.get("MEDFUSE_DATA", Path(__file__).parents[3] / "shared" / "data"))
TABLE = Path(__file__).parents[1] / "reference" / "real_volumes.csv"
COLUMNS = ["item", "files", "loader", "kind", "shape", "verdict"]


def verdict(module, files):
    """Kind, shape and what became of it, with the options that a card needs to read it at all."""
    try:
        found = module.describe(files)
        kind, shape = found.kind, "x".join(map(str, found.holds.get("shape", ())))
    except MedfuseError:
        kind = shape = ""
    why = ""
    for options in ({}, {"min_slices": 1}, {"pixel_mm": 1}):
        if options and (module is volume or not (why.endswith(": 1 to read it nevertheless") or "pixel_mm" in why)):
            continue
        try:
            sample = module.read(files, options)
            module.identifying(files)
            for batch in sample.batches(256):
                assert np.isfinite(batch).all()
            said = f"read, {len(sample)} patches"
            return kind, shape, said + "".join(f"; needs options.{k}" for k in options)
        except MedfuseError as error:
            why = why or str(error)
    return kind, shape, f"refused: {why}"


def rows():
    """One row an item; files that neither loader recognises are named, too."""
    for part in ("dicom", "volumes"):
        for folder, _, names in sorted(os.walk(DATA / part)):
            files = [Path(folder) / name for name in sorted(names)]
            heads = [Head(path=p, size=p.stat().st_size, start=read_head(p)) for p in files]
            for module, name in ((dicom, "dicom"), (volume, "volume")):
                mine = [h.path for h in heads if module.recognise(h)]
                for item in module.group(mine) if mine else ():
                    yield [item[0].relative_to(DATA).as_posix(), str(len(item)), name, *verdict(module, item)]
            for head in heads:
                if not (dicom.recognise(head) or volume.recognise(head)):
                    yield [head.path.relative_to(DATA).as_posix(), "1", "", "", "", "left to other loaders"]


if __name__ == "__main__":
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(COLUMNS)
        out.writerows(sorted(rows()))
    sys.stdout.write(TABLE.read_text())
