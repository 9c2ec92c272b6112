"""Norms known to a few percent until one of them may be the largest: the answers are those of exact norms."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from exactness import model_of
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxprune.graph import Graph
from onnxprune.ops import build_map
from onnxprune.passes.bounds import Bounds, Magnitudes
from onnxprune.passes.flow import channel_blocks, flow
from onnxprune.passes.in_parts import in_parts
from onnxprune.passes.norms import operator_block, operator_logs
from onnxprune.passes.scores import Lean

Floats = NDArray[np.float64]

MODELS: dict[str, tuple[str, dict[str, tuple[int, ...]]]] = {
    "wide": (
        "(float[1,3,16,16] x) => (float[1,5,16,16] y) { a = Conv<pads=[1,1,1,1]>(x, w) b = Relu(a) "
        "c = Conv<pads=[1,1,1,1]>(b, u) d = Relu(c) y = Conv(d, v) }",
        {"w": (48, 3, 3, 3), "u": (40, 48, 3, 3), "v": (5, 40, 1, 1)},
    ),
    "strides, dilations, a transposed and a grouped one": (
        "(float[1,3,16,16] x) => (float[A,B,C,D] y) { a = Conv<strides=[2,2]>(x, w) "
        "b = Conv<dilations=[2,2], pads=[2,2,2,2]>(a, u) c = ConvTranspose<strides=[2,2]>(b, t) "
        "d = Conv<group=4>(c, g) y = Conv(d, v) }",
        {"w": (24, 3, 5, 5), "u": (20, 24, 3, 3), "t": (20, 16, 3, 3), "g": (16, 4, 3, 3), "v": (5, 16, 1, 1)},
    ),
    "one and three axes": (
        "(float[1,3,9] x) => (float[A,B,C] y) { a = Conv(x, w) b = Conv(a, u) y = Conv(b, v) }",
        {"w": (24, 3, 3), "u": (20, 24, 5), "v": (5, 20, 1)},
    ),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("zeros", [0.0, 0.7])
@pytest.mark.parametrize("compiled", [False, True])
def test_paths_are_those_of_exact_norms(
    name: str, zeros: float, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if compiled:
        monkeypatch.setattr("onnxprune.passes.spectra._COMPILED_FROM", 0)
    text, shapes = MODELS[name]
    rng = np.random.default_rng(0)
    weights = {key: rng.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}
    for w in weights.values():
        w[rng.random(w.shape[:2]) < zeros] = 0
    channel_map = build_map(Graph(model_of(text, **weights)))
    assert any(isinstance(operator_logs(channel_map, c), Bounds) for c in channel_map.contractions)
    found, expected = (flow(channel_map, channel_blocks(channel_map, norm)) for norm in (None, operator_block))
    for one, other in ((found.forward, expected.forward), (found.backward, expected.backward)):
        assert np.array_equal(np.isneginf(one), np.isneginf(other))
        np.testing.assert_allclose(one[one > -np.inf], other[other > -np.inf], rtol=0, atol=1e-5)
    on_the_same_grid = Lean(norm_grid=None).scores(channel_map)
    np.testing.assert_allclose(on_the_same_grid[on_the_same_grid < np.inf], expected.through[on_the_same_grid < np.inf],
                               rtol=0, atol=2e-5)  # fmt: skip


def test_few_norms_are_computed_exactly() -> None:
    w = np.random.default_rng(0).standard_normal((256, 256, 3, 3)).astype(np.float32)
    text = "(float[1,256,8,8] x) => (float[A,B,C,D] y) { y = Conv(x, w) }"
    channel_map = build_map(Graph(model_of(text, w=w)))
    found = operator_logs(channel_map, channel_map.contractions[0])
    assert isinstance(found, Bounds)
    found.best_of_rows(np.zeros(256))
    found.best_of_columns(np.zeros(256))
    assert 0 < found.known.mean() < 0.03


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("together", [1, 10, 1 << 18])
@pytest.mark.parametrize("widest", [2, 1 << 12])
@pytest.mark.parametrize("spread", [0, 1, 300])
def test_matrices_are_looked_at_in_parts(
    order: Any, together: int, widest: int, spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values far apart, too, of which products keep only the largest."""
    monkeypatch.setattr(sys.modules[in_parts.__module__], "_TOGETHER", together)
    monkeypatch.setattr(sys.modules[in_parts.__module__], "_WIDEST", widest)
    rng = np.random.default_rng(0)
    w = np.array(rng.standard_normal((7, 5)) * (rng.random((7, 5)) < 0.6), order=order)
    rows, columns = rng.standard_normal(7) * spread, rng.standard_normal(5) * spread
    rows[3] = columns[2] = -np.inf
    with np.errstate(divide="ignore"):
        exact = np.log(np.abs(w))
    for held in (w, w.astype(np.float32)):
        found, atol = Magnitudes(held), 1e-12 if held is w else 1e-5
        by_rows, by_columns = (exact + columns).max(axis=1), (exact + rows[:, None]).max(axis=0)
        np.testing.assert_allclose(found.best_of_rows(columns), by_rows, rtol=0, atol=atol)
        np.testing.assert_allclose(found.best_of_columns(rows), by_columns, rtol=0, atol=atol)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Floats, Floats, float, Floats, Floats]:
    """Exact logarithms, bounds below them, how far at most, and values of the rows and of the columns."""
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    numbers = st.sampled_from([-np.inf, -2.0, -0.5, 0.0, 0.1, 0.2, 0.3, 5.0])
    slack = draw(st.sampled_from([0.0, 0.05, 0.3]))

    def some(*shape: int) -> Floats:
        count = int(np.prod(shape))
        return np.array(draw(st.lists(numbers, min_size=count, max_size=count)), np.float64).reshape(shape)

    exact = some(rows, columns)
    off = np.array(draw(st.lists(st.floats(0, 1), min_size=exact.size, max_size=exact.size))).reshape(exact.shape)
    return exact, exact - off * slack * 0.999, slack, some(rows), some(columns)


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(cases(), st.sampled_from([1, 7, 1 << 18]), st.booleans())
def test_the_largest_is_found(
    case: tuple[Floats, Floats, float, Floats, Floats], together: int, is_transposed: bool
) -> None:
    exact, low, slack, of_rows, of_columns = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[in_parts.__module__], "_TOGETHER", together)
        found = Bounds(low.astype(np.float32), slack + 1e-5, lambda out, into: exact[out, into].astype(np.float32))
        steps = [(found.best_of_rows, of_columns, (exact + of_columns).max(axis=1)),
                 (found.best_of_columns, of_rows, (exact + of_rows[:, None]).max(axis=0))]  # fmt: skip
        for best, values, expected in steps[::-1] if is_transposed else steps:
            np.testing.assert_allclose(best(values), expected, rtol=1e-6, atol=1e-6)


def test_what_is_no_number_stays_none() -> None:
    low = np.array([[0, np.nan], [1, 2]], np.float32)
    found = Bounds(low, 0.1, lambda out, into: low[out, into])
    assert np.array_equal(found.best_of_rows(np.zeros(2)), [np.nan, 2], equal_nan=True)
    assert np.array_equal(found.best_of_columns(np.zeros(2)), [1, np.nan], equal_nan=True)
