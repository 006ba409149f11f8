"""The table of all real files of ../shared/data: what reads them, what they hold, or why they are refused.

``PYTHONPATH=. python tests/loaders/real_files.py`` writes ``docs/real_files.md``; a test compares them. Every item is
inspected, and read to the end with the options or the card below; no value of a patient enters the table.
"""

import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pandas as pd

from medfuse import loaders, tables
from medfuse.card import ModalityCard
from medfuse.errors import MedfuseError
from medfuse.inspection import Inspection, _items, _unknown, recognise
from medfuse.loaders import expression

DATA = Path(os.environ.get("MEDFUSE_DATA", Path(__file__).parents[3] / "shared" / "data"))
TABLE = Path(__file__).parents[2] / "docs" / "real_files.md"
TOGETHER = ("ehr/meds_sample",)  # folders whose files are one item; else each folder is looked at alone

# loader -> options that are tried in this order, the first that reads is named
OPTIONS = {
    "dicom": [{}, {"min_slices": 1}, {"pixel_mm": 1}],
    "ecg": [{}, {"gaps": "zero"}],
    "slide": [{}, {"slide_mpp": 0.5}, {"mpp": 0.499, "tile": 16, "tissue": 0, "pen": 1}],
}
# file -> options of its own
OWN = {
    "wsi/TCGA-XK-AAJU_dicom_wsi.dcm": [{"slide_mpp": 4.0, "mpp": 4.0, "tile": 128, "frames": "columns"}],
    "wsi/openslide_fixtures/boxes.tiff": [{"slide_mpp": 0.5, "tile": 64, "pen": 1}],
    "dicom/highdicom/sm_image*": [
        {},
        {"mpp": 0.499, "tile": 16, "tissue": 0, "pen": 1},
        {"slide_mpp": 0.5, "tile": 16, "tissue": 0, "pen": 1},
    ],
}
BARCODE = {"barcode": "tcga_patient"}
SEGMENTS = {"unit": "log2_ratio", "build": "GRCh37", "options": {"table": "segments", "level": "arm"}, **BARCODE}
PEAKS = {"unit": "gistic", "options": {"table": "lesions"}, **BARCODE}
EVENTS = {"index": {"time": "2018-01-01"}, "lookback_days": 3650, "hash": ["*"], "buckets": 2, "variables": []}
EVENTS |= {"comparators": "missing"}
ADMITTED = {"event": "ADMISSION//*", "after_hours": 24}
LAML = "omics/tcga_laml/"
# file -> what a card says of it, where the file alone does not say enough; the first pattern that fits
CARDS = {
    "tcga_*/tables*/*": {"columns": "*_rnaseq", "unit": "zscore", "zscored_on": "all", "id": "case_id"},
    "tcga_survpath/rna_xena/*": {"unit": "zscore", "zscored_on": "all", "id": "Unnamed: 0"},
    "omics/h5ad/*": {"unit": "zscore", "zscored_on": "all"},
    LAML + "LAML_CBS_segments.tsv.gz": SEGMENTS,
    LAML + "TCGA.AB.3009.hg19.seg.txt": SEGMENTS,
    LAML + "*.conf_99.txt": PEAKS,
    LAML + "scores.gistic": PEAKS,
    LAML + "tcga_laml.maf.gz": {
        "build": "GRCh37",
        "sequenced": LAML + "tcga_laml_annot.tsv#Tumor_Sample_Barcode",
        **BARCODE,
    },
    LAML + "tcga_laml_annot.tsv": {"columns": {"days_to_last_followup": {"missing": ["inf", "-inf"]}}},
    "omics/vcf/test-hemi.vcf": {"build": "GRCh37", "options": {"filter": "any"}},
    "omics/vcf/test.snpeff.vcf": {"options": {"filter": "pass_or_none"}},
    "ehr/physionet2012/set-a.zip": {"options": EVENTS | {"format": "records", "index": {"start": True}}},
    "ehr/omop_synthea27nj/*": {"options": EVENTS | {"format": "omop"}},
    "ehr/mimic3_demo/*": {"options": EVENTS | {"format": "mimic", "index": ADMITTED}},
    "ehr/meds_sample/*": {"options": EVENTS | {"format": "meds", "index": ADMITTED}},
}
_GENERAL = {"build", "options", "barcode", "id"}  # keys that say how to read, not what the file lacks


