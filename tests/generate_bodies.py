"""Random models with bodies: a run of nodes of a random model moves into an If, a Loop or a Scan.

An If computes them in both branches, with the same names and weights, and halves what one of them makes. A Loop runs
them twice and returns what the second run made; where a tensor that they read has the shape of one that they make, it
may become a state that is carried from the first run to the second, and so may weights, which stay as they are. A Scan
does the same, but for the weights, and cuts one of the tensors that they read out of a sequence, along any axis and in
either direction. Done again, bodies nest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from generate import Choices, Seeded
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from random_models import random_model

from onnxprune.graph import subgraphs

__all__ = ["model_with_bodies", "with_dead_channels"]

_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE)


def model_with_bodies(choices: Choices | int) -> ModelProto:
    """A model from a seed, or from the decisions of hypothesis."""
    choices = Seeded(choices) if isinstance(choices, int) else choices
    model = random_model(choices)
    for turn in range(choices.integer(1, 3)):
        model = _wrapped(model, choices, turn) if model.ir_version > 3 else model
    return model


@dataclass(frozen=True)
class _Run:
    """Nodes to be moved. ``made``: what they make that is read elsewhere. ``types``: tensor → declaration."""

    inside: list[NodeProto]
    made: list[str]
    types: Mapping[str, ValueInfoProto]
    mark: str  # of the names inside

    def value(self, name: str, inner: str, sized: bool = True) -> ValueInfoProto:
        result = ValueInfoProto()
        result.CopyFrom(self.types[name])
        result.name = inner
        if not sized:
            result.type.tensor_type.ClearField("shape")
        return result


def _wrapped(model: ModelProto, choices: Choices, turn: int) -> ModelProto:
    nodes = list(model.graph.node)
    found = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    types = {value.name: value for value in (*found.input, *found.value_info, *found.output)}
    carried = _carried(nodes, types) if choices.integer(0, 2) == 0 else []
    first = choices.integer(0, len(nodes) - 1)
    last = min(first + choices.integer(1, 6), len(nodes))
    states: list[tuple[str, str]] = []
    if carried:
        first, last, before, after = choices.pick(carried)
        states = [(before, after)]
    made = _made(model, first, last, {after for _, after in states})
    if not made or any(name not in types or not types[name].type.tensor_type.elem_type for name in made):
        return model
    result = ModelProto()
    result.CopyFrom(model)
    run = _Run(nodes[first:last], made, types, f"_in{turn}")
    opset = model.opset_import[0].version
    cut = sorted(_outside(run) - {before for before, _ in states}) if opset >= 9 else []
    sized = all(types[name].type.tensor_type.HasField("shape") for name in made)  # else no Scan runs
    if cut and sized and choices.integer(0, 2) == 0:
        middle = _scan(result, run, states, choices.pick(cut), choices)
    elif states or (opset >= 13 and choices.integer(0, 1)):  # before, a Loop had to have a state
        middle = _loop(result, run, states, _weights(model, run, choices))
    else:
        middle = _conditional(result, run, choices)
    del result.graph.node[:]
    result.graph.node.extend([*nodes[:first], *middle, *nodes[last:]])
    return result


def _made(model: ModelProto, first: int, last: int, wanted: set[str]) -> list[str]:
    """What a run of nodes makes that is read elsewhere, or wanted."""
    nodes = list(model.graph.node)
    mine = {name for node in nodes[first:last] for name in node.output if name}
    read = {name for node in (*nodes[:first], *nodes[last:]) for name in _reads(node)}
    return sorted(mine & (read | wanted | {value.name for value in model.graph.output}))


def _outside(run: _Run) -> set[str]:
    """Tensors of floats, of some rank, that the nodes read and do not make."""
    made = {name for node in run.inside for name in node.output}
    read = {name for node in run.inside for name in _reads(node)} - made
    return {
        name
        for name in read & set(run.types)
        if _is_float(run.types[name]) and len(run.types[name].type.tensor_type.shape.dim) > 0
    }


def _carried(nodes: Sequence[NodeProto], types: Mapping[str, ValueInfoProto]) -> list[tuple[int, int, str, str]]:
    """Runs that may carry a state: (first node, last + 1, what it is at first, what it is then), of one shape."""
    maker = {name: i for i, node in enumerate(nodes) for name in node.output if name in types}
    found = []
    for before, i in maker.items():
        readers = [k for k, node in enumerate(nodes) if before in node.input]
        for after, k in maker.items():
            alike = _shape(types[before]) == _shape(types[after]) is not None
            if alike and readers and i < readers[0] <= k < readers[0] + 8 and _is_float(types[after]):
                found.append((readers[0], k + 1, before, after))
    return found


def _reads(node: NodeProto) -> Iterable[str]:
    yield from node.input
    for body in subgraphs(node):
        yield from (value.name for value in body.output)
        for inner in body.node:
            yield from _reads(inner)


def _inner(run: _Run, renamed: Mapping[str, str]) -> list[NodeProto]:
    """The nodes, with other names for what they make, and for what ``renamed`` says."""
    made = {name for node in run.inside for name in node.output if name}
    names = {**{name: name + run.mark for name in made}, **renamed}
    return [_with_names(node, names) for node in run.inside]


def _with_names(node: NodeProto, names: Mapping[str, str]) -> NodeProto:
    result = NodeProto()
    result.CopyFrom(node)
    pending = [result]
    while pending:
        here = pending.pop()
        here.input[:] = [names.get(name, name) for name in here.input]
        here.output[:] = [names.get(name, name) for name in here.output]
        for body in subgraphs(here):
            for value in body.output:
                value.name = names.get(value.name, value.name)
            pending += body.node
    return result


def _is_float(value: ValueInfoProto) -> bool:
    return value.type.tensor_type.elem_type in _FLOATS


# ---- the ways to wrap -----------------------------------------------------------------------------------------------


def _conditional(model: ModelProto, run: _Run, choices: Choices) -> list[NodeProto]:
    """Two branches; the second has some weights of its own, and halves some of what it makes."""
    condition = f"condition{run.mark}"
    model.graph.input.append(helper.make_tensor_value_info(condition, TensorProto.BOOL, []))
    own = [t for t in model.graph.initializer if t.data_type in _FLOATS and t.dims and choices.integer(0, 1)]
    read = {name for node in run.inside for name in node.input}
    stored = {t.name: _scaled(t, t.name + run.mark, 0.9) for t in own if t.name in read}
    one = helper.make_graph(_inner(run, {}), "then", [], [run.value(name, name + run.mark) for name in run.made])
    nodes = _inner(run, {name: tensor.name for name, tensor in stored.items()})
    made = []
    for name in run.made:
        made.append(name + run.mark)
        if _is_float(run.types[name]) and choices.integer(0, 1):
            half = np.array(0.5, helper.tensor_dtype_to_np_dtype(run.types[name].type.tensor_type.elem_type))
            stored[f"{name} halved"] = numpy_helper.from_array(half, f"{name}{run.mark}_half")
            nodes.append(helper.make_node("Mul", [made[-1], f"{name}{run.mark}_half"], [f"{name}{run.mark}_halved"]))
            made[-1] = f"{name}{run.mark}_halved"
    outputs = [run.value(name, inner) for name, inner in zip(run.made, made, strict=True)]
    two = helper.make_graph(nodes, "else", [], outputs, list(stored.values()))
    return [helper.make_node("If", [condition], run.made, then_branch=one, else_branch=two)]


def _scaled(tensor: TensorProto, name: str, by: float) -> TensorProto:
    values = numpy_helper.to_array(tensor)
    return numpy_helper.from_array((values * by).astype(values.dtype), name)


def _shape(value: ValueInfoProto) -> tuple[object, ...] | None:
    kind = value.type.tensor_type
    sizes = [dim.dim_value or dim.dim_param for dim in kind.shape.dim]
    return (kind.elem_type, *sizes) if kind.HasField("shape") and all(sizes) else None


def _weights(model: ModelProto, run: _Run, choices: Choices) -> list[ValueInfoProto]:
    """Constants of the main graph that a run reads, or none."""
    read = {name for node in run.inside for name in node.input}
    held = [tensor for tensor in model.graph.initializer if tensor.name in read and tensor.data_type in _FLOATS]
    held = held if choices.integer(0, 2) == 0 else []
    return [helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in held]


def _loop(
    model: ModelProto, run: _Run, states: Sequence[tuple[str, str]], weights: Sequence[ValueInfoProto]
) -> list[NodeProto]:
    """``states``: what it is at first, what it is then; ``weights``: what else is carried, and never changes."""
    mark = run.mark
    run = replace(run, types={**run.types, **{value.name: value for value in weights}})
    states = [*states, *((value.name, value.name) for value in weights)]
    renamed = {before: f"{before}{mark}_state" for before, _ in states}
    count, second = f"count{mark}", f"second{mark}"
    model.graph.initializer.append(numpy_helper.from_array(np.array(2, np.int64), count))
    model.graph.initializer.append(numpy_helper.from_array(np.array(1, np.int64), second))
    inputs = [
        helper.make_tensor_value_info(f"i{mark}", TensorProto.INT64, []),
        helper.make_tensor_value_info(f"go{mark}", TensorProto.BOOL, []),
        *(run.value(before, renamed[before]) for before, _ in states),
    ]
    outputs = [
        helper.make_tensor_value_info(f"on{mark}", TensorProto.BOOL, []),
        *(run.value(after, f"{after}{mark}_next") for _, after in states),
        *(run.value(name, f"{name}{mark}", sized=False) for name in run.made),
    ]
    nodes = [
        helper.make_node("Identity", [f"go{mark}"], [f"on{mark}"]),
        *_inner(run, renamed),
        *(
            helper.make_node("Identity", [renamed.get(after, f"{after}{mark}")], [f"{after}{mark}_next"])
            for _, after in states
        ),
    ]
    body = helper.make_graph(nodes, "body", inputs, outputs)
    stacked = [f"{name}{mark}_stacked" for name in run.made]
    finals = [f"{before}{mark}_final" for before, _ in states]
    first = [before for before, _ in states]
    return [
        helper.make_node("Loop", [count, "", *first], [*finals, *stacked], f"loop{mark}", body=body),
        *(
            helper.make_node("Gather", [stack, second], [name], axis=0)
            for stack, name in zip(stacked, run.made, strict=True)
        ),
    ]


def _scan(model: ModelProto, run: _Run, states: Sequence[tuple[str, str]], cut: str,
          choices: Choices) -> list[NodeProto]:  # fmt: skip
    """``states``: as of a loop. ``cut``: what becomes a sequence, of half of it and all of it."""
    mark, opset = run.mark, model.opset_import[0].version
    rank = len(run.types[cut].type.tensor_type.shape.dim)
    axis, backwards = choices.integer(0, rank), choices.integer(0, 1)
    ranks = [len(run.types[name].type.tensor_type.shape.dim) for name in run.made]
    places, turned = [choices.integer(0, rank) for rank in ranks], choices.integer(0, 1)
    sequence = _sequence(model, cut, mark, axis, opset, backwards, run)
    renamed = {**{before: f"{before}{mark}_state" for before, _ in states}, cut: f"{cut}{mark}_slice"}
    inputs = [run.value(before, renamed[before]) for before in (*(before for before, _ in states), cut)]
    outputs = [
        *(run.value(after, f"{after}{mark}_next") for _, after in states),
        *(run.value(name, f"{name}{mark}") for name in run.made),
    ]
    nodes = [
        *_inner(run, renamed),
        *(helper.make_node("Identity", [f"{after}{mark}"], [f"{after}{mark}_next"]) for _, after in states),
    ]
    body = helper.make_graph(nodes, "body", inputs, outputs)
    last = f"last{mark}"
    model.graph.initializer.append(numpy_helper.from_array(np.array(1 - turned, np.int64), last))
    stacked = [f"{name}{mark}_stacked" for name in run.made]
    scan = helper.make_node(
        "Scan", [*(before for before, _ in states), f"{cut}{mark}_sequence"],
        [*(f"{before}{mark}_final" for before, _ in states), *stacked], f"scan{mark}", body=body, num_scan_inputs=1,
        scan_input_axes=[axis], scan_input_directions=[backwards], scan_output_axes=places,
        scan_output_directions=[turned] * len(places),
    )  # fmt: skip
    picked = zip(stacked, run.made, places, strict=True)
    return [*sequence, scan, *(helper.make_node("Gather", [s, last], [name], axis=a) for s, name, a in picked)]


def _sequence(model: ModelProto, name: str, mark: str, axis: int, opset: int, backwards: int,
              run: _Run) -> list[NodeProto]:  # fmt: skip
    """Half of a tensor, then all of it, stacked along an axis; the other way round if it is read backwards."""
    half, parts = f"{name}{mark}_part", [f"{name}{mark}_first", f"{name}{mark}_second"]
    dtype = helper.tensor_dtype_to_np_dtype(run.types[name].type.tensor_type.elem_type)
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.5, dtype), f"{half}_factor"))
    axes: list[str] = []
    attributes: dict[str, Any] = {"axes": [axis]}
    if opset >= 13:
        axes, attributes = [f"{half}_axis"], {}
        model.graph.initializer.append(numpy_helper.from_array(np.array([axis], np.int64), f"{half}_axis"))
    order = parts[::-1] if backwards else parts
    return [
        helper.make_node("Mul", [name, f"{half}_factor"], [half]),
        helper.make_node("Unsqueeze", [half, *axes], [parts[0]], **attributes),
        helper.make_node("Unsqueeze", [name, *axes], [parts[1]], **attributes),
        helper.make_node("Concat", order, [f"{name}{mark}_sequence"], axis=axis),
    ]


def with_dead_channels(model: ModelProto, seed: int) -> ModelProto:
    """A copy with zeros at random indices of some axes of its weights."""
    rng = np.random.default_rng(seed)
    result = ModelProto()
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        if len(tensor.dims) > 1 and tensor.data_type in _FLOATS and rng.random() < 0.6:
            values = np.array(numpy_helper.to_array(tensor))
            along = np.moveaxis(values, rng.integers(0, 2), 0)
            along[rng.random(len(along)) < 0.5] = 0
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return result
