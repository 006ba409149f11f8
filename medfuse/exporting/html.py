"""A record as one self-contained HTML page, without scripts; the record itself stands at its end."""

import json
import re
from collections.abc import Mapping
from html import escape, unescape
from typing import Any

from medfuse.errors import DataError
from medfuse.exporting.blocks import Block, blocks, warning
from medfuse.exporting.drawing import draw_contributions, draw_curve
from medfuse.figures import svg
from medfuse.pages import page, table

_RECORD = re.compile(r"<pre id=record>(.*?)</pre>", re.DOTALL)


def as_html(record: Mapping[str, Any]) -> bytes:
    """A record as a page; everything is escaped."""
    told = warning(record)
    parts = [
        f"<p class=warn>{escape(record['banner'])}</p><h1>Patient report</h1>",
        f"<p class=warn><b>{escape(told)}</b></p>" if told else "",
        *(_block(one, record) for one in blocks(record)),
        "<details><summary>The record, as JSON</summary><pre id=record>",
        escape(json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)),
        "</pre></details>",
    ]
    return page("medfuse patient report", "".join(parts)).encode()


def _block(one: Block, record: Mapping[str, Any]) -> str:
    out = f"<h2>{escape(one.title)}</h2>" if one.title else ""
    if one.rows:
        out += table(one.header or ("",) * len(one.rows[0]), one.rows, kind="text")
    out += "".join(f"<p>{escape(line)}</p>" for line in one.lines)
    if one.picture:
        drawn = _picture(one.picture, record).replace("<svg", "<svg aria-hidden=true", 1)
        out += f"<figure role=img aria-label='{escape(one.alt)}'>{drawn}</figure>"
    return out


def _picture(name: str, record: Mapping[str, Any]) -> str:
    if name == "curve":
        return svg(lambda _, axes: draw_curve(axes, record), width=6.2, height=3.2)
    height = 0.9 + 0.36 * len(record["contributions"])
    return svg(lambda _, axes: draw_contributions(axes, record), width=6.2, height=height)


def from_html(content: bytes) -> dict[str, Any]:
    """The record of :func:`as_html`.

    Raises:
        DataError: another page.
    """
    try:
        found = _RECORD.search(content.decode())
        record = json.loads(unescape(found[1])) if found else None
    except ValueError as error:
        msg = "expected the HTML of an export, found a damaged record in it; export the patient again"
        raise DataError(msg) from error
    if not isinstance(record, dict):
        msg = "expected the HTML of an export, found a page without a record; export the patient again"
        raise DataError(msg)
    return record
