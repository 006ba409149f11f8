"""Features that other tools extracted, one HDF5 file per slide or item, as CLAM and TRIDENT leave them.

``features`` (T, F) and ``coords`` (T, 2) in level-0 pixels; a leading axis of one is taken off. Items go to the store
one by one, so that memory does not grow with the cohort. ``medfuse.loaders.slide.write_features`` writes this layout.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medfuse.config import ModalityCard
from medfuse.errors import ConfigError, DataError, nearest
from medfuse.loaders._chunks import check_blocks
from medfuse.loaders._heaps import check_header
from medfuse.loaders.base import Description, Head, Identifying
from medfuse.sample import ItemKind, RawSample

if TYPE_CHECKING:
    import h5py

ITEM: ItemKind = "vector"
OPTIONS = {"features": "features", "coordinates": "coords"}
_FACTS = ("patch_size", "patch_size_level0", "patch_level", "level0_magnification", "target_magnification", "overlap")
_BLOCK = 4096  # rows that are looked at together
_FREE = 64 << 20
_LARGEST_RATIO = 400  # numbers in memory over bytes of the file; real files stay below 5
_DAMAGE = (OSError, KeyError, TypeError, ValueError, RuntimeError, AttributeError, UnicodeDecodeError)


def _names(options: Mapping[str, Any]) -> tuple[str, str]:
    unknown = next((key for key in options if key not in OPTIONS), None)
    if unknown is not None:
        msg = f"options of the loader bags: unknown {unknown!r}; {nearest(unknown, OPTIONS)}"
        raise ConfigError(msg)
    given = {**OPTIONS, **options}
    return str(given["features"]), str(given["coordinates"])


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path.name}: expected a whole HDF5 file of features, found damage or another layout "
        f"({type(error).__name__}); copy it again, or extract the features again"
    )


def _dataset(file: "h5py.File", name: str, path: Path) -> "h5py.Dataset":
    """A dataset whose numbers stand in the file itself, of a size that fits the file.

    Raises:
        DataError: none, a link, other content than numbers (T, N) or (1, T, N), or a bomb.
    """
    import h5py

    link = file.get(name, getlink=True)
    if link is None:
        # Their names are not said: in a file of many patients they are patients.
        msg = f"{path.name}: expected a dataset {name!r}, found {len(file)} others; name it in the card's options"
        raise DataError(msg)
    node = None
    if isinstance(link, h5py.HardLink):
        check_header(file, name)
        node = file[name]
    if node is None or (isinstance(node, h5py.Dataset) and (node.external or node.is_virtual)):
        msg = f"{path.name}: expected numbers inside the file, found a link to {name!r}; copy the data into the file"
        raise DataError(msg)
    sound = isinstance(node, h5py.Dataset) and node.dtype.kind in "fiu" and len(_shape(node)) == 2 and node.size
    if not sound:
        msg = f"{path.name}: expected numbers (T, N) as {name!r}, found others; extract the features again"
        raise DataError(msg)
    size, packed = node.size * node.dtype.itemsize, path.stat().st_size
    if size > max(_FREE, _LARGEST_RATIO * packed):
        msg = (
            f"{path.name}: expected numbers that fit the file, found {size >> 20:,} MiB in {packed >> 10:,} KiB; "
            "a decompression bomb? write it without compression if it is real"
        )
        raise DataError(msg)
    return node


def _shape(node: "h5py.Dataset") -> tuple[int, ...]:
    """Without the leading axis of one that TRIDENT keeps."""
    shape = tuple(int(n) for n in node.shape)
    return shape[1:] if len(shape) == 3 and shape[0] == 1 else shape


def _rows(node: "h5py.Dataset", start: int, stop: int) -> NDArray[np.float32]:
    array = node[0, start:stop] if node.ndim == 3 else node[start:stop]
    return np.asarray(array, dtype=np.float32)


def _finite(node: "h5py.Dataset") -> NDArray[np.bool_]:
    """Which tokens hold only numbers; a block at a time."""
    count = _shape(node)[0]
    with np.errstate(over="ignore"):
        parts = [np.isfinite(_rows(node, k, min(k + _BLOCK, count))).all(axis=1) for k in range(0, count, _BLOCK)]
    return np.concatenate(parts)


def _facts(coordinates: "h5py.Dataset | None") -> dict[str, float]:
    """Numbers that CLAM and TRIDENT write beside the coordinates; never the slide's name."""
    found: dict[str, float] = {}
    if coordinates is None:
        return found
    for name in _FACTS:
        # a text is not read: it stands in a heap, in which the library can turn for ever (_heaps)
        if name in coordinates.attrs and coordinates.attrs.get_id(name).dtype.kind in "fiu":
            value = np.asarray(coordinates.attrs[name])
            if value.size == 1 and np.isfinite(value).all():
                found[name] = float(value.reshape(-1)[0])
    return found


