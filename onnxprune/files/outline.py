"""The outline of a model: a copy without the weights that go to a file of their own.

The model itself is never changed: protobuf would not give back the memory of a weight it lets go of (its arena
only grows). So a model with external data is written from an outline, and its weights are streamed beside it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping

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
from onnxprune.graph import constant_of, subgraphs
from onnxprune.messages import copy_unknown, select

__all__ = ["outline_of", "places_of"]

_SMALL = 1024
"""New tensors below this many bytes stay in the model file, where shape inference sees them (as in ONNX)."""

_GRAPHS = (ModelProto, GraphProto, FunctionProto, TrainingInfoProto)
_HOLDERS = (*_GRAPHS, NodeProto, AttributeProto, SparseTensorProto)
"""Messages in which tensors can be."""


def outline_of(
    model: ModelProto, places: Mapping[str, bool] | None = None
) -> tuple[ModelProto, list[tuple[TensorProto, TensorProto]]]:
    """A copy without the numbers that go to the data file, and (tensor, its copy) for each of these.

    ``places``: constant → whether it goes out, if it is in memory; others do if they are large.
    """
    outline = ModelProto()
    moved: list[tuple[TensorProto, TensorProto]] = []
    pending: deque[tuple[Message, Message, str]] = deque([(model, outline, "")])
    while pending:
        source, target, name = pending.popleft()
        if isinstance(source, TensorProto) and _goes_out(source, name, places or {}):
            _copy_declaration(source, target)
            moved.append((source, target))
        elif isinstance(source, _HOLDERS):
            pending.extend(_parts(source, target, name))
            copy_unknown(source, target)
        else:
            target.CopyFrom(source)
    return outline, moved


def _parts(source: Message, target: Message, name: str) -> Iterator[tuple[Message, Message, str]]:
    """Copy what is plain; the messages inside, with their places in the copy, are left to the caller.

    The text is what a constant is called where ONNX Runtime takes external data: initializers, the value of a Constant.
    """
    for field, value in source.ListFields():
        if field.message_type is None:
            _copy_plain(target, field.name, value)
        elif isinstance(value, Message):
            getattr(target, field.name).SetInParent()
            yield value, getattr(target, field.name), _constant_name(source, value, name)
        else:
            yield from ((item, getattr(target, field.name).add(), _constant_name(source, item, name)) for item in value)


def _constant_name(holder: Message, held: Message, name: str) -> str:
    """What a tensor in a message is called; of a node, what the value in its attribute is. ``name``: of the holder."""
    if isinstance(holder, GraphProto) and isinstance(held, TensorProto):
        return str(held.name)
    if isinstance(holder, NodeProto):
        return next(iter(holder.output), "")
    return name if isinstance(holder, AttributeProto) and holder.name == "value" else ""


def places_of(model: ModelProto) -> dict[str, bool]:
    """Constant → whether it is stored in a file beside the model."""
    found: dict[str, bool] = {}
    pending: list[GraphProto] = [model.graph]
    while pending:
        graph = pending.pop()
        found.update((tensor.name, uses_external_data(tensor)) for tensor in graph.initializer)
        for node in graph.node:
            held = constant_of(node)
            if held is not None:
                found[node.output[0]] = uses_external_data(held)
            pending += subgraphs(node)
    return found


def _copy_plain(target: Message, name: str, value: object) -> None:
    if isinstance(value, str | bytes | int | float):
        setattr(target, name, value)
    else:
        getattr(target, name).extend(value)


def _goes_out(tensor: TensorProto, name: str, places: Mapping[str, bool]) -> bool:
    if uses_external_data(tensor):
        return True
    return bool(name) and tensor.data_type != TensorProto.STRING and places.get(name, raw_size(tensor) >= _SMALL)


def _copy_declaration(source: TensorProto, target: TensorProto) -> None:
    """All but the numbers and where they are."""
    target.CopyFrom(select(source, ("dims", "data_type", "name", "doc_string", "metadata_props")))
