"""Convolutions to very few channels, computed in columns.

ONNX Runtime computes a two-dimensional convolution for whole blocks of 8 or 16 output channels, and then picks those apart
that exist: one that makes a single channel takes as long as for 16. In three dimensions, with a first extent of 1, the
same convolution is a product of matrices, whose time goes with the outputs: on an image of 256² one channel from another
takes 145 µs instead of 410, and a 1 × 1 convolution from 8 channels to one 110 instead of 700.

    y = Conv₂(x, W)   ⇔   y = Squeeze(Conv₃(Unsqueeze(x), W[:, :, None]))
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import NodeProto, TensorProto

from onnxprune.graph import attribute, is_named
from onnxprune.passes.overlay import Overlay
from onnxprune.passes.settle import Choice, Settlement

__all__ = ["in_columns"]

_AXIS = 2  # the extent of 1, behind batch and channels


def in_columns(settled: Settlement, pinned: Collection[str]) -> list[Choice]:
    """The convolutions that may be computed in columns; whether that pays is for the settlement to see."""
    found = []
    for index in range(len(settled.graph.nodes)):
        node = settled.node(index)
        if settled.is_alive(index) and not is_named(node, pinned) and _is_narrow(settled, node):
            lifted = _lifted(settled.overlay, index, node)
            found.append(Choice(index, lifted, apart=True, reads=settled.choice(index).reads))
    return found


def _is_narrow(settled: Settlement, node: NodeProto) -> bool:
    """Whether this is a convolution of stored numbers in two dimensions that does not fill a block."""
    overlay, target = settled.overlay, settled.target
    if node.op_type != "Conv" or node.domain not in ("", "ai.onnx") or attribute(node, "group") not in (None, 1):
        return False
    data, weight = (overlay.shape.get(name, ()) for name in node.input[:2])
    if len(data) != 4 or len(weight) != 4 or weight[0] >= target.block or overlay.value(node.input[1]) is None:
        return False
    if overlay.is_shared(overlay.sources.get(node.input[1], node.input[1])):
        return False
    return overlay.map.shapes.types.get(node.output[0]) == TensorProto.FLOAT


def _lifted(overlay: Overlay, index: int, node: NodeProto) -> NodeProto:
    """The Squeeze that takes the place of a convolution, with the other two nodes laid before it."""
    data, made = overlay.shape[node.input[0]], overlay.shape[node.output[0]]
    name = node.name or node.output[0]
    image = overlay.lay(_view(overlay, "Unsqueeze", node.input[0], name), index - 1, _with_one(data))
    lifted = NodeProto()
    lifted.CopyFrom(node)
    lifted.input[0], lifted.input[1] = image, overlay.with_axis(node.input[1], _AXIS)
    lifted.output[0] = f"{node.output[0]}_columns"
    del lifted.attribute[:]
    lifted.attribute.extend(_with_extent(held) for held in node.attribute)
    columns = overlay.lay(lifted, index - 1, _with_one(made))
    result = _view(overlay, "Squeeze", columns, name)
    result.output[0], result.name = node.output[0], overlay.name(result.name)
    return result


def _view(overlay: Overlay, operator: str, data: str, name: str) -> NodeProto:
    """A node that adds or drops the axis; what it is given as an attribute before opset 13."""
    own = f"{name}_{operator}"
    if overlay.graph.opset < 13:
        return onnx.helper.make_node(operator, [data], [own], own, axes=[_AXIS])
    axes = overlay.constant(f"{own}_axes", np.array([_AXIS]))
    return onnx.helper.make_node(operator, [data, axes], [own], own)


def _with_one(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:_AXIS], 1, *shape[_AXIS:])


def _with_extent(held: onnx.AttributeProto) -> onnx.AttributeProto:
    """An attribute for three dimensions: the first one has a kernel of 1, steps of 1 and no padding."""
    result = onnx.AttributeProto()
    result.CopyFrom(held)
    values = list(held.ints)
    if held.name in ("kernel_shape", "strides", "dilations"):
        result.ints[:] = [1, *values]
    elif held.name == "pads":
        result.ints[:] = [0, *values[:2], 0, *values[2:]]
    return result
