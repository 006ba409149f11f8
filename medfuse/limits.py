"""Caps against hostile or damaged files: how much is inflated, how deep is looked, how long a path may be."""

import gzip
import io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from medfuse.errors import DataError

HEAD = 4096  # bytes that tell what a file is
LARGEST_TEXT = 2 << 30  # bytes of inflated text that are read into memory
LARGEST_RATIO = 400  # inflated over packed size, above 64 MiB; real tables stay below 100
LARGEST_FOLDER = 200_000  # files that an inspection looks at
DEEPEST_FOLDER = 64  # levels of folders below one that a card names
_FREE, _PIECE = 64 << 20, 4 << 20
_MANY_LINES = 1_000_000
_STRETCH = 200  # inflated over packed size of any 64 MiB


def files_below(folder: Path, *, most: int = LARGEST_FOLDER, deepest: int = DEEPEST_FOLDER) -> Iterator[Path]:
    """Files below a folder, in no order; links to folders are not followed, pipes and devices are left out.

    Raises:
        ValueError: more than ``most`` entries, or deeper than ``deepest``; before anything is sorted or opened.
    """
    waiting, count = [(str(folder), 1)], 0
    while waiting:
        here, level = waiting.pop()
        with os.scandir(here) as entries:
            for entry in entries:
                count += 1
                if count > most:
                    msg = f"expected at most {most} files in a folder, found more"
                    raise ValueError(msg)
                if entry.is_dir(follow_symlinks=False):
                    if level >= deepest:
                        msg = f"expected folders at most {deepest} levels deep, found deeper ones"
                        raise ValueError(msg)
                    waiting.append((entry.path, level + 1))
                elif entry.is_file():
                    yield Path(entry.path)


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
        for chunk in _pieces(file, name=path.name) if zipped else iter(lambda: file.read(1 << 20), b""):
            if b"\0" in chunk:
                msg = f"{path.name}: expected text, found bytes of zero (a file cut short, or another format)"
                raise DataError(f"{msg}; fetch it again")


def _pieces(file: BinaryIO, *, name: str) -> Iterator[bytes]:
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


def inflate(path: Path, *, most: int = LARGEST_TEXT, ratio: int = LARGEST_RATIO) -> bytes:
    """Content of a gzip (or plain) file, refused before it fills the memory.

    Args:
        path: of the file.
        most: bytes of content.
        ratio: of inflated to packed bytes, above 64 MiB; compared while it is inflated, not at the end.

    Raises:
        DataError: damaged, truncated, or larger than ``most`` or than ``ratio`` times its packed size.
    """
    packed = path.stat().st_size
    most = min(most, max(_FREE, packed * ratio))
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            large = not zipped and packed > most
            plain = b"" if zipped or large else raw.read()  # a size given to read would be allocated at once
            content = _inflated(raw, most=most, ratio=ratio) if zipped else plain
            grown = large or len(content) > max(_FREE, ratio * raw.tell())
    except (OSError, EOFError, zlib.error) as error:
        msg = f"{path.name}: expected a whole gzip file, found damage ({type(error).__name__}); copy it again"
        raise DataError(msg) from error
    if grown or len(content) > most:
        msg = (
            f"{path.name}: expected at most {most >> 20} MiB of content, found more in {packed >> 10} KiB; "
            "a decompression bomb? unpack it yourself if it is real"
        )
        raise DataError(msg)
    return content


def _inflated(raw: BinaryIO, *, most: int, ratio: int) -> bytes:
    """Content up to the first byte too many, or to where it has grown too much for what was read of the file."""
    held = io.BytesIO()
    with gzip.GzipFile(fileobj=raw) as file:
        while piece := file.read(min(_PIECE, most + 1 - held.tell())):
            held.write(piece)
            if held.tell() > max(_FREE, ratio * raw.tell()):
                break
    return held.getvalue()


def check_growth(packed: int, unpacked: int, *, where: str, ratio: int = LARGEST_RATIO) -> None:
    """Refuse what says that it unpacks to far more than it is, before it is unpacked.

    Args:
        packed: bytes on disk.
        unpacked: bytes that it claims.
        where: for the message.
        ratio: above 64 MiB.

    Raises:
        DataError: more than ``ratio`` times the packed size.
    """
    if unpacked > max(_FREE, packed * ratio):
        msg = (
            f"{where}: expected ordinary data, found {packed >> 10} KiB that claim to hold {unpacked >> 20} MiB; a "
            "decompression bomb? unpack it yourself if it is real"
        )
        raise DataError(msg)


def check_lines(content: bytes, *, where: str) -> None:
    """Refuse a text that is mostly empty lines, before each becomes an object of its own.

    Raises:
        DataError: more than a million lines that are shorter than eight bytes on average.
    """
    lines = content.count(b"\n")
    if lines > _MANY_LINES and lines * 8 > len(content):
        msg = f"{where}: expected lines of a table, found {lines:,} of hardly any content; fetch the file again"
        raise DataError(msg)
