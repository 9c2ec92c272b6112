"""Random models for the exactness check: a DAG grown operator by operator, with concrete shapes all along.

``grow`` takes its decisions from a ``Choices``: a seeded one for long runs, or hypothesis, which can then shrink what
fails. What can be appended to a tensor is a table in ``generate_ops``, by rank: images [N, C, H, W], tokens [N, L, D]
and vectors [N, D]. Numbers stay near 1 (weights are scaled by their fan-in), so that one tolerance fits all.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

__all__ = ["OPSETS", "Builder", "Choices", "Seeded", "Value", "grow"]

T = TypeVar("T")
Array = NDArray[np.generic]
OPSETS = (7, 9, 10, 11, 12, 13, 15, 17, 18, 19, 21, 23, 24, 24)


class Choices(Protocol):
    """Where decisions come from."""

    def integer(self, low: int, high: int) -> int:
        """An integer from low to high, both included."""
        ...

    def pick(self, options: Sequence[T]) -> T: ...


class Seeded:
    """Decisions from a seed: fast, and the same every time."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def integer(self, low: int, high: int) -> int:
        return self.random.randint(low, high)

    def pick(self, options: Sequence[T]) -> T:
        return self.random.choice(options)


@dataclass(frozen=True)
class Value:
    """A tensor of the graph under construction; the batch size stands first in ``shape``."""

    name: str
    shape: tuple[int, ...]

    @property
    def rank(self) -> int:
        return len(self.shape)


