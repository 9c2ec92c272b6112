"""Shape arithmetic (Shape → Gather → Concat → Reshape) computed node by node: operator → small function.

Operators: https://github.com/onnx/onnx/blob/main/docs/Operators.md
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto

from onnxprune.graph import attribute

__all__ = ["TRACKED", "evaluate"]

TRACKED = 64  # a computed tensor with at most this many elements may be shape arithmetic


def evaluate(
    node: NodeProto, arguments: Sequence[NDArray[np.generic] | None], shape: Sequence[int] | None
) -> list[NDArray[np.generic]]:
    """The values of a node's outputs; none where it is no shape arithmetic, or they do not follow from what is known.

    Args:
        node: any node.
        arguments: the value of each of its inputs, as far as they are known.
        shape: that of its first input, if known; all that Shape and Size need.
    """
    rule = _ARITHMETIC.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if rule is None:
        return []
    if node.op_type in ("Shape", "Size"):
        arguments = [None if shape is None else np.array(shape, np.int64)]
    if any(value is None and name for value, name in zip(arguments, node.input, strict=False)):
        return []
    known = [value for value in arguments if value is not None]
    try:
        with np.errstate(all="ignore"):
            made = rule(node, known)
            return made if isinstance(made, list) else [made]
    except (ArithmeticError, AssertionError, LookupError, MemoryError, TypeError, ValueError):
        return []


def _ints(node: NodeProto, name: str, arguments: Sequence[NDArray[np.generic]], position: int) -> list[int] | None:
    """An integer list that older opsets keep in an attribute and newer ones in an input."""
    held = attribute(node, name)
    if held is not None:
        return [int(v) for v in np.atleast_1d(np.asarray(held))]
    if len(arguments) > position:
        return [int(v) for v in np.atleast_1d(arguments[position])]
    return None


def _shape(node: NodeProto, a: list[NDArray[np.generic]]) -> NDArray[np.generic]:
    start, end = attribute(node, "start"), attribute(node, "end")
    return np.asarray(a[0][slice(start, end)])


def _gather(node: NodeProto, a: list[NDArray[np.generic]]) -> NDArray[np.generic]:
    axis = attribute(node, "axis") or 0
    assert isinstance(axis, int)
    return np.asarray(np.take(a[0], a[1].astype(np.int64), axis=axis))


def _concat(node: NodeProto, a: list[NDArray[np.generic]]) -> NDArray[np.generic]:
    axis = attribute(node, "axis") or 0
    assert isinstance(axis, int)
    return np.concatenate(a, axis=axis)


def _unsqueeze(node: NodeProto, a: list[NDArray[np.generic]]) -> NDArray[np.generic]:
    axes = _ints(node, "axes", a, 1) or []
    return np.expand_dims(a[0], tuple(axes))


def _squeeze(node: NodeProto, a: list[NDArray[np.generic]]) -> NDArray[np.generic]:
    axes = _ints(node, "axes", a, 1)
    return np.asarray(np.squeeze(a[0], None if axes is None else tuple(axes)))


def _slice(node: NodeProto, a: list[NDArray[np.generic]]) -> NDArray[np.generic]:
    starts, ends = _ints(node, "starts", a, 1) or [], _ints(node, "ends", a, 2) or []
    axes = _ints(node, "axes", a, 3) or list(range(len(starts)))
    steps = _ints(node, "steps", a, 4) or [1] * len(starts)
    index = [slice(None)] * a[0].ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        index[axis] = slice(start, None if step < 0 and end < -a[0].shape[axis] else end, step)
    return np.asarray(a[0][tuple(index)])


def _cast(node: NodeProto, a: list[NDArray[np.generic]]) -> NDArray[np.generic]:
    to = attribute(node, "to")
    assert isinstance(to, int)
    return a[0].astype(onnx.helper.tensor_dtype_to_np_dtype(to))


def _divide(node: NodeProto, a: list[NDArray[np.generic]]) -> NDArray[np.generic]:
    if np.issubdtype(a[0].dtype, np.integer):
        return np.asarray(np.trunc(np.true_divide(a[0], a[1]))).astype(a[0].dtype)
    return np.asarray(np.true_divide(a[0], a[1]))


def _modulo(node: NodeProto, a: list[NDArray[np.generic]]) -> NDArray[np.generic]:
    return np.asarray((np.fmod if attribute(node, "fmod") else np.mod)(a[0], a[1]))


def _fill(node: NodeProto, a: list[NDArray[np.generic]]) -> NDArray[np.generic]:
    dims = tuple(int(d) for d in a[0])
    if prod(dims) > TRACKED:
        raise ValueError("too large to be shape arithmetic")
    value = attribute(node, "value")
    filler = onnx.numpy_helper.to_array(value).ravel()[0] if isinstance(value, TensorProto) else np.float32(0)
    return np.full(dims, filler)


def _range(node: NodeProto, a: list[NDArray[np.generic]]) -> NDArray[np.generic]:
    start, limit, delta = (v.item() for v in a)
    if (limit - start) / delta > TRACKED:
        raise ValueError("too large to be shape arithmetic")
    return np.arange(start, limit, delta, dtype=a[0].dtype)


def _split(node: NodeProto, a: list[NDArray[np.generic]]) -> list[NDArray[np.generic]]:
    axis, sizes, count = attribute(node, "axis") or 0, _ints(node, "split", a, 1), len(node.output)
    assert isinstance(axis, int)
    each = -(-a[0].shape[axis] // count)  # the last part may be smaller
    ends = np.cumsum(sizes)[:-1] if sizes else np.arange(1, count) * each
    return np.split(a[0], ends, axis)


def _reduce(function: Callable[..., object]) -> Callable[[NodeProto, list[NDArray[np.generic]]], NDArray[np.generic]]:
    def reduced(node: NodeProto, a: list[NDArray[np.generic]]) -> NDArray[np.generic]:
        axes = _ints(node, "axes", a, 1)
        if not axes and attribute(node, "noop_with_empty_axes"):
            return a[0]
        result = function(a[0], axis=tuple(axes) if axes else None, keepdims=attribute(node, "keepdims") != 0)
        return np.asarray(result, a[0].dtype)

    return reduced


def _tile(node: NodeProto, a: list[NDArray[np.generic]]) -> NDArray[np.generic]:
    repeats = [int(n) for n in a[1]]
    if a[0].size * prod(repeats) > TRACKED:
        raise ValueError("too large to be shape arithmetic")
    return np.tile(a[0], repeats)


def _clip(node: NodeProto, a: list[NDArray[np.generic]]) -> NDArray[np.generic]:
    if not all(node.input):
        raise ValueError("a bound is left out")
    low, high = [*(v.item() for v in a[1:]), None, None][:2]
    return a[0] if low is high is None else np.clip(a[0], low, high)


def _flatten(node: NodeProto, a: list[NDArray[np.generic]]) -> NDArray[np.generic]:
    axis = attribute(node, "axis")
    assert axis is None or isinstance(axis, int)
    rows = prod(a[0].shape[: 1 if axis is None else axis])
    return a[0].reshape(rows, a[0].size // max(rows, 1))


def _reshape(node: NodeProto, a: list[NDArray[np.generic]]) -> NDArray[np.generic]:
    target = [a[0].shape[i] if d == 0 else int(d) for i, d in enumerate(np.atleast_1d(a[1]))]
    return a[0].reshape(target)


def _transpose(node: NodeProto, a: list[NDArray[np.generic]]) -> NDArray[np.generic]:
    order = attribute(node, "perm")
    return np.transpose(a[0], order if isinstance(order, list) else None)


def _plain(function: Callable[..., object]) -> Callable[[NodeProto, list[NDArray[np.generic]]], NDArray[np.generic]]:
    return lambda node, a: np.asarray(function(*a))


_Value = NDArray[np.generic]
_ARITHMETIC: dict[str, Callable[[NodeProto, list[_Value]], _Value | list[_Value]]] = {
    "Shape": _shape,
    "Size": _plain(lambda shape: np.prod(np.asarray(shape, np.int64))),
    "Gather": _gather,
    "Concat": _concat,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Slice": _slice,
    "Split": _split,
    "Cast": _cast,
    "Reshape": _reshape,
    "ConstantOfShape": _fill,
    "Range": _range,
    "Transpose": _transpose,
    "ReduceProd": _reduce(np.prod),
    "ReduceSum": _reduce(np.sum),
    "ReduceMax": _reduce(np.max),
    "ReduceMin": _reduce(np.min),
    "Tile": _tile,
    "Clip": _clip,
    "Flatten": _flatten,
    "Sign": _plain(np.sign),
    "Expand": _plain(lambda x, shape: x * np.ones(tuple(int(d) for d in shape), x.dtype)),
    "Identity": _plain(lambda x: x),
    "Add": _plain(np.add),
    "Sub": _plain(np.subtract),
    "Mul": _plain(np.multiply),
    "Div": _divide,
    "Pow": _plain(lambda base, exponent: np.power(base, exponent).astype(base.dtype)),
    "Mod": _modulo,
    "Neg": _plain(np.negative),
    "Abs": _plain(np.abs),
    "Floor": _plain(np.floor),
    "Ceil": _plain(np.ceil),
    "Round": _plain(np.round),
    "Sqrt": _plain(np.sqrt),
    "Min": _plain(lambda *xs: np.minimum.reduce(np.broadcast_arrays(*xs))),
    "Max": _plain(lambda *xs: np.maximum.reduce(np.broadcast_arrays(*xs))),
    "Equal": _plain(np.equal),
    "Less": _plain(np.less),
    "LessOrEqual": _plain(np.less_equal),
    "Greater": _plain(np.greater),
    "GreaterOrEqual": _plain(np.greater_equal),
    "Not": _plain(np.logical_not),
    "And": _plain(np.logical_and),
    "Or": _plain(np.logical_or),
    "Where": _plain(np.where),
}
