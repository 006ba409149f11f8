"""Feature vectors and bags of them, as other tools wrote them: NPZ, HDF5 (CLAM, TRIDENT), CSV, Parquet."""

import math
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medfuse.config import ModalityCard
from medfuse.errors import DataError
from medfuse.limits import check_growth
from medfuse.loaders._chunks import check_blocks
from medfuse.loaders._heaps import check_header
from medfuse.loaders._look import is_hdf5, is_parquet, is_vectors, look, parquet_names
from medfuse.loaders._matrix import names_and_rows
from medfuse.loaders.base import Description, Head
from medfuse.sample import ModalityData, ModalitySample
from medfuse.tables import patient_ids, read_table, to_numeric
from medfuse.types import PatientId

if TYPE_CHECKING:
    import h5py

Bag = tuple[NDArray[np.float32], NDArray[np.float32] | None]  # features (T, F), coordinates (T, P)


def _bag(features: NDArray[np.generic], coordinates: NDArray[np.generic] | None, *, where: str) -> Bag:
    array = np.asarray(features)
    if array.ndim == 3 and array.shape[0] == 1:  # TRIDENT keeps a leading axis of one
        array = array[0]
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2 or not array.size or array.dtype.kind not in "fiu":
        raise _no_bag(array, where=where)
    where_to = None if coordinates is None else np.asarray(coordinates)
    if where_to is not None and where_to.ndim == 3 and where_to.shape[0] == 1:
        where_to = where_to[0]
    if where_to is not None and (where_to.ndim != 2 or len(where_to) != len(array)):
        msg = (
            f"{where}: expected coordinates of {len(array)} tokens, found {where_to.shape}; extract the features again"
        )
        raise DataError(msg)
    with np.errstate(over="ignore"):  # what float32 cannot hold is not finite, and read says so
        return array.astype(np.float32), None if where_to is None else where_to.astype(np.float32)


def _no_bag(found: "NDArray[np.generic] | h5py.Dataset", *, where: str) -> DataError:
    return DataError(
        f"{where}: expected a vector (F,) or a bag (T, F) of numbers, found {found.dtype} {found.shape}; "
        "extract the features again, or correct the card's features"
    )


def _check_npz(path: Path) -> None:
    """Compare what the arrays of an NPZ claim to hold with what is there, before memory is taken for them.

    Raises:
        DataError: a bomb, or an array whose numbers are not all there.
    """
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            check_growth(member.compress_size, member.file_size, where=path.name)
            if not member.filename.endswith(".npy"):
                continue
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(file)
                claimed = math.prod(shape) * dtype.itemsize + file.tell()
            if not dtype.hasobject and claimed != member.file_size:
                msg = (
                    f"{path.name}: expected an array of {member.file_size} bytes, found one that claims {claimed}; "
                    "fetch the file again"
                )
                raise DataError(msg)


def _read_npz(path: Path, card: ModalityCard) -> Iterator[tuple[PatientId, Bag]]:
    try:
        _check_npz(path)
        with np.load(path, allow_pickle=False) as archive:
            if card.features in archive.files and card.id in archive.files:
                ids = archive[str(card.id)].astype(str)
                for patient, row in zip(ids, archive[card.features], strict=True):
                    yield PatientId(str(patient)), _bag(row, None, where=f"{path.name}, patient {patient}")
            else:
                for patient in archive.files:
                    yield PatientId(patient), _bag(archive[patient], None, where=f"{path.name}, patient {patient}")
    except (zipfile.BadZipFile, zlib.error, ValueError, TypeError, EOFError, OSError, RuntimeError) as error:
        msg = (
            f"{path.name}: expected an NPZ file of plain arrays, found damage or pickled objects ({error}); fetch the "
            "file again, or write it with numpy.savez from plain arrays"
        )
        raise DataError(msg) from error


def _read_hdf5(path: Path, card: ModalityCard) -> Iterator[tuple[PatientId, Bag]]:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            if card.features in file and not _is_group(file, card.features):
                yield PatientId(path.stem), _group(file, card, where=path.name)
                return
            for patient in file:
                where = f"{path.name}, patient {patient}"
                if _is_group(file, patient):
                    bag = _group(file[patient], card, where=where)
                else:
                    bag = _bag(_array(file, patient, where=where), None, where=where)
                yield PatientId(patient), bag
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        msg = (
            f"{path.name}: expected an HDF5 file with {card.features!r}, found damage or another layout ({error}); "
            "fetch the file again, or correct the card's features and coordinates"
        )
        raise DataError(msg) from error


