"""Every tensor of a model, wherever it is."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, TensorProto

from onnxprune.graph import subgraphs

__all__ = ["tensors"]


def tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor of a model; those of the main graph's initializers first, in order."""
    pending: deque[GraphProto | FunctionProto] = deque([model.graph, *model.functions])
    pending.extend(graph for info in model.training_info for graph in (info.initialization, info.algorithm))
    while pending:
        scope = pending.popleft()
        if isinstance(scope, GraphProto):
            yield from scope.initializer
            for sparse in scope.sparse_initializer:
                yield from (sparse.values, sparse.indices)
        for node in scope.node:
            for held in node.attribute:
                yield from _attribute_tensors(held)
            pending.extend(subgraphs(node))


def _attribute_tensors(held: AttributeProto) -> Iterator[TensorProto]:
    if held.type == AttributeProto.TENSOR:
        yield held.t
    elif held.type == AttributeProto.TENSORS:
        yield from held.tensors
    elif held.type in (AttributeProto.SPARSE_TENSOR, AttributeProto.SPARSE_TENSORS):
        for sparse in (held.sparse_tensor, *held.sparse_tensors):
            yield from (part for part in (sparse.values, sparse.indices) if part.data_type)
