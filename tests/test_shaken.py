"""A computed number halfway between two steps of a quantisation may become either: that is rounding, not an error."""

from __future__ import annotations

import numpy as np
from exactness import model_of
from onnx import ModelProto

from onnxprune.graph import Graph
from onnxprune.shaken import shaken
from onnxprune.verify import rounding, verify


def at(place: float) -> ModelProto:
    """A model whose hidden number is this many steps, whatever it is fed."""
    step = np.array(0.1, np.float32)
    return model_of(
        "(float[2,3] x) => (float[A,B] y) { a = MatMul(x, w) b = Add(a, c) q = QuantizeLinear(b, s, o) "
        "y = DequantizeLinear(q, s, o) }",
        17,
        w=np.zeros((3, 4), np.float32),
        c=np.array([place * step, 8 * step, 0, 0], np.float32),
        s=step,
        o=np.array(0, np.int8),
    )


def test_a_tie_may_go_either_way() -> None:
    tie, clear = at(2.5), at(2.3)
    assert rounding(tie, verify(tie, tie)) >= 0.1  # a step is an eighth of the largest output
    assert rounding(clear, verify(clear, clear)) < 1e-4


def test_scales_move_in_the_last_places_only() -> None:
    model = at(2.5)
    moved = [Graph(other).values("s") for other in shaken(model)]
    assert moved
    for scale in moved:
        assert scale != Graph(model).values("s")
        assert np.allclose(scale, 0.1, rtol=1e-5)


def test_a_model_that_rounds_nothing_is_not_shaken() -> None:
    weight = model_of(
        "(float[2,3] x) => (float[A,B] y) { f = DequantizeLinear(w, s) y = MatMul(x, f) }",
        17,
        w=np.ones((3, 4), np.int8),
        s=np.array(0.1, np.float32),
    )
    assert not list(shaken(weight))
