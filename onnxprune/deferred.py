"""Models of which large constants are computed only when they are wanted.

What is kept of a weight in a data file goes to the new data file block by block as it is cut. So a model may be larger
than memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto
from onnx.external_data_helper import uses_external_data

from onnxprune.files.tensor_bytes import is_packed, raw_size
from onnxprune.measure import is_weight
from onnxprune.messages import select, with_numbers

__all__ = ["Deferred", "Pending", "can_wait", "is_promise", "promise", "row_blocks"]

_LARGE = 2**20  # bytes from which on it pays to let a constant wait
_BLOCK = 4 * 2**20  # bytes of a constant that are computed at a time

Pending: TypeAlias = Callable[[], Iterator[NDArray[np.generic]]]
"""Computes the numbers of a constant in blocks, whose first axes lie one after another."""


@dataclass(frozen=True)
class Deferred:
    """``outline``: a model; ``pending``: initializer → its numbers, where the outline only declares them."""

    outline: ModelProto
    pending: Mapping[str, Pending] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        """Whether nothing has to be computed any more."""
        return not self.pending or "model" in vars(self)

    @cached_property
    def model(self) -> ModelProto:
        """The whole model, in memory."""
        if not self.pending:
            return self.outline
        result = ModelProto()
        result.CopyFrom(self.outline)
        for tensor in result.graph.initializer:
            if tensor.name in self.pending:
                tensor.CopyFrom(with_numbers(tensor, np.concatenate(list(self.pending[tensor.name]()))))
        return result


def can_wait(stored: TensorProto) -> bool:
    """Whether a constant may be computed when it is written: a large weight, which nobody reads as sizes or indices."""
    return uses_external_data(stored) and is_weight(stored) and raw_size(stored) >= _LARGE and not is_packed(stored)


def row_blocks(values: NDArray[np.generic]) -> Iterator[slice]:
    """Runs of indices of the first axis, as many as fit the cache."""
    step = max(1, _BLOCK * len(values) // max(1, values.nbytes))
    return (slice(start, start + step) for start in range(0, len(values), step))


def promise(held: TensorProto, name: str, dims: Sequence[int]) -> TensorProto:
    """The declaration of external data that is nowhere yet: ``held`` under another name and with other sizes."""
    result = select(held, ("data_type", "doc_string", "metadata_props"))
    result.name, result.data_location = name, TensorProto.EXTERNAL
    result.dims.extend(dims)
    return result


def is_promise(tensor: TensorProto) -> bool:
    """Whether a tensor is such a declaration."""
    return bool(uses_external_data(tensor) and not tensor.external_data)
