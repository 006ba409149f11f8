"""``medfuse inspect``: what any file or folder is, who reads it, and what is wrong with it. Never raises."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medfuse import loaders
from medfuse.errors import MedfuseError
from medfuse.limits import files_below, read_head
from medfuse.loaders.base import Head, Identifying


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What one item (a file, or files that belong together) is.

    Attributes:
        path: first file.
        files: number of files.
        loader: who reads it; empty when nobody does.
        kind: in the field's words.
        holds: shape, units, geometry, leads, codes, number of patients, as JSON values.
        identifying: elements that identify a person, without their values.
        warnings: what a person should know before using it.
        refusal: why it cannot be read and what to do; empty when it can.
    """

    path: str
    files: int = 1
    loader: str = ""
    kind: str = ""
    holds: Mapping[str, Any] = field(default_factory=dict)
    identifying: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    refusal: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def inspect(paths: Sequence[str | Path]) -> list[Inspection]:
    """Look at files and folders; no file is loaded more than needed to say what it holds.

    Args:
        paths: files or folders; what lies below a folder is grouped into items (a DICOM series, a WFDB record).

    Returns:
        One entry per item, in the order of the paths; a path that cannot be read is an entry with a refusal.
    """
    found: list[Inspection] = []
    for path in map(Path, paths):
        here: list[Inspection] = []
        by_loader: dict[str, list[Path]] = {}
        try:
            there, files = path.exists(), _files(path)
        except (OSError, ValueError, RuntimeError) as error:
            why = str(error) if isinstance(error, ValueError) else f"cannot be followed ({type(error).__name__})"
            found.append(Inspection(path=str(path), refusal=f"{path}: {why}; narrow the path, or check it"))
            continue
        for file in files:
            try:
                name = recognise(file)
            except MedfuseError as error:
                here.append(Inspection(path=str(file), refusal=str(error)))
                continue
            except Exception as error:  # noqa: BLE001  # an inspection never raises
                here.append(Inspection(path=str(file), refusal=_internal(error)))
                continue
            if name:
                by_loader.setdefault(name, []).append(file)
            else:
                here.append(Inspection(path=str(file), refusal=_unknown(file)))
        if not there:
            here.append(Inspection(path=str(path), refusal=f"{path}: no such file or folder; check the path"))
        for name, files in by_loader.items():
            here += _items(name, files)
        found += sorted(here, key=lambda i: i.path)
    return found


def recognise(file: Path) -> str:
    """Name of the loader that reads a file; empty when none does.

    Raises:
        DataError: the file cannot be opened.
    """
    size = file.stat().st_size
    if not size:
        return ""
    head = Head(path=file, size=size, start=read_head(file))
    specific = [name for name in loaders.LOADERS if name not in loaders.GENERIC]
    for name in (*specific, *loaders.GENERIC):
        ask = getattr(loaders.module_of(name, where=str(file)), "recognise", None)
        if ask is not None and ask(head):
            return name
    return ""


def _files(path: Path) -> list[Path]:
    """Files at or below a path, sorted.

    Raises:
        ValueError: too many, too deep, or something that is neither a file nor a folder.
        OSError: a folder that cannot be read.
    """
    if path.is_dir():
        return sorted(files_below(path))
    if path.exists() and not path.is_file():
        msg = "expected a file or a folder, found a pipe or a device"
        raise ValueError(msg)
    return [path] if path.exists() else []


_TABLES = (
    "a table of one row per patient is named in a data card (loader tabular), of events with columns of patient and "
    "time too (loader events, format wide)"
)
_IMAGE = (
    "an image alone says no size in mm or µm: write it as TIFF (loader slide, option slide_mpp), DICOM or NIfTI, or "
    "extract its features (loader vectors)"
)
_NO_DATA = "it holds no measurements: leave it out of the folder"
_TODO: dict[str, str] = {
    **dict.fromkeys((".csv", ".tsv", ".data"), _TABLES),
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"), _IMAGE),
    **dict.fromkeys((".md", ".rst", ".pdf", ".html", ".icc", ".log", ".py", ".sh", ".dump"), _NO_DATA),
    ".json": "write what it holds as a table (CSV, Parquet) with an id column, or leave it out",
    **dict.fromkeys((".bval", ".bvec"), "directions of a diffusion series; leave it out"),
    **dict.fromkeys((".xls", ".xlsx", ".sav", ".dta", ".rds", ".fst"), "export it as CSV or Parquet with an id column"),
    **dict.fromkeys((".pkl", ".pickle", ".pt", ".pth"), "it can run code when it is opened: write plain arrays (NPZ)"),
    **dict.fromkeys((".dat", ".mat"), "signals need the WFDB header (.hea) that names them beside them"),
}
_NAMED: dict[str, str] = {
    **dict.fromkeys((".svs", ".ndpi", ".tif", ".tiff", ".scn", ".bif", ".mrxs", ".vms", ".czi"), "a slide"),
    **dict.fromkeys((".dcm", ".dicom"), "DICOM"),
    **dict.fromkeys((".nii", ".mgh", ".mgz", ".nrrd", ".nhdr"), "a volume"),
    **dict.fromkeys((".hea", ".edf"), "an ECG"),
    **dict.fromkeys((".vcf", ".maf"), "variants"),
    **dict.fromkeys((".npz", ".h5", ".hdf5", ".h5ad", ".parquet", ".arff"), "arrays or a table"),
}


def _unknown(file: Path) -> str:
    """Why no loader takes a file, and what to do about it."""
    if file.stat().st_size == 0:
        return f"{file.name}: empty; copy it again, or leave it out"
    ends = [end.lower() for end in file.suffixes[-2:] if end.lower() != ".gz"]
    end = ends[-1] if ends else ""
    if end in _NAMED:
        return f"{file.name}: expected {_NAMED[end]}, as its name says, found other content; copy it again"
    if read_head(file, size=8) == b"\x89HDF\r\n\x1a\n":
        todo = "this is HDF5, whose layout is its writer's own: export its arrays as CSV or Parquet with an id column"
    elif file.name.lower() in {"license", "licence", "readme", "makefile", "notice", "copying"}:
        todo = _NO_DATA
    else:
        todo = _TODO.get(end, "export it as one of them, or leave it out")
    return f"{file.name}: no loader knows this format; they are {', '.join(loaders.LOADERS)}; {todo}"


def _items(name: str, files: Sequence[Path]) -> Iterator[Inspection]:
    module = loaders.module_of(name, where=name)
    group = getattr(module, "group", lambda paths: [(path,) for path in paths])
    try:
        groups = group(files)
    except MedfuseError as error:
        yield Inspection(path=str(files[0]), files=len(files), loader=name, refusal=str(error))
        return
    except Exception as error:  # noqa: BLE001  # an inspection never raises
        yield Inspection(path=str(files[0]), files=len(files), loader=name, refusal=_internal(error))
        return
    for item in groups:
        yield _item(name, module, tuple(item))


def _item(name: str, module: Any, files: tuple[Path, ...]) -> Inspection:  # noqa: ANN401  # a module
    first = Inspection(path=str(files[0]), files=len(files), loader=name)
    try:
        described = module.describe(files)
        persons: list[Identifying] = module.identifying(files) if hasattr(module, "identifying") else []
    except MedfuseError as error:
        return Inspection(path=first.path, files=first.files, loader=name, refusal=str(error))
    except Exception as error:  # noqa: BLE001  # an inspection never raises
        return Inspection(path=first.path, files=first.files, loader=name, refusal=_internal(error))
    return Inspection(
        path=first.path,
        files=first.files,
        loader=name,
        kind=described.kind,
        holds=described.holds,
        identifying=tuple(f"{p.where}: {p.kind}" for p in persons),
        warnings=described.warnings,
    )


def _internal(error: Exception) -> str:
    return f"medfuse failed on it ({type(error).__name__}); please report this file's format"


def lines(inspections: Sequence[Inspection]) -> Iterator[str]:
    """The result as lines of text."""
    for one in inspections:
        many = f" ({one.files} files)" if one.files > 1 else ""
        yield f"{one.path}{many}: {one.loader or 'unknown'}{', ' + one.kind if one.kind else ''}"
        for key, value in one.holds.items():
            yield f"    {key}: {value}"
        if one.identifying:
            yield f"    IDENTIFYING: {'; '.join(one.identifying)}"
        for warning in one.warnings:
            yield f"    warning: {warning}"
        if one.refusal:
            yield f"    REFUSED: {one.refusal}"
