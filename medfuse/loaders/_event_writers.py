"""Writers of MEDS folders, for examples, tests and synthetic cohorts."""

import json
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from medfuse.errors import DataError

_COLUMNS = ("subject_id", "time", "code", "numeric_value")


def _events(frame: pd.DataFrame) -> pd.DataFrame:
    missing = [name for name in _COLUMNS[:3] if name not in frame.columns]
    if missing:
        msg = f"write_meds: expected columns {', '.join(_COLUMNS)}, found no {missing[0]}; name them so"
        raise DataError(msg)
    out = frame.assign(
        subject_id=frame["subject_id"].astype("int64"), time=pd.to_datetime(frame["time"]).dt.floor("us")
    )
    if "numeric_value" not in out:
        out["numeric_value"] = float("nan")
    out["numeric_value"] = out["numeric_value"].astype("float32")
    return out.sort_values(["subject_id", "time"], kind="stable", na_position="first").reset_index(drop=True)


def write_meds(
    folder: Path,
    events: pd.DataFrame,
    *,
    splits: Mapping[int, str] | None = None,
    shards: int = 1,
    descriptions: Mapping[str, str] | None = None,
    name: str = "medfuse-example",
) -> list[Path]:
    """Write a MEDS 0.3 dataset: ``data/SPLIT/N.parquet`` and ``metadata/``.

    Args:
        folder: of the dataset, made if need be.
        events: columns ``subject_id`` (whole numbers), ``time`` (NaT: static), ``code``, ``numeric_value``, and
            optionally ``text_value`` and ``unit``.
        splits: subject -> ``train``, ``tuning`` or ``held_out``; default: all in ``train``.
        shards: files per split; a subject is in one.
        descriptions: code -> what it means.
        name: of the dataset.

    Returns:
        The event files.

    Raises:
        DataError: a column that is missing.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    frame = _events(events)
    subjects = pd.Series(frame["subject_id"].unique())
    split = subjects.map(dict(splits)) if splits else pd.Series(["train"] * len(subjects))
    fields = [("subject_id", pa.int64()), ("time", pa.timestamp("us")), ("code", pa.string())]
    fields += [("numeric_value", pa.float32())]
    fields += [(c, pa.string()) for c in ("text_value", "unit") if c in frame.columns]
    written = []
    for part in sorted(split.dropna().unique()):
        chosen = subjects[(split == part).to_numpy()].reset_index(drop=True)
        for shard in range(shards):
            rows = frame[frame["subject_id"].isin(chosen.iloc[shard::shards])]
            path = folder / "data" / str(part) / f"{shard}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            table = pa.Table.from_pandas(rows[[f for f, _ in fields]], schema=pa.schema(fields), preserve_index=False)
            pq.write_table(table, path, compression="zstd")
            written.append(path)
    meta = folder / "metadata"
    meta.mkdir(parents=True, exist_ok=True)
    (meta / "dataset.json").write_text(json.dumps({"dataset_name": name, "meds_version": "0.3.3"}) + "\n")
    codes = sorted(frame["code"].unique())
    described = [(descriptions or {}).get(code) for code in codes]
    listed = {"code": codes, "description": described, "parent_codes": [None] * len(codes)}
    kinds = [("code", pa.string()), ("description", pa.string()), ("parent_codes", pa.list_(pa.string()))]
    pq.write_table(pa.table(listed, schema=pa.schema(kinds)), meta / "codes.parquet")
    pq.write_table(
        pa.table({"subject_id": subjects.to_list(), "split": split.to_list()}), meta / "subject_splits.parquet"
    )
    return written
