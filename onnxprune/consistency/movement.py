"""What has to agree in operators that move, cut and join."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

from onnxprune.consistency.site import Site
from onnxprune.graph import attribute

__all__ = [
    "axes_exist",
    "axis_exists",
    "concat",
    "concat_at",
    "depth_to_space",
    "gather",
    "gather_elements",
    "pad",
    "pool",
    "reshape",
    "resize",
    "reverse_sequence",
    "scatter_elements",
    "scatter_nd",
    "slice_",
    "space_to_depth",
    "split",
    "squeeze",
    "tile",
    "top_k",
    "transpose",
    "unpool",
    "upsample",
]


def concat_at(site: Site, inputs: Sequence[int], axis: int) -> None:
    """Operands have the same rank, and the same sizes but along the axis."""
    first = next((k for k in inputs if site.shape(k) is not None), None)
    if first is None:
        return
    like = site.shape(first) or ()
    for k in inputs:
        wanted = [None if a == axis % max(len(like), 1) else n for a, n in enumerate(like)]
        site.expect_shape(k, wanted, f"as '{site.node.input[first]}', but for axis {axis}")
    _expect_sum(site, inputs, axis)


def _expect_sum(site: Site, inputs: Sequence[int], axis: int) -> None:
    sizes, out = [site.size(k, axis) for k in inputs], site.out()
    made = out[axis] if out is not None and -len(out) <= axis < len(out) else None
    known = [n for n in sizes if n is not None]
    if made is not None and len(known) == len(sizes) and made != sum(known):
        site.fault(site.node.output[0], f"size {made} along axis {axis}", f"{sum(known)} (what is joined)")


def concat(site: Site) -> None:
    """https://onnx.ai/onnx/operators/onnx__Concat.html"""
    concat_at(site, range(len(site.node.input)), site.integer("axis", 1))


def split(site: Site) -> None:
    """The parts add up to the axis, and are as many as there are outputs.

    https://onnx.ai/onnx/operators/onnx__Split.html
    """
    axis, outputs = site.integer("axis", 0), len(site.node.output)
    parts, size = site.integers("split") or site.numbers(1), site.size(0, axis)
    if size is None:
        return
    if parts is not None and any(parts):  # nothing to divide: a size of 0 is also how some models declare an open one
        site.expect(0, sum(parts) == size, f"size {size} along axis {axis}", f"{sum(parts)} (the sum of {parts})")
        site.expect(0, len(parts) == outputs, f"{outputs} outputs", f"{len(parts)} (as many as parts)")
    elif parts is None and not site.has(1) and site.opset < 18:
        site.expect_multiple(0, axis, outputs, "equal parts")


def slice_(site: Site) -> None:
    """Axes exist, and no step is 0.  https://onnx.ai/onnx/operators/onnx__Slice.html"""
    axes_exist(site, 3)
    starts, ends, steps = (site.numbers(k) for k in (1, 2, 4))
    if starts is not None and ends is not None:
        site.expect(1, len(starts) == len(ends), f"{len(starts)} starts", f"{len(ends)} (as many as ends)")
    site.expect(4, not steps or 0 not in steps, "a step of 0", "another step")


def gather(site: Site) -> None:
    """Indices lie on the axis.  https://onnx.ai/onnx/operators/onnx__Gather.html"""
    axis_exists(0)(site)
    _expect_indices(site, site.integer("axis", 0))


def gather_elements(site: Site) -> None:
    """Indices lie on the axis; data and indices have the same rank.

    https://onnx.ai/onnx/operators/onnx__GatherElements.html
    """
    site.expect_rank(1, site.rank(0), "as the data")
    _expect_indices(site, site.integer("axis", 0))


def _expect_indices(site: Site, axis: int) -> None:
    size, indices = site.size(0, axis), site.numbers(1)
    if size is not None and indices:
        low, high = min(indices), max(indices)
        site.expect(1, -size <= low and high < size, f"indices from {low} to {high}", f"-{size} to {size - 1}")


def scatter_elements(site: Site) -> None:
    """As many updates as indices, of the rank of the data.

    https://onnx.ai/onnx/operators/onnx__ScatterElements.html
    """
    gather_elements(site)
    indices = site.shape(1)
    if indices is not None:
        site.expect_shape(2, indices, "as the indices")


def scatter_nd(site: Site) -> None:
    """indices […, k], updates: what k indices leave of the data, for each.

    https://onnx.ai/onnx/operators/onnx__ScatterND.html
    """
    data, indices = site.shape(0), site.shape(1)
    if data is None or not indices or indices[-1] is None:
        return
    site.expect(1, indices[-1] <= len(data), f"{indices[-1]} indices of a place", f"at most {len(data)}")
    site.expect_shape(2, (*indices[:-1], *data[indices[-1] :]), "what is left at the indices")


def unpool(site: Site) -> None:
    """An index for every number.  https://onnx.ai/onnx/operators/onnx__MaxUnpool.html"""
    shape = site.shape(0)
    if shape is not None:
        site.expect_shape(1, shape, "as the data")


def reverse_sequence(site: Site) -> None:
    """A length for each of the batch.  https://onnx.ai/onnx/operators/onnx__ReverseSequence.html"""
    site.expect_shape(1, [site.size(0, site.integer("batch_axis", 1))], "one a sequence")


