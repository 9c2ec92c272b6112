"""What has to agree in element-wise operators."""

from __future__ import annotations

from collections.abc import Callable

from onnxprune.consistency.site import Site

__all__ = ["broadcast", "broadcast_at", "clip", "expand", "prelu"]

_BROADCASTS = 7  # the opset from which operands broadcast as in numpy; before, an attribute said how


def broadcast(site: Site) -> None:
    """All operands broadcast together.  https://onnx.ai/onnx/repo-docs/Broadcasting.html"""
    if site.opset >= _BROADCASTS:
        site.expect_broadcast(*range(len(site.node.input)))


def broadcast_at(*inputs: int) -> Callable[[Site], None]:
    """These operands broadcast together (the others are scales and zero points)."""
    return lambda site: site.expect_broadcast(*inputs)


def prelu(site: Site) -> None:
    """The slope broadcasts to the data.  https://onnx.ai/onnx/operators/onnx__PRelu.html"""
    shape = site.shape(0)
    if site.opset >= _BROADCASTS and site.shape(1) != (1,):
        site.expect_onto(1, shape, "the data")


def clip(site: Site) -> None:
    """Bounds are single numbers.  https://onnx.ai/onnx/operators/onnx__Clip.html"""
    for k in (1, 2):
        site.expect_vector_or_one(k, 1, "a bound")


def expand(site: Site) -> None:
    """The data and the target shape broadcast.  https://onnx.ai/onnx/operators/onnx__Expand.html"""
    shape, target = site.shape(0), site.numbers(1)
    if shape is not None and target is not None:
        site.expect_pairs(0, shape, tuple(target))
