"""The shape of every tensor, and the value of every small integer tensor that shapes are computed with.

Channels need sizes, and many models leave some open (batch, height, sequence length). The analysis therefore runs on
a copy in which every open dimension of the inputs has a size: a *guess*. What the analysis concludes about channel
axes does not depend on the guess, because their sizes come from the weights.

Three engines, each for what the one before left open:
  1. ``onnx.shape_inference`` on a copy whose big constants are inputs (fast, exact, standard operators);
  2. a small evaluator for shape arithmetic (``arithmetic``), node by node, with ONNX's own inference
     for the node it feeds; for operators of com.microsoft, the shapes of a standard operator on the same data
     (``stand_ins``) or rules of their own (``contrib``);
  3. ONNX Runtime, asked for the shapes it infers for operators ONNX has no schema for (nothing is run).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto
from onnx.external_data_helper import uses_external_data

from onnxprune.bodies import DOMAINS, MOST_NODES, RESULT, Crossing, is_marker, number, unfolded_nodes
from onnxprune.deferred import is_promise
from onnxprune.errors import ModelError, UsageError
from onnxprune.graph import Graph, attribute, constant_of
from onnxprune.shapes.arithmetic import TRACKED, evaluate
from onnxprune.shapes.contrib import contrib_shapes
from onnxprune.shapes.fitting_sizes import fitting_sizes
from onnxprune.shapes.likely_sizes import OpenSizes
from onnxprune.shapes.stand_ins import stand_in_shape, stand_in_type

__all__ = ["Shape", "Shapes", "contradictions", "infer_shapes"]

Shape = tuple[int, ...]
IntArray = NDArray[np.int64]

_SMALL = 4096  # a constant with at most this many elements stays in the copy: it may be a size, an axis, an index
_OPEN_SIZES = (2, 224, 224, 224)  # sizes for open dimensions by position: batch, then what is usually spatial
_OTHER_SIZES = (3, 256, 320, 320)
_FURTHER_SIZES = ((1, 16000, 1000, 1000), (5, 1, 1, 1), (4, 97, 61, 47))  # the first: as large as an input may well be
_NODES_LOOKED_AT = 50_000
"""To find sizes that fit, over all tries: a few seconds."""


@dataclass(frozen=True)
class Shapes:
    """Result of the inference.

    ``of``: tensor → shape, every entry a positive or zero integer; a tensor of unknown shape is absent.
    ``other``: the same under a second guess; empty where no dimension is open.
    ``types``: tensor → ONNX element type.
    ``taken``: owner of an If → the input of its results that is taken, whatever the model is fed.
    ``values``: tensor → value, for the small integer tensors that could be computed without running the model.
    ``doubts``: the tensors whose operators contradict the guess: it takes no inputs of these sizes, or makes a tensor
    without elements.
    """

    of: dict[str, Shape] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=dict)
    values: dict[str, NDArray[np.generic]] = field(default_factory=dict)
    other: dict[str, Shape] = field(default_factory=dict)
    taken: Mapping[int, int] = field(default_factory=dict)
    doubts: set[str] = field(default_factory=set)

    def second(self, name: str) -> Shape:
        """The shape of a tensor under the second guess, as far as it is known; else under the first."""
        first, other = self.of[name], self.other.get(name)
        return other if other is not None and len(other) == len(first) else first

    def is_fixed(self, name: str, axis: int) -> bool:
        """Whether the size of an axis is known to be the same under both guesses, so that it may be spelled out."""
        if not self.other:
            return True
        other = self.other.get(name, ())
        return len(other) == len(self.of[name]) and other[axis] == self.of[name][axis]

    def has_no_elements(self, name: str) -> bool:
        """Whether an image, a sequence or the like has no elements; lists of sizes and of boxes may well be empty."""
        shape = self.of.get(name, ())
        return len(shape) > 2 and min(shape) <= 0


def infer_shapes(graph: Graph) -> Shapes:
    """Infer every shape, with guessed sizes for the open dimensions of the inputs.

    Where dimensions are open, a second guess tells which sizes depend on them, and which values; those are left out
    of ``values``. Sizes that the operators of the model contradict (an image smaller than a kernel, parts that do not
    fit together) are replaced by likelier ones; what has one size in all of them that fit is fixed.
    """
    taken: dict[int, int] = {}
    while True:
        found = _infer_twice(graph, taken)
        more = _always_taken(graph, found)
        if not more:
            return found
        taken.update(more)


def contradictions(
    graph: Graph, shapes: Mapping[str, Sequence[int]], taken: Mapping[int, int] | None = None
) -> set[str]:
    """Tensors whose operators contradict these shapes of the inputs: see `Shapes.doubts`; ``taken``: see `Shapes`."""
    return _infer_once(graph, shapes, _OPEN_SIZES, taken or {}).doubts


def _infer_twice(graph: Graph, taken: Mapping[int, int]) -> Shapes:
    first = _infer_once(graph, {}, _OPEN_SIZES, taken)
    if not _has_open_dims(graph):
        return Shapes(first.of, first.types, first.values, taken=taken)
    second = _infer_once(graph, {}, _OTHER_SIZES, taken)
    if first.doubts or second.doubts:
        first, second = _less_doubtful(graph, taken, first, second)
    held = second.values
    same = {n: v for n, v in first.values.items() if n in held and np.array_equal(v, held[n])}
    return Shapes(first.of, first.types, same, second.of, taken)


def _less_doubtful(graph: Graph, taken: Mapping[int, int], first: Shapes, second: Shapes) -> tuple[Shapes, Shapes]:
    """Two guesses that the operators contradict less than the given ones, where such are found."""
    try:
        open_sizes = OpenSizes.of(graph.model)
        tries = min(max(_NODES_LOOKED_AT // max(len(graph.nodes), 1), 2), 16)
        sizes, others = fitting_sizes(
            open_sizes, lambda each: contradictions(graph, open_sizes.shapes(each), taken), tries
        )
    except (ModelError, UsageError):  # an input of unknown rank, or that is no tensor
        return first, second
    fitting = _infer_once(graph, open_sizes.shapes(sizes), _OPEN_SIZES, taken)
    other = _infer_once(graph, open_sizes.shapes(others), _OTHER_SIZES, taken)
    return min((first, second), (fitting, other), key=lambda pair: sum(len(each.doubts) for each in pair))


def _always_taken(graph: Graph, found: Shapes) -> dict[int, int]:
    """Branches that are taken whatever the sizes are, of Ifs whose branches make tensors of different shapes.

    A condition on a size (exporters write one for a squeeze) has to hold for far more sizes than the two guesses.
    """
    open_ends = [n for n in graph.nodes if n.domain == RESULT and n.op_type == "If" and n.output[0] not in found.of]
    waiting = {number(n, "owner"): n for n in open_ends if n.input[0] in found.values}
    if not waiting.keys() - found.taken.keys():
        return {}
    others = [_infer_once(graph, {}, sizes, found.taken) for sizes in _FURTHER_SIZES] if _has_open_dims(graph) else []
    return {
        owner: number(node, "then") if _truth(found, node) else 3 - number(node, "then")
        for owner, node in waiting.items()
        if owner not in found.taken and all(_truth(other, node) in (None, _truth(found, node)) for other in others)
        and (not others or _truth(others[0], node) is not None)
    }  # fmt: skip


def _truth(shapes: Shapes, node: NodeProto) -> bool | None:
    """The condition of an If, where it is known."""
    value = shapes.values.get(node.input[0])
    return None if value is None or value.size != 1 else bool(value.ravel()[0])


def _has_open_dims(graph: Graph) -> bool:
    feeds = set(graph.inputs)
    return any(
        dim.dim_value <= 0
        for value in graph.model.graph.input
        if value.name in feeds
        for dim in value.type.tensor_type.shape.dim
    ) or any(node.domain == RESULT and node.op_type == "Loop" for node in graph.nodes)


def _infer_once(graph: Graph, sizes: Mapping[str, Sequence[int]], open_sizes: Sequence[int],
                taken: Mapping[int, int]) -> Shapes:  # fmt: skip
    """One pass; where states of loops turn out to change their shape, another one that knows."""
    light = _light_copy(graph, sizes, open_sizes)
    crossing = Crossing(open_sizes[0], taken=taken)
    try:
        inferred = onnx.shape_inference.infer_shapes(light, check_type=False, strict_mode=False, data_prop=True)
    except Exception:  # a node that contradicts its schema; the later engines go node by node
        inferred = light
    while True:
        result = Shapes()
        _collect(inferred.graph, result)
        _evaluate(graph, result, crossing)
        while _ask_runtime(graph, light, result):
            _evaluate(graph, result, crossing)
        if not crossing.learn(graph.nodes, result.of):
            result.doubts.update(name for node in graph.nodes for name in node.output if result.has_no_elements(name))
            return result


def _light_copy(graph: Graph, sizes: Mapping[str, Sequence[int]], open_sizes: Sequence[int]) -> ModelProto:
    """The model without big constants (they become inputs), without value_info and with concrete input sizes."""
    source = graph.model
    light = ModelProto(ir_version=max(source.ir_version, 4), opset_import=source.opset_import)
    light.opset_import.extend(onnx.helper.make_opsetid(domain, 1) for domain in DOMAINS)
    unfolded = unfolded_nodes(source) if source.functions else 0
    if unfolded is not None and unfolded <= MOST_NODES:
        light.functions.extend(source.functions)
    light.graph.name = "shapes"
    feeds = set(graph.inputs)
    for value in source.graph.input:
        if value.name in feeds:
            light.graph.input.append(_with_dims(value, sizes.get(value.name), open_sizes))
    for node in source.graph.node:
        held = constant_of(node)
        if held is None:
            light.graph.node.append(_spelled_out(node))
        else:
            _add_constant(light.graph, graph, held, node.output[0])
    for tensor in source.graph.initializer:
        _add_constant(light.graph, graph, tensor, tensor.name)
    light.graph.sparse_initializer.extend(source.graph.sparse_initializer)
    light.graph.output.extend(ValueInfoProto(name=name) for name in graph.outputs)
    return light


def _spelled_out(node: NodeProto) -> NodeProto:
    """An STFT is one-sided by default, which ONNX's inference does not know."""
    if node.op_type != "STFT" or attribute(node, "onesided") is not None:
        return node
    result = NodeProto()
    result.CopyFrom(node)
    result.attribute.append(onnx.helper.make_attribute("onesided", 1))
    return result


