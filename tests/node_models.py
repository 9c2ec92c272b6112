"""Variants of the ONNX backend's node tests, in which there is something to prune.

As published, a node test is one operator between inputs and outputs: all its sizes are pinned. Three variants open
them up. *Constant*: all inputs but one are stored. *Sandwiched*: a float input is made by a stored matrix along one of
its axes, and every float output is read by one as a whole, so that the operator sits between channels that can leave:

    t = Transpose(u·W + b)    u […, r], W [r, n], b [n]: an axis of t has n channels
    y = Reshape(z)·V          z flattened to [1, m], V [m, s]

Half of the columns of W are zero where a variant is *dead*: these channels then carry the constants b.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from onnx.backend.test.loader import load_model_tests

__all__ = ["Variant", "constant_variants", "given", "node_tests", "sandwiches"]

Array = NDArray[Any]
_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)
_READ, _MADE = 3, 4  # channels that a sandwich reads and makes outside of the operator
_LARGE = 4096  # elements along a sandwiched tensor up to which a sandwich is worth its time


@dataclass(frozen=True)
class Variant:
    """A model and what it is fed, in the order of its inputs."""

    name: str
    model: ModelProto
    feeds: dict[str, Any]


@cache
def node_tests() -> tuple[Variant, ...]:
    """All node tests as published, with those that torch's exporters left in the package."""
    found = []
    for kind in ("node", "simple", "pytorch-converted", "pytorch-operator"):
        for case in load_model_tests(kind=kind):
            model = case.model or onnx.load(Path(case.model_dir or "") / "model.onnx")
            values = given(model)
            held = case.data_sets[0][0] if case.data_sets else _read(Path(case.model_dir or ""), values)
            feeds = dict(zip((value.name for value in values), held, strict=False))
            found.append(Variant(f"{kind}: {case.name}", model, feeds))
    return tuple(found)


def given(model: ModelProto) -> list[ValueInfoProto]:
    """The inputs a caller feeds; before IR 4 the constants are listed among the inputs too."""
    stored = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in stored]


def _read(folder: Path, values: Sequence[ValueInfoProto]) -> list[Any]:
    """The first data set of a test that lies in files; empty for inputs that are no tensors."""
    found = []
    for i, value in enumerate(values):
        path = folder / "test_data_set_0" / f"input_{i}.pb"
        if value.type.WhichOneof("value") != "tensor_type" or not path.exists():
            return []
        found.append(numpy_helper.to_array(onnx.load_tensor(str(path))))
    return found


def _tensors(model: ModelProto, feeds: dict[str, Any]) -> list[str]:
    """Inputs that can be stored instead."""
    values = {value.name: value for value in model.graph.input}
    return [
        name
        for name, held in feeds.items()
        if isinstance(held, np.ndarray | np.generic) and values[name].type.WhichOneof("value") == "tensor_type"
    ]


def constant_variants(test: Variant) -> Iterator[Variant]:
    """All inputs stored but one (each in turn), and all of them."""
    names = _tensors(test.model, test.feeds)
    chosen = names if len(names) <= 4 else names[:4]
    for kept in (*chosen, None):
        stored = [name for name in names if name != kept]
        if stored:
            left = {name: held for name, held in test.feeds.items() if name not in stored}
            yield Variant(f"{test.name}, {kept} given", _with_stored(test.model, test.feeds, stored), left)


def _with_stored(model: ModelProto, feeds: dict[str, Any], names: Sequence[str]) -> ModelProto:
    result = ModelProto()
    result.CopyFrom(model)
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    for name in names:
        result.graph.initializer.append(_tensor(name, feeds[name], kinds[name]))
    left = [value for value in model.graph.input if value.name not in names]
    del result.graph.input[:]
    result.graph.input.extend(left)
    return result


def _tensor(name: str, held: Any, kind: int) -> TensorProto:
    tensor = numpy_helper.from_array(np.asarray(held), name)
    assert tensor.data_type == kind, (name, tensor.data_type, kind)
    return tensor


# ---- sandwiches -----------------------------------------------------------------------------------------------------


def sandwiches(test: Variant) -> Iterator[Variant]:
    """Each float input in turn made by a matrix, along each of its axes; alone, or with the others alike."""
    outputs = _float_outputs(test.model)
    floats = _float_inputs(test)
    if not outputs:
        return
    for name in floats[:3]:
        rank = np.ndim(test.feeds[name])
        for axis in range(rank):
            for dead in (False, True):
                yield _sandwich(test, [(name, axis)], outputs, dead)
            if len(floats) > 1:
                alike = [(n, axis - rank + np.ndim(test.feeds[n])) for n in floats]
                yield _sandwich(test, [(n, a) for n, a in alike if a >= 0], outputs, False)


def _float_inputs(test: Variant) -> list[str]:
    kinds = {value.name: value.type.tensor_type.elem_type for value in test.model.graph.input}
    return [
        name
        for name in _tensors(test.model, test.feeds)
        if kinds[name] in _FLOATS and np.ndim(test.feeds[name]) and 0 < np.size(test.feeds[name]) <= _LARGE
    ]


