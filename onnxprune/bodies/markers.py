"""The markers that stand for a control-flow node in a flat graph.

    begin                                    opens a body; nothing in, nothing out
    formal     what goes in → body input     one for each input of the body
    …          the nodes of the body
    end                                      closes it
    result     body outputs → output         one for each output of the node, after its last body

A marker has the operator and the name of the node it stands for; its role is its *domain*. Attributes: ``owner``, a
number that the markers of one node share; ``body``, which of its bodies; ``place``, which input of the body or which
output of the node; ``state``, whether it is carried from one iteration to the next; ``axis``, else along which axis
slices are cut or stacked; ``then``, which input of an If's result comes from its then branch.

What goes into a formal and a result (a name may be empty):

    If     result   condition, output of each branch
    Loop   formal   place 0, 1: nothing (iteration, condition); from 2: the initial value of a state
           result   trip count, condition, condition made by the body, then [initial value,] output of the body
    Scan   formal   the initial value of a state, or the tensor that is cut into slices
           result   [initial value,] output of the body

A state is carried from one iteration to the next, so its body output is also read by its formal: the one edge of a
flat graph that runs backwards. Whoever walks backwards takes the results of a loop together (``results_of``).
"""

from __future__ import annotations

from collections.abc import Sequence

from onnx import NodeProto

__all__ = ["BEGIN", "DOMAINS", "END", "FORMAL", "RESULT", "is_marker", "loops", "number", "results_of", "states"]

BEGIN, FORMAL, END, RESULT = DOMAINS = tuple(f"onnxprune.{role}" for role in ("begin", "formal", "end", "result"))


def is_marker(node: NodeProto) -> bool:
    return node.domain in DOMAINS


def loops(node: NodeProto) -> bool:
    """Whether a marker stands for a node whose body may run more than once."""
    return is_marker(node) and node.op_type != "If"


def number(node: NodeProto, name: str) -> int:
    """An integer attribute of a marker."""
    return next(int(held.i) for held in node.attribute if held.name == name)


def results_of(nodes: Sequence[NodeProto], index: int) -> list[int]:
    """The indices of all results of the node that the result at ``index`` belongs to."""
    owner = number(nodes[index], "owner")
    first = last = index
    while first and _is_result(nodes[first - 1], owner):
        first -= 1
    while last + 1 < len(nodes) and _is_result(nodes[last + 1], owner):
        last += 1
    return list(range(first, last + 1))


def _is_result(node: NodeProto, owner: int) -> bool:
    return node.domain == RESULT and number(node, "owner") == owner


def states(node: NodeProto) -> int:
    """How many states a Loop or Scan carries from one iteration to the next."""
    if node.op_type == "Loop":
        return max(len(node.input) - 2, 0)
    scanned = next((int(held.i) for held in node.attribute if held.name == "num_scan_inputs"), 0)
    return len(node.input) - scanned if node.op_type == "Scan" else 0
