"""What a model holds: the numbers a sparsity is stated in, counted from the file alone.

``weights``: elements of all stored constant tensors of rank ≥ 2, float or quantised, in the main graph, in the bodies
of control-flow nodes and in model-local functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod

from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from onnxprune.graph import constant_of, subgraphs

__all__ = ["WEIGHT_TYPES", "count_weights", "is_weight", "stored_tensors", "tensors_of"]

WEIGHT_TYPES = frozenset(
    value
    for name, value in TensorProto.DataType.items()
    if name.startswith(("FLOAT", "BFLOAT", "DOUBLE", "INT8", "UINT8", "INT4", "UINT4", "INT2", "UINT2"))
)
"""Float (4 to 64 bits) and quantised (2 to 8 bits) element types; wider integers are indices and sizes."""


def is_weight(tensor: TensorProto) -> bool:
    """Whether the measure ``weights`` counts this constant."""
    return len(tensor.dims) >= 2 and tensor.data_type in WEIGHT_TYPES


def count_weights(model: ModelProto) -> int:
    """Elements of all stored constant tensors of rank ≥ 2, float or quantised."""
    return sum(prod(tensor.dims) for tensor in stored_tensors(model) if is_weight(tensor))


def stored_tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor a model stores, wherever it lives."""
    yield from tensors_of(model.graph)
    for function in model.functions:
        yield from _of_nodes(function.node)


def tensors_of(graph: GraphProto) -> Iterator[TensorProto]:
    """Every tensor a graph stores, its nodes' bodies included."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        # A sparse tensor counts what it stands for, so the dense dims with the values' type.
        yield TensorProto(dims=sparse.dims, data_type=sparse.values.data_type)
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        tensor = constant_of(node)
        if tensor is not None:
            yield tensor
        for body in subgraphs(node):
            yield from tensors_of(body)
