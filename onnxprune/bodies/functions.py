"""Model-local functions put in place of their calls, so that channels run through them like through anything else.

A function is inlined by ONNX itself, attributes and nested functions included. What is stored inside a function that is
called several times is then there several times; it is stored once again (``_stored_once``), and as a constant with
several readers loses the same channels for all of them.

Left as they are, and their calls opaque: functions written in another operator set than the model, and models that
would grow beyond bounds (a function that calls another twice, which calls another twice, …).

https://github.com/onnx/onnx/blob/main/docs/IR.md#functions
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import onnx
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, inliner

from onnxprune.graph import constant_of, subgraphs
from onnxprune.measure import count_weights, is_weight
from onnxprune.messages import without

__all__ = ["MOST_NODES", "inline", "is_call", "stored_nodes", "unfolded_nodes"]

MOST_NODES = 50_000
"""Nodes that a model may have, and once its functions are inlined; beyond that, nobody goes through every call.

ONNX Runtime takes minutes to load some models of so many."""

Key = tuple[str, str, str]


def inline(model: ModelProto) -> ModelProto:
    """The model without calls of model-local functions; the very same object where there are none, or too many."""
    functions = {_key(function): function for function in model.functions}
    if not functions or not any(_called(node) in functions for node in _all_nodes(model.graph.node)):
        return model
    size = unfolded_nodes(model)
    if size is None or size > MOST_NODES:
        return model
    try:
        found = inliner.inline_local_functions(_without_data(model))
    except Exception:  # recursive, malformed, or beyond protobuf's limits: the calls stay opaque
        return model
    return _stored_once(model, _with_data(found, model))


def is_call(model: ModelProto, node: NodeProto) -> bool:
    """Whether a node calls a model-local function."""
    return any(_key(function) == _called(node) for function in model.functions)


def stored_nodes(model: ModelProto) -> int:
    """How many nodes a model's file holds, those of bodies and functions included."""
    return sum(1 for nodes in (model.graph.node, *(held.node for held in model.functions)) for _ in _all_nodes(nodes))


def unfolded_nodes(model: ModelProto) -> int | None:
    """How many nodes there would be with every function inlined; None where functions call each other in a circle."""
    calls = {
        _key(function): Counter(_called(node) for node in _all_nodes(function.node)) for function in model.functions
    }
    size: dict[Key, int] = {}
    for key in _callees_first(calls):
        size[key] = sum(count * (size.get(called, 1) if called in calls else 1) for called, count in calls[key].items())
    if len(size) < len(calls):
        return None
    return sum(size.get(_called(node), 1) for node in _all_nodes(model.graph.node))


def _callees_first(calls: dict[Key, Counter[Key]]) -> Iterator[Key]:
    """Functions in an order in which whoever is called comes first; those in a circle are left out."""
    waiting = {key: {called for called in found if called in calls} for key, found in calls.items()}
    callers: dict[Key, list[Key]] = {}
    for key, found in waiting.items():
        for called in found:
            callers.setdefault(called, []).append(key)
    ready = [key for key, found in waiting.items() if not found]
    while ready:
        done = ready.pop()
        yield done
        for caller in callers.get(done, ()):
            waiting[caller].discard(done)
            if not waiting[caller]:
                ready.append(caller)


def _uncalled(model: ModelProto) -> set[Key]:
    """Functions that neither the graph nor what it calls reaches."""
    functions = {_key(function): function for function in model.functions}
    pending: list[Iterable[NodeProto]] = [model.graph.node]
    while pending:
        for node in _all_nodes(pending.pop()):
            function = functions.pop(_called(node), None)
            if function is not None:
                pending.append(function.node)
    return set(functions)


def _key(function: FunctionProto) -> Key:
    return function.domain, function.name, function.overload


def _called(node: NodeProto) -> Key:
    return node.domain, node.op_type, node.overload


def _all_nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Nodes, and those of the bodies they carry."""
    pending = [nodes]
    while pending:
        for node in pending.pop():
            yield node
            pending += [body.node for body in subgraphs(node)]


# ---- inlining without moving the weights ----------------------------------------------------------------------------


def _without_data(model: ModelProto) -> ModelProto:
    """The model with the names of its initializers alone."""
    light = without(model, "graph")
    light.graph.CopyFrom(without(model.graph, "initializer"))
    light.graph.initializer.extend(TensorProto(name=t.name, data_type=t.data_type) for t in model.graph.initializer)
    return light


def _with_data(inlined: ModelProto, model: ModelProto) -> ModelProto:
    """The inlined nodes in a model that is otherwise as it was."""
    result = without(model, "graph", "functions")
    result.graph.CopyFrom(without(model.graph, "node"))
    result.graph.node.extend(inlined.graph.node)
    left = {_key(function) for function in inlined.functions} | _uncalled(model)
    result.functions.extend(function for function in model.functions if _key(function) in left)
    del result.opset_import[:]
    result.opset_import.extend(inlined.opset_import)
    return result


def _stored_once(model: ModelProto, inlined: ModelProto) -> ModelProto:
    """Weights that inlining has multiplied become one constant of the main graph."""
    if count_weights(inlined) <= count_weights(model):
        return inlined
    stored: dict[bytes, str] = {}
    for node in list(_all_nodes(inlined.graph.node)):
        held = constant_of(node)
        if held is not None and is_weight(held):
            content = held.SerializeToString(deterministic=True)
            if content not in stored:
                stored[content] = f"{node.output[0]}_stored"
                inlined.graph.initializer.append(held)
                inlined.graph.initializer[-1].name = stored[content]
            node.CopyFrom(onnx.helper.make_node("Identity", [stored[content]], list(node.output), node.name))
    return inlined
