"""What has to agree in quantised operators, beside what the operator itself asks for."""

from __future__ import annotations

from collections.abc import Callable

from onnxprune.consistency.movement import concat_at
from onnxprune.consistency.site import Site

__all__ = ["linear", "linear_concat", "per_filter", "single"]


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


def linear_concat(site: Site) -> None:
    """Scale and zero point of the output, then three inputs an operand: com.microsoft.QLinearConcat."""
    concat_at(site, range(2, len(site.node.input), 3), site.integer("axis", 1))
