"""A model as a graph: who makes each tensor, who reads it, and where the constants live.

The ``ModelProto`` stays the truth; this is a read-only index over its main graph. Bodies of If, Loop and Scan are not
indexed: a tensor that a body captures is listed in ``captured``, so that nobody changes its shape.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper
from onnx.external_data_helper import uses_external_data

from onnxprune.errors import ModelError
from onnxprune.files.external_data import DataFiles

__all__ = ["Edge", "Graph", "attribute", "captured_by", "constant_of", "is_named", "node_name", "subgraphs"]

Edge = tuple[int, int]
"""A use of a tensor: (index of the node, index of its input)."""

_FIELDS = {
    "value_float": TensorProto.FLOAT,
    "value_floats": TensorProto.FLOAT,
    "value_int": TensorProto.INT64,
    "value_ints": TensorProto.INT64,
}


def attribute(node: NodeProto, name: str) -> object:
    """The value of an attribute (bytes become str, also where they are no text), or None where the node lacks it."""
    for held in node.attribute:
        if held.name == name:
            value: object = onnx.helper.get_attribute_value(held)
            return value.decode(errors="surrogateescape") if isinstance(value, bytes) else value
    return None


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The bodies a node carries (If, Loop, Scan)."""
    for held in node.attribute:
        if held.type == AttributeProto.GRAPH:
            yield held.g
        elif held.type == AttributeProto.GRAPHS:
            yield from held.graphs


def captured_by(node: NodeProto) -> set[str]:
    """Names that the bodies of a node read or give out: those of outer tensors, and their own."""
    names: set[str] = set()
    bodies = list(subgraphs(node))
    while bodies:
        body = bodies.pop()
        names.update(value.name for value in body.output)
        for inner in body.node:
            names.update(inner.input)
            bodies.extend(subgraphs(inner))
    return names


def constant_of(node: NodeProto) -> TensorProto | None:
    """The tensor a Constant node holds; None for other nodes and for what is not a dense numeric tensor.

    https://onnx.ai/onnx/operators/onnx__Constant.html
    """
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or not node.output or len(node.attribute) != 1:
        return None
    held = node.attribute[0]
    if held.name == "value" and held.type == AttributeProto.TENSOR:
        tensor: TensorProto = held.t
        return tensor
    if held.name not in _FIELDS or held.ref_attr_name:  # inside a function, an attribute of its calls
        return None
    value = onnx.helper.get_attribute_value(held)
    dims = [] if held.name in ("value_float", "value_int") else [len(value)]
    flat = [value] if not dims else list(value)
    return onnx.helper.make_tensor(node.output[0], _FIELDS[held.name], dims, flat)


def node_name(node: NodeProto) -> str:
    """How a report calls a node: its own name, or its operator and first output."""
    return node.name or f"{node.op_type}→{next(iter(node.output), '?')}"


def is_named(node: NodeProto, names: Collection[str]) -> bool:
    """Whether a node, as a report calls it, or a tensor that it reads or makes is among these names."""
    return any(name in names for name in (node_name(node), *node.input, *node.output))


@dataclass(frozen=True)
class Graph:
    """An index over the main graph of a model.

    ``folder`` is where external data lies (None: all data is in the model).
    """

    model: ModelProto
    folder: Path | None = None

    @cached_property
    def nodes(self) -> Sequence[NodeProto]:
        return list(self.model.graph.node)

    @cached_property
    def opset(self) -> int:
        """The version of the standard operators (ai.onnx) the model is written in."""
        return next((o.version for o in self.model.opset_import if o.domain in ("", "ai.onnx")), 1)

    @cached_property
    def producer(self) -> dict[str, int]:
        """Tensor → index of the node that makes it."""
        return {name: i for i, node in enumerate(self.nodes) for name in node.output if name}

    @cached_property
    def consumers(self) -> dict[str, list[Edge]]:
        """Tensor → its uses, in the order of the nodes."""
        uses: dict[str, list[Edge]] = {}
        for i, node in enumerate(self.nodes):
            for k, name in enumerate(node.input):
                if name:
                    uses.setdefault(name, []).append((i, k))
        return uses

    @cached_property
    def constants(self) -> dict[str, TensorProto]:
        """Every tensor whose numbers are stored: initializers and Constant nodes."""
        held = {tensor.name: tensor for tensor in self.model.graph.initializer}
        for node in self.nodes:
            tensor = constant_of(node)
            if tensor is not None:
                held[node.output[0]] = tensor
        return held

    @cached_property
    def inputs(self) -> list[str]:
        """The inputs a caller has to feed (IR 3 also lists initializers among the inputs)."""
        stored = {tensor.name for tensor in self.model.graph.initializer}
        stored |= {sparse.values.name for sparse in self.model.graph.sparse_initializer}
        return [value.name for value in self.model.graph.input if value.name not in stored]

    @cached_property
    def overridable(self) -> frozenset[str]:
        """Initializers that a caller may override: from IR 4 on, those among the inputs."""
        listed = {value.name for value in self.model.graph.input} if self.model.ir_version >= 4 else set[str]()
        return frozenset(tensor.name for tensor in self.model.graph.initializer if tensor.name in listed)

    @cached_property
    def outputs(self) -> list[str]:
        return [value.name for value in self.model.graph.output]

    @cached_property
    def captured(self) -> frozenset[str]:
        """Tensors of the main graph that bodies of control-flow nodes read."""
        return frozenset(name for node in self.nodes for name in captured_by(node))

    def values(self, name: str) -> NDArray[np.generic]:
        """The numbers of a stored constant; a read-only view where they lie in the model's bytes or its data files.

        Raises: KeyError for other tensors; ModelError where the numbers are missing or do not fit the declared shape.
        """
        tensor = self.constants[name]
        try:
            found = self._files.mapped(tensor) if self._files and uses_external_data(tensor) else None
            if found is None:  # ONNX refuses paths that leave the folder
                found = np.asarray(numpy_helper.to_array(tensor, str(self.folder) if self.folder else ""))
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ModelError(f"constant '{tensor.name}' cannot be read: {lines[0]}") from error
        return found

    @cached_property
    def _files(self) -> DataFiles | None:
        return DataFiles(self.folder) if self.folder else None

    def least(self, name: str) -> float:
        """The smallest number of a stored constant; NaN where it has none, or one that cannot be compared."""
        if name not in self._least:
            values = self.values(name)
            self._least[name] = float(values.min()) if values.size and values.dtype.kind in "fiu" else math.nan
        return self._least[name]

    @cached_property
    def _least(self) -> dict[str, float]:
        return {}
