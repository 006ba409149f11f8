"""AnnData files (h5ad) through h5py: observations by variables, dense or sparse, old and new layouts."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medfuse.errors import DataError, nearest
from medfuse.loaders._chunks import check_blocks, within_file
from medfuse.loaders._heaps import check_header, check_heaps, claimed
from medfuse.loaders._matrix import Matrix, Plan, within_limits
from medfuse.tables import not_a_number

if TYPE_CHECKING:
    import h5py

INDEX = "(index)"
_TEXTS = ("_index", "encoding-type", "h5sparse_format")  # attributes that are read
_LARGEST_RATIO = 400  # bytes of texts in memory over bytes of the file; real files stay below 50
_LARGEST_SPARSE = 1000  # the same for a dense copy of a sparse matrix, of which one in a hundred is not zero


def read_h5ad(path: Path, plan: Plan, *, layer: str) -> Matrix:
    """Read one matrix of an h5ad file.

    Args:
        path: the file.
        plan: chooses from the names of ``obs`` columns (the index also as ``(index)``) and of ``var``.
        layer: ``X``, ``raw`` or the name of a layer.

    Raises:
        DataError: damage, another layout, a link out of the file, or no such layer.
    """
    import h5py

    try:
        check_heaps(path, attributes=_TEXTS)
        with h5py.File(path, "r") as file:
            return _read(file, plan, layer=layer, where=path.name)
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, AttributeError, UnicodeDecodeError) as error:
        msg = (
            f"{path.name}: expected an h5ad file with X, obs and var, found damage or another layout "
            f"({type(error).__name__}); fetch the file again, or write it with a current anndata"
        )
        raise DataError(msg) from error


def is_h5ad(path: Path) -> bool:
    """Whether an HDF5 file has obs and var, as AnnData writes them."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return "obs" in file and "var" in file and "X" in file
    except (OSError, KeyError, TypeError, ValueError, RuntimeError):
        return path.suffix.lower() == ".h5ad"


def shape_of(path: Path) -> tuple[int, int, str, list[str]]:
    """Observations, variables, how X is stored, and names of layers; no number is read.

    Raises:
        DataError: damage or another layout.
    """
    import h5py

    try:
        check_heaps(path, attributes=_TEXTS)
        with h5py.File(path, "r") as file:
            rows, columns = _length(file, "obs"), _length(file, _var_of(file, "X"))
            node = _own(file, "X")
            stored = "dense" if isinstance(node, h5py.Dataset) else f"sparse {_format(node)}"
            layers = [str(name) for name in file["layers"]] if "layers" in file else []
            return rows, columns, stored, layers + (["raw"] if "raw" in file or "raw.X" in file else [])
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, AttributeError, UnicodeDecodeError) as error:
        msg = (
            f"{path.name}: expected an h5ad file with X, obs and var, found damage or another layout "
            f"({type(error).__name__}); fetch the file again"
        )
        raise DataError(msg) from error


def _own(group: "h5py.Group", name: str) -> Any:  # noqa: ANN401  # a group or dataset
    """A node whose content stands in the file itself; links and external storage may point anywhere."""
    import h5py

    node = group
    for part in name.split("/"):
        link = node.get(part, getlink=True)
        if link is not None and not isinstance(link, h5py.HardLink):
            msg = f"{group.file.filename.rsplit('/', 1)[-1]}: expected content in the file, found a link; copy it there"
            raise DataError(msg)
        check_header(node, part)
        node = node[part]
    if isinstance(node, h5py.Dataset) and (node.external or node.is_virtual):
        msg = f"{group.file.filename.rsplit('/', 1)[-1]}: expected content in the file, found a link; copy it there"
        raise DataError(msg)
    if isinstance(node, h5py.Dataset):
        check_blocks(node)
    return node


def _texts(node: "h5py.Dataset") -> list[str]:
    """All values of a dataset; the lengths of texts are looked at before the library takes memory for them.

    Raises:
        DataError: texts too long for the file, or neither texts nor numbers.
    """
    import h5py

    text = h5py.check_string_dtype(node.dtype)
    if text is not None and text.length is None:
        within_file(claimed(node), node.file, times=_LARGEST_RATIO)
    elif node.dtype.kind not in "Sfiub":
        raise _other_type(node.dtype, node.file)
    return _strings(node[()])


def _numbers(node: "h5py.Dataset") -> NDArray[Any]:
    """All values of a dataset of numbers; lists of any length would be read with whatever length they claim."""
    if node.dtype.kind not in "fiub":
        raise _other_type(node.dtype, node.file)
    values: NDArray[Any] = node[()]
    return values


def _field(node: "h5py.Dataset", name: str) -> list[str]:
    """A column of a table in the layout before anndata 0.7, whose texts had a fixed length."""
    if node.dtype[name].kind not in "Sfiub":
        raise _other_type(node.dtype[name], node.file)
    return _strings(node[name])


def _other_type(found: np.dtype[Any], file: "h5py.File") -> DataError:
    name = file.filename.rsplit("/", 1)[-1]
    return DataError(f"{name}: expected texts or numbers, found type {found.kind!r}; write it again with anndata")


def _attribute(node: "h5py.HLObject", name: str, default: str) -> str:
    """A text beside a node, of which there must be one."""
    if name not in node.attrs:
        return default
    if node.attrs.get_id(name).shape != ():
        file = node.file.filename.rsplit("/", 1)[-1]
        msg = f"{file}: expected one text as attribute {name}, found a list; write it again with anndata"
        raise DataError(msg)
    value = node.attrs[name]
    return value.decode() if isinstance(value, bytes) else str(value)


