"""Control-flow bodies laid out flat: one list of nodes, in which a body lies between markers.

In the flat graph every name is unique, a captured tensor is an ordinary input, and constants of bodies lie with those
of the main graph; so every analysis sees one graph, and channels run across the edge of a body like anywhere else.
The markers (see ``onnxprune.bodies.markers``) keep what the bodies were, so that ``restore`` can put them back.

Laid out flat are If, Loop, Scan (since opset 9) and SequenceMap of the standard domain. Other nodes with bodies, and
nodes whose bodies do not fit them, stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

from onnxprune.bodies.markers import BEGIN, END, FORMAL, RESULT, states
from onnxprune.graph import attribute, subgraphs
from onnxprune.messages import select, without

__all__ = ["flatten", "has_bodies"]

_BODIES = {"If": 2, "Loop": 1, "Scan": 1, "SequenceMap": 1}
_STANDARD = ("", "ai.onnx")
_KEPT_FIELDS = ("input", "output", "value_info", "doc_string", "metadata_props", "name", "quantization_annotation")


def flatten(model: ModelProto) -> ModelProto:
    """The model with the bodies of its control-flow nodes laid out; the very same object where there are none."""
    opset = next((o.version for o in model.opset_import if o.domain in _STANDARD), 1)
    if not any(is_laid_out(node, opset) for node in model.graph.node):
        return model
    return _Flattener(model, opset).run()


def has_bodies(model: ModelProto) -> bool:
    return any(True for node in model.graph.node for _ in subgraphs(node))


def is_laid_out(node: NodeProto, opset: int) -> bool:
    """Whether a node's bodies can be laid out: its inputs and outputs are what its bodies ask for."""
    if node.domain not in _STANDARD or node.op_type not in _BODIES:
        return False
    bodies = list(subgraphs(node))
    if len(bodies) != _BODIES[node.op_type] or any(held.type == AttributeProto.GRAPHS for held in node.attribute):
        return False
    if any({value.name for value in body.input} & {tensor.name for tensor in body.initializer} for body in bodies):
        return False
    if node.op_type == "If":
        names = sorted(held.name for held in node.attribute if held.type == AttributeProto.GRAPH)
        fits = len(node.input) == 1 and names == ["else_branch", "then_branch"]
        return fits and all(not body.input and len(body.output) == len(node.output) for body in bodies)
    if node.op_type == "SequenceMap":
        return len(bodies[0].input) == len(node.input) and len(bodies[0].output) == len(node.output)
    if node.op_type == "Scan":
        fits = opset >= 9 and 0 <= states(node) < len(node.input) == len(bodies[0].input)
        return fits and all(node.input) and len(bodies[0].output) == len(node.output) >= states(node)
    given = len(node.input) >= 2 and all(node.input[2:]) and len(bodies[0].input) == len(node.input)
    return given and len(bodies[0].output) >= 1 + states(node) and len(bodies[0].output) == 1 + len(node.output)


@dataclass
class _Scope:
    """A graph being laid out: its remaining nodes, the flat names of what it defines, and how it ends.

    ``unchanging``: states that no iteration changes → flat name of their initial value; ``handed_on``: what the body
    makes of them, copy by copy, to give them back.
    """

    nodes: Iterator[NodeProto]
    names: dict[str, str]
    unchanging: dict[str, str] = field(default_factory=dict)
    handed_on: set[str] = field(default_factory=set)
    ending: list[NodeProto] = field(default_factory=list)


