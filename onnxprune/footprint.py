"""Can a model be run here at all? A few bytes of a model can ask for terabytes.

ONNX Runtime allocates what a model asks for, and the system may end the process before it says no. So before a model
is run, the tensors whose sizes are known are looked at.
"""

from __future__ import annotations

import os
from math import prod

from onnx import ModelProto, NodeProto, TensorProto, helper

from onnxprune.bodies import MOST_NODES, RESULT, is_marker, number, stored_nodes, unfolded_nodes
from onnxprune.errors import ModelError
from onnxprune.files.tensor_bytes import raw_size
from onnxprune.graph import Graph, node_name
from onnxprune.shapes import Shapes

__all__ = ["check_footprint", "check_number_of_nodes"]

_SHARE = 2  # of the machine's memory, the part one tensor may take
_UNKNOWN = 16 * 2**30  # bytes of memory where the system does not say
_FILLED = 2**30  # bytes that a tensor computed from constants alone may always take
_MOST_ITERATIONS = 2**26  # of a loop that nothing ends before: minutes, even if its body is a single node


def check_footprint(graph: Graph, shapes: Shapes) -> None:
    """Raises ModelError for a tensor that takes more than half of the memory, at least, or, if it is computed from
    constants alone, far more than all of these; for calls of functions that stand for very many nodes; and for loops
    that go on for hours."""
    _check_calls(graph)
    _check_loops(graph, shapes)
    stored = sum(raw_size(tensor) for tensor in graph.constants.values())
    most, filled = _memory() // _SHARE, max(_FILLED, 2 * stored)
    fixed = set(graph.constants)
    for value in graph.model.graph.input:
        _check(f"input '{value.name}'", value.name, shapes, most)
    for node in graph.nodes:
        inside = all(name in fixed for name in node.input if name)
        for name in node.output:
            _check(f"'{name}' of node '{node_name(node)}'", name, shapes, min(most, filled) if inside else most)
        if inside:
            fixed.update(node.output)


def check_number_of_nodes(model: ModelProto) -> None:
    """Raises ModelError for a model of very many nodes or stored tensors: every one takes up to a millisecond, and
    ONNX Runtime takes time that grows with their square."""
    for count, what in ((stored_nodes(model), "nodes"), (len(model.graph.initializer), "stored tensors")):
        if count > MOST_NODES:
            raise ModelError(
                f"the model has {count:,} {what}, more than is tried here ({MOST_NODES:,}); "
                "export what repeats as a Loop, or the model in parts"
            )


def _check_calls(graph: Graph) -> None:
    unfolded = unfolded_nodes(graph.model) if graph.model.functions else 0
    if unfolded is not None and unfolded > MOST_NODES:  # None: a circle, which ONNX Runtime refuses by itself
        raise ModelError(
            f"its functions call each other so often that they stand for {unfolded:,} nodes, more than is tried here "
            f"({MOST_NODES:,}); use --no-verify"
        )


def _check_loops(graph: Graph, shapes: Shapes) -> None:
    for node in graph.nodes:
        if node.domain == RESULT and node.op_type == "Loop":
            count = shapes.values.get(node.input[0])
            if count is not None and count.size == 1 and count.item() > _MOST_ITERATIONS and _is_endless(graph, node):
                raise ModelError(
                    f"Loop '{node_name(node)}' runs {int(count.item()):,} times, more than is tried here "
                    f"({_MOST_ITERATIONS:,}); use --no-verify"
                )


def _is_endless(graph: Graph, result: NodeProto) -> bool:
    """Whether a loop only hands on the condition that it is given, so that nothing ends it before its time."""
    name = result.input[2]
    while name in graph.producer:
        node = graph.nodes[graph.producer[name]]
        if is_marker(node):
            return node.op_type == "Loop" and not node.input and number(node, "owner") == number(result, "owner")
        if node.op_type != "Identity":
            return False
        name = node.input[0]
    return name in graph.constants and bool(graph.values(name).all())


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return _UNKNOWN


def _check(what: str, name: str, shapes: Shapes, most: int) -> None:
    shape = shapes.of.get(name, ())
    least = prod(size for axis, size in enumerate(shape) if shapes.is_fixed(name, axis))
    size = least * _item_size(shapes.types.get(name, TensorProto.FLOAT))
    if size > most:
        raise ModelError(
            f"{what} takes {size / 1e9:,.1f} GB, more than is tried here ({most / 1e9:,.1f} GB); "
            "run it elsewhere, or use --no-verify"
        )


def _item_size(kind: int) -> int:
    try:
        return int(helper.tensor_dtype_to_np_dtype(kind).itemsize)
    except KeyError:
        return 4