def _with_dims(value: ValueInfoProto, dims: Sequence[int] | None, open_sizes: Sequence[int]) -> ValueInfoProto:
    """The input with concrete dimensions: the given ones, or for open dimensions a size by position."""
    if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
        return value
    last = len(open_sizes) - 1
    guessed = [
        dim.dim_value if dim.dim_value > 0 else open_sizes[min(axis, last)]
        for axis, dim in enumerate(value.type.tensor_type.shape.dim)
    ]
    sizes = guessed if dims is None else list(dims)
    return onnx.helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, sizes)


def _add_constant(light: GraphProto, graph: Graph, tensor: TensorProto, name: str) -> None:
    if not _is_at_hand(graph, tensor, _SMALL):
        light.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))
    elif uses_external_data(tensor):
        light.initializer.append(onnx.numpy_helper.from_array(graph.values(name), name))
    else:
        light.initializer.append(tensor)
        light.initializer[-1].name = name


def _is_at_hand(graph: Graph, tensor: TensorProto, most: int) -> bool:
    """Whether a constant has so many elements at most, and is there to be looked at."""
    is_readable = not uses_external_data(tensor) or (graph.folder is not None and not is_promise(tensor))
    return prod(tensor.dims) <= most and is_readable


def _collect(graph: GraphProto, result: Shapes) -> None:
    for tensor in graph.initializer:
        result.of[tensor.name] = tuple(tensor.dims)
        result.types[tensor.name] = tensor.data_type
    for value in (*graph.input, *graph.value_info, *graph.output):
        _note(value, result)


