"""What a node costs at run time, as far as it decides between two ways to compute the same thing.

A few constants of the target: what it takes to start a node, how fast numbers are copied, how fast convolutions and
matrix products run by width. See ``benchmarks/widths.py`` for the steps of ONNX Runtime's CPU kernels.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from math import ceil, prod

from onnx import NodeProto

from onnxprune.graph import attribute
from onnxprune.shapes import Shape

__all__ = ["Convolution", "Target", "convolution", "is_fused", "microseconds", "unfused"]

_VIEWS = frozenset("Constant Flatten Identity Reshape Shape Size Squeeze Unsqueeze".split())
_COPIES = frozenset("Concat DepthToSpace Expand Gather Pad Slice SpaceToDepth Split Tile Transpose".split())
_CONTRACTIONS = frozenset("Conv ConvTranspose FusedConv FusedGemm FusedMatMul Gemm GRU LSTM MatMul RNN".split())
_FUSING = frozenset(("Conv", "FusedConv"))
_FUSED = frozenset("BatchNormalization Clip Relu LeakyRelu Sigmoid Tanh HardSigmoid".split())
"""Operators that disappear into the convolution before them."""
_DIRECT_POINT, _DIRECT, _SINGLE = 0.3, 0.65, 0.75
"""Shares of the rate of blocks, see ``_share``."""
_STRIDED = 2.5  # times as long for columns with gaps


@dataclass(frozen=True)
class Target:
    """What a target takes. ``start``: µs for any node. By µs: numbers written by copies and element-wise functions, for
    the first ``cached`` of a tensor (``near``) and beyond (``far``); numbers brought from or into blocks or columns
    (``ordered``), read as a weight (``loaded``), or found by an index (``picked``); multiply-accumulates, in blocks (``blocked``), in products of
    matrices (``multiplied``) and in depthwise convolutions without blocks (``depthwise``). ``block``: channels of a block of its convolutions; 0 where there are none.

    The defaults are those of ONNX Runtime on one thread with AVX-512.
    """

    start: float = 1.0
    near: float = 10000.0
    far: float = 3000.0
    cached: float = 262144.0
    ordered: float = 6000.0
    loaded: float = 4000.0
    picked: float = 100.0
    blocked: float = 90000.0
    multiplied: float = 80000.0
    depthwise: float = 4000.0
    block: int = 16


def microseconds(target: Target, node: NodeProto, shapes: Mapping[str, Shape], after: str = "",
                 open_weights: Container[str] = ()) -> float:  # fmt: skip
    """Time of a node; ``after``: the operator that makes its first input; ``open_weights``: see ``convolution``."""
    op = node.op_type
    if op == "Constant":
        return 0.0
    made = sum(prod(shapes.get(name, ())) for name in node.output if name)
    if op in _VIEWS:
        return target.start
    if op in _FUSING:
        return target.start + _convolution(target, node, shapes, open_weights)
    if op in _CONTRACTIONS:
        return target.start + _product(target, node, shapes, made)
    if op in _COPIES:
        return target.start + _written(target, made) + (_picking(target, node, shapes, made) if op == "Gather" else 0)
    if is_fused(node, after):
        return 0.0
    return _elementwise(target, node, shapes)


def is_fused(node: NodeProto, after: str) -> bool:
    """Whether a node is computed along with the convolution before it; ``after``: the operator before it."""
    return node.op_type in _FUSED and after in _FUSING


def unfused(target: Target, node: NodeProto, shapes: Mapping[str, Shape]) -> float:
    """What a node takes more, once it is not computed along with the convolution before it any longer."""
    return _elementwise(target, node, shapes) if node.op_type in _FUSED else 0.0


def _elementwise(target: Target, node: NodeProto, shapes: Mapping[str, Shape]) -> float:
    made = sum(prod(shapes.get(name, ())) for name in node.output if name)
    read = max((prod(shapes.get(name, ())) for name in node.input if name), default=0)
    return target.start + _written(target, max(made, read))


def _written(target: Target, numbers: int) -> float:
    return min(numbers, target.cached) / target.near + max(0.0, numbers - target.cached) / target.far


def _picking(target: Target, node: NodeProto, shapes: Mapping[str, Shape], made: int) -> float:
    """What a Gather takes more than other copies: a step for every index, and an image that has to leave its blocks."""
    data, axis = shapes.get(node.input[0], ()), attribute(node, "axis")
    inner = prod(data[(axis if isinstance(axis, int) else 0) % max(len(data), 1) + 1 :])
    leaving = prod(data) / target.ordered if target.block and len(data) == 4 else 0.0
    return made / max(inner, 1) / target.picked + leaving


def _product(target: Target, node: NodeProto, shapes: Mapping[str, Shape], made: int) -> float:
    """A matrix product, or what is computed as one; a single row takes what reading the weight takes."""
    data, weight = shapes.get(node.input[0]) or (1,), shapes.get(node.input[1], ())
    if node.op_type == "ConvTranspose":
        work = prod(data) * prod(weight[1:])
    else:
        work = made * data[0 if attribute(node, "transA") and len(data) == 2 else -1]
    return max(work / target.multiplied, prod(weight) / target.loaded)


@dataclass(frozen=True)
class Convolution:
    """``time`` in µs, without that of entering or leaving blocks."""

    time: float = 0.0
    reads_blocks: bool = False
    makes_blocks: bool = False


def convolution(target: Target, node: NodeProto, shapes: Mapping[str, Shape],
                open_weights: Container[str] = ()) -> Convolution:  # fmt: skip
    """How a convolution is computed: in blocks, with the last block of outputs computed whole and picked apart; or as a
    product of matrices, with the image in columns, which costs more once several outputs read them.

    ONNX Runtime computes two-dimensional convolutions in blocks, but for those that read a block of channels or more,
    and no multiple of 4, for depthwise ones of such a width, and for those of which a caller may override the weight
    (``open_weights``). Fewer channels than a block are read as they are.
    """
    weight, made = shapes.get(node.input[1], ()), shapes.get(node.output[0], ())
    if len(weight) < 3 or len(made) != len(weight):
        return Convolution()  # not known
    count = _groups(node, shapes)
    read, out, kernel, space = weight[1], made[1] // count, prod(weight[2:]), made[0] * prod(made[2:])
    blocked = len(weight) == 4 and target.block > 0 and _is_blocked(target, count, read, out)
    blocked = blocked and node.input[1] not in open_weights
    if count > 1 and read == out == 1:
        if not target.block or blocked:
            time = 2 * made[1] * kernel * space / target.blocked + made[1] * space / target.ordered
        else:
            time = made[1] * kernel * space * _stride(node) / target.depthwise
        return Convolution(time, blocked, blocked)
    if blocked:
        width = ceil(out / target.block) * target.block
        deep = read if read < target.block else ceil(read / target.block) * target.block
        apart = width * space if out < target.block or out % 4 else 0
        rate = target.blocked * _share(kernel, read < target.block, width == target.block)
        time = count * (deep * width * kernel * space / rate + apart / target.ordered)
        return Convolution(time, read >= target.block, True)
    columns = read * kernel * space * _stride(node) * (1.6 if out > 1 else 1) if kernel > 1 else 0
    time = count * (read * out * kernel * space / target.multiplied + columns / target.ordered + target.start)
    return Convolution(time)


def _share(kernel: int, direct: bool, single: bool) -> float:
    """How much of the rate of blocks is reached: less where what is read is not in blocks (``direct``), above all by
    1 × 1, and where a kernel makes a single block."""
    return (_DIRECT_POINT if kernel == 1 else _DIRECT) if direct else (1.0 if kernel == 1 or not single else _SINGLE)


def _convolution(target: Target, node: NodeProto, shapes: Mapping[str, Shape], open_weights: Container[str]) -> float:
    """Time of a convolution among others that are computed in blocks, if it can be."""
    found = convolution(target, node, shapes, open_weights)
    if not target.block or node.input[1] in open_weights or _groups(node, shapes) > 1:
        return found.time
    crossing = 0 if found.reads_blocks else prod(shapes.get(node.input[0], ()))
    crossing += 0 if found.makes_blocks else prod(shapes.get(node.output[0], ()))
    return found.time + crossing / target.ordered


def _groups(node: NodeProto, shapes: Mapping[str, Shape]) -> int:
    """Groups of a convolution, by what it reads: a pruned one has fewer than its attribute says."""
    data, weight = shapes.get(node.input[0], ()), shapes.get(node.input[1], ())
    return max(data[1] // weight[1], 1) if len(data) > 1 and len(weight) > 1 and weight[1] else 1


def _stride(node: NodeProto) -> float:
    """How much longer columns take that are not read one after the other."""
    strides = attribute(node, "strides")
    return _STRIDED if isinstance(strides, list) and max(strides) > 1 else 1.0


def _is_blocked(target: Target, groups: int, read: int, out: int) -> bool:
    if groups > 1 and read == out == 1:
        return groups % 4 == 0
    if groups > 1:
        return read % target.block == out % target.block == 0
    return read < target.block or read % 4 == 0