def _float_outputs(model: ModelProto) -> list[ValueInfoProto]:
    """Outputs with channels: of floats, of known sizes, and of some rank."""
    return [
        value
        for value in model.graph.output
        if value.type.tensor_type.elem_type in _FLOATS
        and len(value.type.tensor_type.shape.dim) > 0
        and all(dim.dim_value > 0 for dim in value.type.tensor_type.shape.dim)
    ]


def _sandwich(test: Variant, inner: Sequence[tuple[str, int]], outputs: Sequence[ValueInfoProto],
              dead: bool) -> Variant:  # fmt: skip
    """The operator with the inputs ``inner`` (name, axis) made by a matrix, and its other inputs stored."""
    made = dict(inner)
    label = f"{test.name}, {', '.join(f'{n}:{a}' for n, a in inner)}{', dead' if dead else ''}"
    rng = np.random.default_rng(zlib.crc32(label.encode()))
    others = [name for name in _tensors(test.model, test.feeds) if name not in made]
    builder = _Builder(_with_stored(test.model, test.feeds, others), rng, positive=bool(rng.integers(2)))
    feeds = {name: held for name, held in test.feeds.items() if name not in others and name not in made}
    for name, axis in inner:
        feeds[f"{name}_given"] = builder.make(name, np.asarray(test.feeds[name]), axis, dead)
    for value in outputs:
        builder.read(value)
    return Variant(label, builder.finished(), feeds)


class _Builder:
    """A model in the making: nodes before and after those of a test."""

    def __init__(self, model: ModelProto, rng: np.random.Generator, *, positive: bool) -> None:
        self.model, self.rng, self.positive = model, rng, positive
        self.opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
        if not self.opset:
            self.opset = 17
            model.opset_import.append(helper.make_opsetid("", self.opset))
        self.before: list[NodeProto] = []
        self.after: list[NodeProto] = []
        self.inputs = {value.name: value for value in model.graph.input}
        self.outputs = {value.name: value for value in model.graph.output}

    def make(self, name: str, like: Array, axis: int, dead: bool) -> Array:
        """Make input ``name``, which looks like ``like``, from a new input along an axis; returns what to feed."""
        order = [a for a in range(like.ndim) if a != axis] + [axis]
        sizes = [like.shape[a] for a in order]
        w, b = self._uniform((_READ, sizes[-1]), like.dtype), self._uniform(sizes[-1:], like.dtype)
        if dead:
            w[:, self.rng.permutation(sizes[-1])[: (sizes[-1] + 1) // 2]] = 0
        last = self._append(self.before, "MatMul", f"{name}_given", w / _READ)
        if self.opset >= 7:  # before, operands broadcast in another way
            last = self._append(self.before, "Add", last, b)
        if like.ndim == 1:
            last = self._reshape(self.before, last, [-1])
        self.before.append(helper.make_node("Transpose", [last], [name], perm=np.argsort(order).tolist()))
        shape = [*(sizes[:-1] or [1]), _READ]
        kind = self.inputs[name].type.tensor_type.elem_type
        self.inputs[name] = helper.make_tensor_value_info(f"{name}_given", kind, shape)
        return self._uniform(shape, like.dtype)

    def read(self, value: ValueInfoProto) -> None:
        """Let all of an output be read by a matrix."""
        kind = value.type.tensor_type
        size = prod(dim.dim_value for dim in kind.shape.dim)
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
        flat = self._reshape(self.after, value.name, [1, size])
        last = self._append(self.after, "MatMul", flat, self._uniform((size, _MADE), dtype))
        self.outputs[value.name] = helper.make_tensor_value_info(last, kind.elem_type, [1, _MADE])

    def _uniform(self, shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
        return self.rng.uniform(0.1 if self.positive else -1.0, 1.0, shape).astype(dtype)

    def _append(self, nodes: list[NodeProto], op: str, data: str, operand: Array) -> str:
        """A node with a stored second operand; returns the name of its output."""
        name = f"{data}_{op.lower()}"
        self.model.graph.initializer.append(numpy_helper.from_array(operand, f"{name}_operand"))
        nodes.append(helper.make_node(op, [data, f"{name}_operand"], [name]))
        return name

    def _reshape(self, nodes: list[NodeProto], data: str, shape: Sequence[int]) -> str:
        if self.opset >= 5:
            return self._append(nodes, "Reshape", data, np.array(shape, np.int64))
        nodes.append(helper.make_node("Reshape", [data], [f"{data}_reshape"], shape=shape))
        return f"{data}_reshape"

    def finished(self) -> ModelProto:
        graph = self.model.graph
        nodes = [*self.before, *graph.node, *self.after]
        del graph.node[:], graph.input[:], graph.output[:]
        graph.node.extend(nodes)
        graph.input.extend(self.inputs.values())
        graph.output.extend(self.outputs.values())
        return self.model