def reshape(site: Site) -> None:
    """As many elements as before.  https://onnx.ai/onnx/operators/onnx__Reshape.html

    (Nothing is said of a result without elements: a size of 0 is also how some models declare an open one.)
    """
    shape, out, target = site.shape(0), site.out(), site.integers("shape") or site.numbers(1)
    if shape is None or 0 in (out or ()):
        return
    if out is not None and (None in out or None not in shape):
        found, made = (site.elements(name) for name in (site.node.input[0], site.node.output[0]))
        fits = any(a == b for a, b in zip(found, made, strict=True))
        site.expect(0, fits, f"{found[0]} elements {list(shape)}", f"{made[0]} ({list(out)})")
    elif target is not None and None not in shape and not site.integer("allowzero", 0):
        sizes = [shape[a] if n == 0 and a < len(shape) else n for a, n in enumerate(target)]
        left = prod(n for n in sizes if n is not None and n != -1)
        whole = prod(n for n in shape if n is not None)
        fits = left > 0 and (whole % left == 0 if -1 in sizes else left == whole)
        site.expect(0, fits, f"{whole} elements {list(shape)}", f"what fits {target}")


def squeeze(site: Site) -> None:
    """Only axes of size 1 are left out.  https://onnx.ai/onnx/operators/onnx__Squeeze.html"""
    axes_exist(site, 1)
    for axis in site.axes(1) or []:
        site.expect_size(0, axis, 1, "left out")


def transpose(site: Site) -> None:
    """perm names every axis once.  https://onnx.ai/onnx/operators/onnx__Transpose.html"""
    perm, rank = site.integers("perm"), site.rank(0)
    if perm is not None and rank is not None:
        site.expect(0, sorted(perm) == list(range(rank)), f"rank {rank}", f"that of perm {perm}")


def tile(site: Site) -> None:
    """One count an axis.  https://onnx.ai/onnx/operators/onnx__Tile.html"""
    if site.opset >= 6:
        site.expect_shape(1, [site.rank(0)], "one count an axis")


def pad(site: Site) -> None:
    """Two amounts an axis; what is mirrored is there.  https://onnx.ai/onnx/operators/onnx__Pad.html"""
    pads, shape = site.integers("pads") or site.numbers(1), site.shape(0)
    if pads is None or shape is None or (site.has(3) and site.numbers(3) is None):
        return
    axes = [a % max(len(shape), 1) for a in (site.numbers(3) or range(len(shape)))]
    site.expect(1, len(pads) == 2 * len(axes), f"{len(pads)} amounts", f"{2 * len(axes)} (two an axis)")
    if attribute(site.node, "mode") == "reflect" and len(pads) == 2 * len(axes):
        for i, axis in enumerate(axes):
            most, size = max(pads[i], pads[i + len(axes)], 0), shape[axis]
            if size is not None:
                site.expect(0, most < max(size, 1), f"size {size} along axis {axis}", f"more than {most} (mirrored)")


def resize(site: Site) -> None:
    """One scale or size an axis (of those in ``axes``).  https://onnx.ai/onnx/operators/onnx__Resize.html"""
    if site.opset < 11:
        upsample(site)
        return
    axes, rank = site.integers("axes"), site.rank(0)
    count = rank if axes is None else len(axes)
    for k in (2, 3):
        if site.shape(k) != (0,):
            site.expect_shape(k, [count], "one an axis")


def upsample(site: Site) -> None:
    """One scale an axis.  https://onnx.ai/onnx/operators/onnx__Upsample.html"""
    site.expect_shape(1, [site.rank(0)], "one an axis")


def depth_to_space(site: Site) -> None:
    """C is a multiple of blocksize².  https://onnx.ai/onnx/operators/onnx__DepthToSpace.html"""
    site.expect_multiple(0, 1, site.integer("blocksize", 1) ** 2, "blocksize²")


def space_to_depth(site: Site) -> None:
    """H and W are multiples of blocksize.  https://onnx.ai/onnx/operators/onnx__SpaceToDepth.html"""
    for axis in (2, 3):
        site.expect_multiple(0, axis, site.integer("blocksize", 1), "blocksize")


def pool(site: Site) -> None:
    """The window has the rank of the space.  https://onnx.ai/onnx/operators/onnx__MaxPool.html"""
    kernel, rank = site.integers("kernel_shape"), site.rank(0)
    if kernel is not None and rank is not None:
        site.expect(0, len(kernel) == rank - 2, f"rank {rank}", f"{len(kernel) + 2} (the window is {kernel})")


def top_k(site: Site) -> None:
    """Not more than there are.  https://onnx.ai/onnx/operators/onnx__TopK.html"""
    axis, k = site.integer("axis", -1), site.numbers(1)
    size, most = site.size(0, axis), site.integer("k", 0) if k is None else max(k, default=0)
    if size is not None:
        site.expect(0, most <= size, f"size {size} along axis {axis}", f"at least k = {most}")


def axis_exists(default: int) -> Callable[[Site], None]:
    """The axis is one of the data."""

    def rule(site: Site) -> None:
        axis, rank = site.integer("axis", default), site.rank(0)
        if rank:
            site.expect(0, -rank <= axis < rank, f"rank {rank}", f"one that has an axis {axis}")

    return rule


def axes_exist(site: Site, k: int = 1) -> None:
    """The axes are among those of the data."""
    axes, rank = site.axes(k), site.rank(0)
    if axes is not None and rank is not None:
        site.expect(0, all(-rank <= a < rank for a in axes), f"rank {rank}", f"one that has the axes {axes}")
