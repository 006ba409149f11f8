"""Stored blocks of HDF5 datasets as the library would unpack them, looked at before it is asked to."""

import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from medfuse.errors import DataError

if TYPE_CHECKING:
    import h5py

REFERENCE = 16  # bytes of a text of any length where it is used: length, place of the heap and number of the object
_FREE = 64 << 20
_LARGEST_RATIO = 400  # numbers in memory over bytes of the file; real files stay below 50
_DEFLATE = 1  # number of the filter
_DENSEST = 1032  # bytes that gzip makes of one, at most


def references(node: "h5py.Dataset", file: BinaryIO) -> Iterator[bytes]:
    """What a dataset of texts of any length stores for each, in blocks of any storage.

    A filter is undone by the library, in a dataset of blocks of 16 bytes in memory, for which it reads no text.

    Args:
        node: a dataset of texts, checked with :func:`check_blocks`.
        file: the same file, open for reading.

    Raises:
        DataError: texts that are stored in the header of the dataset; nobody writes them so.
        OSError, ValueError, RuntimeError: a block that cannot be unpacked.
    """
    import h5py

    end = file.seek(0, 2)
    if node.chunks is None:
        if node.id.get_create_plist().get_layout() == h5py.h5d.COMPACT:
            msg = (
                f"{Path(file.name).name}: expected texts beside the header of their dataset, found them in it; write "
                "the file again with anndata"
            )
            raise DataError(msg)
        start = node.id.get_offset()
        if start is not None:
            file.seek(start)
            yield file.read(min(end, node.size * REFERENCE))
        return
    filtered = node.id.get_create_plist().get_nfilters() > 0
    for start, packed, left_out in _blocks(node):
        file.seek(start)
        raw = file.read(min(end, packed))
        yield _unpacked(node, raw, left_out) if filtered else raw


def _blocks(node: "h5py.Dataset") -> list[tuple[int, int, int]]:
    """Place, bytes and filters left out (bits) of each stored block."""
    blocks: list[tuple[int, int, int]] = []
    node.id.chunk_iter(lambda info: blocks.append((info.byte_offset, info.size, info.filter_mask)))
    return blocks


def _unpacked(node: "h5py.Dataset", raw: bytes, left_out: int) -> bytes:
    import h5py

    count, given = math.prod(node.chunks), node.id.get_create_plist()
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((count,))
    for number in range(given.get_nfilters()):
        if not left_out >> number & 1:  # as the shuffle of texts always is
            plist.set_filter(*given.get_filter(number)[:3])
    kind = h5py.h5t.create(h5py.h5t.OPAQUE, REFERENCE)
    with h5py.File.in_memory() as memory:
        twin = h5py.h5d.create(memory.id, b"block", kind, h5py.h5s.create_simple((count,)), plist)
        twin.write_direct_chunk((0,), raw)
        out = np.empty(count, dtype=f"V{REFERENCE}")
        twin.read(h5py.h5s.ALL, h5py.h5s.ALL, out)
    return out.tobytes()


def check_blocks(node: "h5py.Dataset") -> None:
    """Refuse a dataset that takes far more memory than the file has bytes, before it is allocated.

    The size that it states, of all of it and of one block; and, as the library unpacks whatever it finds, what a block
    that gzip could have made so large really unpacks to.

    Raises:
        DataError: more than 64 MiB and more than 400 times the size of the file, or a block larger than it states.
    """
    within_file(node.size * node.dtype.itemsize, node.file, times=_LARGEST_RATIO)
    if node.chunks is None:
        return
    stated = math.prod(node.chunks) * max(node.dtype.itemsize, node.id.get_type().get_size())
    within_file(stated, node.file, times=_LARGEST_RATIO)
    plist = node.id.get_create_plist()
    filters = [plist.get_filter(k)[0] for k in range(plist.get_nfilters())]
    if _DEFLATE not in filters:
        return
    name, limit = Path(node.file.filename), max(_FREE, _LARGEST_RATIO * int(node.file.id.get_filesize()))
    if filters.count(_DEFLATE) > 1:
        msg = f"{name.name}: expected blocks packed once, found some packed twice; write the file again"
        raise DataError(msg)
    with name.open("rb") as file:
        for start, packed, left_out in _blocks(node):
            if packed * _DENSEST > limit and not left_out >> filters.index(_DEFLATE) & 1:
                file.seek(start)
                if _longer(file.read(packed), stated):
                    msg = (
                        f"{name.name}: expected blocks of {stated:,} bytes, found one that unpacks to more; a "
                        "decompression bomb? fetch the file again"
                    )
                    raise DataError(msg)


def _longer(raw: bytes, stated: int) -> bool:
    """Whether bytes packed by gzip unpack to more; other damage is left to the library."""
    try:
        return len(zlib.decompressobj().decompress(raw, stated + 1)) > stated
    except zlib.error:
        return False


def within_file(size: int, file: "h5py.File", *, times: int) -> None:
    """Refuse what would take far more memory than the file has bytes, before it is allocated.

    Raises:
        DataError: more than 64 MiB and more than ``times`` the size of the file.
    """
    packed = int(file.id.get_filesize())
    if size > max(_FREE, times * packed):
        msg = (
            f"{Path(file.filename).name}: expected content of a size that fits the file, found {size >> 20:,} "
            f"MiB in {packed >> 10:,} KiB; a decompression bomb? write it again with less compression if it is real"
        )
        raise DataError(msg)