def _is_group(file: "h5py.File", name: str) -> bool:
    """Whether a name is a group of this very file; a link is not followed."""
    import h5py

    return isinstance(file.get(name, getlink=True), h5py.HardLink) and file.get(name, getclass=True) is h5py.Group


def _group(group: "h5py.Group", card: ModalityCard, *, where: str) -> Bag:
    coordinates = _array(group, card.coordinates, where=where) if card.coordinates in group else None
    return _bag(_array(group, card.features, where=where), coordinates, where=where)


def _array(group: "h5py.Group", name: str, *, where: str) -> NDArray[np.generic]:
    """A dataset whose numbers stand in the file itself: HDF5 links and external storage may point anywhere.

    Raises:
        DataError: it is a link, its numbers stand elsewhere, or it holds no numbers.
        KeyError: there is no such dataset.
    """
    import h5py

    link, node = group.get(name, getlink=True), None
    if link is None or isinstance(link, h5py.HardLink):
        check_header(group, name)
        node = group[name]
    if node is None or (isinstance(node, h5py.Dataset) and (node.external or node.is_virtual)):
        msg = f"{where}: expected numbers inside the file, found a link to {name!r}; copy the data into the file"
        raise DataError(msg)
    if isinstance(node, h5py.Dataset):
        if node.dtype.kind not in "fiu":  # texts stand in heaps, in which the library can turn for ever (_heaps)
            raise _no_bag(node, where=where)
        check_blocks(node)
        check_growth(int(node.id.get_storage_size()), int(node.nbytes), where=where)
    array: NDArray[np.generic] = node[()]
    return array


def _read_rows(path: Path, card: ModalityCard, patients: tuple[str | None, str]) -> Iterator[tuple[PatientId, Bag]]:
    frame = read_table(path)
    id_column = card.id or patients[0]
    ids = patient_ids(frame, id_column, prefix=patients[1], file=path.name)
    labels = [str(c) for c in frame.columns if c != id_column]
    if not labels:
        msg = (
            f"{path.name}: expected columns of features beside {id_column!r}, found none; correct the card's file or id"
        )
        raise DataError(msg)
    values = np.stack([to_numeric(frame[label], file=path.name) for label in labels], axis=1)
    rows: dict[PatientId, list[int]] = {}
    for row, patient in enumerate(ids):
        rows.setdefault(patient, []).append(row)
    for patient, chosen in rows.items():
        yield patient, _bag(values[chosen], None, where=f"{path.name}, patient {patient}")


def _read_one(path: Path, card: ModalityCard, patients: tuple[str | None, str]) -> Iterator[tuple[PatientId, Bag]]:
    suffix = path.suffix.lower()
    if suffix == ".npz":
        yield from _read_npz(path, card)
    elif suffix in {".h5", ".hdf5"}:
        yield from _read_hdf5(path, card)
    elif suffix in {".csv", ".tsv", ".parquet"}:
        yield from _read_rows(path, card, patients)
    else:
        msg = f"{path.name}: expected .npz, .h5, .hdf5, .csv, .tsv or .parquet, found {suffix or 'no suffix'}"
        raise DataError(msg)


def read(
    name: str, card: ModalityCard, *, resolve: Callable[[str], Path], patients: tuple[str | None, str]
) -> ModalityData:
    """Read vectors; see :func:`medfuse.loaders.read`.

    ``files`` of the card are token identities (one stain each, say); with a single ``file`` the tokens are a free bag.
    A token that is not finite is left out and listed.

    Raises:
        DataError: damage, pickled content, or feature counts that differ between files or patients.
    """
    sources = card.files or {"": card.file or ""}
    tokens: dict[PatientId, list[NDArray[np.float32]]] = {}
    position: dict[PatientId, list[NDArray[np.float32]]] = {}
    width = 0
    left_out: list[str] = []
    for index, (label, source) in enumerate(sources.items()):
        for patient, (features, coordinates) in _read_one(resolve(source), card, patients):
            width = width or features.shape[1]
            if features.shape[1] != width:
                msg = (
                    f"modality {name}, {Path(source).name}, patient {patient}: expected {width} features per token as "
                    f"before, found {features.shape[1]}; use one extractor for all files"
                )
                raise DataError(msg)
            finite = np.isfinite(features).all(axis=1)
            if not finite.all():
                left_out.append(f"{patient}{f' ({label})' if label else ''}")
            if not finite.any():
                continue
            place = (
                coordinates if coordinates is not None and not label else np.full((len(features), 1), index, np.float32)
            )
            tokens.setdefault(patient, []).append(features[finite])
            position.setdefault(patient, []).append(place[finite])
    samples = {
        patient: ModalitySample(tokens=np.concatenate(parts), position=np.concatenate(position[patient]))
        for patient, parts in tokens.items()
    }
    warnings = (
        f"{len(left_out)} patients had tokens that are not finite and were left out: {', '.join(left_out[:5])}",
    )
    return ModalityData(
        name=name,
        layout="vectors",
        features=width,
        identities=tuple(card.files),
        samples=samples,
        warnings=warnings if left_out else (),
    )


