"""Runs a ``torch.export`` program node by node: ATen operators on tensors and numbers, and nothing else.

No pickle, no generated code, no name that is looked up outside of ATen: see :class:`~medfuse.extractors._pt2_archive`.
"""

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medfuse.errors import DataError
from medfuse.extractors._pt2_archive import DTYPES, Archive, refuse

_NAME = re.compile(r"torch\.ops\.aten\.([a-z_][a-z0-9_]*)\.([A-Za-z0-9_]+)")
# Operators that begin with an underscore and that exported networks have; others of that kind trust their caller.
_INNER = {
    "_adaptive_avg_pool2d",
    "_adaptive_avg_pool3d",
    "_log_softmax",
    "_native_batch_norm_legit_no_training",
    "_safe_softmax",
    "_softmax",
    "_to_copy",
    "_unsafe_view",
    "_weight_norm",
}
_CHECKS = {"_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range"}
_CHECKS |= {"sym_constrain_range_for_size"}  # of shapes, which every operator checks for itself
_NEVER = {"from_file", "save", "set_", "resize_", "empty", "new_empty", "empty_like", "data"}
_TYPES = re.compile(r"(?:Optional\[|List\[)*(?:Tensor|int|float|bool|number|Device|Generator|str)\]*")
_WORDED = {"approximate", "padding", "mode", "rounding_mode", "equation", "indexing", "reduce"}
_WORDS = {"none", "tanh", "same", "valid", "constant", "reflect", "replicate", "circular", "floor", "trunc", "ij", "xy"}
_EINSUM = re.compile(r"[A-Za-z., >-]{1,200}")
_NUMBERS: dict[str, Callable[..., Any]] = {
    **{f"_operator.{n}": getattr(operator, n) for n in ("add", "sub", "mul", "floordiv", "truediv", "mod", "neg")},
    **{f"_operator.{n}": getattr(operator, n) for n in ("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "not_")},
    "math.ceil": math.ceil,
    "math.floor": math.floor,
    "math.trunc": math.trunc,
    "torch.sym_float": float,
    "torch.sym_max": max,
    "torch.sym_min": min,
    "torch.sym_not": operator.not_,
}
_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}


class Program:
    """An exported network of one tensor.

    Args:
        path: of the .pt2 file.
        device: where it runs.

    Attributes:
        shape: of its input, None where any size is taken.

    Raises:
        DataError: not such a file, or a program with anything but ATen operators in evaluation mode.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self.path, self.device = path, device
        archive = Archive(path)
        try:
            module = archive.program["graph_module"]
            self._nodes = [self._node(node) for node in module["graph"]["nodes"]]
            self._weights = self._bind(module["signature"]["input_specs"], archive)
            self._outputs = self._read_outputs(module["signature"]["output_specs"])
            sizes = module["graph"]["tensor_values"][self.input]["sizes"]
            self.shape = tuple(None if "as_expr" in n else int(n["as_int"]) for n in sizes)
            self._dtype = DTYPES[module["graph"]["tensor_values"][self.input]["dtype"]]
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, StopIteration, RecursionError) as error:
            raise refuse(path, "a whole program", f"damage ({type(error).__name__})", "export it again") from error
        self._last = self._last_uses()

    # --- reading -----------------------------------------------------------------------------------------------------

    def _bind(self, specs: Sequence[Mapping[str, Any]], archive: Archive) -> dict[str, Any]:
        """Names in the graph -> weights and constants; finds the one input."""
        found: dict[str, Any] = {}
        inputs: list[str] = []
        for kind, spec in (next(iter(spec.items())) for spec in specs):
            if kind == "parameter":
                found[spec["arg"]["name"]] = archive.weights[spec["parameter_name"]]
            elif kind == "buffer":
                source = archive.weights if spec.get("persistent", True) else archive.constants
                found[spec["arg"]["name"]] = source[spec["buffer_name"]]
            elif kind == "tensor_constant":
                found[spec["arg"]["name"]] = archive.constants[spec["tensor_constant_name"]]
            elif kind == "constant_input":
                found[spec["name"]] = next(iter(spec["value"].values()))
            elif kind == "user_input":
                inputs += [spec["arg"]["as_tensor"]["name"]] if "as_tensor" in spec["arg"] else []
            else:
                raise refuse(self.path, "tensors as inputs", kind, "export a network of one tensor")
        if len(inputs) != 1:
            found_ = f"{len(inputs)} inputs"
            raise refuse(self.path, "a network of one tensor", found_, "wrap it in a module that takes one")
        self.input = inputs[0]
        changed = {name for node in self._nodes for name in node.changes}
        if changed & set(found):
            do = "call eval() before torch.export.export"
            raise refuse(self.path, "a network in evaluation mode", "one that changes its weights", do)
        return {n: t.to(self.device) if isinstance(t, Tensor) else t for n, t in found.items()}

    def _read_outputs(self, specs: Sequence[Mapping[str, Any]]) -> list[str]:
        kinds = [next(iter(spec)) for spec in specs]
        if set(kinds) != {"user_output"}:
            do = "call eval() before torch.export.export"
            raise refuse(self.path, "outputs alone", ", ".join(sorted(set(kinds))), do)
        return [s["user_output"]["arg"]["as_tensor"]["name"] for s in specs if "as_tensor" in s["user_output"]["arg"]]

    def _node(self, node: Mapping[str, Any]) -> "_Node":
        target = str(node["target"])
        if target in _NUMBERS:
            return _Node(node, _NUMBERS[target], mutable=False)
        match = _NAME.fullmatch(target)
        name = match[1] if match else ""
        if name in _CHECKS:
            return _Node(node, None, mutable=False)
        packet = getattr(torch.ops.aten, name, None) if match else None
        inner = name.startswith("_") and name not in _INNER
        overload = getattr(packet, match[2], None) if match and packet is not None and not inner else None
        if name in _NEVER or not isinstance(overload, torch._ops.OpOverload) or not _computes(overload):
            do = "call eval() and export outside of torch.no_grad(), or ep = ep.run_decompositions() before saving"
            raise refuse(self.path, "operators of ATen that compute", re.sub(r"[^\w.]", "?", target)[:80], do)
        _sure(self.path, overload, name, node)
        return _Node(node, overload, mutable=overload._schema.is_mutable)

    def _last_uses(self) -> dict[int, list[str]]:
        """Number of a node -> values that nothing needs after it."""
        last: dict[str, int] = {}
        for number, node in enumerate(self._nodes):
            last.update(dict.fromkeys((*node.uses, *node.makes), number))
        keep = {*self._outputs, *self._weights}
        found: dict[int, list[str]] = {}
        for name, number in last.items():
            if name not in keep:
                found.setdefault(number, []).append(name)
        return found

    # --- running -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def __call__(self, items: Tensor) -> list[Tensor]:
        """Outputs of a batch.

        Raises:
            DataError: items that the program does not take.
        """
        fits = len(items.shape) == len(self.shape)
        if not fits or any(n is not None and n != m for n, m in zip(self.shape, items.shape, strict=True)):
            wanted = " x ".join("any" if n is None else str(n) for n in self.shape)
            do = "set the loader's options, or export it for these items"
            raise refuse(self.path, f"a batch of {wanted}", " x ".join(map(str, items.shape)), do)
        values: dict[str, Any] = {**self._weights, self.input: items.to(self.device, self._dtype, copy=True)}
        try:
            for number, node in enumerate(self._nodes):
                node.run(values, self.device)
                for name in self._last.get(number, ()):
                    values.pop(name, None)
            return [values[name] for name in self._outputs]
        except torch.OutOfMemoryError as error:
            found = f"too little for {tuple(items.shape)}"
            raise refuse(self.path, "memory on the GPU for a batch of items", found, "lower the batch") from error
        except (RuntimeError, KeyError, TypeError, ValueError, IndexError, ZeroDivisionError) as error:
            found = f"{type(error).__name__} on {tuple(items.shape)}"
            raise refuse(self.path, "a program that runs on these items", found, "try it with torch.export") from error


class _Node:
    """One call."""

    def __init__(self, node: Mapping[str, Any], call: Callable[..., Any] | None, *, mutable: bool) -> None:
        self.call = call
        self.inputs = [(i["name"], i["arg"], i.get("kind", 1)) for i in node["inputs"]]
        self.outputs = list(node["outputs"])
        self.uses = [name for _, arg, _ in self.inputs for name in _names(arg)]
        self.makes = [name for out in self.outputs for name in _names(out)]
        self.changes = _names(self.inputs[0][1]) if mutable and self.inputs else []

    def run(self, values: dict[str, Any], device: torch.device) -> None:
        """Put what the call gives into ``values``."""
        if self.call is None:
            return
        positional = [_value(arg, values, device) for _, arg, kind in self.inputs if kind != 2]
        named = {name: _value(arg, values, device) for name, arg, kind in self.inputs if kind == 2}
        result = self.call(*positional, **named)
        results = result if isinstance(result, tuple) else (result,)
        for out, one in zip(self.outputs, results if self.outputs else (), strict=True):
            names = _names(out)
            values.update(zip(names, one if isinstance(one, list | tuple) else [one], strict=True) if names else ())


def _names(arg: Mapping[str, Any]) -> list[str]:
    """Values that an argument or an output names, in order."""
    kind, value = next(iter(arg.items()))
    if kind == "as_tensor":
        return [value["name"]]
    if kind in {"as_sym_int", "as_sym_float", "as_sym_bool"}:
        return [value["as_name"]] if "as_name" in value else []
    if kind == "as_optional_tensor":
        return _names(value)
    if kind == "as_tensors":
        return [one["name"] for one in value]
    if kind in {"as_sym_ints", "as_sym_floats", "as_sym_bools"}:
        return [one["as_name"] for one in value if "as_name" in one]
    if kind == "as_optional_tensors":
        return [name for one in value for name in _names(one)]
    return []


def _value(arg: Mapping[str, Any], values: Mapping[str, Any], device: torch.device) -> Any:  # noqa: ANN401
    kind, value = next(iter(arg.items()))
    if kind in {"as_none", "as_tensor", "as_optional_tensor"}:
        if kind == "as_optional_tensor":
            return _value(value, values, device)
        return None if kind == "as_none" else values[value["name"]]
    if kind == "as_tensors":
        return [values[one["name"]] for one in value]
    if kind == "as_optional_tensors":
        return [_value(one, values, device) for one in value]
    if kind.startswith("as_sym_"):
        many = [values[n["as_name"]] if "as_name" in n else next(iter(n.values())) for n in _listed(value)]
        return many if isinstance(value, list) else many[0]
    if kind in {"as_int", "as_ints", "as_bool", "as_bools", "as_string", "as_int_lists"}:
        return value
    if kind in {"as_float", "as_floats"}:
        return [float(n) for n in value] if isinstance(value, list) else float(value)
    if kind == "as_device":
        return device
    plain: dict[str, Mapping[int, Any]] = {
        "as_scalar_type": DTYPES,
        "as_memory_format": _FORMATS,
        "as_layout": {7: torch.strided},
    }
    return plain[kind][value]


def _listed(value: Any) -> list[Any]:  # noqa: ANN401  # JSON
    return value if isinstance(value, list) else [value]


def _computes(overload: torch._ops.OpOverload) -> bool:
    """Takes tensors, numbers and the words of a mode, and gives something back: no files, no objects."""
    arguments = overload._schema.arguments
    known = all(_TYPES.fullmatch(str(a.type)) and ("str" not in str(a.type) or a.name in _WORDED) for a in arguments)
    return known and bool(overload._schema.returns)


def _sure(path: Path, overload: Any, name: str, node: Mapping[str, Any]) -> None:  # noqa: ANN401  # an overload
    """Refuse what draws at random, what reads statistics of the batch, and words that no computation needs.

    Raises:
        DataError: any of these.
    """
    given = {i["name"]: next(iter(i["arg"].values())) for i in node["inputs"]}
    rates = [given.get(key) for key in ("dropout_p", "p", "dropout")]
    draws = torch.Tag.nondeterministic_seeded in overload.tags
    trains = any(bool(given.get(key)) for key in ("train", "training"))
    if trains or (draws and "train" not in given and "training" not in given and any(rates)):
        raise refuse(path, "a network in evaluation mode", f"{name} in training", "call eval() before exporting")
    if draws and not {"train", "training", "dropout_p"} & {a.name for a in overload._schema.arguments}:
        raise refuse(path, "a network without random draws", name, "take the draw out of its forward")
    for argument in node["inputs"]:
        kind, value = next(iter(argument["arg"].items()))
        allowed = _EINSUM.fullmatch(str(value)) if name == "einsum" else str(value) in _WORDS
        if kind in {"as_string", "as_strings"} and not allowed:
            raise refuse(path, "arguments that are tensors and numbers", f"a text for {name}", "export it without")


__all__ = ["DataError", "Program"]
