"""``python -m medfuse``."""

from medfuse.cli import entry

entry()
