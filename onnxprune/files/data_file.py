"""Writing the file beside a model: the weights one at a time, one tensor or one block in memory.

Format: https://github.com/onnx/onnx/blob/main/docs/ExternalData.md
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from io import FileIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import uses_external_data

from onnxprune.deferred import Pending, is_promise
from onnxprune.errors import ModelError, VerificationError
from onnxprune.files.external_data import DataFiles, Range
from onnxprune.files.staging import flushing
from onnxprune.files.tensor_bytes import raw_size

__all__ = ["write_data"]

_LARGE, _PAGE, _LINE = 2**20, 4096, 64
"""Tensors from ``_LARGE`` bytes on begin at a page, so that they can be mapped; others at a cache line."""
_BLOCK = 8 * 2**20
"""Bytes copied at a time."""


def write_data(
    moved: Iterable[tuple[TensorProto, TensorProto]],
    path: Path,
    files: DataFiles,
    *,
    pending: Mapping[str, Pending],
    in_place: bool = False,
) -> None:
    """Write the numbers of each tensor one after another, and note in its copy where they are.

    Tensors that shared a range of the source's data go on sharing one. ``pending``: tensor → its numbers, where they
    are nowhere yet. ``in_place``: all of them lie in one file of the source, and keep their places.
    """
    written: dict[Range, int] = {}
    end = 0
    with path.open("xb") as data, flushing(data) as go_on:
        for source, target in moved:
            wanted = pending.get(source.name) if is_promise(source) else None
            held = files.range_of(source) if uses_external_data(source) and wanted is None else None
            size = raw_size(source)
            if held and in_place:
                end = held.offset
            offset = written.get(held) if held else None
            if offset is None:
                step = 1 if in_place else _PAGE if size >= _LARGE else _LINE
                offset = -(-end // step) * step
                data.seek(offset)
                if wanted is None:
                    _write_numbers(source, held, data)
                else:
                    _write_blocks(source, wanted(), data)
                end = offset + size
            if held:
                written[held] = offset
            place: dict[str, object] = {"location": path.name}
            _refer(source, target, place if in_place else {**place, "offset": offset, "length": size})
            go_on()


def _write_numbers(tensor: TensorProto, held: Range | None, data: BinaryIO) -> None:
    if held:
        _copy_range(held, data)
    elif tensor.HasField("raw_data"):
        data.write(tensor.raw_data)
    else:
        data.write(numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data)


def _write_blocks(tensor: TensorProto, blocks: Iterable[NDArray[np.generic]], data: BinaryIO) -> None:
    """Numbers that are computed as they are written. Raises VerificationError where they are not as declared."""
    dtype, (length, *rest) = helper.tensor_dtype_to_np_dtype(tensor.data_type), tensor.dims
    for block in blocks:
        length -= len(block)
        if block.dtype != dtype or list(block.shape[1:]) != rest or length < 0:
            break
        data.write((block if sys.byteorder == "little" else block.byteswap()).tobytes())
    else:
        if not length:
            return
    raise VerificationError(
        f"the pruned model contradicts itself, nothing was written: constant {tensor.name!r} is not what its shape "
        f"{list(tensor.dims)} says; please report the model, or leave its layers alone with --keep"
    )


def _copy_range(held: Range, data: BinaryIO) -> None:
    data.flush()
    with held.file.open("rb", buffering=0) as file:
        at, end = held.offset, held.offset + held.length
        while at < end:
            count = _copy_block(file, at, min(end - at, _BLOCK), data)
            if not count:
                raise ModelError(f"'{held.file}' was cut short while it was read; leave it as it is meanwhile")
            at += count


def _copy_block(file: FileIO, offset: int, size: int, data: BinaryIO) -> int:
    """Copy at most ``size`` bytes, inside the kernel where it can do that; how many there were."""
    if sys.platform == "linux":
        return os.sendfile(data.fileno(), file.fileno(), offset, size)
    file.seek(offset)
    return data.write(file.read(size))


def _refer(source: TensorProto, target: TensorProto, place: Mapping[str, object]) -> None:
    """Declare where the numbers are. What else was declared, such as a checksum, stays with numbers that do."""
    target.data_location = TensorProto.EXTERNAL
    target.external_data.extend(source.external_data)
    held = {entry.key: entry for entry in target.external_data}
    for key, value in place.items():
        entry = held.get(key) or target.external_data.add(key=key)
        entry.value = str(value)
