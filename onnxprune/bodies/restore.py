"""Bodies put back: a flat graph becomes the graph it was made from, with whatever changed in between.

Everything between two markers belongs to the body they enclose; names that were changed to be unique get their own
back. A node whose results are all gone is gone, with its bodies. A constant that was added meanwhile lies in the main
graph, where bodies may read it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, ValueInfoProto

from onnxprune.bodies.markers import BEGIN, END, FORMAL, RESULT, is_marker, number, states
from onnxprune.graph import subgraphs
from onnxprune.messages import without

__all__ = ["restore"]


def restore(flat: ModelProto) -> ModelProto:
    """The model of a flat graph; the very same object where nothing was laid out."""
    return _Restorer(flat).run() if any(map(is_marker, flat.graph.node)) else flat


@dataclass
class _Body:
    """A body on its way back."""

    graph: GraphProto
    made: list[str]  # the flat names of its outputs as they were
    initializers: list[str]
    sparse: list[str]
    nodes: list[NodeProto] = field(default_factory=list)
    formals: list[NodeProto] = field(default_factory=list)
    states: dict[str, str] = field(default_factory=dict)
    """Initial value → state, where nodes of the body read the one for the other."""

    def add_formal(self, node: NodeProto) -> None:
        self.formals.append(node)
        if node.input and node.input[0] in _texts(node, "unchanging"):
            self.states[node.input[0]] = node.output[0]


class _Restorer:
    def __init__(self, flat: ModelProto) -> None:
        self.flat = flat
        self.begins = {_key(node): node for node in flat.graph.node if node.domain == BEGIN}
        self.bodies = {key: _body(node) for key, node in self.begins.items()}
        self.of_owner: dict[int, list[_Body]] = {}
        for key in sorted(self.bodies):
            self.of_owner.setdefault(key[0], []).append(self.bodies[key])
        self.results: dict[int, list[NodeProto]] = {}
        for node in flat.graph.node:
            if node.domain == RESULT:
                self.results.setdefault(number(node, "owner"), []).append(node)
        self.names = {new: old for node in self.begins.values() for new, old in _pairs(_texts(node, "renamed"))}

        there = {name for node in flat.graph.node for name in (*node.input, *node.output)}
        self.there = set(self._own(there | {tensor.name for tensor in flat.graph.initializer}))

    def run(self) -> ModelProto:
        self._take_back()
        open_bodies: list[_Body] = []
        main: list[NodeProto] = []
        emitted: set[int] = set()
        for node in self.flat.graph.node:
            here = open_bodies[-1].nodes if open_bodies else main
            if node.domain == BEGIN:
                open_bodies.append(self.bodies[_key(node)])
            elif node.domain == END:
                open_bodies.pop()
            elif node.domain == FORMAL:
                open_bodies[-1].add_formal(node)
            elif node.domain != RESULT:
                here.append(self._renamed(node, [body.states for body in open_bodies if body.states]))
            elif (owner := number(node, "owner")) not in emitted:
                emitted.add(owner)
                here.append(self._node(owner))
        return self._written(main)

    def _renamed(self, node: NodeProto, states: Sequence[dict[str, str]]) -> NodeProto:
        """A node with its own names, and so are those of bodies that it kept; ``states``: of the bodies it lies in."""
        states = [held for held in states if any(name in held for name in _names(node))]
        if not states and not any(name in self.names for name in _names(node)):
            return node

        def own(names: Iterable[str]) -> list[str]:
            for held in reversed(states):
                names = [held.get(name, name) for name in names]
            return self._own(names)

        result = NodeProto()
        result.CopyFrom(node)
        result.input[:] = own(result.input)
        result.output[:] = self._own(result.output)
        pending = list(subgraphs(result))
        while pending:
            body = pending.pop()
            for value in body.output:
                (value.name,) = own([value.name])
            for inner in body.node:
                inner.input[:] = own(inner.input)
                pending += subgraphs(inner)
        return result

    def _own(self, names: Iterable[str]) -> list[str]:
        return [self.names.get(name, name) for name in names]

    # ---- the node

    def _node(self, owner: int) -> NodeProto:
        """The control-flow node of some results that are left, with its bodies, which are complete by now."""
        results = self.results[owner]
        node = NodeProto()
        node.ParseFromString(_bytes(self.begins[owner, 0], "node"))
        bodies = self.of_owner[owner]
        if len(results) < len(node.output):
            outputs = [result.output[0] for result in results]
        else:
            outputs = ["" if number(result, "left_out") else result.output[0] for result in results]
        _keep_axes(node, results)
        node.input[:] = self._own(_inputs(node, results, bodies))
        node.output[:] = self._own(outputs)
        held = [attribute for attribute in node.attribute if attribute.type == AttributeProto.GRAPH]
        for i, (attribute, body) in enumerate(zip(held, bodies, strict=True)):
            attribute.g.CopyFrom(self._closed(body, _made(results, i)))
        return node

    def _closed(self, body: _Body, made: Sequence[tuple[int, str]]) -> GraphProto:
        """The body with its nodes. ``made``: of each output that is left, its place and the flat name of its tensor."""
        body.graph.node.extend(body.nodes)
        outputs = []
        for place, name in made:
            outputs.append(ValueInfoProto())
            outputs[-1].CopyFrom(body.graph.output[place])
            outputs[-1].name = self.names.get(name, name)
        del body.graph.output[:]
        body.graph.output.extend(outputs)
        annotations = [held for held in body.graph.quantization_annotation if held.tensor_name in self.there]
        del body.graph.quantization_annotation[:]
        body.graph.quantization_annotation.extend(annotations)
        return body.graph

    # ---- constants and declarations

    def _take_back(self) -> None:
        """Let every body have its constants and declarations; the rest of the flat graph's are the main graph's."""
        stored = {tensor.name: tensor for tensor in self.flat.graph.initializer}
        sparse = {tensor.values.name: tensor for tensor in self.flat.graph.sparse_initializer}
        for body in self.bodies.values():
            body.graph.initializer.extend(stored[name] for name in body.initializers if name in stored)
            body.graph.sparse_initializer.extend(sparse[name] for name in body.sparse if name in sparse)
            for tensor in body.graph.initializer:
                tensor.name = self.names.get(tensor.name, tensor.name)
            for held in body.graph.sparse_initializer:
                held.values.name = self.names.get(held.values.name, held.values.name)
        declared: dict[str, list[ValueInfoProto]] = {}
        for value in self.flat.graph.value_info:
            declared.setdefault(value.name, []).append(value)
        self.values = declared
        for key in sorted(self.bodies, reverse=True):
            body, graph = self.bodies[key], self.bodies[key].graph
            flat = {old: new for new, old in _pairs(_texts(self.begins[key], "renamed"))}
            ends = zip(reversed(graph.output), reversed(body.made), strict=True)
            outputs = [self._declaration(value, name) for value, name in ends]
            inner = [self.values.get(flat.get(value.name, value.name)) for value in reversed(graph.value_info)]
            inner_left = [held.pop() for held in inner if held]
            inputs = [self._declaration(value, flat.get(value.name, value.name)) for value in reversed(graph.input)]
            for held, found in ((graph.output, outputs), (graph.value_info, inner_left), (graph.input, inputs)):
                del held[:]
                held.extend(self._declared(value) for value in reversed(found))

    def _declaration(self, value: ValueInfoProto, name: str) -> ValueInfoProto:
        """What the flat graph says of an input or output of a body; its type alone, where it says nothing any more."""
        held = self.values.get(name)
        if held:
            return held.pop()
        kept = ValueInfoProto()
        kept.CopyFrom(value)
        if kept.type.HasField("tensor_type"):
            kept.type.tensor_type.ClearField("shape")
        return kept

    def _declared(self, value: ValueInfoProto) -> ValueInfoProto:
        if value.name not in self.names:
            return value
        result = ValueInfoProto()
        result.CopyFrom(value)
        result.name = self.names[value.name]
        return result

    # ---- the main graph

    def _written(self, nodes: Sequence[NodeProto]) -> ModelProto:
        source = self.flat.graph
        result = without(self.flat, "graph")
        result.graph.CopyFrom(without(source, "node", "initializer", "sparse_initializer", "value_info"))
        result.graph.node.extend(nodes)
        inside = {name for body in self.bodies.values() for name in (*body.initializers, *body.sparse)}
        result.graph.initializer.extend(tensor for tensor in source.initializer if tensor.name not in inside)
        result.graph.sparse_initializer.extend(s for s in source.sparse_initializer if s.values.name not in inside)
        for value in source.value_info:
            if self.values[value.name]:
                self.values[value.name].pop()
                result.graph.value_info.append(value)
        return result


def _inputs(node: NodeProto, results: Sequence[NodeProto], bodies: Sequence[_Body]) -> list[str]:
    """The flat names of what a control-flow node reads."""
    if node.op_type == "If":
        return [results[0].input[0]]
    if node.op_type == "Loop":
        carried = [result.input[3] for result in results if number(result, "place") < states(node)]
        return [*results[0].input[:2], *carried]
    return [formal.input[0] for formal in bodies[0].formals]


def _keep_axes(node: NodeProto, results: Sequence[NodeProto]) -> None:
    """Leave a Scan the axes and directions of the outputs that are left."""
    first = states(node)
    places = [place - first for result in results if (place := number(result, "place")) >= first]
    for held in node.attribute:
        named = node.op_type == "Scan" and held.name in ("scan_output_axes", "scan_output_directions")
        if named and len(held.ints) > max(places, default=-1):
            held.ints[:] = [held.ints[place] for place in places]


def _made(results: Sequence[NodeProto], i: int) -> list[tuple[int, str]]:
    """Of each output of body i that is left: its place, and the flat name of the tensor it is."""
    if results[0].op_type == "If":
        return [(number(result, "place"), result.input[1 + i]) for result in results]
    made = [(number(result, "place"), result.input[-1]) for result in results]
    if results[0].op_type == "Loop":
        return [(0, results[0].input[2]), *((1 + place, name) for place, name in made)]
    return made


def _body(begin: NodeProto) -> _Body:
    graph = GraphProto()
    graph.ParseFromString(_bytes(begin, "graph"))
    return _Body(graph, _texts(begin, "outputs"), _texts(begin, "initializers"), _texts(begin, "sparse"))


def _key(begin: NodeProto) -> tuple[int, int]:
    return number(begin, "owner"), number(begin, "body")


def _texts(node: NodeProto, name: str) -> list[str]:
    return next(([text.decode() for text in held.strings] for held in node.attribute if held.name == name), [])


def _bytes(node: NodeProto, name: str) -> bytes:
    return next(bytes(held.t.raw_data) for held in node.attribute if held.name == name)


def _pairs(texts: Sequence[str]) -> Iterable[tuple[str, str]]:
    return zip(texts[::2], texts[1::2], strict=True)


def _names(node: NodeProto) -> Iterable[str]:
    """Names that a node reads or makes, in its bodies too."""
    yield from (*node.input, *node.output)
    pending = list(subgraphs(node))
    while pending:
        body = pending.pop()
        yield from (value.name for value in body.output)
        for inner in body.node:
            yield from inner.input
            pending += subgraphs(inner)
