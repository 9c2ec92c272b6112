"""What has to agree in operators that multiply by a matrix or a kernel.

Each function takes the positions of its operands, since quantised and fused forms have them elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from onnxprune.consistency.site import Site, Size
from onnxprune.graph import attribute

__all__ = ["bias_of_last", "conv", "conv_transpose", "einsum", "fused_matmul", "gemm", "matmul"]


@dataclass(frozen=True)
class _Conv:
    data: int
    weight: int
    bias: int | None

    def __call__(self, site: Site) -> None:
        """X [N, C, …] (or, with channels_last, [N, …, C]), W [M, C / group, k…], B [M]; C and M are multiples of group;
        k is kernel_shape.

        https://onnx.ai/onnx/operators/onnx__Conv.html
        """
        axis = -1 if site.integer("channels_last", 0) else 1
        group, channels, filters = site.integer("group", 1), site.size(self.data, axis), site.size(self.weight, 0)
        site.expect_rank(self.weight, site.rank(self.data), "as its data")
        site.expect_multiple(self.data, axis, group, "group")
        site.expect_multiple(self.weight, 0, group, "group")
        site.expect_size(self.weight, 1, None if channels is None else channels // max(group, 1), "channels / group")
        if self.bias is not None:
            site.expect_shape(self.bias, [filters], "one bias a filter")
        _expect_kernel(site, self.weight)


@dataclass(frozen=True)
class _ConvTranspose:
    def __call__(self, site: Site) -> None:
        """X [N, C, …], W [C, M / group, k…], B [M].  https://onnx.ai/onnx/operators/onnx__ConvTranspose.html"""
        group, part = site.integer("group", 1), site.size(1, 1)
        site.expect_rank(1, site.rank(0), "as its data")
        site.expect_multiple(0, 1, group, "group")
        site.expect_size(1, 0, site.size(0, 1), "channels")
        site.expect_shape(2, [None if part is None else part * group], "one bias a filter")
        _expect_kernel(site, 1)


def _expect_kernel(site: Site, weight: int) -> None:
    kernel, shape = site.integers("kernel_shape"), site.shape(weight)
    if kernel is not None and shape is not None:
        site.expect_shape(weight, [*shape[:2], *kernel], "kernel_shape")


def conv(data: int = 0, weight: int = 1, bias: int | None = 2) -> Callable[[Site], None]:
    return _Conv(data, weight, bias)


conv_transpose = _ConvTranspose()


def gemm(a: int = 0, b: int = 1, c: int = 2) -> Callable[[Site], None]:
    def rule(site: Site) -> None:
        """A [M, K], B [K, N] (each maybe transposed), C broadcasts to [M, N].

        https://onnx.ai/onnx/operators/onnx__Gemm.html
        """
        flip_a, flip_b = site.integer("transA", 0), site.integer("transB", 0)
        site.expect_rank(a, 2, "a matrix")
        site.expect_rank(b, 2, "a matrix")
        site.expect_size(b, 1 if flip_b else 0, site.size(a, 0 if flip_a else 1), "columns of A")
        site.expect_onto(c, (site.size(a, 1 if flip_a else 0), site.size(b, 0 if flip_b else 1)), "A·B")

    return rule


def matmul(a: int = 0, b: int = 1) -> Callable[[Site], None]:
    def rule(site: Site) -> None:
        """A […, M, K], B […, K, N]; what stands before broadcasts.  https://onnx.ai/onnx/operators/onnx__MatMul.html"""
        _expect_product(site, a, b, (-1, -2))

    return rule


def fused_matmul(site: Site) -> None:
    """A matrix product with either operand transposed: com.microsoft.FusedMatMul."""
    if not site.integer("transBatchA", 0) and not site.integer("transBatchB", 0):
        _expect_product(site, 0, 1, (-2 if site.integer("transA", 0) else -1, -1 if site.integer("transB", 0) else -2))


def _expect_product(site: Site, a: int, b: int, inner: tuple[int, int]) -> None:
    left, right = site.shape(a), site.shape(b)
    if left is None or right is None:
        return
    common = left[inner[0] if len(left) > 1 else 0]
    site.expect_size(b, inner[1] if len(right) > 1 else 0, common, f"as '{site.node.input[a]}' along axis {inner[0]}")
    site.expect_pairs(b, right[:-2], left[:-2])


def bias_of_last(k: int, of: int, axis: int = -1) -> Callable[[Site], None]:
    """Input k is a vector as long as an axis of input ``of``."""

    def rule(site: Site) -> None:
        site.expect_shape(k, [site.size(of, axis)], f"as '{site.node.input[of]}' along axis {axis}")

    return rule


def einsum(site: Site) -> None:
    """A letter has the same size wherever it stands (or 1).  https://onnx.ai/onnx/operators/onnx__Einsum.html"""
    equation = attribute(site.node, "equation")
    if not isinstance(equation, str) or "." in equation:
        return
    terms = equation.replace(" ", "").split("->")[0].split(",")
    sizes: dict[str, Size] = {}
    for k, term in enumerate(terms):
        site.expect_rank(k, len(term), f"'{term}'")
        for axis, letter in enumerate(term):
            if sizes.get(letter) in (None, 1):
                sizes[letter] = site.size(k, axis)
            elif site.size(k, axis) != 1:
                site.expect_size(k, axis, sizes[letter], f"letter '{letter}'")
