"""Protobuf's wire format, for the lengths of weights without copies of them.

Protobuf hands out ``raw_data`` as a copy; so the lengths of the initializers are read off the file itself.

Format: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from onnx import GraphProto, ModelProto, TensorProto

__all__ = ["fields", "raw_lengths"]

def _varint(content: bytes, at: int) -> tuple[int, int]:
    """The number that begins at a place, and the place after it."""
    value = shift = 0
    while True:
        byte = content[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def fields(content: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(number, begin, end) of the length-delimited fields of a message.

    Raises ValueError or IndexError where the bytes are not one.
    https://protobuf.dev/programming-guides/encoding/
    """
    while at < end:
        tag, at = _varint(content, at)
        if tag & 7 == 2:
            length, at = _varint(content, at)
            yield tag >> 3, at, at + length
            at += length
        elif tag & 7 == 0:
            _, at = _varint(content, at)
        elif tag & 7 in (1, 5):
            at += 8 if tag & 7 == 1 else 4
        else:
            raise ValueError("a group")


def raw_lengths(proto: ModelProto, content: bytes) -> list[int | None]:
    """Bytes of raw data of each initializer of the main graph; empty where the file is laid out oddly."""
    lengths: list[int | None] = []
    with contextlib.suppress(ValueError, IndexError):
        for number, begin, end in fields(content, 0, len(content)):
            if number == ModelProto.GRAPH_FIELD_NUMBER:
                for inner, first, last in fields(content, begin, end):
                    if inner == GraphProto.INITIALIZER_FIELD_NUMBER:
                        lengths.append(_raw_length(content, first, last))
    return lengths if len(lengths) == len(proto.graph.initializer) else []


def _raw_length(content: bytes, begin: int, end: int) -> int:
    length = 0
    for number, first, last in fields(content, begin, end):
        if number == TensorProto.RAW_DATA_FIELD_NUMBER:
            length = last - first
    return length