@dataclass(frozen=True)
class Row:
    """One item, or several of a folder that are alike."""

    folder: str
    names: tuple[str, ...]
    files: int
    loader: str
    holds: str
    verdict: str

    @property
    def line(self) -> str:
        """Of the table."""
        few = ", ".join(self.names) if len(self.names) <= 3 else f"{self.names[0]} ... {self.names[-1]}"
        count = f" ({self.files})" if self.files > 1 else ""
        cells = (f"{few}{count}", self.loader or "-", self.holds, self.verdict)
        return "| " + " | ".join(re.sub(r"([|*_<>])", r"\\\1", cell) for cell in cells) + " |"


def items() -> Iterator[tuple[Inspection, tuple[Path, ...]]]:
    """What inspection says of each item, folder by folder."""
    for folder, inner, names in os.walk(DATA):
        inner.sort()
        here = Path(folder)
        files = [here / name for name in sorted(names)]
        if here.relative_to(DATA).as_posix() in TOGETHER:
            files = sorted(path for path in here.rglob("*") if path.is_file())
            inner.clear()
        by_loader: dict[str, list[Path]] = {}
        for path in files:
            by_loader.setdefault(recognise(path), []).append(path)
        for path in by_loader.pop("", []):
            yield Inspection(path=str(path), refusal=_unknown(path)), (path,)
        for name, own in by_loader.items():
            module = loaders.module_of(name, where=name)
            groups = module.group(own) if hasattr(module, "group") else [(path,) for path in own]
            for group in groups:
                (one,) = _items(name, group)
                yield one, tuple(group)


def card_of(path: str, loader: str) -> dict:
    """What a card says of a table; of a plain table, five columns of numbers, or else one of few categories."""
    for pattern, said in CARDS.items():
        if fnmatchcase(path, pattern):
            return dict(said)
    if loader != "tabular":
        return {}
    frame = tables.read_table(DATA / path)
    numbers = [c for c in frame if pd.to_numeric(frame[c], errors="coerce").notna().eq(frame[c].notna()).all()]
    fewest = min(frame.columns, key=lambda c: frame[c].nunique() or len(frame))
    chosen = {name: {"kind": "numeric"} for name in numbers[:5]} or {fewest: {"kind": "categorical"}}
    return {"columns": {str(name): how for name, how in chosen.items()}}


def read_table(path: str, loader: str) -> str:
    """Read a table of all patients; what came of it.

    Raises:
        MedfuseError: it is refused.
    """
    if path.endswith(".gmt"):
        return f"read, {len(expression.read_gmt(DATA / path))} gene sets"
    said = card_of(path, loader)
    source = "/".join(path.split("/")[:2]) if loader == "events" and not path.endswith(".zip") else path
    card = ModalityCard(loader=loader, file=source, **said)
    data = loaders.read("real", card, resolve=lambda name: DATA / name, patients=(None, "row-"))
    for sample in data.samples.values():
        assert np.isfinite(sample.tokens).all()
    what = {"columns": f"{len(data.columns)} columns"}.get(data.layout, f"{data.features} features")
    if loader == "tabular" and path not in CARDS:
        return "read"
    needs = sorted(set(said) - _GENERAL)
    return f"read, {len(data.samples)} patients, {what}" + (f"; the card says {', '.join(needs)}" if needs else "")


def read_items(path: str, loader: str, files: tuple[Path, ...]) -> str:
    """Read the files of one patient to the end; what came of it.

    Raises:
        MedfuseError: refused with all options that are tried; the first refusal.
    """
    module, first = loaders.module_of(loader, where=loader), None
    tried = next((some for name, some in OWN.items() if fnmatchcase(path, name)), OPTIONS.get(loader, [{}]))
    for options in tried:
        try:
            sample = module.read(files, options)
            for batch in sample.batches(256):
                assert batch.dtype == object or np.isfinite(batch).all()
        except MedfuseError as error:
            first = first or error
            continue
        needs = ", ".join(f"{key}: {value}" for key, value in options.items())
        things = {"patch": "patches"}.get(sample.item, f"{sample.item}s")
        return f"read, {len(sample)} {things}" + (f"; options {needs}" if needs else "")
    assert first is not None
    raise first


