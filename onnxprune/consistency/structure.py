"""Whether a model hangs together: names, the order of its nodes, its stored numbers, and what it shows outside."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import onnx
from google.protobuf.message import Message  # type: ignore[import-untyped]
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from onnxprune.consistency.site import Fault
from onnxprune.files.tensor_bytes import raw_size
from onnxprune.graph import node_name, subgraphs
from onnxprune.measure import tensors_of

__all__ = ["data_faults", "declaration_faults", "interface_faults", "name_faults"]

Shape = tuple[int, ...]


# ---- names and order ------------------------------------------------------------------------------------------------


def name_faults(model: ModelProto) -> Iterator[Fault]:
    """What is read is made before, by the graph or one around it; nothing is made twice; operators have a version."""
    return _graph_faults(model.graph, (), {held.domain or "ai.onnx" for held in model.opset_import})


def _graph_faults(graph: GraphProto, outside: tuple[set[str], ...], domains: set[str]) -> Iterator[Fault]:
    """``outside``: what each of the graphs around this one has made so far."""
    known = {value.name for value in graph.input}
    stored = [tensor.name for tensor in graph.initializer]
    stored += [sparse.values.name for sparse in graph.sparse_initializer]
    yield from _twice("an initializer", stored, set())
    known.update(stored)
    scopes = (*outside, known)
    for node in graph.node:
        where = f"{node.op_type} '{node_name(node)}'"
        if (node.domain or "ai.onnx") not in domains:
            yield Fault(_place(node), where, node.domain, "no version", "one in opset_import")
        for name in node.input:
            if name and not any(name in scope for scope in scopes):
                yield Fault(_place(node), where, name, "no producer before this node", "a tensor made before")
        for body in subgraphs(node):
            yield from _graph_faults(body, scopes, domains)
        yield from _twice(where, [name for name in node.output if name], known)
    for value in graph.output:
        if not any(value.name in scope for scope in scopes):
            yield Fault(value.name, f"output of graph '{graph.name}'", value.name, "no producer", "one")


def _place(node: NodeProto) -> str:
    return next((name for name in node.output if name), node.name)


def _twice(where: str, names: Iterable[str], known: set[str]) -> Iterator[Fault]:
    """Names that are known already; all are, afterwards."""
    for name in names:
        if name in known:
            yield Fault(name, where, name, "a second producer", "one")
        known.add(name)


# ---- stored numbers -------------------------------------------------------------------------------------------------

def data_faults(model: ModelProto) -> Iterator[Fault]:
    """Every stored constant holds as many bytes as its dimensions say."""
    for tensor in tensors_of(model.graph):
        if tensor.data_type in (TensorProto.STRING, TensorProto.UNDEFINED):
            continue
        expected = raw_size(tensor)
        found = _length(tensor)
        if found is not None and found != expected:
            yield Fault(tensor.name, "stored constant", tensor.name, f"{found} bytes", f"{expected} ({_shown(tensor)})")


def _shown(tensor: TensorProto) -> str:
    return f"{TensorProto.DataType.Name(tensor.data_type)} {list(tensor.dims)}"


def _length(tensor: TensorProto) -> int | None:
    """Bytes that a tensor holds or refers to; None where its numbers are in the typed fields, which ONNX checks."""
    if tensor.data_location == TensorProto.EXTERNAL:
        length = next((held.value for held in tensor.external_data if held.key == "length"), None)
        return int(length) if length is not None and length.isdigit() else None
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data)
    return None


# ---- what others see ------------------------------------------------------------------------------------------------


def interface_faults(model: ModelProto, original: ModelProto) -> Iterator[Fault]:
    """Inputs that are fed, and outputs, are those of the original: names, order, types and shapes."""
    for kind, found, expected in (
        ("inputs", _fed(model), _fed(original)),
        ("outputs", list(model.graph.output), list(original.graph.output)),
    ):
        names, wanted = [value.name for value in found], [value.name for value in expected]
        if names != wanted:
            yield Fault("", "the model", kind, str(names), str(wanted))
            continue
        for a, b in zip(found, expected, strict=True):
            if a.type != b.type:
                yield Fault(a.name, f"the {kind} of the model", a.name, _spelled(a), f"{_spelled(b)}, as it had")


def _fed(model: ModelProto) -> list[ValueInfoProto]:
    stored = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in stored]


def _spelled(value: ValueInfoProto) -> str:
    held: Message = value.type
    return " ".join(str(held).split())


def declaration_faults(model: ModelProto, *guesses: Mapping[str, Shape]) -> Iterator[Fault]:
    """Declared shapes of intermediate tensors and outputs are what they turn out to be, whatever is fed."""
    stored = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        shapes = [stored[value.name]] if value.name in stored else [g[value.name] for g in guesses if value.name in g]
        if not shapes or not value.type.tensor_type.HasField("shape"):
            continue
        if all(_contradicts(dims, shape) for shape in shapes):
            declared = [dim.dim_value or dim.dim_param or "?" for dim in dims]
            yield Fault(value.name, "declaration", value.name, f"shape {declared}", f"{list(shapes[0])}, as computed")


def _contradicts(dims: Iterable[onnx.TensorShapeProto.Dimension], shape: Shape) -> bool:
    declared = [dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in dims]
    return len(declared) != len(shape) or any(a is not None and a != b for a, b in zip(declared, shape, strict=True))
