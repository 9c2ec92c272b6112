"""Whether the nodes of a model have the inputs and outputs that their operators ask for, so that no rule misses one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache

import onnx
from onnx import ModelProto, NodeProto, OperatorSetIdProto

from onnxprune.errors import ModelError
from onnxprune.graph import node_name, subgraphs

__all__ = ["check_arity"]

_STANDARD = ("", "ai.onnx")


def check_arity(model: ModelProto) -> None:
    """Raises ModelError for a node of a standard operator that has fewer inputs or outputs than ONNX asks for."""
    pending: list[tuple[Iterable[NodeProto], int]] = [(model.graph.node, _version(model.opset_import))]
    pending += [(function.node, _version(function.opset_import)) for function in model.functions]
    while pending:
        nodes, version = pending.pop()
        for node in nodes:
            if node.domain in _STANDARD:
                found = {"inputs": len(node.input), "outputs": len(node.output)}
                _check(node, found, _fewest(node.op_type, version))
            pending += [(body.node, version) for body in subgraphs(node)]


def _version(imports: Iterable[OperatorSetIdProto]) -> int:
    return next((held.version for held in imports if held.domain in _STANDARD), 1)


@cache
def _fewest(op: str, version: int) -> Mapping[str, int]:
    """How many inputs and outputs an operator has at least; none where ONNX does not know it."""
    try:
        schema = onnx.defs.get_schema(op, version, "")
    except Exception:  # no such operator, or no such version
        return {}
    return {"inputs": schema.min_input, "outputs": schema.min_output}


def _check(node: NodeProto, found: Mapping[str, int], fewest: Mapping[str, int]) -> None:
    for kind, least in fewest.items():
        if found[kind] < least:
            raise ModelError(f"{node.op_type} {node_name(node)!r} has {found[kind]} {kind}, and needs at least {least}")