def verdict(one: Inspection, files: tuple[Path, ...]) -> str:
    """What becomes of an item: read, read with options, or refused with the reason."""
    path = Path(one.path).relative_to(DATA).as_posix()
    try:
        if not one.loader:
            return f"refused: {one.refusal}"
        if one.loader in loaders.RAW:
            return read_items(path, one.loader, files)
        return read_table(path, one.loader)
    except MedfuseError as error:
        return f"refused: {one.refusal or error}"


def holds(one: Inspection) -> str:
    """A few words; names of columns, codes and such are left out."""
    words = [one.kind] if one.kind else []
    for key, value in one.holds.items():
        if key in {"names", "units", "other_signals", "segments", "tables", "shapes", "annotations"}:
            continue
        if key in {"shape", "levels"}:
            sizes = value if key == "levels" else [value]
            words.append(", ".join("x".join(map(str, size)) for size in sizes))
        elif key in {"leads", "associated_images", "layers"}:
            words += [f"{len(value)} {key.replace('_', ' ')}"] if value else []
        elif isinstance(value, int | float) and not isinstance(value, bool):
            words.append(f"{value} {key.replace('_', ' ')}")
        elif key == "sampling_frequency":
            words.append(f"{', '.join(f'{v:g}' for v in value)} Hz")
    return ", ".join(words)


def rows() -> list[Row]:
    """The table; items of one folder that are alike are one row."""
    alike: dict[tuple[str, ...], list[tuple[str, int]]] = {}
    seen: set[Path] = set()  # two headers may name one signal file
    for one, files in items():
        folder, name = Path(one.path).relative_to(DATA).parent.as_posix(), Path(one.path).name
        for together in TOGETHER:
            folder = together if folder.startswith(together) else folder
        said = verdict(one, files).replace(str(DATA), "").replace(f"refused: {name}", "refused")
        said = re.sub(r"^refused( and \d+ more)?: ", "refused: ", said)
        said = said.replace(f"; they are {', '.join(loaders.LOADERS)}", "")
        alike.setdefault((folder, one.loader, holds(one), said), []).append((name, len({*files} - seen)))
        seen.update(files)
    found = [
        Row(folder, tuple(sorted(n for n, _ in group)), sum(c for _, c in group), loader, what, said)
        for (folder, loader, what, said), group in alike.items()
    ]
    return sorted(found, key=lambda row: (row.folder, row.names))


def page(table: list[Row]) -> str:
    """The page, in Markdown."""
    counts: Counter[tuple[str, str]] = Counter()
    for row in table:
        said = "refused" if row.verdict.startswith("refused") else "with options or a card"
        plain = not re.search(r"; (options|the card says)", row.verdict)
        counts[row.loader or "none", "as it is" if said != "refused" and plain else said] += row.files
    kinds = ("as it is", "with options or a card", "refused")
    named = [name for name in (*loaders.LOADERS, "none") if any(counts[name, kind] for kind in kinds)]
    lines = [
        "# Real files",
        "",
        "Every file of the shared data set, as `medfuse inspect` and the loaders find it. Written by",
        "`tests/loaders/real_files.py`; a test compares it with what the loaders do now. Numbers in brackets are",
        "counts of files.",
        "",
        "| loader | read as it is | read with an option, or what the card says | refused with a reason |",
        "|---|---|---|---|",
        *(f"| {name} | " + " | ".join(str(counts[name, kind]) for kind in kinds) + " |" for name in named),
        "| all | " + " | ".join(str(sum(counts[name, kind] for name in named)) for kind in kinds) + " |",
    ]
    for folder in sorted({row.folder for row in table}):
        lines += ["", f"## {'(root)' if folder == '.' else folder}", "", "| files | loader | holds | verdict |"]
        lines += ["|---|---|---|---|", *(row.line for row in table if row.folder == folder)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    TABLE.write_text(page(rows()), encoding="utf-8")
    sys.stdout.write(TABLE.read_text(encoding="utf-8"))
