"""Random models in which much is dead: zeros in channels of their constants and in single kernel slices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from witness import outputs

__all__ = ["runs", "with_zeros"]


def with_zeros(model: ModelProto, seed: int) -> ModelProto:
    """Zeros in random channels of half of the constants, and in single kernel slices."""
    rng = np.random.default_rng(seed)
    result = ModelProto()
    result.CopyFrom(model)
    stored = [*result.graph.initializer]
    stored += [node.attribute[0].t for node in result.graph.node if node.op_type == "Constant"]
    for tensor in stored:
        if tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE) and np.prod(tensor.dims) > 1:
            tensor.CopyFrom(numpy_helper.from_array(_with_zeros(numpy_helper.to_array(tensor), rng), tensor.name))
    return result


def _with_zeros(values: NDArray[np.generic], rng: np.random.Generator) -> NDArray[np.generic]:
    if rng.random() < (0.2 if values.ndim > 1 else 0.6):
        return values
    result, axis = np.array(values), int(rng.integers(0, min(values.ndim, 2)))
    result[(slice(None),) * axis + (rng.random(values.shape[axis]) < 0.5,)] = 0
    if values.ndim > 1 and rng.random() < 0.3:
        result[rng.random(values.shape[:2]) < 0.3] = 0
    return result


def runs(model: ModelProto, given: Mapping[str, Any]) -> bool:
    """Whether ONNX Runtime takes a random model, and it stays finite."""
    try:
        found = outputs(model, given).values()
    except Exception:  # its own exception types; not what is tested here
        return False
    return all(bool(np.all(np.isfinite(values))) for values in found if values.dtype.kind == "f")
