"""A document as entries: what is asked, what the run answers, what is left to the author; written in three forms."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

from medfuse.errors import ModelError
from medfuse.pages import BANNER, page, table

FOR_THE_AUTHOR = "For the author:"
Status = Literal["filled", "in part", "author"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One item of a document.

    Attributes:
        key: its number or name, unique in the document.
        section: where it stands.
        asks: what it asks for, in our own words.
        filled: what the run says of it; empty when it says nothing.
        author: what only the author can say; empty when nothing is left.

    Raises:
        ModelError: neither the run nor the author has anything to say.
    """

    key: str
    section: str
    asks: str
    filled: str = ""
    author: str = ""

    def __post_init__(self) -> None:
        if not self.filled.strip() and not self.author.strip():
            msg = f"document item {self.key}: expected text from the run or a mark for the author, found neither"
            raise ModelError(msg)

    @property
    def status(self) -> Status:
        """Whether the run fills it, fills it in part, or leaves it to the author."""
        if not self.filled.strip():
            return "author"
        return "in part" if self.author.strip() else "filled"

    @property
    def text(self) -> str:
        """Both parts as one text."""
        mark = f"{FOR_THE_AUTHOR} {self.author}" if self.author.strip() else ""
        return " ".join(part for part in (self.filled.strip(), mark) if part)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        plain = {"key": self.key, "section": self.section, "asks": self.asks}
        return {**plain, "status": self.status, "filled": self.filled, "author": self.author}


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A document.

    Attributes:
        name: of its files.
        title: of the page.
        about: paragraphs above the table.
        stamp: (name, value) rows that say which run and when.
        entries: its items.
    """

    name: str
    title: str
    about: Sequence[str]
    stamp: Sequence[tuple[str, str]]
    entries: Sequence[Entry]

    def counts(self) -> dict[Status, int]:
        """Entries of each status."""
        words: tuple[Status, ...] = ("filled", "in part", "author")
        return {word: sum(e.status == word for e in self.entries) for word in words}

    def summary(self) -> str:
        """How much is done, as one sentence."""
        n = self.counts()
        return (
            f"{len(self.entries)} entries: {n['filled']} filled from the run, {n['in part']} in part, {n['author']} "
            "for the author."
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "document": self.name,
            "title": self.title,
            "banner": BANNER,
            "about": list(self.about),
            "run": dict(self.stamp),
            "counts": self.counts(),
            "entries": [entry.to_json() for entry in self.entries],
        }

    def to_markdown(self) -> str:
        """As Markdown: a heading per section, an item per entry."""
        lines = [f"# {_plain(self.title)}", "", f"> {BANNER}", ""]
        lines += [part for text in self.about for part in (_plain(text), "")]
        lines += ["| run | |", "|---|---|", *(f"| {_plain(k)} | {_plain(v)} |" for k, v in self.stamp), ""]
        lines += [self.summary(), ""]
        section = None
        for entry in self.entries:
            if entry.section != section:
                section = entry.section
                lines += [f"## {_plain(section)}", ""]
            lines += [f"**{_plain(entry.key)}** {_plain(entry.asks)} *({entry.status})*", ""]
            lines += [part for part in (_plain(entry.filled.strip()),) if part]
            if entry.author.strip():
                lines += ["", f"*{FOR_THE_AUTHOR}* {_plain(entry.author)}"]
            lines.append("")
        return "\n".join(lines).rstrip() + "\n"

    def to_html(self) -> str:
        """As a self-contained page."""
        about = "".join(f"<p>{escape(text)}</p>" for text in self.about)
        parts = []
        for section in dict.fromkeys(e.section for e in self.entries):
            own = [e for e in self.entries if e.section == section]
            left = [k for k, e in enumerate(own) if e.status == "author"]
            rows = [(e.key, e.asks, e.status, e.text) for e in own]
            shown = table(("item", "asks for", "status", "answer"), rows, marked=left, kind="text", mark="author")
            parts.append(f"<h2>{escape(section)}</h2>{shown}")
        body = (
            f"<h1>{escape(self.title)}</h1><p class=warn>{BANNER}</p>{about}"
            f"{table(('', 'this run'), self.stamp, kind='text')}<p>{self.summary()}</p>{''.join(parts)}"
        )
        return page(self.title, body)


def _plain(text: str) -> str:
    """Text that stays text in Markdown: one line, and no HTML, table cell or heading from what was quoted."""
    one = " ".join(text.split())
    for mark in ("\\", "`", "*", "_", "<", ">", "|", "[", "]", "#"):
        one = one.replace(mark, f"\\{mark}" if mark not in "<>" else {"<": "&lt;", ">": "&gt;"}[mark])
    return one
