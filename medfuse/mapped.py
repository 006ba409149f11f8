"""NPY files mapped into memory without holding them open, so that a cohort of any size stays below the limit of files.

``numpy.load(mmap_mode="r")`` keeps one open file per array: 1,024 arrays end most processes. A mapping needs none.
"""

import ctypes
import os
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_READ, _SHARED = 1, 1
_FAILED = ctypes.c_void_p(-1).value


def _header(path: Path) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, dtype and offset of a plain C-ordered array whose numbers all stand in the file.

    Raises:
        ValueError: another layout, objects, or fewer or more bytes than the shape says.
    """
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            msg = f"expected NPY 1.0, found {version}"
            raise ValueError(msg)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        offset = file.tell()
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if fortran or dtype.hasobject or path.stat().st_size != offset + size:
        msg = "expected a plain array of the size that its header says"
        raise ValueError(msg)
    return shape, dtype, offset


def mapped(path: Path) -> NDArray[Any]:
    """A read-only array whose rows are read from disk when they are asked for.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is not a plain NPY file.
    """
    shape, dtype, offset = _header(path)
    if not sys.platform.startswith("linux"):
        plain: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        return plain
    length = path.stat().st_size
    descriptor = os.open(path, os.O_RDONLY)
    try:
        address = _libc().mmap(None, length, _READ, _SHARED, descriptor, 0)
    finally:
        os.close(descriptor)
    if address == _FAILED:  # no more mappings allowed: the array itself
        whole: NDArray[Any] = np.load(path, allow_pickle=False)
        return whole
    buffer = (ctypes.c_char * length).from_address(address)
    weakref.finalize(buffer, _libc().munmap, ctypes.c_void_p(address), ctypes.c_size_t(length)).atexit = False
    array: NDArray[Any] = np.ndarray(shape, dtype=dtype, buffer=memoryview(buffer), offset=offset)
    array.flags.writeable = False
    return array


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc
