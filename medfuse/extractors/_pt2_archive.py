"""The archive of a ``torch.export`` file (.pt2): its JSON and its plain weights, and nothing that is a pickle."""

import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medfuse.errors import DataError

# torch/_export/serde/schema.py, enum ScalarType, of what weights are stored in
DTYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}
_SCHEMA = 8  # major version of the JSON, that of torch 2.9 to 2.13
_LARGEST_JSON = 1 << 28
CONVERT_WEIGHTS = (
    'convert it once, if you trust where it is from: python -c "import torch; from safetensors.torch import save_file; '
    "state = torch.load('OLD', weights_only=True); save_file({k: v.contiguous() for k, v in state.items()}, 'NEW')\" "
    "with the paths as OLD and NEW (model.safetensors in the place of OLD)"
)


def refuse(path: Path, expected: str, found: str, do: str) -> DataError:
    """What every refusal of a model says."""
    return DataError(f"{path.name}: expected {expected}, found {found}; {do}")


class Archive:
    """The parts of an archive that hold numbers and text.

    ``torch.export.load`` unpickles: weights and constants marked ``use_pickle``, custom objects, and the example inputs
    (pytorch 2.13, ``torch/export/pt2_archive/_package.py``; its documentation warns of untrusted files); it also
    evaluates symbolic shapes as Python and finds operators by attribute, down to any module that torch has imported.
    It is never called. Here JSON is parsed, weights are raw numbers, and example inputs are not read.

    Raises:
        DataError: no such archive, a pickled weight or object, or sizes that do not agree.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                self._check(archive)
                self._prefix = next(n for n in archive.namelist() if n.endswith("/models/model.json"))[:-17]
                self.program = self._json(archive, "models/model.json")
                self.weights = self._payload(archive, "weights")
                self.constants = self._payload(archive, "constants")
        except (OSError, zipfile.BadZipFile, StopIteration) as error:
            do = "write it with torch.export.save of torch 2.9 or newer"
            raise refuse(path, "a torch.export archive with one program", type(error).__name__, do) from error
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, RecursionError, IndexError) as error:
            raise refuse(path, "whole parts", f"damage ({type(error).__name__})", "export it again") from error
        if not isinstance(self.program, dict) or self.program.get("schema_version", {}).get("major") != _SCHEMA:
            do = "export it with a torch of this medfuse's, 2.9 to 2.13"
            raise refuse(path, f"a program of schema {_SCHEMA}", "another", do)

    def _check(self, archive: zipfile.ZipFile) -> None:
        """Members are stored as they are, so what they hold cannot exceed the file."""
        members = archive.infolist()
        size = self.path.stat().st_size
        names = [m.filename for m in members]
        if any(m.compress_type != zipfile.ZIP_STORED for m in members) or sum(m.file_size for m in members) > size:
            raise refuse(self.path, "stored members within the size of the file", "others", "export it again")
        if len(set(names)) < len(names) or sum(n.endswith("/models/model.json") for n in names) > 1:
            raise refuse(self.path, "one program, each member once", "several", "export one program per file")
        order = next((m for m in members if m.filename.endswith("/byteorder")), None)
        if order is not None and archive.read(order) != b"little":
            raise refuse(self.path, "little-endian numbers", "others", "export it on this kind of machine")

    def _json(self, archive: zipfile.ZipFile, name: str) -> Any:  # noqa: ANN401  # JSON
        member = archive.getinfo(f"{self._prefix}{name}")
        if member.file_size > _LARGEST_JSON:
            raise refuse(self.path, f"{name} of at most 256 MiB", f"{member.file_size:,} bytes", "export it again")
        return json.loads(archive.read(member))

    def _payload(self, archive: zipfile.ZipFile, kind: str) -> Mapping[str, Tensor]:
        folder = f"data/{kind}"
        config = self._json(archive, f"{folder}/model_{kind}_config.json")["config"]
        known: dict[str, Tensor] = {}
        found: dict[str, Tensor] = {}
        for name, entry in config.items():
            part = str(entry["path_name"])
            if entry["use_pickle"] or not part.startswith(("weight_", "tensor_")):
                do = "export a module whose weights and constants are plain tensors"
                raise refuse(self.path, "weights as raw numbers", f"a pickle for one of the {kind}", do)
            if part not in known:
                raw = bytearray(archive.read(f"{self._prefix}{folder}/{part}"))
                dtype = DTYPES[entry["tensor_meta"]["dtype"]]
                flat = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
                known[part] = flat.clone()  # aligned as torch's own: kernels choose by alignment
            found[name] = _strided(known[part], entry["tensor_meta"])
        return found


def _strided(flat: Tensor, meta: Mapping[str, Any]) -> Tensor:
    """A view of stored numbers; torch refuses one that ends outside of them.

    Raises:
        ValueError: a layout that is not strided, or negative sizes.
    """
    size, stride = ([int(n["as_int"]) for n in meta[key]] for key in ("sizes", "strides"))
    offset = int(meta["storage_offset"]["as_int"])
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if meta["layout"] != 7 or min([0, offset, *size, *stride]) < 0 or (math.prod(size) and last >= len(flat)):
        msg = "a tensor outside of its numbers"
        raise ValueError(msg)
    return flat.as_strided(size, stride, offset)