def _note(value: ValueInfoProto, result: Shapes) -> None:
    kind = value.type.tensor_type
    if kind.elem_type:
        result.types[value.name] = kind.elem_type
    if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim):
        result.of[value.name] = tuple(dim.dim_value for dim in kind.shape.dim)


# ---- shape arithmetic, node by node ---------------------------------------------------------------------------------


def _evaluate(graph: Graph, result: Shapes, crossing: Crossing) -> None:
    """Walk the nodes once: compute small integer values, and infer the shapes that these values open."""
    for name, tensor in graph.constants.items():
        result.of.setdefault(name, tuple(tensor.dims))
        result.types.setdefault(name, tensor.data_type)
        if _is_at_hand(graph, tensor, TRACKED) and tensor.data_type != TensorProto.STRING:
            result.values[name] = graph.values(name)
    for node in graph.nodes:
        values = _values_of(node, result)
        if values and all(value.size <= TRACKED for value in values):
            made = {name: value for name, value in zip(node.output, values, strict=False) if name}
            result.values.update(made)
            result.of.update((name, value.shape) for name, value in made.items())
        elif is_marker(node):
            _cross(node, result, crossing)
        elif any(name and name not in result.of for name in node.output):
            _infer_node(graph, node, result)


def _cross(node: NodeProto, result: Shapes, crossing: Crossing) -> None:
    """What a marker of a body makes: its shape and type, and its value where all branches make the same."""
    for name in node.output:
        shape, kind = crossing.shape(node, result.of), crossing.type(node, result.types)
        if shape is not None:
            result.of[name] = shape
        if kind is not None:
            result.types[name] = kind
        if node.domain == RESULT and node.op_type == "If" and all(n in result.values for n in node.input[1:]):
            first, second = (result.values[n] for n in node.input[1:])
            if np.array_equal(first, second) and first.dtype == second.dtype:
                result.values[name] = first


