"""The model that a settlement makes: the nodes that are read, in order, and what they read.

What nobody changed comes out as it went in. A part that is all that is left of a tensor takes over its name, and a node
that is all that is left of another takes over that one's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper

from onnxprune.messages import set_sizes, with_numbers
from onnxprune.passes.overlay import Made
from onnxprune.passes.settle import Settlement

__all__ = ["written"]


def written(settled: Settlement) -> ModelProto:
    """The model of the settled choices."""
    result = ModelProto()
    result.CopyFrom(settled.graph.model)
    names = _restored_names(settled)
    del result.graph.node[:]
    result.graph.node.extend(_nodes(settled, names))
    _write_constants(settled, result, names)
    _write_declarations(settled, result.graph, names)
    return result


def _nodes(settled: Settlement, names: Mapping[str, str]) -> list[NodeProto]:
    """All nodes that are read: those of the graph in their order, each followed by those laid over it."""
    laid: dict[int, list[Made]] = {}
    alike: Counter[int] = Counter()
    for made in settled.overlay.made:
        if settled.is_alive(made):
            laid.setdefault(made.place, []).append(made)
            alike.update(() if made.like is None else (made.like,))
    result = []
    for place in range(-1, len(settled.graph.nodes)):
        if place >= 0 and settled.is_alive(place):
            result.append(_renamed(settled.node(place), names))
        for made in laid.get(place, ()):
            node = _renamed(made.node, names)
            if made.like is not None and alike[made.like] == 1 and not settled.is_alive(made.like):
                node.name = settled.graph.nodes[made.like].name
            result.append(node)
    return result


def _renamed(node: NodeProto, names: Mapping[str, str]) -> NodeProto:
    result = NodeProto()
    result.CopyFrom(node)
    for held in (result.input, result.output):
        for k, name in enumerate(held):
            held[k] = names.get(name, name)
    return result


def _restored_names(settled: Settlement) -> dict[str, str]:
    """Part → the name of the whole, where that is gone and the part is all that is left of it."""
    parts = [(part, whole) for made in settled.overlay.made for part, whole in made.whole.items()]
    parts += settled.overlay.sources.items()
    parts = [(part, whole) for part, whole in parts if settled.readers[part]]
    count = Counter(whole for _, whole in parts)
    gone = {whole for _, whole in parts if not settled.readers[whole] and not _is_made(settled, whole)}
    return {part: whole for part, whole in parts if count[whole] == 1 and whole in gone}


def _is_made(settled: Settlement, name: str) -> bool:
    """Whether a tensor that nobody reads is there anyway, as another output of a node."""
    index = settled.graph.producer.get(name)
    return index is not None and settled.is_alive(index)


def _write_constants(settled: Settlement, result: ModelProto, names: Mapping[str, str]) -> None:
    """Constants that are read, or that nobody read before; one that a part took the place of, in its place."""
    graph, readers = result.graph, settled.readers
    new = {
        names.get(name, name): value
        for name, value in settled.overlay.constants.items()
        if readers[name]
    }
    held = list(graph.initializer)
    del graph.initializer[:]
    for tensor in held:
        if tensor.name in new:
            graph.initializer.append(with_numbers(tensor, new.pop(tensor.name)))
        elif readers[tensor.name] or tensor.name not in settled.graph.consumers:
            graph.initializer.append(tensor)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in new.items())
    _list_constants(result, {tensor.name for tensor in held})


def _list_constants(model: ModelProto, before: set[str]) -> None:
    """Initializers that are among the inputs too, as they have to be before IR 4, are declared as they are now."""
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    listed = {value.name for value in graph.input}
    inputs = [value for value in graph.input if value.name in stored or value.name not in before]
    del graph.input[:]
    graph.input.extend(inputs)
    for value in graph.input:
        if value.name in stored:
            set_sizes(value, stored[value.name].dims)
    if model.ir_version < 4:
        graph.input.extend(_declared(tensor) for name, tensor in stored.items() if name not in listed)


def _declared(tensor: TensorProto) -> ValueInfoProto:
    return onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))


def _write_declarations(settled: Settlement, graph: GraphProto, names: Mapping[str, str]) -> None:
    """Declared shapes follow; declarations of tensors that are gone go too."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    there = stored.keys() | {name for node in graph.node for name in node.output} | {value.name for value in graph.input}
    part = {whole: part for part, whole in names.items()}
    kept = [value for value in graph.value_info if value.name in there]
    for value in kept:
        if value.name in stored:  # what was computed from it may be stored now, with more axes
            value.type.tensor_type.elem_type = stored[value.name].data_type
            set_sizes(value, stored[value.name].dims)
        elif value.name in part:
            _set_sizes(value, settled.overlay.shape[value.name], settled.overlay.shape[part[value.name]])
    _replace(graph.value_info, kept)
    _replace(graph.quantization_annotation, [q for q in graph.quantization_annotation if q.tensor_name in there])


def _replace(field: object, kept: Iterable[object]) -> None:
    kept = list(kept)
    del field[:]  # type: ignore[attr-defined]
    field.extend(kept)  # type: ignore[attr-defined]


def _set_sizes(value: ValueInfoProto, old: tuple[int, ...], new: tuple[int, ...]) -> None:
    for dim, was, size in zip(value.type.tensor_type.shape.dim, old, new, strict=False):
        if was != size and dim.HasField("dim_value"):
            dim.dim_value = size
