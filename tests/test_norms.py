"""Norms of kernel slices against numpy's FFT on a fine grid, and against what a convolution does to signals."""

from __future__ import annotations

import sys
from itertools import product
from typing import Any

import numpy as np
import pytest
from exactness import model_of
from numpy.typing import NDArray

from onnxprune.channels import Contraction
from onnxprune.graph import Graph
from onnxprune.ops import build_map
from onnxprune.passes.norms import NORMS, frobenius_block, operator_block, operator_norms, slices
from onnxprune.passes.spectra import PRECISION, default_points, interpolation_loss

Floats = NDArray[np.float64]

FINE = 256  # points of the grid that is taken for the truth, per axis
PRECISE = 0.01  # what the grid of the package may miss by


def random(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape)


def by_fft(kernel: Floats, strides: tuple[int, ...]) -> float:
    """Largest √Σ|FFT of a phase|² over the phases x ≡ p (mod s) of one kernel."""
    points = FINE if kernel.ndim < 3 else 64
    energy: Floats = np.zeros((points,) * kernel.ndim)
    for phase in product(*(range(s) for s in strides)):
        part = kernel[tuple(slice(p, None, s) for p, s in zip(phase, strides, strict=True))]
        if part.size:
            energy += np.abs(np.fft.fftn(part, energy.shape, range(part.ndim))) ** 2
    return float(np.sqrt(energy.max()))


KERNELS: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((3,), (1,)),
    ((5,), (2,)),
    ((4,), (4,)),
    ((3, 3), (1, 1)),
    ((3, 3), (2, 2)),
    ((5, 2), (1, 2)),
    ((7, 7), (2, 2)),
    ((1, 3), (1, 1)),
    ((3, 3), (1, 3)),
    ((2, 2), (2, 2)),
    ((3, 3), (4, 4)),
    ((3, 3, 3), (1, 1, 1)),
    ((3, 2, 3), (2, 1, 2)),
]


