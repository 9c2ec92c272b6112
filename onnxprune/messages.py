"""Copies of protobuf messages in which something is different, and all else that is said stays.

That includes fields that this version of ONNX does not know yet. What is left out, which may be gigabytes, is not
touched.

Format: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from google.protobuf.message import Message  # type: ignore[import-untyped]
from google.protobuf.unknown_fields import UnknownFieldSet  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

__all__ = ["copy_unknown", "select", "set_attributes", "set_constant", "set_sizes", "with_numbers", "without"]

M = TypeVar("M", ModelProto, GraphProto, NodeProto, AttributeProto, TensorProto)

_SAID = ("name", "doc_string", "metadata_props")
"""What is said of a tensor besides its numbers."""
_WIDTHS = {1: 8, 5: 4}
"""Wire type → bytes of a number of fixed width."""


def select(message: M, fields: Iterable[str]) -> M:
    """A copy of some fields of a message, and of those that nobody knows."""
    result = type(message)()
    for name in fields:
        descriptor, value = message.DESCRIPTOR.fields_by_name[name], getattr(message, name)
        if descriptor.is_repeated:
            getattr(result, name).extend(value)
        elif not message.HasField(name):
            continue
        elif descriptor.message_type is not None:
            getattr(result, name).CopyFrom(value)
        else:
            setattr(result, name, value)
    copy_unknown(message, result)
    return result


def without(message: M, *fields: str) -> M:
    """A copy of a message without some of its fields."""
    return select(message, [name for name in message.DESCRIPTOR.fields_by_name if name not in fields])


def copy_unknown(source: Message, target: Message) -> None:
    """Add the fields of a message that this version of ONNX does not know to another one."""
    content = b"".join(_field(held.field_number, held.wire_type, held.data) for held in UnknownFieldSet(source))
    if content:
        target.MergeFromString(content)


def _field(number: int, kind: int, data: int | bytes) -> bytes:
    """A field on the wire. (Groups, which ONNX has none of, are left out.)"""
    head = _varint(number << 3 | kind)
    if isinstance(data, bytes):
        return head + _varint(len(data)) + data
    if not isinstance(data, int):
        return b""
    return head + (_varint(data) if kind == 0 else data.to_bytes(_WIDTHS[kind], "little"))


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def with_numbers(tensor: TensorProto, values: NDArray[np.generic]) -> TensorProto:
    """The tensor with other numbers, stored in it."""
    result = numpy_helper.from_array(np.asarray(values))
    result.MergeFrom(select(tensor, _SAID))
    return result


def set_attributes(node: NodeProto, changes: Mapping[str, object]) -> None:
    """Give a node these attributes: in place of those of the same names, or behind the others."""
    held = {attribute.name: attribute for attribute in node.attribute}
    for name, value in changes.items():
        made = helper.make_attribute(name, value, attr_type=held[name].type if name in held else None)
        if name in held:
            made.MergeFrom(select(held[name], ("doc_string",)))
            held[name].CopyFrom(made)
        else:
            node.attribute.append(made)


def set_constant(node: NodeProto, tensor: TensorProto) -> None:
    """Let a Constant node hold a tensor: as a list of numbers (``value_ints``), where it was one before."""
    held = node.attribute[0]
    if held.name != "value" and len(tensor.dims) == held.name.endswith("s"):
        set_attributes(node, {held.name: numpy_helper.to_array(tensor).tolist()})
        return
    made = helper.make_attribute("value", tensor)
    made.MergeFrom(select(held, ("doc_string",)))
    held.CopyFrom(made)


def set_sizes(value: ValueInfoProto, sizes: Sequence[int]) -> None:
    """Declare a tensor to have these sizes; what is said of an axis stays."""
    dims = value.type.tensor_type.shape.dim
    if len(dims) != len(sizes):
        del dims[:]
        for _ in sizes:
            dims.add()
    for dim, size in zip(dims, sizes, strict=True):
        if not dim.HasField("dim_value") or dim.dim_value != size:
            dim.dim_value = size
