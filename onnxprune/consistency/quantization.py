"""What has to agree in quantised operators, beside what the operator itself asks for."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from onnxprune.consistency.movement import concat_at
from onnxprune.consistency.site import Site

__all__ = ["linear", "linear_concat", "packed_matmul", "per_filter", "single"]


def linear(site: Site) -> None:
    """scale and zero point are single, or one for each index of the axis (or, blocked, of the data's rank).

    https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html
    """
    axis, scale = site.integer("axis", 1), site.shape(1)
    if scale is None or (len(scale) > 1 and not site.integer("block_size", 0)):
        return
    if len(scale) <= 1:
        site.expect_vector_or_one(1, site.size(0, axis), f"one for each index of axis {axis}")
    else:
        _expect_blocks(site, axis)
    if len(scale) > 1:
        site.expect_shape(2, scale, "as the scale")
    else:
        site.expect_vector_or_one(2, (*scale, 1)[0], "as the scale")


def _expect_blocks(site: Site, axis: int) -> None:
    shape, block = site.shape(0), site.integer("block_size", 0)
    if shape is not None and -len(shape) <= axis < len(shape):
        blocks = [None if n is None else -(-n // block) for n in shape]
        wanted = [blocks[a] if a == axis % len(shape) else n for a, n in enumerate(shape)]
        site.expect_shape(1, wanted, f"blocks of {block} along axis {axis}")


def per_filter(weight: int, axis: int, *parameters: int) -> Callable[[Site], None]:
    """Parameters are single, or one for each index of an axis of the weight."""

    def rule(site: Site) -> None:
        for k in parameters:
            site.expect_vector_or_one(k, site.size(weight, axis), f"one for each index of axis {axis} of the weight")

    return rule


def single(*parameters: int) -> Callable[[Site], None]:
    """Scales and zero points that are single numbers."""

    def rule(site: Site) -> None:
        for k in parameters:
            site.expect_vector_or_one(k, 1, "a scale or zero point")

    return rule


def packed_matmul(site: Site) -> None:
    """a […, K], B [N, blocks, bytes], scales [N·blocks] in any shape, bias [N]: com.microsoft.MatMulNBits."""
    wide, blocks = site.integer("N", 0), site.size(1, 1)
    site.expect_size(0, -1, site.integer("K", 0) or None, "K")
    site.expect_size(1, 0, wide or None, "N")
    scales = site.shape(2)
    if scales is not None and None not in scales and blocks is not None:
        count = prod(n for n in scales if n is not None)
        site.expect(2, count == wide * blocks, f"{count} scales", f"{wide * blocks} (N, for each of {blocks} blocks)")
    site.expect_shape(5, [wide or None], "N")


def linear_concat(site: Site) -> None:
    """Scale and zero point of the output, then three inputs an operand: com.microsoft.QLinearConcat."""
    concat_at(site, range(2, len(site.node.input), 3), site.integer("axis", 1))