def read(files: Sequence[Path], options: Mapping[str, Any]) -> RawSample:
    """One bag; see :mod:`medfuse.loaders.base`. Tokens that are not finite are left out and counted.

    Args:
        files: one HDF5 file.
        options: ``features`` and ``coordinates``, names of the datasets; default ``features`` and ``coords``.

    Raises:
        ConfigError: another option.
        DataError: damage, links, other shapes, coordinates of another number of tokens, no finite token.
    """
    import h5py

    names = _names(options)
    path = files[0]
    try:
        with h5py.File(path, "r") as file:
            node = _dataset(file, names[0], path)
            count, width = _shape(node)
            given = _dataset(file, names[1], path) if names[1] in file else None
            if given is not None and _shape(given)[0] != count:
                msg = f"{path.name}: expected coordinates of {count} tokens, found {_shape(given)[0]}; extract it again"
                raise DataError(msg)
            for one in (node, given):
                if one is not None:
                    check_blocks(one)
            place = np.arange(count, dtype=np.float32)[:, None] if given is None else _rows(given, 0, count)
            kept = np.flatnonzero(_finite(node) & np.isfinite(place).all(axis=1))
            facts = _facts(given)
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    if not len(kept):
        msg = f"{path.name}: expected finite features, found none in {count} tokens; extract the features again"
        raise DataError(msg)
    left_out = count - len(kept)
    return RawSample(
        item=ITEM,
        shape=(width,),
        position=place[kept],
        unit="index" if given is None else "level-0 pixels",
        fetch=_Fetch(path, names[0], kept),
        facts=facts,
        warnings=(f"{left_out} tokens that are not finite were left out",) if left_out else (),
    )


class _Fetch:
    """Tokens by their numbers; the file is open only meanwhile."""

    def __init__(self, path: Path, name: str, kept: NDArray[np.intp]) -> None:
        self._path, self._name, self._kept = path, name, kept

    def __call__(self, rows: Sequence[int]) -> NDArray[np.float32]:
        import h5py

        wanted = self._kept[np.asarray(rows, dtype=np.intp)]
        try:
            with h5py.File(self._path, "r") as file:
                node = _dataset(file, self._name, self._path)
                out = np.empty((len(wanted), _shape(node)[1]), dtype=np.float32)
                for block in np.unique(wanted // _BLOCK):
                    here = np.flatnonzero(wanted // _BLOCK == block)
                    first, last = int(wanted[here].min()), int(wanted[here].max())
                    out[here] = _rows(node, first, last + 1)[wanted[here] - first]
        except _DAMAGE as error:
            raise _damaged(self._path, error) from error
        return out


def recognise(head: Head) -> bool:
    """HDF5 with a dataset ``features`` at its top."""
    import h5py

    if not head.start.startswith(b"\x89HDF\r\n\x1a\n"):
        return False
    try:
        with h5py.File(head.path, "r") as file:
            there = isinstance(file.get("features", getlink=True), h5py.HardLink)
            return there and file.get("features", getclass=True) is h5py.Dataset
    except _DAMAGE:
        return False


def describe(files: Sequence[Path]) -> Description:
    """Number and width of the tokens, and what TRIDENT or CLAM wrote about the tiles; no number of a token is read.

    Raises:
        DataError: as :func:`read`.
    """
    import h5py

    path = files[0]
    try:
        with h5py.File(path, "r") as file:
            count, width = _shape(_dataset(file, OPTIONS["features"], path))
            given = _dataset(file, OPTIONS["coordinates"], path) if OPTIONS["coordinates"] in file else None
            holds = {"tokens": count, "features": width, "coordinates": given is not None, **_facts(given)}
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    return Description(kind="features of tiles (HDF5)", holds=holds)


def identifying(files: Sequence[Path]) -> list[Identifying]:
    """The slide's name, which TRIDENT and CLAM write as an attribute."""
    import h5py

    path, name = files[0], OPTIONS["coordinates"]
    try:
        with h5py.File(path, "r") as file:
            named = isinstance(file.get(name, getlink=True), h5py.HardLink)
            if named:
                check_header(file, name)
                named = "name" in file[name].attrs
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    return [Identifying(where=f"{path.name}: attribute name of {name}", kind="id")] if named else []


def write_example(folder: Path) -> ModalityCard:
    """Write the features of two small slides into ``folder`` and return the card that reads them."""
    import h5py

    rng = np.random.default_rng(0)
    (folder / "features").mkdir(parents=True, exist_ok=True)
    for slide, count in (("001_A", 5), ("002_A", 4)):
        with h5py.File(folder / "features" / f"{slide}.h5", "w") as file:
            file["features"] = rng.normal(size=(count, 8)).astype(np.float32)
            coords = file.create_dataset("coords", data=np.arange(2 * count).reshape(count, 2) * 256)
            coords.attrs["patch_size"] = 256
    return ModalityCard(loader="bags", path="features/{patient_id}_*.h5")
