"""A quantised model with its scales moved by a few units in the last place: the same model, to rounding.

Where a computed number lies between two steps of a quantisation, the last bit of a sum decides which one it becomes,
and one step is far more than rounding. How far two right results may be apart shows when the scales are moved a little.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import ModelProto, TensorProto, numpy_helper

from onnxprune.graph import Graph

__all__ = ["shaken"]

_SHAKES = (1e-6, -1e-6, 3e-6, -3e-6)  # relative; float32 has 6e-8, and a long sum some tens of that
_SCALE = {"DequantizeLinear": 1, "DynamicQuantizeMatMul": 2, "QuantizeLinear": 1}
_ROUNDING = frozenset(("DynamicQuantizeLinear", "DynamicQuantizeMatMul", "QuantizeLinear"))


def shaken(model: ModelProto) -> Iterator[ModelProto]:
    """The model with other scales, several times; nothing for a model that quantises nothing."""
    if not any(node.op_type in _ROUNDING for node in model.graph.node):
        return
    graph = Graph(model)
    places = ((node, _SCALE[node.op_type]) for node in graph.nodes if node.op_type in _SCALE)
    names = {node.input[k] for node, k in places if k < len(node.input)}
    for shake in _SHAKES:
        result = ModelProto()
        result.CopyFrom(model)
        for tensor in result.graph.initializer:
            if tensor.name in names and tensor.data_type == TensorProto.FLOAT and not tensor.external_data:
                values = numpy_helper.to_array(tensor) * np.float32(1 + shake)
                tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
        yield result
