"""Copies of some fields of a protobuf message; the others, which may be gigabytes, are not touched."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto

__all__ = ["select"]

M = TypeVar("M", ModelProto, GraphProto, NodeProto, AttributeProto)


def select(message: M, fields: Iterable[str]) -> M:
    """A copy of some fields of a message, without touching the others."""
    result = type(message)()
    for descriptor, value in message.ListFields():
        if descriptor.name in fields:
            if descriptor.is_repeated:
                getattr(result, descriptor.name).extend(value)
            elif descriptor.message_type is not None:
                getattr(result, descriptor.name).CopyFrom(value)
            else:
                setattr(result, descriptor.name, value)
    return result
