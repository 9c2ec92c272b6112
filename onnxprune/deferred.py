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

from onnxprune.messages import select, with_numbers

__all__ = ["Deferred", "Pending", "promise"]

Pending: TypeAlias = Callable[[], Iterator[NDArray[np.generic]]]
"""Computes the numbers of a constant in blocks, whose first axes lie one after another."""


@dataclass(frozen=True)
class Deferred:
    """``outline``: a model; ``pending``: initializer → its numbers, where the outline only declares them."""

    outline: ModelProto
    pending: Mapping[str, Pending] = field(default_factory=dict)

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


def promise(held: TensorProto, name: str, dims: Sequence[int]) -> TensorProto:
    """The declaration of external data that is nowhere yet: ``held`` under another name and with other sizes."""
    result = select(held, ("data_type", "doc_string", "metadata_props"))
    result.name, result.data_location = name, TensorProto.EXTERNAL
    result.dims.extend(dims)
    return result
