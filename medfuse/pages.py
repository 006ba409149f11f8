"""What every printed page of a run shares: banner, style for screen and print, tables, and how numbers are written."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

BANNER = (
    "Research use only. Not a medical device; not validated for diagnosis, prognosis or treatment of individual "
    "patients. Estimates describe groups like the training cohort."
)

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1a1a1a;max-width:64rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin-bottom:.2rem}h2{font-size:1.2rem;margin-top:2.2rem;border-bottom:1px solid #ccc}
h3{font-size:1rem;margin-bottom:.3rem}table{border-collapse:collapse;margin:.6rem 0;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .7rem;text-align:right;border-bottom:1px solid #d0d0d0;vertical-align:top}th{font-weight:600}
th:first-child,td:first-child{text-align:left}tr.carrying{background:#e8f1f8;font-weight:600}
table.text td,table.text th{text-align:left;overflow-wrap:break-word}tr.author td:last-child{font-style:italic}
.wide{overflow-x:auto}.note{color:#555;font-size:.9rem}
.warn{border-left:4px solid #D55E00;padding:.3rem .8rem;background:#fdf3ec}
.figs{display:flex;flex-wrap:wrap;gap:1.5rem}svg{max-width:100%;height:auto}code{font-size:.85rem}
pre{white-space:pre-wrap;overflow-wrap:anywhere;font-size:.75rem}
@media print{body{margin:0;max-width:none;font-size:10.5pt;color:#000}h2,h3{break-after:avoid}svg,tr{break-inside:avoid}
table{font-size:8.5pt}th,td{padding:.12rem .35rem}.note{color:#333}.wide{overflow:visible}
.warn{border:1px solid #000;border-left-width:4px;background:none}details>summary{list-style:none}
details::details-content{content-visibility:visible;display:block;height:auto}}
"""


def number(value: float) -> str:
    """Three decimals, and no minus before a zero."""
    return f"{round(value, 3) + 0.0:.3f}"


def cell(value: Any) -> str:  # noqa: ANN401  # any JSON value
    """A value as escaped text; None is undefined."""
    if value is None:
        return "undefined"
    if isinstance(value, float):
        return number(value) if abs(value) < 1000 else f"{value:.0f}"
    return escape(str(value))


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    marked: Sequence[int] = (),
    kind: str = "",
    mark: str = "carrying",
) -> str:
    """An HTML table of escaped cells.

    Args:
        header: of the columns.
        rows: cells; see :func:`cell`.
        marked: numbers of the rows that get the class ``mark``.
        kind: class of the table: ``text`` sets all cells to the left.
        mark: class of the marked rows.
    """
    head = "".join(f"<th>{escape(h)}</th>" for h in header)
    name = f" class={mark}"
    body = "".join(
        f"<tr{name if k in marked else ''}>{''.join(f'<td>{cell(v)}</td>' for v in row)}</tr>"
        for k, row in enumerate(rows)
    )
    kind = f" class={kind}" if kind else ""
    return f"<div class=wide><table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def span(low: float | None, high: float | None) -> str:
    """An interval as text."""
    return "undefined" if low is None or high is None else f"{number(low)} to {number(high)}"


def page(title: str, body: str) -> str:
    """A complete page: no script, no request to anywhere."""
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>{body}</body></html>"
    )
