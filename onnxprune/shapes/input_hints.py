"""What the constants of a model give away about its inputs: sizes, numbers of rows, numbers they are compared with."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import onnx
from onnx import TensorProto, numpy_helper
from onnx.external_data_helper import uses_external_data

from onnxprune.inputs import input_specs

__all__ = ["Hints", "hints_of"]

@dataclass(frozen=True)
class Hints:
    """What a model gives away about its inputs.

    Attributes:
        sizes: (input, axis) → the size that a weight takes there.
        rows: input → how many rows the table has that it is an index into.
        compared: input → the whole numbers it is compared with.
    """

    sizes: dict[tuple[str, int], int]
    rows: dict[str, int]
    compared: dict[str, list[int]]


# x op weight → (axis of x, its size)
_WIDTHS: Final[dict[str, Callable[[onnx.NodeProto, Sequence[int]], tuple[int, int]]]] = {
    "Conv": lambda node, dims: (
        1,
        dims[1] * _attribute(node, "group", 1),
    ),  # x[N, C, ...], w[K, C / group, ...]
    "Gemm": lambda node, dims: (1, dims[_attribute(node, "transB", 0)]),  # x[M, K], w[K, N] or w[N, K]
    "MatMul": lambda node, dims: (-1, dims[max(-2, -len(dims))]),  # x[..., K], w[..., K, N] or w[K]
}
_COMPARISONS: Final = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})


def hints_of(model: onnx.ModelProto) -> Hints:
    """What a model gives away about its inputs. Raises ModelError where an input is not a tensor."""
    hints = Hints({}, {}, {})
    for node, name, place, constant in _meetings(model):
        if node.op_type in _WIDTHS and place == 0:
            with contextlib.suppress(IndexError):  # a weight of another rank
                axis, size = _WIDTHS[node.op_type](node, constant.dims)
                hints.sizes[name, axis] = size
        elif node.op_type == "Gather" and place == 1:
            with contextlib.suppress(IndexError):
                hints.rows[name] = constant.dims[_attribute(node, "axis", 0)]
        elif node.op_type == "OneHot" and place == 0:
            hints.rows[name] = max(_whole_numbers(constant), default=2)
        elif node.op_type in _COMPARISONS:
            hints.compared.setdefault(name, []).extend(_whole_numbers(constant))
    return hints


def _meetings(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, str, int, TensorProto]]:
    """(node, input, its place, constant), wherever the first two operands are an input and a constant."""
    constants = {weight.name: weight for weight in model.graph.initializer}
    copies = {spec.name: spec.name for spec in input_specs(model)}
    for node in model.graph.node:
        if node.op_type == "Constant":
            constants.update((node.output[0], each.t) for each in node.attribute if each.name == "value")
        elif node.op_type in ("Cast", "Identity") and node.input[0] in copies:
            copies[node.output[0]] = copies[node.input[0]]
        elif len(node.input) > 1:
            for place, (here, other) in enumerate(itertools.permutations(node.input[:2])):
                if here in copies and other in constants:
                    yield node, copies[here], place, constants[other]


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((each.i for each in node.attribute if each.name == name), default)


def _whole_numbers(constant: TensorProto) -> list[int]:
    if uses_external_data(constant) or math.prod(constant.dims) != 1:
        return []
    number = numpy_helper.to_array(constant).item()
    return [int(number)] if isinstance(number, int | float) and number >= 0 and number == int(number) else []