class _Flattener:
    def __init__(self, model: ModelProto, opset: int) -> None:
        self.model = model
        self.opset = opset
        self.flat = _without_nodes(model)
        self.taken = set(_all_names(model.graph))
        self.defined = {name: name for name in _definitions(model.graph)}
        self.numbers: dict[str, int] = {}  # the last number given to a name
        self.owners = count()
        self.scopes = [_Scope(iter(model.graph.node), dict(self.defined))]

    def run(self) -> ModelProto:
        """Depth first, without recursion: a body is pushed, laid out, and closed by its ending."""
        while self.scopes:
            scope = self.scopes[-1]
            node = next(scope.nodes, None)
            if node is None:
                self.scopes.pop()
                self.flat.graph.node.extend(scope.ending)
            elif is_laid_out(node, self.opset):
                self._open(node)
            else:
                self._add(node)
        return self.flat

    def _name(self, name: str) -> str:
        """The flat name of what a node of the current scope calls ``name``."""
        return next((scope.names[name] for scope in reversed(self.scopes) if name in scope.names), name)

    def _value(self, name: str) -> str:
        """The same, but the initial value of a state that no iteration changes."""
        for scope in reversed(self.scopes):
            if name in scope.names:
                return scope.unchanging.get(name, scope.names[name])
        return name

    def _unique(self, name: str) -> str:
        """A flat name for what a body defines: its own, where no one else has it."""
        if name not in self.defined:
            self.defined[name] = name
            return name
        found = next(tried for _ in count() if (tried := self._numbered(name)) not in self.taken)
        self.taken.add(found)
        return found

    def _numbered(self, name: str) -> str:
        """name_2, name_3, …: each once."""
        self.numbers[name] = self.numbers.get(name, 1) + 1
        return f"{name}_{self.numbers[name]}"

    def _defined_in(self, body: GraphProto) -> dict[str, str]:
        return {name: self._unique(name) for name in dict.fromkeys(_definitions(body))}

    def _add(self, node: NodeProto) -> None:
        added = self.flat.graph.node.add()
        added.CopyFrom(node)
        if len(self.scopes) > 1:
            self._rename(added)

    def _rename(self, node: NodeProto) -> None:
        """Give a node, and the bodies it keeps, the flat names."""
        if not self.scopes[-1].handed_on.isdisjoint(node.output):
            node.input[:] = [self._name(name) for name in node.input]
            node.output[:] = [self._name(name) for name in node.output]
            return
        if all(self._value(name) == name for name in (*node.input, *node.output, *_captured(node))):
            return
        node.input[:] = [self._value(name) for name in node.input]
        node.output[:] = [self._name(name) for name in node.output]
        pending = list(subgraphs(node))
        while pending:
            body = pending.pop()
            own = set(_definitions(body))
            for value in body.output:
                value.name = value.name if value.name in own else self._value(value.name)
            for inner in body.node:
                inner.input[:] = [name if name in own else self._value(name) for name in inner.input]
                pending += subgraphs(inner)

    # ---- markers

    def _open(self, node: NodeProto) -> None:
        """Begin each body of a node; they are laid out one after another, the last one followed by the results."""
        owner = next(self.owners)
        bodies = list(subgraphs(node))
        scopes = [_Scope(iter(body.node), self._defined_in(body)) for body in bodies]
        if states(node):
            self._find_unchanging(node, bodies[0], scopes[0])
        begins = [self._begin(node, owner, i, body, scopes[i]) for i, body in enumerate(bodies)]
        formals = [self._formals(node, owner, i, body, scopes[i]) for i, body in enumerate(bodies)]
        for i, scope in enumerate(scopes):
            scope.ending = [_marker(node, END, [], [], owner=owner, body=i)]
            if i + 1 < len(bodies):
                scope.ending += [begins[i + 1], *formals[i + 1]]
        scopes[-1].ending += self._results(node, owner, [self._made(b, s) for b, s in zip(bodies, scopes, strict=True)])
        self.flat.graph.node.extend([begins[0], *formals[0]])
        self.scopes += reversed(scopes)

    def _find_unchanging(self, node: NodeProto, body: GraphProto, scope: _Scope) -> None:
        """Find the states that the body gives back as they are (weights of a cell, say).

        In the flat graph the nodes of the body read the initial value, but for those that only hand the state on; not
        where they read it already.
        """
        first = 2 if node.op_type == "Loop" else 0
        copies = {n.output[0]: n.input[0] for n in body.node if n.op_type == "Identity" and n.domain in _STANDARD}
        captured = set(_all_names(body))
        for place in range(first, first + states(node)):
            state, initial = body.input[place].name, node.input[place]
            made, chain = body.output[place - (first - 1 if first else 0)].name, set[str]()
            while made in copies and made not in chain:
                chain.add(made)
                made = copies[made]
            value = self._name(initial)
            if made == state and initial not in captured and value not in scope.unchanging.values():
                scope.unchanging[state] = value
                scope.handed_on |= chain

    def _made(self, body: GraphProto, scope: _Scope) -> list[str]:
        return [scope.names.get(value.name) or self._name(value.name) for value in body.output]

    def _begin(self, node: NodeProto, owner: int, i: int, body: GraphProto, scope: _Scope) -> NodeProto:
        """Opens a body and keeps all of it but its nodes and constants; these go to the flat graph."""
        names = scope.names
        marker = _marker(node, BEGIN, [], [], owner=owner, body=i)
        _keep(marker, "graph", select(body, _KEPT_FIELDS).SerializeToString())
        if i == 0:
            _keep(marker, "node", _without_bodies(node).SerializeToString())
        graph = self.flat.graph
        for kind, tensors in (("initializers", body.initializer), ("sparse", body.sparse_initializer)):
            held = [tensor.name if kind == "initializers" else tensor.values.name for tensor in tensors]
            marker.attribute.append(_strings(kind, [names[name] for name in held]))
        for tensor in body.initializer:
            graph.initializer.append(tensor)
            graph.initializer[-1].name = names[tensor.name]
        for sparse in body.sparse_initializer:
            graph.sparse_initializer.append(sparse)
            graph.sparse_initializer[-1].values.name = names[sparse.values.name]
        for value in (*body.input, *body.value_info, *body.output):
            graph.value_info.append(value)
            graph.value_info[-1].name = names.get(value.name) or self._name(value.name)
        renamed = [name for old, new in names.items() if old != new for name in (new, old)]
        marker.attribute.append(_strings("renamed", renamed))
        marker.attribute.append(_strings("outputs", self._made(body, scope)))
        return marker

    def _formals(self, node: NodeProto, owner: int, i: int, body: GraphProto, scope: _Scope) -> list[NodeProto]:
        found = []
        for place, value in enumerate(body.input):
            read = [] if node.op_type == "Loop" and place < 2 else [self._name(node.input[place])]
            made = scope.names[value.name]
            kind = _formal_kind(node, place)
            found.append(_marker(node, FORMAL, read, [made], owner=owner, body=i, place=place, **kind))
            if value.name in scope.unchanging:
                found[-1].attribute.append(_strings("unchanging", read))
        return found

    def _results(self, node: NodeProto, owner: int, made: list[list[str]]) -> list[NodeProto]:
        read = [self._name(name) for name in node.input]
        found = []
        for place, name in enumerate(node.output):
            if node.op_type == "If":
                inputs = [*read, *(names[place] for names in made)]
            else:
                inputs = _loop_result(node, place, read, made[0])
            output = self._name(name) if name else self._unnamed()
            kind = _kind(node, "scan_output_axes", place - states(node))
            left_out = int(not name)
            if node.op_type == "If":
                kind["then"] = 1 + next(i for i, held in enumerate(_body_names(node)) if held == "then_branch")
            found.append(_marker(node, RESULT, inputs, [output], owner=owner, place=place, left_out=left_out, **kind))
        return found

    def _unnamed(self) -> str:
        """A name for an output that the node leaves out."""
        return self._unique("left_out")