def _strings(values: NDArray[Any]) -> list[str]:
    return [value.decode("utf-8") if isinstance(value, bytes) else str(value) for value in values]


def _index(file: "h5py.File", frame: str) -> tuple[str, list[str]]:
    """Name and values of the index of ``obs`` or ``var``."""
    import h5py

    node = _own(file, frame)
    if isinstance(node, h5py.Dataset):  # before anndata 0.7: one compound array
        within_limits(len(node), 1, where=frame)
        field = "index" if "index" in node.dtype.names else node.dtype.names[0]
        return field, _field(node, field)
    key = _attribute(node, "_index", "_index")
    values = _own(node, key)
    within_limits(len(values), 1, where=frame)
    return key, _texts(values)


def _length(file: "h5py.File", frame: str) -> int:
    import h5py

    node = _own(file, frame)
    if isinstance(node, h5py.Dataset):
        return len(node)
    return len(_own(node, _attribute(node, "_index", "_index")))


def _column(file: "h5py.File", name: str) -> list[str | None]:
    """A column of ``obs`` as text; categories are decoded, missing cells None."""
    import h5py

    node = _own(file, "obs")
    if isinstance(node, h5py.Dataset):
        return list(_field(node, name))
    cells = _own(node, name)
    if isinstance(cells, h5py.Group):
        categories = _texts(_own(cells, "categories"))
        return [categories[code] if 0 <= code < len(categories) else None for code in _numbers(_own(cells, "codes"))]
    texts = _texts(cells)
    return [None if value != value else text for value, text in zip(cells[()], texts, strict=True)]


def _obs_columns(file: "h5py.File") -> list[str]:
    import h5py

    node = _own(file, "obs")
    return list(node.dtype.names) if isinstance(node, h5py.Dataset) else [str(name) for name in node]


def _var_of(file: "h5py.File", layer: str) -> str:
    if layer != "raw":
        return "var"
    return "raw.var" if "raw.var" in file else "raw/var"


def _matrix_node(file: "h5py.File", layer: str, *, where: str) -> Any:  # noqa: ANN401  # a group or dataset
    known = {"X": "X"} if "X" in file else {}
    known |= {"raw": "raw.X"} if "raw.X" in file else {"raw": "raw/X"} if "raw" in file else {}
    known |= {str(name): f"layers/{name}" for name in file["layers"]} if "layers" in file else {}
    if layer not in known:
        msg = f"{where}: expected the layer {layer!r}, found none; {nearest(layer, known)}"
        raise DataError(msg)
    return _own(file, known[layer])


def _format(node: "h5py.Group") -> str:
    """``csr`` or ``csc``."""
    return _attribute(node, "encoding-type", _attribute(node, "h5sparse_format", "")).removesuffix("_matrix")


def _dense(node: Any, shape: tuple[int, int], *, where: str) -> NDArray[np.float64]:  # noqa: ANN401
    import h5py

    within_limits(*shape, where=where)
    if isinstance(node, h5py.Dataset):
        if node.shape != shape or node.dtype.kind not in "fiub":
            msg = (
                f"{where}: expected numbers {shape} as obs and var say, found {node.dtype} {node.shape}; write it again"
            )
            raise DataError(msg)
        return np.asarray(node[()], dtype=np.float64)
    kind = _format(node)
    parts = [_own(node, name) for name in ("data", "indices", "indptr")]
    if kind not in {"csr", "csc"} or any(part.ndim != 1 for part in parts) or parts[0].shape != parts[1].shape:
        msg = f"{where}: expected a sparse matrix in CSR or CSC, found another encoding; write it again with anndata"
        raise DataError(msg)
    within_limits(len(parts[0]), 1, where=where)
    within_limits(len(parts[2]), 1, where=where)
    data, indices, ends = (_numbers(part) for part in parts)
    outer, inner = shape if kind == "csr" else shape[::-1]
    sound = len(ends) == outer + 1 and ends[0] == 0 and ends[-1] == len(data) and (np.diff(ends) >= 0).all()
    if not sound or (len(indices) and (indices.min() < 0 or indices.max() >= inner)):
        msg = f"{where}: expected a whole sparse matrix {shape}, found indices that leave it; fetch the file again"
        raise DataError(msg)
    within_file(outer * inner * 8, node.file, times=_LARGEST_SPARSE)
    dense = np.zeros((outer, inner))
    np.add.at(dense, (np.repeat(np.arange(outer), np.diff(ends)), indices), data.astype(np.float64))
    return dense if kind == "csr" else dense.T


def _read(file: "h5py.File", plan: Plan, *, layer: str, where: str) -> Matrix:
    node = _matrix_node(file, layer, where=where)
    index, observations = _index(file, "obs")
    _, genes = _index(file, _var_of(file, layer))
    columns = [name for name in _obs_columns(file) if name != index]
    known = [INDEX, index, *columns]
    chosen, _ = plan([*known, *genes])
    texts: dict[str, Any] = {n: observations if n in (INDEX, index) else _column(file, n) for n in chosen}
    values = _dense(node, (len(observations), len(genes)), where=where)
    if np.isinf(values).any():
        row, place = (int(k) for k in np.argwhere(np.isinf(values))[0])
        count = int(np.isinf(values[:, place]).sum())
        raise not_a_number("inf", f"{where}, observation {row + 1}, variable {genes[place]!r}", count=count)
    return Matrix(texts=pd.DataFrame(texts, dtype=object), names=genes, values=values)
