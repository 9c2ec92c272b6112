"""From a trained net to NAME.onnx, and from that file to its record NAME.json."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.data import RECIPES
from models.evaluate import evaluate, trivial

__all__ = ["export", "record"]


def export(
    net: nn.Module, path: Path, image: tuple[str, tuple[int, ...]], dynamic: dict[int, str], dynamo: bool
) -> None:
    """Write `net`, in evaluation mode, to `path` with embedded weights; the output is named "logits".

    The BatchNorms of `net` are folded into its convolutions, in place.

    Args:
        net: the net, of one input and one output.
        path: the file to write.
        image: the name of the input and its shape without the batch axis.
        dynamic: the axes of any size → their names; the same axes of the output are of that size, too.
        dynamo: use the exporter built on torch.export, with opset 18, and not the tracing one, with opset 17.
    """
    name, shape = image
    _fold_norms(net)
    # A batch of 2, as torch.export takes a size of 1 for a constant.
    example = torch.zeros(2, *shape)
    if dynamo:
        shapes = ({axis: torch.export.Dim(size) for axis, size in dynamic.items()},)
        torch.onnx.export(
            net, (example,), path, dynamo=True, opset_version=18, external_data=False, verbose=False,
            input_names=[name], output_names=["logits"], dynamic_shapes=shapes,
        )  # fmt: skip
    else:
        axes = {name: dynamic, "logits": dynamic}
        torch.onnx.export(
            net, (example,), path, dynamo=False, opset_version=17,
            input_names=[name], output_names=["logits"], dynamic_axes=axes,
        )  # fmt: skip
    onnx.save(_without_traces(onnx.load(path)), path)


def _fold_norms(net: nn.Module) -> None:
    """Fold each BatchNorm into the convolution before it; the exporter would, too, but lose the names."""
    for stage in net.modules():
        if isinstance(stage, nn.Sequential):
            for index, (layer, norm) in enumerate(pairwise(stage)):
                if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    stage[index], stage[index + 1] = fuse_conv_bn_eval(layer, norm), nn.Identity()


def _without_traces(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without the stack traces of its nodes: they name files of the machine that exported it."""
    for node in model.graph.node:
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
    return model


def record(path: Path, data_name: str, dynamo: bool) -> dict[str, Any]:
    """Measure the model at `path` with ONNX Runtime; write its record beside it, and return it."""
    model, recipe = onnx.load(path), RECIPES[data_name]
    facts = {
        "data": {
            "name": data_name,
            "function": f"models.data.{recipe.make.__name__}",
            "train": recipe.train,
            "test": recipe.test,
        },
        "metric": recipe.metric,
        "measured": round(evaluate(path, data_name), 4),
        "trivial": round(trivial(data_name), 4),
        "weights": sum(weight.size for weight in _weights(model).values()),
        "zero_filters": _zero_filters(model),
        "bytes": path.stat().st_size,
        "opset": model.opset_import[0].version,
        "exporter": f"torch.onnx.export, dynamo={dynamo}",
        "versions": {"torch": torch.__version__, "onnx": onnx.__version__},
    }
    path.with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n")
    return facts


def _weights(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    """The arrays of the graph by name; scalars and shapes are none."""
    arrays = {stored.name: numpy_helper.to_array(stored) for stored in model.graph.initializer}
    return {name: array for name, array in arrays.items() if array.ndim and array.dtype == np.float32}


def _zero_filters(model: onnx.ModelProto) -> dict[str, dict[str, int]]:
    """Of each convolution with filters of zeros: all filters, those, and those whose bias passes a ReLU."""
    weights, found = _weights(model), {}
    for node in model.graph.node:
        if node.op_type == "Conv":
            weight, bias = (weights[name] for name in node.input[1:3])
            zero = ~weight.any(axis=(1, 2, 3))
            if zero.any():
                found[node.input[1]] = {
                    "filters": zero.size,
                    "zero": int(zero.sum()),
                    "zero_with_positive_bias": int((zero & (bias > 0)).sum()),
                }
    return found
