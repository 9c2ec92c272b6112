"""A graph with nodes laid over it: parts of tensors, made on demand, each once.

The graph stays as it is; what is laid over it is written only if somebody reads it in the end. Two requests for the same
part share one tensor, and so do two nodes that compute the same from the same inputs, whoever asked for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto

from onnxprune.channels import ChannelMap, MapBuilder, NodeContext
from onnxprune.messages import set_attributes
from onnxprune.ops.parts import Again, IntArray, Joined, parts_for
from onnxprune.shapes import Shape

__all__ = ["Made", "Overlay", "Part"]

_SMALL = 64  # numbers in a constant up to which two nodes are compared by its value
_DEEPEST = 100  # nodes that a part is followed upwards through, joints and cuts aside


@dataclass(frozen=True)
class Part:
    """Indices of one axis of a tensor, in this order."""

    tensor: str
    axis: int
    indices: IntArray

    @property
    def key(self) -> tuple[str, int, bytes]:
        return self.tensor, self.axis, self.indices.tobytes()


@dataclass(eq=False)
class Made:
    """A node laid over the graph. ``place``: index of the node of the graph it comes behind; ``like``: the node it
    takes the place of, if all that is left of that is this; ``whole``: the tensors of which it makes parts."""

    node: NodeProto
    place: int
    like: int | None = None
    whole: dict[str, str] = field(default_factory=dict)


class Overlay:
    """Nodes and constants over the graph of a channel map. ``shape``: of tensors, those laid over included."""

    def __init__(self, channel_map: ChannelMap) -> None:
        self.map = channel_map
        self.graph = channel_map.graph
        self.shape: dict[str, Shape] = dict(channel_map.shapes.of)
        self.made: list[Made] = []
        self.constants: dict[str, NDArray[np.generic]] = {}
        self.sources: dict[str, str] = {}  # constant → the one it is a part of
        self._parts: dict[tuple[str, int, bytes], str] = {}
        self._free: dict[tuple[str, int, bytes], bool] = {}
        self._alike: dict[tuple[object, ...], tuple[int, list[str]]] = {}
        graph = channel_map.graph
        self._names = {name for node in graph.nodes for name in (node.name, *node.input, *node.output)}
        self._names |= {value.name for value in graph.model.graph.input} | graph.captured | set(graph.constants)
        for index, node in enumerate(graph.nodes):
            self._alike.setdefault(self._key(node), (index, list(node.output)))

    # ---- parts

    def part(self, wanted: Part, depth: int = 0) -> str:
        """The tensor that holds a part."""
        if self.is_whole(wanted):
            return wanted.tensor
        if wanted.key not in self._parts:
            pieces = self._pieces(wanted)
            names = [self._piece(piece, depth) for piece in pieces]
            self._parts[wanted.key] = names[0] if len(names) == 1 else self._joined(wanted, names)
        return self._parts[wanted.key]

    def is_whole(self, part: Part) -> bool:
        size = self.shape[part.tensor][part.axis]
        return len(part.indices) == size and bool(np.all(part.indices == np.arange(size)))

    def flattened(self, index: int) -> NodeProto | None:
        """A Concat of Concats as one; None where it is none."""
        node = self.graph.nodes[index]
        made = node.output[0]
        if node.op_type != "Concat" or any(name not in self.shape for name in (*node.input, made)):
            return None
        axis = NodeContext(MapBuilder(self.graph, self.map.shapes), index).axis("axis", 1, len(self.shape[made]))
        pieces = self._pieces(Part(made, axis, np.arange(self.shape[made][axis])))
        if len(pieces) <= len(node.input) or not all(map(self.is_whole, pieces)):
            return None
        result = NodeProto()
        result.CopyFrom(node)
        del result.input[:]
        result.input.extend(piece.tensor for piece in pieces)
        return result

    def is_free(self, wanted: Part, depth: int = 0) -> bool:
        """Whether a part is there without copying indices out of a tensor of the graph."""
        if self.is_whole(wanted):
            return True
        if wanted.key not in self._free:
            self._free[wanted.key] = all(self._is_free_piece(piece, depth) for piece in self._pieces(wanted))
        return self._free[wanted.key]

    def _is_free_piece(self, piece: Part, depth: int) -> bool:
        if self.is_whole(piece) or piece.tensor in self.graph.constants:
            return True
        found = self._found(piece, depth)
        return found is not None and all(self.is_free(p, depth + 1) for p in self._inputs(piece, found))

    def _pieces(self, wanted: Part) -> list[Part]:
        """What a part is a concatenation of, seen through all joints and cuts along its axis."""
        pending, pieces = [wanted], []
        while pending:
            part = pending.pop()
            above = self._above(part)
            pieces += [part] if above is None else []
            pending += reversed(above or ())
        return _merged(pieces)

    def _above(self, part: Part) -> list[Part] | None:
        """The parts that a part is a concatenation of, one node further up; None where it is not."""
        shuffle = self.map.shuffles.get(self.graph.producer.get(part.tensor, -1))
        if shuffle is not None and shuffle.axis == part.axis:
            return [Part(shuffle.source, part.axis, shuffle.order[part.indices])]
        found = self._rule(part)
        if not isinstance(found, Joined):
            return None
        read = self.graph.nodes[self.graph.producer[part.tensor]].input
        return [Part(read[k], axis, indices) for k, axis, indices in found.parts]

    def _rule(self, part: Part) -> Again | Joined | None:
        index = self.graph.producer.get(part.tensor)
        if index is None or part.tensor in self.graph.constants:
            return None
        context = NodeContext(MapBuilder(self.graph, self.map.shapes), index)
        found = parts_for(context, list(context.node.output).index(part.tensor), part.axis, part.indices)
        places = found.parts if isinstance(found, Again) else [k for k, *_ in found.parts] if found else []
        return found if all(context.node.input[k] in self.shape for k in places) else None

    def _found(self, piece: Part, depth: int) -> Again | None:
        """How the node that makes a tensor could make this piece alone."""
        found = self._rule(piece) if depth < _DEEPEST else None
        return found if isinstance(found, Again) else None

    def _inputs(self, piece: Part, found: Again) -> list[Part]:
        read = self.graph.nodes[self.graph.producer[piece.tensor]].input
        return [Part(read[k], axis, indices) for k, (axis, indices) in found.parts.items()]

    def _piece(self, piece: Part, depth: int) -> str:
        if self.is_whole(piece):
            return piece.tensor
        if piece.key in self._parts:
            return self._parts[piece.key]
        if piece.tensor in self.graph.constants:
            name = self.cut(piece.tensor, {piece.axis: piece.indices})
        else:
            found = self._found(piece, depth)
            name = self._again(piece, found, depth) if found and self._pays(piece, found, depth) else self._picked(piece)
        self._parts[piece.key] = name
        return name

    def _pays(self, piece: Part, found: Again, depth: int) -> bool:
        """Whether to make a piece from pieces further up: where nothing has to be copied out, or less than here."""
        above = [part for part in self._inputs(piece, found) if not self.is_free(part, depth + 1)]
        return 2 * sum(map(self._size, above)) <= self._size(piece)

    def _size(self, part: Part) -> float:
        shape = self.shape[part.tensor]
        return float(np.prod(shape)) / max(shape[part.axis], 1) * len(part.indices)

    # ---- nodes

    def _again(self, piece: Part, found: Again, depth: int) -> str:
        """The node that makes a tensor, on parts of its inputs."""
        index = self.graph.producer[piece.tensor]
        node = NodeProto()
        node.CopyFrom(self.graph.nodes[index])
        whole = list(node.output)
        for part, k in zip(self._inputs(piece, found), found.parts, strict=True):
            node.input[k] = self.part(part, depth + 1)
        for k, value in found.constants.items():
            node.input[k] = self.constant(node.input[k], value)
        set_attributes(node, found.attributes)
        if node.op_type != "Split":
            whole = [piece.tensor]
        outputs = self._laid(node, index, [(name, piece.axis, len(piece.indices)) for name in whole], index)
        if node.op_type == "Split":
            self._parts |= {(name, *piece.key[1:]): out for name, out in zip(whole, outputs, strict=True)}
        return outputs[whole.index(piece.tensor)]

    def _picked(self, piece: Part) -> str:
        """The indices copied out of a tensor."""
        picked = self.constant(f"{piece.tensor}_indices", piece.indices)
        node = onnx.helper.make_node("Gather", [piece.tensor, picked], [""], axis=piece.axis)
        place = self.graph.producer.get(piece.tensor, -1)
        return self._laid(node, place, [(piece.tensor, piece.axis, len(piece.indices))])[0]

    def _joined(self, wanted: Part, names: Sequence[str]) -> str:
        index = self.graph.producer[wanted.tensor]
        maker = self.graph.nodes[index]
        node, like = NodeProto(op_type="Concat"), None
        if maker.op_type == "Concat":
            node.CopyFrom(maker)
            like = index
        del node.input[:]
        node.input.extend(names)
        set_attributes(node, {"axis": wanted.axis})
        return self._laid(node, index, [(wanted.tensor, wanted.axis, len(wanted.indices))], like)[0]

    def lay(self, node: NodeProto, place: int, shape: Shape) -> str:
        """Lay a node with one output of this shape over the graph, behind the node at ``place``; its output."""
        node.output[0] = self.name(node.output[0])
        node.name = self.name(node.name)
        self.shape[node.output[0]] = shape
        self.made.append(Made(node, place))
        return str(node.output[0])

    def _laid(self, node: NodeProto, place: int, outputs: Sequence[tuple[str, int, int]],
              like: int | None = None) -> list[str]:  # fmt: skip
        """Lay a node over the graph; ``outputs``: (tensor that an output is a part of, axis, size). One that computes
        the same from the same inputs, and is there in time, is taken instead."""
        key = self._key(node)
        at, names = self._alike.get(key, (place + 1, []))
        if at <= place and len(names) == len(outputs):
            return names
        del node.output[:]
        for whole, axis, size in outputs:
            node.output.append(self.name(f"{whole}_part"))
            shape = self.shape[whole]
            self.shape[node.output[-1]] = (*shape[:axis], size, *shape[axis + 1 :])
        node.name = self.name(f"{node.name}_part" if node.name else f"{outputs[0][0]}_{node.op_type}")
        names = list(node.output)
        self.made.append(Made(node, place, like, dict(zip(names, (whole for whole, _, _ in outputs), strict=True))))
        self._alike[key] = (place, names)
        return names

    def _key(self, node: NodeProto) -> tuple[object, ...]:
        """Equal for nodes that compute the same."""
        held = sorted((attribute.name, attribute.SerializeToString(deterministic=True)) for attribute in node.attribute)
        return node.domain, node.op_type, *held, *(self._identity(name) for name in node.input)

    def _identity(self, name: str) -> object:
        value = self.constants.get(name)
        if value is None and name in self.graph.constants:
            tensor = self.graph.constants[name]
            value = self.graph.values(name) if int(np.prod(tensor.dims)) <= _SMALL else None
        if value is None or value.size > _SMALL or value.dtype == object:
            return name
        return value.dtype.str, value.shape, value.tobytes()

    # ---- constants and names

    def constant(self, stem: str, value: NDArray[np.generic]) -> str:
        name = self.name(f"{stem}_part" if stem in self._names else stem)
        self.constants[name] = np.asarray(value, order="C")
        self.shape[name] = value.shape
        return name

    def value(self, name: str) -> NDArray[np.generic] | None:
        """The numbers of a constant, of the graph or laid over it; None for other tensors."""
        if name in self.constants:
            return self.constants[name]
        return self.graph.values(name) if name in self.graph.constants else None

    def is_shared(self, name: str) -> bool:
        """Whether a tensor of the graph is read in several places, so that parts of it would be stored beside it."""
        elsewhere = name in self.graph.captured or name in self.graph.outputs
        return elsewhere or len(self.graph.consumers[name]) > 1

    def with_axis(self, name: str, axis: int) -> str:
        """A constant with an axis of size 1 put in."""
        value = self.value(name)
        assert value is not None
        return self.stored(self.sources.get(name, name), np.expand_dims(value, axis))

    def cut(self, name: str, places: Mapping[int, IntArray]) -> str:
        """A constant of the graph at some indices of its axes."""
        value = self.graph.values(name)
        for axis, indices in places.items():
            value = np.take(value, indices, axis=axis)
        return self.stored(name, value)

    def stored(self, source: str, value: NDArray[np.generic]) -> str:
        """A constant that is what is left of one of the graph."""
        name = self.constant(source, value)
        self.sources[name] = source
        return name

    def name(self, stem: str) -> str:
        """A name that is not taken yet."""
        found = next(name for i in count(1) if (name := stem if i == 1 else f"{stem}{i}") not in self._names)
        self._names.add(found)
        return found


def _merged(pieces: Iterable[Part]) -> list[Part]:
    """Neighbouring pieces of one tensor as one."""
    result: list[Part] = []
    for piece in pieces:
        last = result[-1] if result else None
        if last is not None and (last.tensor, last.axis) == (piece.tensor, piece.axis):
            result[-1] = Part(piece.tensor, piece.axis, np.concatenate([last.indices, piece.indices]))
        else:
            result.append(piece)
    return result
