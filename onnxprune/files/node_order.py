"""Names and order: each tensor is made once and before it is read, in the graph, its bodies and its functions.

ONNX requires nodes in topological order; a model that merely breaks this rule means something definite (ONNX
Runtime runs it), so it is sorted, keeping the order of nodes wherever the edges allow.

Format: https://github.com/onnx/onnx/blob/main/docs/IR.md
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from onnx import GraphProto, ModelProto, NodeProto

from onnxprune.errors import ModelError
from onnxprune.graph import node_name, subgraphs

__all__ = ["Scope", "arrange", "out_of_order"]

@dataclass
class Scope:
    """A graph, a body or a function: nodes, the names they may start from, what must be made in the end.

    ``order``: the nodes in topological order, where they are not; else empty.
    """

    where: str
    nodes: Sequence[NodeProto]
    inputs: list[str]
    stored: list[str]
    results: list[str]
    owner: tuple[int, int] | None = None
    captured: dict[int, list[str]] | None = None
    order: Sequence[NodeProto] = ()


def arrange(model: ModelProto) -> None:
    """Check that each name is made once and from something, and bring the nodes into topological order.

    A body may read what the graphs around it make; the node that carries it then waits for these.
    Raises: ModelError for names made twice or by nobody, and for cycles.
    """
    for scope in out_of_order(model):
        rank = {id(node): k for k, node in enumerate(scope.order)}
        scope.nodes.sort(key=lambda node, rank=rank: rank[id(node)])  # type: ignore[attr-defined]  # in place, weights stay put


def out_of_order(model: ModelProto) -> list[Scope]:
    """The graphs, bodies and functions that ``arrange`` sorts, innermost first; raises as it does, changes nothing."""
    scopes = _scopes(model)
    for scope in reversed(scopes):  # bodies come after what carries them
        free = _order_scope(scope)
        if scope.owner is None and free:
            name, reader = next(iter(free.items()))
            raise ModelError(f"{reader} reads {name!r}, which is no input, not stored, and made by no node")
        if scope.owner is not None:
            carrier, node = scopes[scope.owner[0]], scope.owner[1]
            carrier.captured = carrier.captured or {}
            carrier.captured.setdefault(node, []).extend(free)
    return [scope for scope in reversed(scopes) if scope.order]


def _scopes(model: ModelProto) -> list[Scope]:
    found = [_graph_scope(model.graph, "the graph", None)]
    for function in model.functions:
        inputs, results = list(function.input), list(function.output)
        found.append(Scope(f"function {function.name!r}", function.node, inputs, [], results))
    for i, scope in enumerate(found):  # grows on the way
        for k, node in enumerate(scope.nodes):
            for body in subgraphs(node):
                found.append(_graph_scope(body, f"a body of node {node_name(node)!r}", (i, k)))
    return found


def _graph_scope(graph: GraphProto, where: str, owner: tuple[int, int] | None) -> Scope:
    stored = [tensor.name for tensor in graph.initializer]
    stored += [sparse.values.name for sparse in graph.sparse_initializer]
    inputs, outputs = [value.name for value in graph.input], [value.name for value in graph.output]
    return Scope(where, graph.node, inputs, stored, outputs, owner)


def _order_scope(scope: Scope) -> dict[str, str]:
    """Find the order of one scope. Returns what it reads from around it: name → who reads it."""
    nodes = list(scope.nodes)
    _check_names(scope, nodes, [name for node in nodes for name in node.output if name])
    reads = [[name for name in node.input if name] for node in nodes]
    for k, names in (scope.captured or {}).items():
        reads[k] += names
    maker = {name: k for k, node in enumerate(nodes) for name in node.output if name}
    given = {*scope.inputs, *scope.stored}
    known = given | maker.keys()
    free = {name: f"the list of outputs of {scope.where}" for name in scope.results if name not in known}
    for node, names in zip(nodes, reads, strict=True):
        free.update({name: f"node {node_name(node)!r}" for name in names if name not in known})
    before = [{maker[name] for name in names if name in maker} for names in reads]
    if any(makers and max(makers) >= k for k, makers in enumerate(before)):
        scope.order = _sorted(scope, nodes, before)
    return free


def _check_names(scope: Scope, nodes: Sequence[NodeProto], made: Sequence[str]) -> None:
    """Names are text, and each tensor has its own. (An initializer may be declared as an input, too.)"""
    called = [name for node in nodes for name in (node.name, node.op_type, node.domain, *node.input)]
    for names in (called, made, scope.inputs, scope.stored, scope.results):
        if bytes in map(type, names):
            broken = next(name for name in names if not isinstance(name, str))
            raise ModelError(f"a name in {scope.where} is not UTF-8 text ({broken!r}); the model is damaged")
    for names in ([*scope.inputs, *made], [*scope.stored, *made]):
        if len(set(names)) < len(names):
            double = next(name for name, count in Counter(names).items() if count > 1)
            raise ModelError(f"tensor {double!r} is there twice in {scope.where}; names have to differ")


def _sorted(scope: Scope, nodes: Sequence[NodeProto], before: Sequence[set[int]]) -> list[NodeProto]:
    """The nodes in order: of those whose inputs are made, always the first in the old order (Kahn)."""
    after: list[list[int]] = [[] for _ in nodes]
    for k, makers in enumerate(before):
        for made in makers:
            after[made].append(k)
    waiting = [len(makers) for makers in before]
    ready = [k for k, count in enumerate(waiting) if count == 0]
    rank: dict[int, int] = {}
    while ready:
        k = heapq.heappop(ready)
        rank[k] = len(rank)
        for reader in after[k]:
            waiting[reader] -= 1
            if waiting[reader] == 0:
                heapq.heappush(ready, reader)
    if len(rank) < len(nodes):
        raise ModelError(f"{scope.where} has a cycle: {_cycle(nodes, before, rank)}")
    return [nodes[k] for k in rank]


def _cycle(nodes: Sequence[NodeProto], before: Sequence[set[int]], sorted_: dict[int, int]) -> str:
    """A cycle among the nodes that could not be sorted, as text."""
    k = next(k for k in range(len(nodes)) if k not in sorted_)
    path: dict[int, None] = {}
    while k not in path:
        path[k] = None
        k = min(maker for maker in before[k] if maker not in sorted_)
    members = list(path)[list(path).index(k) :][::-1]
    first = members.index(min(members))
    members = members[first:] + members[:first]
    shown = [repr(node_name(nodes[m])) for m in members[:5]]
    return " → ".join([*shown, *(["…"] if len(members) > 5 else []), shown[0]])