@dataclass
class Builder:
    """A graph under construction. ``open_batch``: the batch size is declared as a symbol."""

    choices: Choices
    opset: int
    dtype: type[np.float32] | type[np.float64]
    batch: int
    open_batch: bool
    rng: np.random.Generator
    nodes: list[NodeProto] = field(default_factory=list)
    tensors: dict[str, Array] = field(default_factory=dict)
    values: list[Value] = field(default_factory=list)
    shared: dict[tuple[int, ...], str] = field(default_factory=dict)
    count: int = 0

    # -- deciding

    def chance(self, one_in: int) -> bool:
        return self.choices.integer(1, one_in) == one_in

    def pick(self, options: Sequence[T]) -> T:
        return self.choices.pick(options)

    def size(self, low: int, high: int) -> int:
        return self.choices.integer(low, high)

    def like(self, x: Value) -> list[Value]:
        """Tensors of the same shape, itself included."""
        return [x, *(v for v in self.values if v.shape == x.shape)]

    # -- nodes and constants

    def name(self, stem: str) -> str:
        self.count += 1
        return f"{stem}{self.count}"

    def node(self, op: str, inputs: Sequence[Value | str], shape: Sequence[int] | None = None, **attrs: Any) -> Value:
        """Append a node with one output, by default of the shape of its first input."""
        first = inputs[0]
        if shape is None:
            assert isinstance(first, Value)
            shape = first.shape
        return self.split(op, inputs, [shape], **attrs)[0]

    def split(self, op: str, inputs: Sequence[Value | str], shapes: Sequence[Sequence[int]],
              **attrs: Any) -> list[Value]:  # fmt: skip
        """Append a node with one output for each shape."""
        outputs = [Value(self.name(op.lower()), tuple(shape)) for shape in shapes]
        names = [i if isinstance(i, str) else i.name for i in inputs]
        self.nodes.append(helper.make_node(op, names, [v.name for v in outputs], self.name("n"), **attrs))
        return outputs

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def constant(self, values: Array | Sequence[float] | float) -> str:
        """Numbers as an initializer or, now and then, a Constant node."""
        held = values if isinstance(values, np.ndarray) else np.array(values, self.dtype)
        name = self.name("c")
        if (self.opset >= 9 or held.dtype.kind == "f") and self.chance(6):
            self.nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(held, name)))
        else:
            self.tensors[name] = held
        return name

    def numbers(self, shape: Sequence[int], scale: float = 1.0) -> Array:
        return (self.rng.standard_normal(tuple(shape)) * scale).astype(self.dtype)

    def weight(self, shape: Sequence[int], fan: int) -> str:
        """A weight: new or shared, stored as it is or behind an operator."""
        key = tuple(shape)
        if key in self.shared and self.chance(4):
            return self.shared[key]
        values = self.numbers(shape, 1 / np.sqrt(max(fan, 1)))
        name = self.pick(_WEIGHTS)(self, values) if self.chance(4) else self.constant(values)
        self.shared[key] = name
        return name

    def vector(self, size: int, scale: float = 0.5) -> str:
        """A bias or the like, now and then shared."""
        key = (size,)
        if key in self.shared and self.chance(5):
            return self.shared[key]
        self.shared[key] = self.constant(self.numbers([size], scale))
        return self.shared[key]

    def reshape(self, x: Value, shape: Sequence[int]) -> Value:
        """A Reshape whose target is spelled out, uses 0 and −1, or is computed from the input's batch size."""
        assert prod(shape) == prod(x.shape)
        way = self.size(0, 2)
        if way == 0 and not self.open_batch:
            return self.node("Reshape", [x, self.ints(*shape)], shape)
        if way < 2:
            target = [0 if shape[0] == x.shape[0] else -1, *shape[1:]]
            if target[0] == 0 and self.chance(2):
                target[self.size(1, len(shape) - 1)] = -1
            return self.node("Reshape", [x, self.ints(*target)], shape)
        return self.node("Reshape", [x, self._computed_target(x, shape)], shape)

    def _computed_target(self, x: Value, shape: Sequence[int]) -> Value:
        """The batch size of the input, times or over a number; the rest from the input too, or spelled out."""
        sizes = self.node("Shape", [x], [x.rank])
        batch = self.node("Gather", [sizes, self.ints(0)], [1], axis=0)
        if shape[0] > x.shape[0]:
            batch = self.node("Mul", [batch, self.ints(shape[0] // x.shape[0])])
        elif shape[0] < x.shape[0]:
            batch = self.node("Div", [batch, self.ints(x.shape[0] // shape[0])])
        rest: list[Value | str] = [
            self.node("Gather", [sizes, self.ints(a)], [1], axis=0)
            if a < x.rank and x.shape[a] == n and self.chance(2)
            else self.ints(n)
            for a, n in enumerate(shape[1:], 1)
        ]
        return self.node("Concat", [batch, *rest], [len(shape)], axis=0)

    def transpose(self, x: Value, *perm: int) -> Value:
        return self.node("Transpose", [x], [x.shape[p] for p in perm], perm=perm)


# ---- where weights live ---------------------------------------------------------------------------------------------


def _behind_identity(b: Builder, values: Array) -> str:
    return b.node("Identity", [b.constant(values)], values.shape).name


def _behind_transpose(b: Builder, values: Array) -> str:
    perm = tuple(b.rng.permutation(values.ndim).tolist())
    return b.node("Transpose", [b.constant(np.transpose(values, np.argsort(perm)))], values.shape, perm=perm).name


def _behind_cast(b: Builder, values: Array) -> str:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(b.dtype))
    return b.node("Cast", [b.constant(values.astype(np.float16))], values.shape, to=kind).name


def _behind_reshape(b: Builder, values: Array) -> str:
    flat = b.constant(values.reshape(values.shape[0], -1))
    return b.node("Reshape", [flat, b.ints(*values.shape)], values.shape).name


def _behind_dequantize(b: Builder, values: Array) -> str:
    """int8 with a zero point of 3, per tensor, or from opset 13 per channel of the first axis."""
    if b.opset < 13 or b.dtype == np.float64:
        return b.constant(values)
    wide = values.shape[0] if b.chance(2) else 0
    scale = np.full(wide or (), np.abs(values).max() / 120, np.float32)
    quantised = np.clip(np.round(values.astype(np.float32) / scale.flat[0]) + 3, -128, 127).astype(np.int8)
    point = np.full(wide or (), 3, np.int8)
    inputs = [b.constant(held) for held in (quantised, scale, point)]
    return b.node("DequantizeLinear", inputs, values.shape, axis=0).name


_WEIGHTS: tuple[Callable[[Builder, Array], str], ...] = (
    _behind_identity, _behind_transpose, _behind_cast, _behind_reshape, _behind_dequantize,
)  # fmt: skip


# ---- whole models ---------------------------------------------------------------------------------------------------

Step = Callable[[Builder, Value], "Value | list[Value] | None"]


def grow(choices: Choices, stem: Step, steps: Callable[[Builder, Value], Sequence[Step]], close: Step,
         opsets: Sequence[int] = OPSETS) -> ModelProto:  # fmt: skip
    """A model of 1 to 12 steps: ``stem`` reads the input, ``steps`` says what can be appended to a tensor, ``close``
    makes an output of one."""
    dtype: type[np.float32] | type[np.float64] = np.float64 if choices.integer(1, 3) == 3 else np.float32
    rng = np.random.default_rng(choices.integer(0, 2**16))
    batch = choices.pick((1, 2, 3, _OPEN_BATCH))
    b = Builder(choices, choices.pick(opsets), dtype, batch, batch == _OPEN_BATCH, rng)
    feed = Value("x", (batch, *choices.pick(_FEEDS if dtype == np.float32 else _FEEDS[-2:])))
    b.values.append(_one(stem(b, feed)))
    for _ in range(choices.integer(1, 12)):
        x = feed if b.chance(12) else b.values[-1] if b.chance(2) else b.pick(b.values)
        made = b.pick(steps(b, x))(b, x)
        b.values += made if isinstance(made, list) else [] if made is None else [made]
    ends = [b.values[-1], *(b.pick(b.values) for _ in range(b.size(0, 2)))]
    outputs = [_closed(b, v, close) for v in ends]
    return _finished(b, feed, outputs)


_FEEDS: tuple[tuple[int, ...], ...] = ((3, 8, 8), (4, 6, 6), (6, 5, 5), (5, 8), (10,))
_OPEN_BATCH = 5  # fed where the batch is open; the analysis guesses 2 and 3


def _closed(b: Builder, v: Value, close: Step) -> Value:
    return b.node("Identity", [_one(close(b, v))])


def _one(made: Value | list[Value] | None) -> Value:
    assert isinstance(made, Value)
    return made


def _finished(b: Builder, feed: Value, outputs: Sequence[Value]) -> ModelProto:
    """The model; up to opset 9 now and then as old as IR 3, which lists the constants among the inputs."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(b.dtype))
    stored = [numpy_helper.from_array(values, name) for name, values in b.tensors.items()]
    old = b.opset <= 9 and b.chance(2)
    listed = [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in stored] if old else []
    graph = helper.make_graph(
        b.nodes, "random", [_declared(b, feed, kind), *listed], [_declared(b, v, kind) for v in outputs], stored
    )
    versions = [helper.make_opsetid("", b.opset)]
    if any(node.domain for node in b.nodes):
        versions.append(helper.make_opsetid("com.microsoft", 1))
    return helper.make_model(graph, ir_version=3 if old else 8, opset_imports=versions)


def _declared(b: Builder, v: Value, kind: int) -> ValueInfoProto:
    shape: list[int | str] = list(v.shape)
    if b.open_batch and v.shape and v.shape[0] == b.batch:
        shape[0] = "N"
    return helper.make_tensor_value_info(v.name, kind or TensorProto.FLOAT, shape)
