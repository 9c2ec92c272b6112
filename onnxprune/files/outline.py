"""The outline of a model: a copy without the weights that go to a file of their own.

The model itself is never changed: protobuf would not give back the memory of a weight it lets go of (its arena
only grows). So a model with external data is written from an outline, and its weights are streamed beside it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from google.protobuf.message import Message  # type: ignore[import-untyped]
from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    TrainingInfoProto,
)
from onnx.external_data_helper import uses_external_data

from onnxprune.files.tensor_bytes import raw_size

__all__ = ["outline_of"]

_SMALL = 1024
"""Tensors below this many bytes stay in the model file, where shape inference sees them (as in ONNX)."""

_GRAPHS = (ModelProto, GraphProto, FunctionProto, TrainingInfoProto)
_HOLDERS = (*_GRAPHS, NodeProto, AttributeProto, SparseTensorProto)
"""Messages in which tensors can be."""


def outline_of(model: ModelProto) -> tuple[ModelProto, list[tuple[TensorProto, TensorProto]]]:
    """A copy without the numbers that go to the data file, and (tensor, its copy) for each of these."""
    outline = ModelProto()
    moved: list[tuple[TensorProto, TensorProto]] = []
    pending: deque[tuple[Message, Message, bool]] = deque([(model, outline, False)])
    while pending:
        source, target, movable = pending.popleft()
        if isinstance(source, TensorProto) and _goes_out(source, movable):
            _copy_declaration(source, target)
            moved.append((source, target))
        elif isinstance(source, _HOLDERS):
            pending.extend(_parts(source, target))
        else:
            target.CopyFrom(source)
    return outline, moved


def _parts(source: Message, target: Message) -> Iterator[tuple[Message, Message, bool]]:
    """Copy what is plain; the messages inside, with their places in the copy, are left to the caller.

    The flag says whether ONNX Runtime takes external data there: initializers, and the value of a Constant.
    """
    in_constant = isinstance(source, AttributeProto) and source.name == "value"
    movable = in_constant or isinstance(source, GraphProto)
    for field, value in source.ListFields():
        if field.message_type is None:
            _copy_plain(target, field.name, value)
        elif isinstance(value, Message):
            getattr(target, field.name).SetInParent()
            yield value, getattr(target, field.name), movable
        else:
            yield from ((item, getattr(target, field.name).add(), movable) for item in value)


def _copy_plain(target: Message, name: str, value: object) -> None:
    if isinstance(value, str | bytes | int | float):
        setattr(target, name, value)
    else:
        getattr(target, name).extend(value)


def _goes_out(tensor: TensorProto, movable: bool) -> bool:
    if uses_external_data(tensor):
        return True
    return movable and tensor.data_type != TensorProto.STRING and raw_size(tensor) >= _SMALL


def _copy_declaration(source: TensorProto, target: TensorProto) -> None:
    """All but the numbers and where they are."""
    target.dims.extend(source.dims)
    target.data_type = source.data_type
    for name in ("name", "doc_string"):
        if source.HasField(name):
            setattr(target, name, getattr(source, name))
    if hasattr(source, "metadata_props"):
        target.metadata_props.extend(source.metadata_props)
