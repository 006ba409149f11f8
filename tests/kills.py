"""A kill at a chosen moment, without a process of its own: from then on nothing of the program reaches the disk."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch


class Killed(BaseException):
    """What ends the program; nothing that it does while it unwinds has an effect."""


class Moments(list[str]):
    """What is done to the disk (files opened for writing, moved, deleted; folders made), until the kill."""

    def __init__(self, end: int | None) -> None:
        super().__init__()
        self.end = end

    def watched(self, real: Callable[..., Any], *, only_writing: bool = False) -> Callable[..., Any]:
        def instead(path: Path, *args: Any, **options: Any) -> Any:
            if not only_writing or (args and args[0][0] in "wax"):
                if len(self) == self.end:
                    raise Killed
                self.append(f"{real.__name__} {Path(path).name}")
            return real(path, *args, **options)

        return instead


@contextmanager
def killed(end: int | None = None) -> Iterator[Moments]:
    """Run the block until just before the moment ``end`` (from 0; None: to its own end); the moments that came."""
    moments = Moments(end)
    with ExitStack() as patches:
        for owner, name in [(Path, "replace"), (Path, "unlink"), (Path, "mkdir"), (Path, "rmdir"), (shutil, "rmtree")]:
            patches.enter_context(patch.object(owner, name, moments.watched(getattr(owner, name))))
        patches.enter_context(patch.object(Path, "open", moments.watched(Path.open, only_writing=True)))
        with suppress(Killed):
            yield moments
