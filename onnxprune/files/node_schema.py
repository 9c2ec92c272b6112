"""Whether the nodes of a model are what ONNX says of their operators, so that no rule is surprised by one.

ONNX Runtime refuses all of this too, but only when a model is run.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import onnx
from onnx import AttributeProto, ModelProto, NodeProto, OperatorSetIdProto
from onnx.defs import OpSchema

from onnxprune.errors import ModelError
from onnxprune.graph import node_name, subgraphs

__all__ = ["check_nodes"]

_STANDARD = ("", "ai.onnx")


def check_nodes(model: ModelProto) -> None:
    """Raises ModelError for names that are no text, for a node that has an attribute twice, and for one of a standard
    operator with too few or too many inputs or outputs, or an attribute of another type."""
    for value in (*model.graph.input, *model.graph.output):
        _check_text(value.name, *(dim.dim_param for dim in value.type.tensor_type.shape.dim))
    pending: list[tuple[Iterable[NodeProto], int]] = [(model.graph.node, _version(model.opset_import))]
    pending += [(function.node, _version(function.opset_import)) for function in model.functions]
    while pending:
        nodes, version = pending.pop()
        for node in nodes:
            _check_text(node.name, node.op_type, node.domain, *node.input, *node.output)
            schema = _schema(node.op_type, version) if node.domain in _STANDARD else None
            if schema is not None:
                newest = _schema(node.op_type, onnx.defs.onnx_opset_version()) or schema  # what a model may mean
                inputs = min(schema.min_input, newest.min_input), max(schema.max_input, newest.max_input)
                outputs = min(schema.min_output, newest.min_output), max(schema.max_output, newest.max_output)
                _check_count(node, "inputs", len(node.input), *inputs)
                _check_count(node, "outputs", len(node.output), *outputs)
            _check_attributes(node, schema)
            pending += [(body.node, version) for body in subgraphs(node)]


def _version(imports: Iterable[OperatorSetIdProto]) -> int:
    return next((held.version for held in imports if held.domain in _STANDARD), 1)


@cache
def _schema(op: str, version: int) -> OpSchema | None:
    """None where ONNX does not know the operator, or not the version."""
    try:
        return onnx.defs.get_schema(op, version, "")
    except Exception:
        return None


def _check_text(*texts: object) -> None:
    """Protobuf hands out as bytes what is not UTF-8."""
    wrong = next((text for text in texts if isinstance(text, bytes)), None)
    if wrong is not None:
        raise ModelError(f"a name is not UTF-8: {wrong!r}")


def _check_count(node: NodeProto, kind: str, found: int, least: int, most: int) -> None:
    if not least <= found <= most:
        asked = f"at least {least}" if found < least else f"at most {most}"
        raise ModelError(f"{node.op_type} {node_name(node)!r} has {found} {kind}, expected {asked}")


def _check_attributes(node: NodeProto, schema: OpSchema | None) -> None:
    known = {} if schema is None else schema.attributes
    seen: set[str] = set()
    for held in node.attribute:
        if held.name in seen:
            raise ModelError(f"{node.op_type} {node_name(node)!r} has the attribute {held.name!r} twice")
        seen.add(held.name)
        if held.name in known and not held.ref_attr_name:
            found, expected = AttributeProto.AttributeType.Name(held.type), _type_name(known[held.name])
            if found != expected:
                raise ModelError(
                    f"attribute {held.name!r} of {node.op_type} {node_name(node)!r} is {found}, expected {expected}"
                )


def _type_name(attribute: OpSchema.Attribute) -> str:
    return str(attribute.type).rpartition(".")[2]
