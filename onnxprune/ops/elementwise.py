"""Element-wise operators: operands broadcast against each other, and channels at equal positions are the same.

What matters beyond that is whether a channel that is zero stays zero, because a consumer that sums over channels
without a weight of its own (Q·Kᵀ) is only exact if removed channels are zero in the masked reference.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxprune.channels import FIXED_SIZE, Axes, Ids, NodeContext, Opaque
from onnxprune.ops.sign import Sign, sign

__all__ = ["add", "add_vector", "batch_normalization", "broadcast", "choice", "clip", "compare", "divide", "dropout",
           "multiply", "power", "prelu", "product", "same", "sum_", "where", "zero", "zero_never", "zero_or_nothing",
           "zero_outside", "zero_to_infinity"]  # fmt: skip


def broadcast(ctx: NodeContext, operands: list[int]) -> tuple[Axes, dict[int, bool]]:
    """Unify operands as ONNX broadcasts them (right-aligned); also say which operands span every channel axis.

    An operand of size 1 along an axis feeds all channels there, so its own single channel may not leave.
    """
    shapes = {k: ctx.shape(k) for k in operands}
    if ctx.builder.graph.opset < 7 and len(set(shapes.values())) > 1:
        raise Opaque("operands broadcast as before opset 7")
    out = np.broadcast_shapes(*shapes.values())
    parts: list[list[tuple[int, Ids | None]]] = [[] for _ in out]
    for k in operands:
        offset = len(out) - len(shapes[k])
        for axis, ids in enumerate(ctx.axes(k), offset):
            if shapes[k][axis - offset] == 1 and out[axis] != 1:
                ctx.freeze(ids, "one channel broadcast over many")
            else:
                parts[axis].append((k, ids))
    result: list[Ids | None] = []
    spans = dict.fromkeys(operands, True)
    for part in parts:
        ids = part[0][1]
        for _, other in part[1:]:
            ids = ctx.unify(ids, other)
        if any(other is None for _, other in part):
            for _, other in part:
                ctx.freeze(other, FIXED_SIZE)
            ids = None
        result.append(ids)
        if ids is not None:
            wide = {k for k, _ in part}
            spans = {k: held and k in wide for k, held in spans.items()}
    return tuple(result), spans


def _operands(ctx: NodeContext) -> list[int]:
    return [k for k in range(len(ctx.node.input)) if ctx.has(k)]


def _result(ctx: NodeContext, axes: Axes, zero_stays: bool) -> list[Axes]:
    """Every output has the given axes (Dropout has a mask too); the first may be zero."""
    if zero_stays:
        ctx.builder.zero.add(ctx.node.output[0])
    return [axes for _ in ctx.node.output]


def _freeze_axes(ctx: NodeContext, k: int, reason: str) -> None:
    for ids in ctx.axes(k):
        ctx.freeze(ids, reason)


def zero(ctx: NodeContext) -> list[Axes]:
    """f(x) with f(0) = 0: ReLU, Tanh, GELU, Cast. Further inputs are parameters, or (CastLike) only have a type."""
    for k in range(1, len(ctx.node.input)):
        for ids in ctx.parameter_axes(k):
            ctx.need(None, ids)
    return _result(ctx, ctx.axes(0), ctx.zeroed(0))


def same(ctx: NodeContext, *, zero_stays: bool) -> list[Axes]:
    """f(x) for every element of the first input; further inputs are parameters."""
    return _result(ctx, ctx.axes(0), zero_stays)


def dropout(ctx: NodeContext) -> list[Axes]:
    """The identity, and a mask of ones; what it drops in training is drawn anew for every shape.

    https://onnx.ai/onnx/operators/onnx__Dropout.html
    """
    if ctx.has(2) and (ctx.integers(2) or [1])[0]:
        raise Opaque("drops at random")
    return zero(ctx)


def zero_never(ctx: NodeContext) -> list[Axes]:
    """f(x) with f(0) ≠ 0 and finite: Sigmoid, Exp, Softplus."""
    return _result(ctx, ctx.axes(0), False)


def zero_or_nothing(ctx: NodeContext) -> list[Axes]:
    """f(x) with f(0) finite and a limited domain: Sqrt, Asin. A removed channel must lie in it: 0·NaN is not 0."""
    fits = ctx.zeroed(0) or (ctx.node.op_type == "Sqrt" and sign(ctx, 0) >= Sign.NOT_NEGATIVE)
    if not fits:
        _freeze_axes(ctx, 0, "may have no value where a channel is removed")
    return _result(ctx, ctx.axes(0), ctx.zeroed(0) and ctx.node.op_type != "Acos")


def zero_to_infinity(ctx: NodeContext) -> list[Axes]:
    """f(x) with a pole at 0: Reciprocal, Log. A removed channel must not be zero here: 0·∞ is not 0."""
    if ctx.zeroed(0) or sign(ctx, 0) < Sign.POSITIVE:
        _freeze_axes(ctx, 0, "may be infinite where a channel is removed")
    return _result(ctx, ctx.axes(0), False)


def zero_outside(ctx: NodeContext) -> list[Axes]:
    """f(x) without a value at 0: Acosh."""
    _freeze_axes(ctx, 0, "has no value where a channel is removed")
    return _result(ctx, ctx.axes(0), False)


def clip(ctx: NodeContext) -> list[Axes]:
    """min(max(x, low), high); keeps zero iff low ≤ 0 ≤ high. Bounds are attributes before opset 11."""
    low, high = (_bound(ctx, name, k) for k, name in ((1, "min"), (2, "max")))
    return _result(ctx, ctx.axes(0), ctx.zeroed(0) and (low is None or low <= 0) and (high is None or high >= 0))


def _bound(ctx: NodeContext, name: str, k: int) -> float | None:
    for held in ctx.node.attribute:
        if held.name == name:
            return float(held.f)
    if not ctx.has(k):
        return None
    graph, bound = ctx.builder.graph, ctx.node.input[k]
    return float(graph.values(bound).ravel()[0]) if bound in graph.constants else float("nan")


def add(ctx: NodeContext) -> list[Axes]:
    """a + b, a − b, Sum, Mean, Min, Max: zero where all operands are. Constants are zeroed along with the channel."""
    return sum_(ctx, _operands(ctx))


def sum_(ctx: NodeContext, operands: list[int]) -> list[Axes]:
    """The sum, or whatever is zero where all are, of these inputs."""
    axes, spans = broadcast(ctx, operands)
    zeros = {k: ctx.zeroed(k) for k in operands}
    if any(ids is not None for ids in axes) and not all(ctx.is_constant(k) for k in operands):
        for k in operands:
            if ctx.is_constant(k) and spans[k]:
                zeros[k] = ctx.mask_where_possible(k)
    return _result(ctx, axes, all(spans[k] and zeros[k] for k in operands))


def add_vector(ctx: NodeContext, axes: Axes, k: int) -> list[Axes]:
    """A stored bias [N], input k, added along the last axis of what the node has made."""
    if not ctx.is_constant(k) or len(ctx.shape(k)) != 1:
        raise Opaque("its bias is computed")
    result = (*axes[:-1], ctx.unify(axes[-1], ctx.axes(k)[0]))
    if not ctx.mask_where_possible(k) or any(ids is not None for ids in axes[:-1]):
        ctx.builder.zero.discard(ctx.node.output[0])
    return [result]


def multiply(ctx: NodeContext) -> list[Axes]:
    """a · b: zero where any operand is."""
    return product(ctx, _operands(ctx))


def product(ctx: NodeContext, operands: list[int]) -> list[Axes]:
    """The product of these inputs."""
    axes, spans = broadcast(ctx, operands)
    return _result(ctx, axes, any(spans[k] and ctx.zeroed(k) for k in operands))


def prelu(ctx: NodeContext) -> list[Axes]:
    """x, or slope·x where x is negative: zero where x is."""
    axes, spans = broadcast(ctx, [0, 1])
    return _result(ctx, axes, spans[0] and ctx.zeroed(0))


def divide(ctx: NodeContext) -> list[Axes]:
    """a / b: zero where a is. The denominator must not be zero where a channel is removed."""
    axes, spans = broadcast(ctx, [0, 1])
    graph, divisor = ctx.builder.graph, ctx.node.input[1]
    stored = divisor in graph.constants and _is_safe_to_divide_by(graph.values(divisor))
    if not stored and (ctx.zeroed(1) or sign(ctx, 1) < Sign.POSITIVE):
        _freeze_axes(ctx, 1, "may divide by zero where a channel is removed")
    return _result(ctx, axes, spans[0] and ctx.zeroed(0))


def _is_safe_to_divide_by(values: NDArray[np.generic]) -> bool:
    return bool(np.all(np.isfinite(values) & (values != 0)))


def power(ctx: NodeContext) -> list[Axes]:
    """a ** b: finite for whole exponents from 0 up; for other constant ones from 0 up where a is not negative; else
    where a is positive. Zero where a is, for a constant positive exponent."""
    axes, spans = broadcast(ctx, [0, 1])
    held = ctx.builder.graph.constants.get(ctx.node.input[1])
    exponent = None if held is None else np.asarray(ctx.builder.graph.values(ctx.node.input[1]), np.float64)
    known = Sign.NOT_NEGATIVE if ctx.zeroed(0) else sign(ctx, 0)
    if exponent is None or np.any(exponent < 0):
        fits = known == Sign.POSITIVE
    else:
        fits = known >= Sign.NOT_NEGATIVE or bool(np.all(exponent == np.round(exponent)))
    if not fits:
        _freeze_axes(ctx, 0, "may have no such power where a channel is removed")
    positive = exponent is not None and bool(np.all(exponent > 0))
    return _result(ctx, axes, positive and spans[0] and ctx.zeroed(0))


def compare(ctx: NodeContext) -> list[Axes]:
    """Equal, Less, And, …: a truth value per element."""
    return _result(ctx, broadcast(ctx, _operands(ctx))[0], False)


def where(ctx: NodeContext) -> list[Axes]:
    """condition ? a : b, https://onnx.ai/onnx/operators/onnx__Where.html"""
    return choice(ctx, [0, 1, 2])