def _loop_result(node: NodeProto, place: int, read: list[str], made: list[str]) -> list[str]:
    """What a result of Loop, Scan or SequenceMap reads."""
    first = states(node)
    if node.op_type == "Loop":
        state = [read[2 + place]] if place < first else []
        return [*read[:2], made[0], *state, made[1 + place]]
    return [read[place], made[place]] if place < first else [made[place]]


def _body_names(node: NodeProto) -> list[str]:
    return [held.name for held in node.attribute if held.type == AttributeProto.GRAPH]


def _formal_kind(node: NodeProto, place: int) -> dict[str, int]:
    if node.op_type == "Loop":
        return {"state": int(place >= 2)}
    return _kind(node, "scan_input_axes", place - states(node))


def _kind(node: NodeProto, axes: str, behind: int) -> dict[str, int]:
    """Whether a value is carried on as a state (``behind`` < 0), else along which axis slices are cut or stacked."""
    if behind < 0 or node.op_type in ("If", "SequenceMap"):
        return {"state": int(behind < 0)}
    held = attribute(node, axes)
    return {"state": 0, "axis": int(held[behind]) if isinstance(held, list) and behind < len(held) else 0}


def _marker(node: NodeProto, domain: str, inputs: list[str], outputs: list[str], **numbers: int) -> NodeProto:
    marker = NodeProto(op_type=node.op_type, name=node.name, domain=domain, input=inputs, output=outputs)
    marker.attribute.extend(helper.make_attribute(name, value) for name, value in numbers.items())
    return marker


def _strings(name: str, values: Iterable[str]) -> AttributeProto:
    return AttributeProto(name=name, type=AttributeProto.STRINGS, strings=[value.encode() for value in values])


def _keep(marker: NodeProto, name: str, content: bytes) -> None:
    """Remember a message. (As a tensor of bytes: text attributes have to be text.)"""
    held = TensorProto(data_type=TensorProto.UINT8, dims=[len(content)], raw_data=content)
    marker.attribute.append(AttributeProto(name=name, type=AttributeProto.TENSOR, t=held))


# ---- reading graphs -------------------------------------------------------------------------------------------------


def _definitions(graph: GraphProto) -> Iterator[str]:
    """What a graph gives a name to: inputs, constants and what its nodes make."""
    yield from (value.name for value in graph.input)
    yield from (tensor.name for tensor in graph.initializer)
    yield from (sparse.values.name for sparse in graph.sparse_initializer)
    yield from (name for node in graph.node for name in node.output if name)


def _all_names(graph: GraphProto) -> Iterator[str]:
    """Every name of a tensor in a graph and all its bodies."""
    pending = [graph]
    while pending:
        here = pending.pop()
        yield from _definitions(here)
        yield from (value.name for value in here.output)
        for node in here.node:
            yield from node.input
            pending += subgraphs(node)


def _captured(node: NodeProto) -> Iterator[str]:
    """Names that the bodies of a node read; also those they make themselves."""
    return (name for body in subgraphs(node) for name in _all_names(body))


def _without_nodes(model: ModelProto) -> ModelProto:
    """The model but for the nodes of its main graph."""
    result = without(model, "graph")
    result.graph.CopyFrom(without(model.graph, "node"))
    return result


def _without_bodies(node: NodeProto) -> NodeProto:
    result = without(node, "attribute")
    for held in node.attribute:
        if held.type == AttributeProto.GRAPH:
            result.attribute.append(select(held, ["name", "type", "doc_string", "ref_attr_name"]))
        else:
            result.attribute.append(held)
    return result
