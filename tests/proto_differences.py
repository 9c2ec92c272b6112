"""Where two protobuf messages differ, field by field; and a model of which every message says all that it can say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from google.protobuf.message import Message  # type: ignore[import-untyped]
from google.protobuf.unknown_fields import UnknownFieldSet  # type: ignore[import-untyped]
from onnx import ModelProto

__all__ = ["differences", "say_everything"]

_UNKNOWN = bytes([0x82, 0xFA, 0x01, 3]) + b"new"
"""Field 4000 of a message, which this version of ONNX does not know, holding three bytes."""


def differences(a: Message, b: Message) -> list[str]:
    """Paths of fields in which b is not as a: ``graph.node[conv].attribute[pads].ints``.

    Messages in lists go by their name: ``-`` before the path of one that is gone, ``+`` before that of a new one, ``~``
    before a list in which those that stayed come in another order.
    """
    return sorted(_differences(a, b, ""))


def _differences(a: Message, b: Message, path: str) -> Iterator[str]:
    if _unknown(a) != _unknown(b):
        yield f"{path}?"
    held = {field.name: field for field, _ in (*a.ListFields(), *b.ListFields())}
    for name, field in held.items():
        here, one, other = f"{path}.{name}".lstrip("."), getattr(a, name), getattr(b, name)
        if field.is_repeated and field.message_type is not None:
            yield from _list_differences(one, other, here)
        elif field.is_repeated:
            yield from [here] * (list(one) != list(other))
        elif a.HasField(name) != b.HasField(name):
            yield here
        elif field.message_type is not None:
            yield from _differences(one, other, here)
        elif one != other:
            yield here


def _list_differences(a: Sequence[Message], b: Sequence[Message], path: str) -> Iterator[str]:
    one, other = ({_key(item, i): item for i, item in enumerate(items)} for items in (a, b))
    yield from (f"-{path}[{key}]" for key in one if key not in other)
    yield from (f"+{path}[{key}]" for key in other if key not in one)
    if [key for key in one if key in other] != [key for key in other if key in one]:
        yield f"~{path}"
    for key in one:
        if key in other:
            yield from _differences(one[key], other[key], f"{path}[{key}]")


def _key(item: Any, index: int) -> str:
    names = (getattr(item, name, "") for name in ("name", "tensor_name", "key", "domain"))
    values = getattr(item, "values", None)
    return next((name for name in names if name), getattr(values, "name", "") or str(index))


def _unknown(message: Message) -> list[tuple[int, object]]:
    return [(field.field_number, field.data) for field in UnknownFieldSet(message)]


def say_everything(model: ModelProto) -> None:
    """Give every message of a model a doc string, metadata, denotations and a field of a later version of ONNX, where
    it has room for them; lists of nodes and values names."""
    pending: list[tuple[str, Any]] = [("model", model)]
    while pending:
        path, message = pending.pop()
        for field, value in message.ListFields():
            if field.message_type is not None:
                items = value if field.is_repeated else [value]
                pending += [(f"{path}/{field.name}{_key(item, i)}", item) for i, item in enumerate(items)]
        fields = message.DESCRIPTOR.fields_by_name
        for name in ("doc_string", "denotation"):
            if name in fields and not getattr(message, name):
                setattr(message, name, f"{name} of {path}")
        if "metadata_props" in fields:
            message.metadata_props.add(key="where", value=path)
            message.metadata_props.add(key="empty", value="")
        message.MergeFromString(_UNKNOWN)