# --- inspection ------------------------------------------------------------------------------------------------------


def recognise(head: Head) -> bool:
    """NPZ, HDF5 (an h5ad file is the expression loader's), or a table of numbered features."""
    if head.start.startswith(b"PK\x03\x04"):
        return head.path.suffix.lower() == ".npz"
    if is_hdf5(head):
        return True
    if is_parquet(head):
        return is_vectors(parquet_names(head.path)[0])
    table = look(head)
    return table is not None and is_vectors(table.names)


def describe(files: Sequence[Path]) -> Description:
    """Number of entries and the shape of the first; no value.

    Raises:
        DataError: damaged, or a layout that no card can name.
    """
    path = files[0]
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return _describe_npz(path)
    if suffix in {".csv", ".tsv", ".parquet"}:
        parquet = suffix == ".parquet"
        names, rows = parquet_names(path) if parquet else names_and_rows(path)
        return Description(kind="feature vectors (table)", holds={"rows": rows, "columns": len(names)})
    return _describe_hdf5(path)


def _describe_npz(path: Path) -> Description:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            shape = _npy_shape(archive, names[0]) if names else []
    except (zipfile.BadZipFile, zlib.error, ValueError, TypeError, EOFError, OSError, RuntimeError) as error:
        msg = f"{path.name}: expected an NPZ file of plain arrays, found damage or pickled objects; fetch it again"
        raise DataError(msg) from error
    return Description(kind="feature vectors (NPZ)", holds={"arrays": len(names), "first_shape": shape})


def _npy_shape(archive: zipfile.ZipFile, name: str) -> list[int]:
    """From the header of an array; its numbers are not read."""
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return [int(n) for n in read(file)[0]]


def _describe_hdf5(path: Path) -> Description:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            names = [str(name) for name in file]
            shapes: dict[str, Any] = {}
            for name in names[:5]:
                node = None
                if isinstance(file.get(name, getlink=True), h5py.HardLink):
                    check_header(file, name)
                    node = file[name]
                _refuse_table(node, where=path.name)
                shapes[name] = list(node.shape) if isinstance(node, h5py.Dataset) else "group or link"
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, UnicodeDecodeError) as error:
        msg = f"{path.name}: expected an HDF5 file, found damage ({type(error).__name__}); fetch the file again"
        raise DataError(msg) from error
    known = {name: shape for name, shape in shapes.items() if name in {"features", "coords"}}
    layout = known or {"first": next(iter(shapes.values()), [])}  # other names can be ids of patients
    return Description(kind="feature vectors (HDF5)", holds={"entries": len(names), "shapes": layout})


def _refuse_table(node: object, *, where: str) -> None:
    """A group of arrays of equal length, one of them a plain column, is a table of patients, not one patient's bag.

    Raises:
        DataError: it is such a table.
    """
    import h5py

    parts = []
    if isinstance(node, h5py.Group) and len(node) <= 50:
        for name in node:
            check_header(node, name)
            parts.append(node[name])
    shapes = [part.shape for part in parts if isinstance(part, h5py.Dataset)]
    columns = [shape for shape in shapes if len(shape) == 1]
    if columns and len(shapes) == len(parts) > 1 and len({shape[:1] for shape in shapes}) == 1 and columns[0][0] > 1:
        msg = (
            f"{where}: expected one patient's features in each entry, found tables with a row per patient; export its "
            "arrays as one CSV or Parquet table with an id column"
        )
        raise DataError(msg)


def write_example(folder: Path) -> ModalityCard:
    """Write two small NPZ files, one per token identity, into ``folder`` and return the card that reads them."""
    rng = np.random.default_rng(0)
    for file, ids in (("he.npz", ("001", "002")), ("cd8.npz", ("002", "010"))):
        arrays: dict[str, Any] = {i: rng.normal(size=6).astype(np.float32) for i in ids}
        np.savez(folder / file, **arrays)
    return ModalityCard(loader="vectors", files={"HE": "he.npz", "CD8": "cd8.npz"})