def choice(ctx: NodeContext, operands: list[int]) -> list[Axes]:
    """Where the first of these inputs is true the second, else the third."""
    axes, spans = broadcast(ctx, operands)
    return _result(ctx, axes, all(spans[k] and ctx.zeroed(k) for k in operands[1:]))


def batch_normalization(ctx: NodeContext) -> list[Axes]:
    """γ·(x − μ)/√(σ² + ε) + β per channel of axis 1; the masked reference zeroes γ and β.

    https://onnx.ai/onnx/operators/onnx__BatchNormalization.html
    """
    if ctx.integer("training_mode", 0) or len([name for name in ctx.node.output if name]) > 1:
        return ctx.freeze_all("batch statistics are computed at run time")
    if not all(ctx.is_constant(k) for k in range(1, 5)):
        return ctx.freeze_all("its parameters are computed")
    if any(len(ctx.shape(k)) != 1 for k in range(1, 5)):  # spatial=0, before opset 9
        return ctx.freeze_all("its parameters vary over space")
    axes = list(ctx.axes(0))
    for k in range(1, 5):
        axes[1] = ctx.unify(axes[1], ctx.axes(k)[0])
    if axes[1] is None:
        for k in range(1, 5):
            ctx.freeze(ctx.axes(k)[0], FIXED_SIZE)
    zeros = [ctx.mask_where_possible(k) for k in (1, 2)]
    return _result(ctx, tuple(axes), all(zeros) and all(ids is None for a, ids in enumerate(axes) if a != 1))
