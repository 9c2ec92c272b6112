"""The bytes that a tensor takes: does what it holds fit its shape and type?

The checks compare lengths, they never touch a weight.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from onnx import TensorProto
from onnx.external_data_helper import uses_external_data

from onnxprune.errors import ModelError

__all__ = ["check_tensor", "is_packed", "raw_size", "wrong_length"]


class _Layout(NamedTuple):
    """How numbers of a type are stored: bits in raw data, or in which field and how many bits an entry."""

    bits: int
    field: str
    entry: int


_LAYOUTS = {
    "FLOAT": _Layout(32, "float_data", 32),
    "COMPLEX64": _Layout(64, "float_data", 32),
    "DOUBLE": _Layout(64, "double_data", 64),
    "COMPLEX128": _Layout(128, "double_data", 64),
    "INT64": _Layout(64, "int64_data", 64),
    "UINT64": _Layout(64, "uint64_data", 64),
    "UINT32": _Layout(32, "uint64_data", 32),
    "INT32": _Layout(32, "int32_data", 32),
    **dict.fromkeys(("INT16", "UINT16", "FLOAT16", "BFLOAT16"), _Layout(16, "int32_data", 16)),
    **dict.fromkeys(("INT8", "UINT8", "BOOL", "FLOAT8E8M0"), _Layout(8, "int32_data", 8)),
    **dict.fromkeys(("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ"), _Layout(8, "int32_data", 8)),
    **dict.fromkeys(("FLOAT8E5M2", "FLOAT8E5M2FNUZ"), _Layout(8, "int32_data", 8)),
    **dict.fromkeys(("FLOAT6E2M3", "FLOAT6E3M2"), _Layout(6, "int32_data", 6)),
    **dict.fromkeys(("INT4", "UINT4", "FLOAT4E2M1"), _Layout(4, "int32_data", 8)),
    **dict.fromkeys(("INT2", "UINT2"), _Layout(2, "int32_data", 8)),
    "STRING": _Layout(8, "string_data", 8),
}
"""https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, TensorProto."""

_LAYOUT_OF = {number: _LAYOUTS[name] for name, number in TensorProto.DataType.items() if name in _LAYOUTS}


def raw_size(tensor: TensorProto) -> int:
    """Bytes that a tensor's numbers take (0 for strings and unknown types)."""
    layout = _LAYOUT_OF.get(tensor.data_type)
    return -(-prod(tensor.dims) * layout.bits // 8) if layout else 0


def is_packed(tensor: TensorProto) -> bool:
    """Whether numbers of a tensor share bytes."""
    layout = _LAYOUT_OF.get(tensor.data_type)
    return layout is not None and layout.bits < 8


def check_tensor(tensor: TensorProto, length: int | None) -> None:
    """Length against shape and type; that of external data is left to ``DataFiles.range_of``.

    ``length``: bytes of raw data where they are known already.
    Raises: ModelError where they do not fit.
    """
    layout = _LAYOUT_OF.get(tensor.data_type)
    if layout is None:
        raise ModelError(
            f"tensor {tensor.name!r} has the type {tensor.data_type}, which this onnx does not know"
        )
    if any(size < 0 for size in tensor.dims):
        raise ModelError(f"tensor {tensor.name!r} has the negative size {min(tensor.dims)}")
    if tensor.data_type == TensorProto.STRING and (tensor.HasField("raw_data") or uses_external_data(tensor)):
        raise ModelError(f"tensor {tensor.name!r} keeps text as raw bytes, which ONNX does not allow")
    if uses_external_data(tensor):
        return
    if tensor.HasField("raw_data"):
        held = len(tensor.raw_data) if length is None else length
        unit, needed = "bytes", raw_size(tensor)
    else:
        held, count = len(getattr(tensor, layout.field)), prod(tensor.dims)
        unit, needed = f"entries of {layout.field}", -(-count * layout.bits // layout.entry)
    if held != needed:
        raise wrong_length(tensor, f"holds {held} {unit}, but", needed)


def wrong_length(tensor: TensorProto, held: str, needed: int) -> ModelError:
    """The refusal of a tensor: what it holds, and what its shape needs."""
    kind = TensorProto.DataType.Name(tensor.data_type)
    return ModelError(f"tensor {tensor.name!r} {held} its shape {list(tensor.dims)} of {kind} needs {needed}")
