"""Files that say or hold far more than they are: each is refused in seconds and in little memory.

``python tests/bombs.py FOLDER`` makes them, reads them one after the other in this process, and prints a line of JSON
for each: name, the refusal, seconds of the processor, and the most memory that they took until then.
"""

import gzip
import io
import json
import resource
import struct
import sys
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np

from medfuse import loaders
from medfuse.config import ColumnCard, ModalityCard
from medfuse.errors import MedfuseError
from medfuse.inspection import inspect

GIB, BLOCK = 1 << 30, 1 << 20


def deflated(size: int, *, start: bytes, fill: bytes) -> bytes:
    """A raw deflate stream of a beginning and ``size`` bytes: one block is packed, and its bytes are repeated."""
    first = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = first.compress(start) + first.flush(zlib.Z_FULL_FLUSH)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(fill * (BLOCK // len(fill))) + packer.flush(zlib.Z_FULL_FLUSH)
    return head + block * (size // BLOCK) + packer.flush()


def zeros_gz(size: int, *, start: bytes = b"", fill: bytes = b"\0") -> bytes:
    """A gzip member; its checksum is wrong, which only who inflates all of it would see."""
    body = deflated(size, start=start, fill=fill)
    return b"\x1f\x8b\x08\0\0\0\0\0\x02\xff" + body + struct.pack("<II", 0, size & 0xFFFFFFFF)


def zipped(name: str, size: int, *, start: bytes = b"", fill: bytes = b"\0") -> bytes:
    """A zip of one member; its checksum is wrong, as above."""
    body, whole = deflated(size, start=start, fill=fill), size + len(start)
    each = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 33, 0, len(body), whole, len(name), 0)
    local = b"PK\x03\x04" + each + name.encode() + body
    central = b"PK\x01\x02\x14\0" + each + struct.pack("<HHHII", 0, 0, 0, 0, 0) + name.encode()
    return local + central + b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local), 0)


def npy(shape: tuple[int, ...], payload: bytes = b"") -> bytes:
    """An NPY file that claims a shape and holds what is given."""
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return out.getvalue() + payload