def _infer_node(graph: Graph, node: NodeProto, result: Shapes) -> None:
    """ONNX's inference for a single node, told the values of its small inputs."""
    if node.op_type == "Crop" and node.input[0] in result.of:
        result.of[node.output[0]] = _cropped(node, result.of[node.input[0]])
        result.types[node.output[0]] = result.types.get(node.input[0], TensorProto.FLOAT)
        return
    stand_in = stand_in_shape(node, result.of)
    if stand_in is not None:
        result.of[node.output[0]] = stand_in
        result.types[node.output[0]] = stand_in_type(node, result.types)
        return
    known_shapes = [result.of.get(name) for name in node.input]
    for name, shape in zip(node.output, contrib_shapes(node, known_shapes), strict=False):
        if name and shape is not None:
            result.of[name] = shape
            result.types.setdefault(name, result.types.get(_typed_like(node, name), TensorProto.FLOAT))
    if all(not name or name in result.of for name in node.output):
        return
    domain = "" if node.domain == "ai.onnx" else node.domain
    version = next((o.version for o in graph.model.opset_import if o.domain == node.domain), graph.opset)
    known = [name for name in node.input if name in result.of and name in result.types]
    try:
        schema = onnx.defs.get_schema(node.op_type, version, domain)
        kinds = {n: onnx.helper.make_tensor_type_proto(result.types[n], result.of[n]) for n in known}
        data = {n: onnx.numpy_helper.from_array(np.asarray(result.values[n])) for n in known if n in result.values}
        found = onnx.shape_inference.infer_node_outputs(
            schema, _spelled_out(node), kinds, data, opset_imports=list(graph.model.opset_import)
        )
    except onnx.defs.SchemaError:  # ONNX Runtime is asked next, else the op stays opaque
        return
    except Exception:  # inputs of unknown shape, or of sizes that contradict the operator
        if len(known) == sum(map(bool, node.input)):
            result.doubts.add(next(filter(None, node.output)))
        return
    for name, kind in found.items():
        value = ValueInfoProto(name=name)
        value.type.CopyFrom(kind)
        _note(value, result)


