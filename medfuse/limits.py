"""Caps against hostile or damaged files: how much is inflated, how deep is looked, how long a path may be."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from medfuse.errors import DataError

HEAD = 4096  # bytes that tell what a file is
LARGEST_TEXT = 2 << 30  # bytes of inflated text that are read into memory
LARGEST_RATIO = 400  # inflated over packed size, above 64 MiB; real tables stay below 100
LARGEST_FOLDER = 200_000  # files that an inspection looks at
_FREE = 64 << 20
_MANY_LINES = 1_000_000
_STRETCH = 200  # inflated over packed size of any 64 MiB


def read_head(path: Path, *, size: int = HEAD) -> bytes:
    """The first bytes of a file, of its content where it is gzip; never more than ``size`` are inflated."""
    try:
        with path.open("rb") as file:
            start = file.read(size)
    except OSError as error:
        msg = f"{path.name}: expected a readable file, found {type(error).__name__}; check the path and its permissions"
        raise DataError(msg) from error
    if start[:2] != b"\x1f\x8b":
        return start
    try:
        return zlib.decompressobj(wbits=31).decompress(start, size)
    except zlib.error:
        return start


def check_text(path: Path) -> None:
    """Read a text, plain or in gzip, once, keeping nothing; refuse what engines would read wrongly or without an end.

    Time: about 1 s for 300 MB in gzip, that of reading for plain text.

    Raises:
        DataError: damaged or cut gzip, 64 MiB in a row that unpack more than 200-fold, or bytes of zero (a hole in a
            file that was cut, or no text at all).
    """
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        for chunk in _inflated(file, name=path.name) if zipped else iter(lambda: file.read(1 << 20), b""):
            if b"\0" in chunk:
                msg = f"{path.name}: expected text, found bytes of zero (a file cut short, or another format)"
                raise DataError(f"{msg}; fetch it again")


def _inflated(file: BinaryIO, *, name: str) -> Iterator[bytes]:
    """Content of all members of a gzip file, in pieces."""
    engine, packed, unpacked = zlib.decompressobj(wbits=31), 0, 0
    try:
        while chunk := file.read(1 << 16):
            packed += len(chunk)
            while chunk:
                if engine.eof:  # the next member, or zeros that fill a tape's block
                    chunk = chunk.lstrip(b"\0")
                    engine = zlib.decompressobj(wbits=31) if chunk else engine
                piece = engine.decompress(chunk, 1 << 20)
                chunk = engine.unused_data if engine.eof else engine.unconsumed_tail
                unpacked += len(piece)
                yield piece
                if unpacked > _FREE:
                    if unpacked > _STRETCH * packed:
                        msg = f"{name}: expected a table, found {_FREE >> 20} MiB unpacked from {packed >> 10} KiB"
                        raise DataError(f"{msg}; a decompression bomb? unpack it yourself if it is real")
                    packed = unpacked = 0
    except zlib.error as error:
        msg = f"{name}: expected a whole gzip file, found damage; copy it again"
        raise DataError(msg) from error
    if not engine.eof:
        msg = f"{name}: expected a whole gzip file, found one cut short; copy it again"
        raise DataError(msg)


def inflate(path: Path, *, most: int = LARGEST_TEXT) -> bytes:
    """Content of a gzip (or plain) file, refused before it fills the memory.

    Raises:
        DataError: damaged, truncated, or larger than ``most`` or than 400 times its packed size.
    """
    packed = path.stat().st_size
    most = min(most, max(_FREE, packed * LARGEST_RATIO))
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            large = not zipped and packed > most
            if zipped:
                with gzip.GzipFile(fileobj=raw) as file:
                    content = file.read(most + 1)
            else:  # a size given to read would be allocated at once
                content = b"" if large else raw.read()
    except (OSError, EOFError, zlib.error) as error:
        msg = f"{path.name}: expected a whole gzip file, found damage ({type(error).__name__}); copy it again"
        raise DataError(msg) from error
    if large or len(content) > most:
        msg = (
            f"{path.name}: expected at most {most >> 20} MiB of content, found more in {packed >> 10} KiB; "
            "a decompression bomb? unpack it yourself if it is real"
        )
        raise DataError(msg)
    return content


def check_lines(content: bytes, *, where: str) -> None:
    """Refuse a text that is mostly empty lines, before each becomes an object of its own.

    Raises:
        DataError: more than a million lines that are shorter than eight bytes on average.
    """
    lines = content.count(b"\n")
    if lines > _MANY_LINES and lines * 8 > len(content):
        msg = f"{where}: expected lines of a table, found {lines:,} of hardly any content; fetch the file again"
        raise DataError(msg)