def npz(content: bytes, *, claimed: int | None = None) -> bytes:
    """An NPZ of one array; its zip may claim another size."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("001.npy", content)
    whole = bytearray(out.getvalue())
    if claimed is not None:
        at = whole.rfind(b"PK\x01\x02")
        whole[at + 24 : at + 28] = struct.pack("<I", claimed)
    return bytes(whole)


def hdf5(path: Path, shape: tuple[int, int]) -> bytes:
    """An HDF5 bag that claims a shape in gzip chunks, none of which was written."""
    import h5py

    with h5py.File(path, "w") as file:
        file.create_dataset("features", shape=shape, dtype="f4", chunks=(1024, 1024), compression="gzip", fillvalue=0)
    return path.read_bytes()


def many_laughs() -> bytes:
    """An aECG whose entities multiply to gigabytes."""
    entities = "".join(f'<!ENTITY l{k} "{f"&l{k - 1};" * 10}">' for k in range(1, 10))
    return (
        f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY l0 "ha">{entities}]>'
        '<AnnotatedECG xmlns="urn:hl7-org:v3"><id root="&l9;"/></AnnotatedECG>'
    ).encode()


def edf(records: int, signals: int, samples: int) -> bytes:
    """An EDF header that claims a length, without data."""
    head = b"0       " + b" " * 160 + b"01.01.0101.01.01" + f"{256 * (signals + 1):<8}".encode() + b" " * 44
    head += f"{records:<8}".encode() + b"1       " + f"{signals:<4}".encode()
    each = [("I", 16), ("", 80), ("mV", 8), ("-1", 8), ("1", 8), ("-32768", 8), ("32767", 8), ("", 80)]
    each += [(str(samples), 8), ("", 32)]
    return head + b"".join(f"{text:<{width}}".encode() * min(signals, 2000) for text, width in each)


TABLE = ModalityCard(loader="tabular", file="x", id="id", columns={"age": ColumnCard()})
BAG = ModalityCard(loader="vectors", file="x")
GENES = ModalityCard(loader="expression", file="x", id="id", columns="*", unit="tpm", log_base=2)
NAMED = b"id,age\n001,"


def bombs(folder: Path) -> dict[str, tuple[str, bytes, str | ModalityCard]]:
    """Name -> (file name, content, raw loader or card of a table)."""
    deep = gzip.compress(zeros_gz(GIB), 1)
    return {
        "text, gzip of 4 GiB of blanks": ("a.txt", zeros_gz(4 * GIB, fill=b" "), "text"),
        "text, gzip of zeros": ("b.txt", zeros_gz(GIB), "text"),
        "text, gzip of two members": ("c.txt", zeros_gz(GIB, fill=b"a ") + zeros_gz(GIB, fill=b"b "), "text"),
        "text, gzip in gzip": ("d.txt", deep, "text"),
        "csv.gz, one endless cell": ("a.csv.gz", zeros_gz(4 * GIB, start=NAMED, fill=b"9"), TABLE),
        "csv.gz, endless rows": ("b.csv.gz", zeros_gz(2 * GIB, start=b"id,age\n", fill=b"1,2\n"), TABLE),
        "csv.gz, endless columns": ("c.csv.gz", zeros_gz(GIB, fill=b"id,"), TABLE),
        "tsv.gz": ("d.tsv.gz", zeros_gz(GIB, start=b"id\tage\n", fill=b"1\t2\n"), TABLE),
        "csv in zip": ("e.zip", zipped("e.csv", 2 * GIB, start=NAMED, fill=b"9"), TABLE),
        "csv.gz, gzip in gzip": ("f.csv.gz", deep, TABLE),
        "genes, csv.gz": ("g.csv.gz", zeros_gz(GIB, start=b"id,TP53\n", fill=b"1,2\n"), GENES),
        "npz, 4 TiB claimed, none there": ("a.npz", npz(npy((1 << 30, 1024))), BAG),
        "npz, zeros that inflate to 4 GiB": (
            "b.npz",
            zipped("001.npy", 4 * GIB - BLOCK, start=npy((1 << 20, 1024))),
            BAG,
        ),
        "npz, size of the member is a lie": ("c.npz", npz(npy((1 << 26, 16)), claimed=0xFFFFFFF0), BAG),
        "hdf5, 4 TiB of chunks nobody wrote": ("a.h5", hdf5(folder / "a.h5", (1 << 30, 1024)), BAG),
        "WFDB, 10^12 samples claimed": (
            "a.hea",
            b"a 12 500 1000000000000\n" + b"a.dat 16 200 16 0 0 0 0 I\n" * 12,
            "ecg",
        ),
        "WFDB, 10^9 signals claimed": ("b.hea", b"b 1000000000 500 5000\nb.dat 16 200 16 0 0 0 0 I\n", "ecg"),
        "EDF, 10^7 records claimed": ("c.edf", edf(99999999, 12, 500), "ecg"),
        "EDF, 9,999 signals claimed": ("d.edf", edf(10, 9999, 99999999), "ecg"),
        "aECG, entities of entities": ("e.xml", many_laughs(), "ecg"),
    }


def read(path: Path, how: str | ModalityCard) -> None:
    """Read a file as extraction or loading would."""
    inspect([path])
    if isinstance(how, str):
        beside = sorted(p for p in path.parent.glob(f"{path.stem}.dat"))
        raw = loaders.module_of(how, where="bombs").read([path, *beside], {})
        for _ in raw.batches():
            pass
    else:
        loaders.read("m", how, resolve=lambda source: path, patients=("id", "row-"))


def main(folder: Path) -> None:
    """Read every bomb; the memory is what this process took beyond what it had before."""
    made = bombs(folder)
    for name, (file, content, _) in made.items():
        (folder / file).write_bytes(content)
        made[name] = (file, b"", made[name][2])
    (folder / "a.dat").write_bytes(bytes(1 << 16))
    for how in ("text", "ecg"):
        loaders.module_of(how, where="bombs")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, (file, _, how) in made.items():
        started, refused = time.process_time(), ""
        try:
            read(folder / file, how)
        except MedfuseError as error:
            refused = str(error)
        seconds = time.process_time() - started
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
        line = {"name": name, "refused": refused, "seconds": round(seconds, 2), "most_mib": grown}
        sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