def _typed_like(node: NodeProto, output: str) -> str:
    """The input of the type of an output of an operator of com.microsoft: usually the first, or a table or
    a bias that is a float where that is not."""
    table = node.op_type == "EmbedLayerNormalization" and output not in node.output[1:2]
    place = 2 if table or node.op_type == "QAttention" else 0
    return str(node.input[place]) if place < len(node.input) else ""


def _cropped(node: NodeProto, shape: Shape) -> Shape:
    """Crop, experimental in opset 1, that older converters still write: border = left, top, right, bottom."""
    border, scale = attribute(node, "border"), attribute(node, "scale")
    left, top, right, bottom = border if isinstance(border, list) else [0] * 4
    if isinstance(scale, list):
        return (*shape[:2], int(scale[0]), int(scale[1]))
    return (*shape[:2], shape[2] - top - bottom, shape[3] - left - right)


def _values_of(node: NodeProto, result: Shapes) -> list[NDArray[np.generic]]:
    arguments = [result.values.get(name) if name else None for name in node.input]
    return evaluate(node, arguments, result.of.get(next(iter(node.input), "")))


# ---- ONNX Runtime, for operators without an ONNX schema -------------------------------------------------------------

_ELEMENT_TYPES = {
    "tensor(float)": TensorProto.FLOAT,
    "tensor(float16)": TensorProto.FLOAT16,
    "tensor(double)": TensorProto.DOUBLE,
    "tensor(uint8)": TensorProto.UINT8,
    "tensor(int8)": TensorProto.INT8,
    "tensor(int32)": TensorProto.INT32,
    "tensor(int64)": TensorProto.INT64,
    "tensor(bool)": TensorProto.BOOL,
}


_LARGEST = 1 << 36
"""Elements of a tensor beyond which sizes are made up."""
_LONGEST_RANGE = 1 << 20
"""Elements of a Range that ONNX Runtime may write out, one by one, to infer shapes from them."""


def _is_made_up(graph: Graph, result: Shapes) -> bool:
    """Whether ONNX Runtime could take gigabytes to infer the shapes of a model."""
    ranges = [result.of.get(node.output[0], ()) for node in graph.nodes if node.op_type == "Range" and node.output]
    return any(prod(shape) > _LONGEST_RANGE for shape in ranges) or any(map(_is_huge, result.of.values()))


def _is_huge(shape: Shape) -> bool:
    return prod(shape) > _LARGEST


def _ask_runtime(graph: Graph, light: ModelProto, result: Shapes) -> bool:
    """Fill what is still unknown with the shapes ONNX Runtime infers when it builds a session; whether it knew any.

    Only where a tensor of unknown shape is read by a node; nothing is executed.
    """
    missing = [n for node in graph.nodes for n in node.output if n and n not in result.of and n in graph.consumers]
    if not missing or any(map(is_marker, graph.nodes)) or _is_made_up(graph, result):
        return False
    import onnxruntime as ort  # slow to import, and most models never need it here

    probe = ModelProto()
    probe.CopyFrom(light)
    del probe.graph.output[:]
    for name in missing:
        probe.graph.output.append(ValueInfoProto(name=name))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # the model refuses these sizes, or needs operators this runtime does not have
        return False
    known = len(result.of)
    for output in session.get_outputs():
        # An empty shape is also how ONNX Runtime says that it does not know the rank.
        if output.shape and all(isinstance(dim, int) for dim in output.shape):
            result.of[output.name] = tuple(output.shape)
            result.types.setdefault(output.name, _ELEMENT_TYPES.get(output.type, TensorProto.UNDEFINED))
    return len(result.of) > known
