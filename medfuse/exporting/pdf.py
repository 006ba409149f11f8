"""A record as a PDF of A4 pages, with Matplotlib: text that can be selected, pictures as lines, the record in its data.

Matplotlib is a dependency already and embeds its own fonts; a character that the font lacks is written as its code.
"""

import base64
import datetime
import io
import json
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from medfuse.errors import DataError
from medfuse.exporting.blocks import Block, blocks, warning
from medfuse.exporting.drawing import draw_contributions, draw_curve

WIDTH, HEIGHT, MARGIN = 8.27, 11.69, 0.75  # inches
_LEAD = 1.35  # of a line, in font sizes
_MARK = "medfuse-record:"
_RECORD = re.compile(rb"medfuse-record:([A-Za-z0-9+/=]+)")
_MOST = 50_000_000  # bytes of a record


def as_pdf(record: Mapping[str, Any]) -> bytes:
    """A record as a PDF; the same record gives the same bytes with the same Matplotlib."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_pdf import PdfPages

    packed = base64.b64encode(zlib.compress(json.dumps(record, allow_nan=False).encode(), 9)).decode()
    data = {
        "Title": "medfuse patient report",
        "Subject": record["banner"],
        "Keywords": _MARK + packed,
        "Creator": "medfuse",
        "CreationDate": datetime.datetime.fromisoformat(record["stamp"]["exported"]),
    }
    stream = io.BytesIO()
    settings = {"pdf.fonttype": 42, "font.family": "DejaVu Sans", "font.size": 8.5, "svg.hashsalt": "medfuse"}
    with rc_context(settings), PdfPages(stream, metadata=data) as pages:
        paper = _Paper(pages, record)
        told = warning(record)
        paper.lines("Patient report", size=15, bold=True)
        if told:
            paper.lines(told, size=9.5, bold=True)
        for one in blocks(record):
            paper.block(one)
        paper.close()
    return stream.getvalue()


class _Paper:
    """Pages that are filled from the top; a block that does not fit begins the next one."""

    def __init__(self, pages: Any, record: Mapping[str, Any]) -> None:  # noqa: ANN401  # Matplotlib's
        self.pages, self.record, self.number = pages, record, 0
        self.figure: Any = None
        self.new()

    def new(self) -> None:
        """Begin a page: banner above, hashes below."""
        from matplotlib.figure import Figure

        self.close()
        self.number += 1
        self.figure = Figure(figsize=(WIDTH, HEIGHT))
        self.left = HEIGHT - MARGIN  # inches above the bottom
        self.lines(self.record["banner"], size=8, bold=True)
        stamp = self.record["stamp"]
        foot = f"page {self.number}   run {stamp['run_id'][:16]}   content {self.record['content_sha256'][:16]}"
        self._put(foot, x=MARGIN, y=0.4, size=7)
        self.left -= 0.1

    def close(self) -> None:
        """Write the page that is open."""
        if self.figure is not None:
            self.pages.savefig(self.figure)

    def room(self, height: float) -> None:
        """Begin a new page unless so many inches are left."""
        if self.left - height < MARGIN:
            self.new()

    def _put(self, text: str, *, x: float, y: float, size: float, bold: bool = False) -> None:
        weight = "bold" if bold else "normal"
        self.figure.text(x / WIDTH, y / HEIGHT, text, fontsize=size, weight=weight, va="baseline", parse_math=False)

    def lines(self, text: str, *, size: float = 8.5, bold: bool = False) -> None:
        """A paragraph over the whole width."""
        for line in wrapped(text, WIDTH - 2 * MARGIN, size=size, bold=bold):
            self.room(size * _LEAD / 72)
            self.left -= size * _LEAD / 72
            self._put(line, x=MARGIN, y=self.left, size=size, bold=bold)
        self.left -= 0.04

    def block(self, one: Block) -> None:
        """A heading with what stands below it."""
        if one.title:
            self.room(0.8)
            self.left -= 0.12
            self.lines(one.title, size=11, bold=True)
        if one.rows:
            self.table(one.header, one.rows)
        for line in one.lines:
            self.lines(line)
        if one.picture == "curve":
            self.picture(lambda axes: draw_curve(axes, self.record), height=2.5)
        elif one.picture:
            height = 0.8 + 0.27 * len(self.record["contributions"])
            self.picture(lambda axes: draw_contributions(axes, self.record), height=height)

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Cells below each other, wrapped; two columns give the second most of the room."""
        columns = len(rows[0])
        whole = WIDTH - 2 * MARGIN
        shares = {2: (0.27, 0.73), 4: (0.3, 0.15, 0.2, 0.35)}.get(columns, (1 / columns,) * columns)
        widths = [share * whole for share in shares]
        if header:
            self.row(header, widths, bold=True)
        for row in rows:
            self.row(row, widths)
        self.left -= 0.06

    def row(self, cells: Sequence[str], widths: Sequence[float], *, bold: bool = False) -> None:
        """One row of a table, with a line below."""
        size = 8.0
        parts = [wrapped(str(c), w - 0.08, size=size, bold=bold) for c, w in zip(cells, widths, strict=True)]
        step = size * _LEAD / 72
        deepest = max(len(p) for p in parts)
        self.room(min(step * deepest, HEIGHT - 3 * MARGIN) + 0.04)
        top = self.left
        for k in range(deepest):
            if top - step < MARGIN:  # a cell longer than a page
                self.new()
                top = self.left
            top -= step
            for c, part in enumerate(parts):
                if k < len(part):
                    self._put(part[k], x=MARGIN + sum(widths[:c]), y=top, size=size, bold=bold)
        self.left = top - 0.04
        from matplotlib.lines import Line2D

        ends = [MARGIN / WIDTH, 1 - MARGIN / WIDTH]
        self.figure.add_artist(Line2D(ends, [self.left / HEIGHT] * 2, color="0.8", lw=0.5))

    def picture(self, draw: Callable[[Any], None], *, height: float) -> None:
        """Axes over most of the width."""
        self.room(height + 0.5)
        self.left -= height + 0.1
        axes = self.figure.add_axes((0.2, self.left / HEIGHT, 0.68, height / HEIGHT))
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        self.left -= 0.5