@pytest.mark.parametrize(("kernel", "strides"), KERNELS)
def test_operator_norm_is_the_largest_magnitude_of_the_spectrum(
    kernel: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    w = random(4, 3, *kernel)
    expected = np.array([[by_fft(slice_, strides) for slice_ in row] for row in w])
    found = operator_norms(w, list(strides))
    assert np.all(found <= expected * 1.001)  # both are maxima over a grid; the other one is finer
    assert np.all(found >= expected * (1 - PRECISE))


def test_a_finer_grid_finds_no_less() -> None:
    w = random(4, 3, 5, 5)
    coarse, fine = (operator_norms(w, None, points) for points in (16, 128))
    assert np.all(fine >= coarse * (1 - 1e-9))


@pytest.mark.parametrize("points", [8, 16, 32])
def test_the_error_stays_within_its_bound(points: int) -> None:
    w = random(64, 8, 3, 3)
    exact, found = operator_norms(w, None, 1024), operator_norms(w, None, points)
    assert np.all(found >= exact * (np.sqrt(1 - interpolation_loss((3, 3), [points, points])) - 1e-6))


TRANSFORMS: list[tuple[int, ...]] = [(3,), (5,), (3, 3), (4, 2), (5, 5), (1, 3), (3, 3, 3), (2, 1, 3)]


@pytest.mark.parametrize("kernel", TRANSFORMS)
def test_the_default_grid_misses_by_less_than_a_percent(kernel: tuple[int, ...]) -> None:
    """Of kernels of all kinds: random, smooth, of one sign, with an edge, sparse; against a finer grid."""
    rng = np.random.default_rng(1)
    w = rng.standard_normal((5, 200 // 4 ** len(kernel), *kernel))
    w[1] = np.cumsum(w[1], axis=-1)
    w[2] = np.abs(w[2])
    w[3] = np.sign(w[3])
    w[4] *= rng.random(w[4].shape) < 0.4
    fine = [(4 if len(kernel) < 3 else 2) * n for n in default_points(kernel)]
    exact = np.abs(np.fft.fftn(w.reshape(-1, *kernel), fine, range(1, w.ndim - 1))).reshape(w.shape[0] * w.shape[1], -1)
    found = operator_norms(w).ravel()
    assert np.all(found >= exact.max(axis=1) * (1 - PRECISION))
    assert np.all(found <= exact.max(axis=1) * (1 + 1e-9))


@pytest.mark.parametrize(
    ("kernel", "points"), [((3, 3), 32), ((3, 3), 100), ((3, 3), 128), ((2, 2, 2), 33), ((3,), 401)]
)
def test_looking_at_part_of_a_grid_finds_what_all_of_it_has(kernel: tuple[int, ...], points: int) -> None:
    """Kernels whose spectra have many peaks of nearly equal height, or none."""
    rng = np.random.default_rng(2)
    w = rng.standard_normal((6, 100, *kernel)).astype(np.float32)
    w[1] = np.sign(w[1])
    w[2] *= rng.random(w[2].shape) < 0.3
    w[3, :, ..., 0] = w[3, :, ..., -1]
    w[4] *= 1e-3
    w[4].reshape(100, -1)[:, 0] = 1
    w[5] = 0
    axes, rows = tuple(range(len(kernel))), w.reshape(-1, *kernel).astype(np.float64)
    exact = [np.abs(np.fft.fftn(row, (points,) * len(kernel), axes)).max() for row in rows]
    np.testing.assert_allclose(operator_norms(w, None, points).ravel(), exact, rtol=2e-6)


@pytest.mark.parametrize(("kernel", "strides"), KERNELS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_compiled_search_finds_the_same(
    kernel: tuple[int, ...], strides: tuple[int, ...], dtype: type[np.floating[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    w = random(7, 43, *kernel).astype(dtype)
    w[1] = 0
    expected = operator_norms(w, list(strides))
    monkeypatch.setattr("onnxprune.passes.spectra._COMPILED_FROM", 0)
    monkeypatch.setattr("onnxprune.passes.spectra._coefficients", None)  # of the other search
    found = operator_norms(w, list(strides))
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=2e-6 if dtype is np.float32 else 1e-13)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_the_compiled_search_does_not_hide_what_is_no_number(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    w = np.ones((2, 3, 3, 3), np.float32)
    w[0, 1, 2, 2] = value
    monkeypatch.setattr("onnxprune.passes.spectra._COMPILED_FROM", 0)
    found = operator_norms(w)
    assert not np.isfinite(found[0, 1])
    assert np.all(np.isfinite(np.delete(found.ravel(), 1)))


def test_without_numba_norms_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    w = random(4, 5, 3, 3)
    expected = operator_norms(w)
    monkeypatch.setattr("onnxprune.passes.spectra._COMPILED_FROM", 0)
    monkeypatch.setitem(sys.modules, "onnxprune.passes.compiled_spectra", None)
    assert np.array_equal(operator_norms(w), expected)


def test_a_single_element_has_its_magnitude() -> None:
    w = random(4, 3, 1, 1)
    assert np.array_equal(operator_norms(w), np.abs(w[..., 0, 0]))


def test_no_signal_is_amplified_by_more() -> None:
    """The norm bounds what a strided convolution of one channel does to a signal, and some signal nearly reaches it."""
    kernel = random(5)
    norm = float(operator_norms(kernel[None, None], [2])[0, 0])
    rows = np.zeros((200, 404))
    for i, row in enumerate(rows):
        row[2 * i : 2 * i + 5] = kernel
    assert norm * (1 - PRECISE) <= float(np.linalg.norm(rows, 2)) <= norm * (1 + PRECISE)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_norms_have_the_precision_of_the_weights(dtype: type[np.floating[Any]]) -> None:
    w = random(2, 2, 3, 3)
    found = operator_norms(w.astype(dtype))
    assert found.dtype == dtype
    np.testing.assert_allclose(found, operator_norms(w), rtol=1e-5)


# ---- the weights of every operator as [out, in, kernel] -------------------------------------------------------------


def only_contraction(text: str, **weights: Any) -> tuple[Any, Contraction]:
    channel_map = build_map(Graph(model_of(text, **weights)))
    (contraction,) = channel_map.contractions
    return channel_map, contraction


IMAGE = "(float[1,6,9,9] x) => (float[A,B,C,D] y)"
VECTOR = "(float[2,6] x) => (float[A,B] y)"


def test_conv_is_as_stored() -> None:
    w = random(4, 6, 3, 3).astype(np.float32)
    found = slices(*only_contraction(f"{IMAGE} {{ y = Conv(x, w) }}", w=w))
    assert np.array_equal(found, w)


def test_grouped_conv_has_the_inputs_of_its_group() -> None:
    w = random(4, 3, 3, 3).astype(np.float32)
    channel_map, c = only_contraction(f"{IMAGE} {{ y = Conv<group=2>(x, w) }}", w=w)
    assert np.array_equal(slices(channel_map, c), w)
    assert c.groups == 2


def test_transposed_conv_is_turned() -> None:
    w = random(6, 4, 3, 3).astype(np.float32)
    found = slices(*only_contraction(f"{IMAGE} {{ y = ConvTranspose(x, w) }}", w=w))
    assert np.array_equal(found, w.swapaxes(0, 1))


def test_grouped_transposed_conv_is_turned_group_by_group() -> None:
    w = random(6, 2, 3, 3).astype(np.float32)
    found = slices(*only_contraction(f"{IMAGE} {{ y = ConvTranspose<group=3>(x, w) }}", w=w))
    assert found.shape == (6, 2, 3, 3)
    for out in range(6):
        group = out // 2
        for i in range(2):
            assert np.array_equal(found[out, i], w[2 * group + i, out % 2])


@pytest.mark.parametrize("flipped", [0, 1])
def test_gemm_is_out_by_in(flipped: int) -> None:
    w = random(4, 6).astype(np.float32)
    stored = w if flipped else np.ascontiguousarray(w.T)
    found = slices(*only_contraction(f"{VECTOR} {{ y = Gemm<transB={flipped}>(x, w) }}", w=stored))
    assert np.array_equal(found, w)


def test_matmul_is_out_by_in() -> None:
    w = random(6, 4).astype(np.float32)
    found = slices(*only_contraction(f"{VECTOR} {{ y = MatMul(x, w) }}", w=w))
    assert np.array_equal(found, w.T)


def test_weights_behind_other_nodes_are_computed() -> None:
    w = random(6, 4).astype(np.float16)
    text = f"{VECTOR} {{ c = Cast<to=1>(w) t = Transpose(c) y = Gemm<transB=1>(x, t) }}"
    found = slices(*only_contraction(text, w=w))
    assert np.array_equal(found, w.T.astype(np.float32))


def test_quantised_weights_count_what_they_stand_for() -> None:
    w = np.random.default_rng(0).integers(-100, 100, (4, 6, 3, 3)).astype(np.int8)
    scale, point = np.array([0.5, 1, 2, 0.1], np.float32), np.array([0, 1, -2, 3], np.int8)
    text = f"{IMAGE} {{ d = DequantizeLinear<axis=0>(w, s, p) y = Conv(x, d) }}"
    found = slices(*only_contraction(text, w=w, s=scale, p=point))
    expected = (w.astype(np.float32) - point[:, None, None, None]) * scale[:, None, None, None]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_strides_of_the_node_are_used() -> None:
    w = random(4, 6, 3, 3).astype(np.float32)
    found = operator_block(*only_contraction(f"{IMAGE} {{ y = Conv<strides=[2,2]>(x, w) }}", w=w))
    np.testing.assert_allclose(found, operator_norms(w, [2, 2]))
    assert not np.allclose(found, operator_norms(w))


def test_frobenius_norm_is_numpys() -> None:
    w = random(4, 6, 3, 3).astype(np.float32)
    found = frobenius_block(*only_contraction(f"{IMAGE} {{ y = Conv(x, w) }}", w=w))
    np.testing.assert_allclose(found, np.linalg.norm(w, axis=(2, 3)), rtol=1e-6)


def test_the_operator_norm_of_a_matrix_entry_is_its_magnitude() -> None:
    w = random(6, 4).astype(np.float32)
    assert np.array_equal(operator_block(*only_contraction(f"{VECTOR} {{ y = MatMul(x, w) }}", w=w)), np.abs(w.T))


# ---- against matrices and loops that spell out the definition -------------------------------------------------------


def matrix_of(kernel: Floats, stride: int, dilation: int, outputs: int = 60) -> Floats:
    """The convolution of a 1-D signal of one channel, as a matrix."""
    rows = np.zeros((outputs, stride * (outputs - 1) + dilation * (len(kernel) - 1) + 1))
    for i, row in enumerate(rows):
        row[i * stride : i * stride + dilation * (len(kernel) - 1) + 1 : dilation] = kernel
    return rows


@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_stride_and_dilation_together_give_the_norm_of_the_matrix(stride: int, dilation: int) -> None:
    w = random(3, 2, 5, seed=stride)
    found = operator_norms(w, [stride], dilations=[dilation])
    for kernel, norm in zip(w.reshape(-1, 5), found.ravel(), strict=True):
        exact = float(np.linalg.norm(matrix_of(kernel, stride, dilation, 400), 2))
        assert norm == pytest.approx(exact, rel=PRECISE)


def test_a_transposed_convolution_has_the_norm_of_its_matrix() -> None:
    w = random(2, 3, 4, 4, seed=5).astype(np.float32)
    text = "(float[1,2,9,9] x) => (float[A,B,C,D] y) { y = ConvTranspose<strides=[2,3]>(x, w) }"
    found = operator_block(*only_contraction(text, w=w))
    assert found.shape == (3, 2)
    for out, i in product(range(3), range(2)):
        rows = np.zeros((14 * 14, 14 * 2 + 2, 14 * 3 + 1))
        for row, (a, b) in enumerate(product(range(14), range(14))):
            rows[row, 2 * a : 2 * a + 4, 3 * b : 3 * b + 4] = w[i, out]
        exact = float(np.linalg.norm(rows.reshape(len(rows), -1), 2))
        assert found[out, i] == pytest.approx(exact, rel=3 * PRECISE)


@pytest.mark.parametrize(("kernel", "dilation"), [((3, 3), 1), ((3, 3), 2), ((3, 3), 5), ((5, 2), 6), ((7,), 4)])
def test_a_grid_is_that_of_the_transform(kernel: tuple[int, ...], dilation: int) -> None:
    w = random(4, 3, *kernel)
    wide = np.zeros((4, 3, *(dilation * (k - 1) + 1 for k in kernel)))
    wide[(slice(None), slice(None), *(slice(None, None, dilation) for _ in kernel))] = w
    axes = tuple(range(2, w.ndim))
    for grid in (32, 45, 128, 300):  # some are looked at in part only
        exact = np.abs(np.fft.fftn(wide, (grid,) * len(kernel), axes)).max(axis=axes)
        found = operator_norms(w, None, grid, [dilation] * len(kernel))
        np.testing.assert_allclose(found, exact, rtol=1e-12)


@pytest.mark.parametrize("shape", [(4, 6, 3, 3), (4, 6, 5, 2)])
def test_other_norms_are_numpys(shape: tuple[int, ...]) -> None:
    w = random(*shape).astype(np.float32)
    held = only_contraction(f"{IMAGE} {{ y = Conv(x, w) }}", w=w)
    for name, exact in (("l1", np.abs(w).sum(axis=(2, 3))), ("l2", np.sqrt((w**2).sum(axis=(2, 3)))),
                        ("nuclear", np.linalg.norm(w, "nuc", axis=(2, 3)))):  # fmt: skip
        np.testing.assert_allclose(NORMS[name](*held), exact, rtol=1e-5)


@pytest.mark.parametrize("name", NORMS)
def test_the_norm_of_a_number_is_its_magnitude(name: str) -> None:
    w = random(6, 4).astype(np.float32)
    held = only_contraction(f"{VECTOR} {{ y = MatMul(x, w) }}", w=w)
    np.testing.assert_allclose(NORMS[name](*held), np.abs(w.T), rtol=1e-6)


def test_the_nuclear_norm_of_a_vector_is_its_length() -> None:
    w = random(4, 6, 5).astype(np.float32)
    held = only_contraction("(float[1,6,9] x) => (float[A,B,C] y) { y = Conv(x, w) }", w=w)
    np.testing.assert_allclose(NORMS["nuclear"](*held), np.linalg.norm(w, axis=2), rtol=1e-5)


def test_the_nuclear_norm_of_a_volume_unfolds_its_first_axis() -> None:
    w = random(2, 3, 3, 2, 2).astype(np.float32)
    held = only_contraction("(float[1,3,9,9,9] x) => (float[A,B,C,D,E] y) { y = Conv(x, w) }", w=w)
    exact = [[np.linalg.norm(held.reshape(3, 4), "nuc") for held in row] for row in w]
    np.testing.assert_allclose(NORMS["nuclear"](*held), exact, rtol=1e-5)
