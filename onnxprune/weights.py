"""The numbers of a weight, stored or computed from stored constants (DequantizeLinear, Cast, Transpose)."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from onnxprune.graph import Graph

__all__ = ["weight_values"]


def weight_values(graph: Graph, name: str) -> NDArray[np.generic]:
    """The value of a tensor that does not depend on the model's inputs. Raises KeyError where it does."""
    if name in graph.constants:
        return graph.values(name)
    nodes, leaves, pending = [], set(), [name]
    while pending:
        wanted = pending.pop()
        if not wanted or wanted in leaves:
            continue
        if wanted in graph.constants:
            leaves.add(wanted)
        elif graph.producer[wanted] not in nodes:
            nodes.append(graph.producer[wanted])
            pending += graph.nodes[graph.producer[wanted]].input
    chain = onnx.helper.make_graph(
        [graph.nodes[i] for i in sorted(nodes)],
        "weight",
        [],
        [onnx.ValueInfoProto(name=name)],
        [onnx.numpy_helper.from_array(graph.values(leaf), leaf) for leaf in sorted(leaves)],
    )
    model = onnx.helper.make_model(chain, opset_imports=list(graph.model.opset_import))
    return np.asarray(ReferenceEvaluator(model).run(None, {})[0])
