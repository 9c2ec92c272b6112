"""The inputs of a model: which it takes, whether given ones fit, and reading them from files."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import helper, numpy_helper

from onnxprune.errors import ModelError, UsageError
from onnxprune.runtime import Array, Inputs, existing_file

__all__ = [
    "InputSpec",
    "Shapes",
    "check_inputs",
    "check_shape",
    "format_shapes",
    "input_specs",
    "listed",
    "load_inputs",
]

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class InputSpec:
    """A graph input that has to be fed.

    Attributes:
        name: its name.
        dtype: of its elements, as numpy or ml_dtypes name it; strings are objects.
        shape: a size, a name, or None for each dimension; None when not even the rank is known.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...] | None


def input_specs(model: onnx.ModelProto) -> tuple[InputSpec, ...]:
    """The inputs to feed, in order; those that an initializer already gives a value (IR 3) are left out.

    Raises:
        ModelError: an input is a sequence, an optional, a map or a sparse tensor, or of no known element type.
    """
    given = {weight.name for weight in model.graph.initializer}
    given |= {weight.values.name for weight in model.graph.sparse_initializer}
    return tuple(_input_spec(value) for value in model.graph.input if value.name not in given)


_ELEMENT_TYPES = frozenset(helper.get_all_tensor_dtypes())


def _input_spec(value: onnx.ValueInfoProto) -> InputSpec:
    kind = str(value.type.WhichOneof("value")).removesuffix("_type")
    if kind != "tensor":
        raise ModelError(f"input '{value.name}' is of type {kind}, not a tensor: such models are not run")
    tensor = value.type.tensor_type
    if tensor.elem_type not in _ELEMENT_TYPES:
        raise ModelError(f"input '{value.name}' is of an element type that ONNX does not have ({tensor.elem_type})")
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    if not tensor.HasField("shape"):
        return InputSpec(value.name, dtype, None)
    # Some exporters write 0 or -1 for 'any'.
    sizes = (each.dim_value if each.dim_value > 0 else each.dim_param or None for each in tensor.shape.dim)
    return InputSpec(value.name, dtype, tuple(sizes))


def check_inputs(model: onnx.ModelProto, inputs: Inputs) -> None:
    """Require exactly the inputs that the model takes, of its types, ranks and fixed sizes.

    Raises:
        UsageError: names the first input that does not fit.
    """
    specs = {spec.name: spec for spec in input_specs(model)}
    if set(specs) != set(inputs):
        raise UsageError(f"the inputs given are {listed(inputs)}; the model takes {listed(specs)}")
    for name, array in inputs.items():
        if array.dtype != specs[name].dtype:
            raise UsageError(
                f"input '{name}' takes {specs[name].dtype}, but {array.dtype} is given: convert it"
            )
        check_shape(specs[name], array.shape)


def check_shape(spec: InputSpec, shape: Sequence[int]) -> None:
    """Require the rank and the fixed sizes of an input. Raises UsageError."""
    if spec.shape is None:
        return
    pairs = zip(shape, spec.shape, strict=False)
    fits = all(size >= 0 and (size == declared or not isinstance(declared, int)) for size, declared in pairs)
    if not fits or len(shape) != len(spec.shape):
        declared = ", ".join(str(each or "?") for each in spec.shape)
        raise UsageError(f"input '{spec.name}' has shape [{declared}]; {list(shape)} does not fit it")


def listed(names: Iterable[str]) -> str:
    """``'a', 'b'``, for messages."""
    return ", ".join(f"'{name}'" for name in names) or "none"


def format_shapes(shapes: Shapes) -> str:
    """``x=1,3,224,224 state=2,1,128``: as ``--shape`` takes them; scalars are left out."""
    return " ".join(f"{name}={','.join(map(str, shape))}" for name, shape in shapes.items() if shape)


# Inputs: reading them

_NUMBERED: Final = re.compile(r"input_(\d+)\.pb")


def load_inputs(path: str | Path, names: Sequence[str]) -> Inputs:
    """Inputs from an ``.npz`` with an array for each, a ``.pb`` tensor, or a folder of ``input_0.pb``, ...

    Args:
        path: the file, or the folder of an ONNX test set.
        names: the model's inputs, in order; a tensor that has none of these names goes by its number.

    Raises:
        UsageError: there is nothing there, it cannot be read, or it is not for these inputs.
    """
    path = Path(path)
    if not path.is_dir():
        return (
            dict([_load_tensor(path, names)])
            if existing_file(path).suffix == ".pb"
            else _load_arrays(path, names)
        )
    files = [each for each in path.iterdir() if _NUMBERED.fullmatch(each.name)]
    if not files:
        raise UsageError(f"'{path}': no input_0.pb in this folder")
    return dict(_load_tensor(file, names) for file in sorted(files))


def _load_tensor(path: Path, names: Sequence[str]) -> tuple[str, Array]:
    try:
        tensor = onnx.load_tensor_from_string(path.read_bytes())
        array = numpy_helper.to_array(tensor)
    except (DecodeError, ValueError, TypeError, OSError):
        raise UsageError(f"'{path}': not a tensor (sequences and optionals are not read)") from None
    if tensor.name in names:
        return tensor.name, array
    numbered = _NUMBERED.fullmatch(path.name)
    number = int(numbered[1]) if numbered else 0
    if number >= len(names):
        raise UsageError(
            f"'{path}': input {number} ('{tensor.name}') of a model whose inputs are {listed(names)}"
        )
    return names[number], array


def _load_arrays(path: Path, names: Sequence[str]) -> Inputs:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {str(name): np.asarray(archive[name]) for name in archive}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile):
        raise UsageError(f"'{path}': not an .npz file of arrays, nor a .pb tensor") from None
    if missing := [name for name in names if name not in arrays]:
        raise UsageError(f"'{path}' holds {listed(arrays)}, but not the model's input '{missing[0]}'")
    return {name: arrays[name] for name in names}