def wrapped(text: str, width: float, *, size: float, bold: bool = False) -> list[str]:
    """Lines of a text that fit into a width in inches; a word that is too long is cut."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family="DejaVu Sans", size=size, weight="bold" if bold else "normal")

    def length(part: str) -> float:
        return float(text_to_path.get_text_width_height_descent(part, font, False)[0]) / 72  # noqa: FBT003

    out, line = [], ""
    for word in _printable(text, font).split():
        joined = f"{line} {word}" if line else word
        if length(joined) <= width:
            line = joined
            continue
        if line:
            out.append(line)
        while length(word) > width:
            keep = max(1, int(len(word) * width / length(word)))
            while keep > 1 and length(word[:keep]) > width:
                keep -= 1
            out.append(word[:keep])
            word = word[keep:]
        line = word
    return [*out, line] if line or not out else out


def _printable(text: str, font: Any) -> str:  # noqa: ANN401  # Matplotlib's
    """The text with a code in place of what the font lacks or what is no visible character."""
    from matplotlib.font_manager import findfont, get_font

    glyphs = get_font(findfont(font))
    shown = []
    for c in text:
        known = c == " " or (c.isprintable() and glyphs.get_char_index(ord(c)))
        shown.append(c if known else " " if c.isspace() else f"\\u{{{ord(c):x}}}")
    return "".join(shown)


def from_pdf(content: bytes) -> dict[str, Any]:
    """The record of :func:`as_pdf`.

    Raises:
        DataError: another PDF.
    """
    found = _RECORD.search(content)
    try:
        if found is None:
            raise ValueError
        unpacker = zlib.decompressobj()
        text = unpacker.decompress(base64.b64decode(found[1]), _MOST)
        record = json.loads(text)
    except (ValueError, zlib.error) as error:
        msg = "expected the PDF of an export, found one without a sound record; export the patient again"
        raise DataError(msg) from error
    if not isinstance(record, dict):
        msg = "expected the PDF of an export, found another record; export the patient again"
        raise DataError(msg)
    return record
