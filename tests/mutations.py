"""Damaged models: bits, bytes and fields of small ONNX files changed at random, the same way for the same seed.

Bytes are flipped, cut out, doubled, written over. Fields are found by protobuf's reflection, whatever they are: numbers
become negative, zero, huge or what another field holds; names are emptied, changed or another's; elements are doubled,
left out or put in another order; messages are emptied, or become what another one of their type is.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from generate_bodies import model_with_bodies
from generate_quantised import random_quantised_model
from google.protobuf.descriptor import FieldDescriptor  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]
from onnx import ModelProto
from random_models import random_model, unusual_model

__all__ = ["damaged"]

_MODELS = Path(__file__).parent.parent / "models"
_TRAINED = ("msd_circles",)  # those of the project that take a fraction of a second
_GENERATORS = (random_model, unusual_model, model_with_bodies, random_quantised_model)
_ORIGINALS = 400  # generated models that are damaged, each of them many times


def damaged(seed: int) -> bytes:
    """A small model with one to three faults."""
    draw = random.Random(seed)
    content = _original(draw.randrange(_ORIGINALS))
    for _ in range(draw.choice((1, 1, 2, 3))):
        content = (_with_byte_fault if draw.random() < 0.3 else _with_field_fault)(content, draw)
    return content


@cache
def _original(number: int) -> bytes:
    if number < len(_TRAINED):
        return (_MODELS / f"{_TRAINED[number]}.onnx").read_bytes()
    return bytes(_GENERATORS[number % len(_GENERATORS)](number).SerializeToString())


# ---- bytes ----------------------------------------------------------------------------------------------------------


def _with_byte_fault(content: bytes, draw: random.Random) -> bytes:
    data = bytearray(content)
    if not data:
        return content
    start = draw.randrange(len(data))
    end = min(len(data), start + draw.choice((1, 2, 4, 8, 64)))
    other = draw.randrange(len(data))
    match draw.randrange(6):
        case 0:
            data[start] ^= 1 << draw.randrange(8)
        case 1:
            data[start] = draw.choice((0, 1, 127, 128, 255))
        case 2:
            del data[start:]
        case 3:
            del data[start:end]
        case 4:
            data[other:other] = data[start:end]
        case 5:
            data[start:end] = bytes(draw.randrange(256) for _ in range(end - start))
    return bytes(data)


# ---- fields ---------------------------------------------------------------------------------------------------------


def _with_field_fault(content: bytes, draw: random.Random) -> bytes:
    model = ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError:
        return _with_byte_fault(content, draw)
    held = list(_fields(model))
    if not held:
        return content
    message, field = draw.choice(held)
    others = [other for other in held if other[1].full_name == field.full_name]
    try:
        if _is_repeated(field):
            _spoil_list(getattr(message, field.name), field, others, draw)
        elif field.message_type is not None:
            _spoil_message(message, field, others, draw)
        else:
            setattr(message, field.name, _spoiled(getattr(message, field.name), _values(others), draw))
    except (TypeError, ValueError):  # a number that the field cannot hold
        message.ClearField(field.name)
    try:
        return bytes(model.SerializeToString())
    except Exception:  # protobuf writes no text that is not UTF-8
        return content


def _fields(model: Message) -> Iterator[tuple[Message, FieldDescriptor]]:
    """Every field that is set, in messages of any depth."""
    pending = [model]
    while pending:
        message = pending.pop()
        for field, value in message.ListFields():
            yield message, field
            if field.message_type is not None:
                pending += list(value) if _is_repeated(field) else [value]


def _is_repeated(field: FieldDescriptor) -> bool:
    return bool(field.is_repeated if hasattr(field, "is_repeated") else field.label == FieldDescriptor.LABEL_REPEATED)


def _values(others: list[tuple[Message, FieldDescriptor]]) -> list[Any]:
    return [getattr(message, field.name) for message, field in others]


def _spoil_list(values: Any, field: FieldDescriptor, others: list[tuple[Message, FieldDescriptor]],
                draw: random.Random) -> None:  # fmt: skip
    """Double an element, leave one out, change the order, spoil one, or take over another list."""
    content = list(values)
    if field.message_type is not None:  # references into the list, which goes
        content = [_copy(value) for value in content]
    i, j = draw.randrange(len(content)), draw.randrange(len(content))
    match draw.randrange(6):
        case 0:
            content.insert(j, content[i])
        case 1:
            del content[i]
        case 2:
            content[i], content[j] = content[j], content[i]
        case 3:
            content = []
        case 4:
            taken = draw.choice(_values(others))
            content = [_copy(value) for value in taken] if field.message_type is not None else list(taken)
        case 5:
            content[i] = content[j] if field.message_type is not None else _spoiled(content[i], content, draw)
    del values[:]
    values.extend(content)


def _spoil_message(message: Message, field: FieldDescriptor, others: list[tuple[Message, FieldDescriptor]],
                   draw: random.Random) -> None:  # fmt: skip
    if draw.random() < 0.3:
        message.ClearField(field.name)
        return
    getattr(message, field.name).CopyFrom(_copy(draw.choice(_values(others))))


def _copy(message: Message) -> Message:
    result = type(message)()
    result.CopyFrom(message)
    return result


_NUMBERS = (-1, 0, 1, 2, 3, 7, -2, 2**31 - 1, 2**31, -(2**31), 2**40, 2**63 - 1, -(2**63))
_TEXTS = ("", "x", "y", "Relu", "Reshape", "com.microsoft", "a\nb", "%s{}", "Loop", "ai.onnx", "\x00", "ü" * 300)


def _spoiled(value: Any, others: list[Any], draw: random.Random) -> Any:
    """Something else of the type of ``value``; half of the time what ``others`` hold."""
    if draw.random() < 0.5:
        return draw.choice(others)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return draw.choice((*_NUMBERS, value + 1, value - 1, value * 2, -value))
    if isinstance(value, float):
        return draw.choice((0.0, -1.0, 1e38, 1e-38, float("nan"), float("inf"), -value))
    if isinstance(value, bytes):
        return _with_byte_fault(value, draw) if value else b"\xff"
    return draw.choice((*_TEXTS, value[:-1], value + "_"))


