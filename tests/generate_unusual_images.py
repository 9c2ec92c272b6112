"""Steps of a random model for images with the attributes that are seldom set: automatic padding, rounding up, dilation
of a window, sampling at other places, padding with other numbers, convolutions in one and three dimensions.

A step appends nodes and returns the new tensor, or None where it does not apply.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from generate import Builder, Value
from generate_any import activation, resized
from onnx import TensorProto

__all__ = ["UNUSUAL_IMAGE"]

Step = Callable[[Builder, Value], Value | None]


def _groups(b: Builder, channels: int) -> int:
    return b.pick([g for g in range(1, channels + 1) if channels % g == 0]) if b.chance(2) else 1


def _weighted(b: Builder, x: Value, shape: tuple[int, ...], bias: int) -> list[Value | str]:
    inputs: list[Value | str] = [x, b.weight(shape, int(np.prod(shape[1:])))]
    return [*inputs, b.vector(bias)] if b.chance(2) else inputs


def conv_auto_pad(b: Builder, x: Value) -> Value:
    """Padding that follows from the size; the kernel's from the weight."""
    auto, groups = b.pick(("SAME_UPPER", "SAME_LOWER", "VALID")), _groups(b, x.shape[1])
    out, space = groups * b.size(1, max(1, 8 // groups)), x.shape[2:]
    kernel, stride = [b.size(1, min(3, n)) for n in space], b.size(1, 2)
    sizes = [-(-n // stride) if auto != "VALID" else (n - k) // stride + 1 for n, k in zip(space, kernel, strict=True)]
    inputs = _weighted(b, x, (out, x.shape[1] // groups, *kernel), out)
    return b.node("Conv", inputs, (x.shape[0], out, *sizes), auto_pad=auto, strides=[stride] * len(space), group=groups)


def deconv(b: Builder, x: Value) -> Value | None:
    """A transposed convolution with padding, dilation and more at the end, or with its size spelled out."""
    space = x.shape[2:]
    if max(space) > 10 or b.dtype == np.float64:
        return None
    groups = _groups(b, x.shape[1])
    part = b.size(1, max(1, 8 // groups))
    kernel, stride = [b.size(1, 3) for _ in space], [b.size(1, 2) for _ in space]
    wide = [b.size(1, 2) for _ in space]
    pads = [b.size(0, 1) if k > 1 else 0 for k in kernel] * 2
    more = [b.size(0, s - 1) for s in stride]
    sizes = [(n - 1) * s + d * (k - 1) + 1 - 2 * p + o
             for n, s, d, k, p, o in zip(space, stride, wide, kernel, pads, more, strict=False)]  # fmt: skip
    if min(sizes) < 1:
        return None
    inputs = _weighted(b, x, (x.shape[1], part, *kernel), part * groups)
    attrs: dict[str, Any] = {"strides": stride, "dilations": wide, "group": groups, "kernel_shape": kernel}
    attrs |= {"output_shape": sizes} if b.chance(3) else {"pads": pads, "output_padding": more}
    return b.node("ConvTranspose", inputs, (x.shape[0], part * groups, *sizes), **attrs)


def conv_3d(b: Builder, x: Value) -> Value | None:
    """Rows as depth: a convolution in three dimensions and back."""
    if x.rank != 4 or b.dtype == np.float64:
        return None
    n, c, h, w = x.shape
    deep, out, kernel = b.reshape(x, (n, c, 1, h, w)), b.size(1, 8), b.size(1, min(2, h))
    high = h - kernel + 1
    mixed = b.node("Conv", _weighted(b, deep, (out, c, 1, kernel, 1), out), (n, out, 1, high, w))
    return b.reshape(activation(b, mixed), (n, out, high, w))


def windows(b: Builder, x: Value) -> Value | None:
    """A pool that rounds up, pads by itself or has gaps in its window."""
    space = x.shape[2:]
    op = b.pick(("MaxPool", "AveragePool", "LpPool"))
    if min(space) < 3 or b.opset < 11 or b.dtype == np.float64:
        return None
    kernel, stride = b.size(1, 3), b.size(1, 2)
    attrs: dict[str, Any] = {"kernel_shape": [kernel] * len(space), "strides": [stride] * len(space)}
    attrs |= {"p": b.size(1, 3)} if op == "LpPool" else {}
    attrs |= {"count_include_pad": b.size(0, 1)} if op == "AveragePool" else {}
    way, gap = b.size(0, 2), 1
    if way == 0:
        attrs["auto_pad"] = b.pick(("SAME_UPPER", "SAME_LOWER", "VALID"))
    if way == 1 and (op != "LpPool" or b.opset >= 18):
        attrs["ceil_mode"] = 1
    if way == 2 and (op == "MaxPool" or b.opset >= 19):
        gap = 2 if kernel == 2 else 1
        attrs["dilations"] = [gap] * len(space)
    reach, up = gap * (kernel - 1) + 1, "ceil_mode" in attrs
    sizes = [-(-n // stride) if attrs.get("auto_pad", "").startswith("SAME") else
             (-(-(n - reach) // stride) if up else (n - reach) // stride) + 1 for n in space]  # fmt: skip
    sizes = [size - (up and (size - 1) * stride >= n) for size, n in zip(sizes, space, strict=True)]  # begins outside
    return b.node(op, [x], (*x.shape[:2], *sizes), **attrs)


def resampled(b: Builder, x: Value) -> Value | None:
    """A Resize at one of the many ways to say where a place comes from."""
    if x.rank != 4 or b.opset < 11 or b.dtype == np.float64 or max(x.shape[2:]) > 10 or min(x.shape[2:]) < 2:
        return None
    mode = b.pick(("nearest", "linear", "cubic"))
    places = ["half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel", "tf_crop_and_resize"]
    attrs: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": b.pick(places)}
    if mode == "nearest":
        attrs["nearest_mode"] = b.pick(("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"))
    if mode == "cubic":
        attrs |= {"cubic_coeff_a": -0.5, "exclude_outside": b.size(0, 1)}
    crop = attrs["coordinate_transformation_mode"] == "tf_crop_and_resize"
    if crop:
        attrs["extrapolation_value"] = b.pick((0.0, 1.5))
        attrs.pop("exclude_outside", None)
    scales = np.array([1, 1, b.pick((0.5, 1.5, 2)), b.pick((0.6, 1, 2))], np.float32)
    shape = (*x.shape[:2], *(int(np.floor(n * s)) for n, s in zip(x.shape[2:], scales[2:], strict=True)))
    region = b.constant(np.array([0, 0, 0.1, 0, 1, 1, 0.9, 1.2], np.float32) if crop else np.zeros(0, np.float32))
    return b.node("Resize", [x, region, b.constant(scales)], shape, **attrs) if min(shape) > 0 else None


def moved_sample(b: Builder, x: Value) -> Value | None:
    """A GridSample at places that a layer makes."""
    if x.rank != 4 or b.dtype == np.float64 or b.opset < 16:
        return None
    flow = b.node("Conv", [x, b.weight((2, x.shape[1], 1, 1), x.shape[1])], resized(x.shape, 1, 2))
    grid = b.node("Tanh", [b.transpose(flow, 0, 2, 3, 1)])
    if b.chance(2):
        grid = b.node("Mul", [grid, b.constant(1.5)])
    modes = ("linear", "cubic") if b.opset >= 20 else ("bilinear", "bicubic")  # the nearest may be another in rounding
    return b.node("GridSample", [x, grid], mode=b.pick(modes), align_corners=b.size(0, 1),
                  padding_mode=b.pick(("zeros", "border", "reflection")))  # fmt: skip


def regions(b: Builder, x: Value) -> Value | None:
    """Several regions, of any image of the batch."""
    if x.rank != 4 or b.dtype == np.float64 or b.opset < 10 or b.opset >= 22 or min(x.shape[2:]) < 2:
        return None
    count = 3
    low = b.rng.uniform(0, 1, (count, 2))
    boxes = np.concatenate([low, low + b.rng.uniform(1, 3, (count, 2))], 1).astype(np.float32)
    index = b.constant(b.rng.integers(0, x.shape[0] if not b.open_batch else 1, count))
    attrs: dict[str, Any] = {"output_height": 2, "output_width": 3, "spatial_scale": b.pick((1.0, 0.5))}
    attrs |= {"mode": "max", "sampling_ratio": 1} if b.chance(2) else {"sampling_ratio": b.size(0, 2)}
    if b.opset >= 16:
        attrs["coordinate_transformation_mode"] = b.pick(("half_pixel", "output_half_pixel"))
    return b.node("RoiAlign", [x, b.constant(boxes), index], (count, x.shape[1], 2, 3), **attrs)


def neighbours(b: Builder, x: Value) -> Value | None:
    """LRN over several widths."""
    if x.rank != 4 or b.dtype == np.float64:
        return None
    return b.node("LRN", [x], size=b.pick((1, 3, 5, 7)), alpha=0.3, beta=0.6, bias=b.pick((1.0, 2.0)))


def padded(b: Builder, x: Value) -> Value | None:
    """Amounts for some axes only, cut off at an end, or going round."""
    if b.opset < 19 or b.dtype == np.float64:
        return None
    axis = b.size(1, x.rank - 1)
    mode = b.pick(("constant", "constant", "wrap", "edge", "reflect"))
    low = -1 if x.shape[axis] > 3 and mode == "constant" else 0
    before, after = b.size(low, min(2, x.shape[axis] - 1)), b.size(low, min(2, x.shape[axis] - 1))
    shape = resized(x.shape, axis, x.shape[axis] + before + after)
    value = [b.constant(b.pick((0.0, 0.7)))] if mode == "constant" else [""]
    return b.node("Pad", [x, b.ints(before, after), *value, b.ints(b.pick((axis, axis - x.rank)))], shape, mode=mode)


def folded(b: Builder, x: Value) -> Value | None:
    """Batch and channels as rows, and back."""
    if x.rank < 3 or b.open_batch:
        return None
    cut = b.pick((0, 2, x.rank, *((-1,) if b.opset >= 11 else ())))
    rows = int(np.prod(x.shape[:cut]))
    flat = b.node("Flatten", [x], (rows, int(np.prod(x.shape)) // rows), axis=cut)
    return b.reshape(activation(b, flat), x.shape)


def made_weight(b: Builder, x: Value) -> Value:
    """A weight computed of constants: scaled filter by filter, joined of two, or a part of a larger one."""
    out, rest = b.size(2, 8), (x.shape[1], *(1,) * (x.rank - 2))
    way = b.size(0, 3)
    if way == 0:
        scale = b.constant(np.abs(b.numbers((out, *(1,) * (x.rank - 1)))) + 0.1)
        weight: Value | str = b.node("Mul", [b.weight((out, *rest), rest[0]), scale], (out, *rest))
    elif way == 1:
        parts = [b.weight((n, *rest), rest[0]) for n in (1, out - 1)]
        weight = b.node("Concat", parts, (out, *rest), axis=0)
    elif way == 2 and b.opset >= 10:
        whole = b.weight((out + 2, *rest), rest[0])
        weight = b.node("Slice", [whole, b.ints(1), b.ints(-1), b.ints(0)], (out, *rest))
    else:
        flat = b.weight((out, rest[0]), rest[0])
        weight = b.reshape(b.node("Identity", [flat], (out, rest[0])), (out, *rest)) if b.chance(2) else b.node(
            "Reshape", [flat, b.ints(out, -1, *rest[1:])], (out, *rest))  # fmt: skip
    return b.node("Conv", [x, weight], resized(x.shape, 1, out))


def gated_by_mask(b: Builder, x: Value) -> Value | None:
    """A dropout that is asked for its mask, which is all ones when nothing is trained."""
    if b.opset < 12 or b.dtype == np.float64:
        return None
    kept, mask = b.split("Dropout", [x], [x.shape, x.shape])
    return b.node("Mul", [kept, b.node("Cast", [mask], to=TensorProto.FLOAT)])


def lost_maximum(b: Builder, x: Value) -> Value | None:
    """A window's maximum, and where it was."""
    if x.rank != 4 or b.dtype == np.float64 or min(x.shape[2:]) < 2 or b.opset < 12:
        return None
    shape = (*x.shape[:2], x.shape[2] - 1, x.shape[3] - 1)
    most, where = b.split("MaxPool", [x], [shape, shape], kernel_shape=[2, 2])
    b.node("Cast", [where], to=TensorProto.FLOAT)
    return most


UNUSUAL_IMAGE: tuple[Step, ...] = (
    conv_auto_pad, conv_auto_pad, deconv, deconv, conv_3d, windows, windows, resampled, resampled, moved_sample,
    regions, neighbours, padded, padded, folded, made_weight, made_weight, gated_by_mask,
    lost_maximum,
)  # fmt: skip
