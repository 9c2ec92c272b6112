"""How fast ONNX Runtime's CPU kernels are at each channel width, and which widths are worth keeping.

Builds small stacks of layers whose widths are one number w, times them for many w, and prints for each w its
time, how the optimised graph computes it, and how it compares with all wider stacks. Words of the table:

    slower than w'   w' > w takes less time, by more than the tolerance: never prune to w
    step             every w' > w takes more time, by more than the tolerance: pruning to w buys something
    (neither)        some w' > w takes the same time: its extra channels are free

One round runs every width once, in changing order, and the minimum over many rounds counts, so that other
work on the machine disturbs all widths alike. Only ratios within a stack mean anything.

Example:
    $ python benchmarks/widths.py conv3x3_28 inverted --seconds 20 --json widths.json
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

__all__ = ["STACKS", "Row", "block_size", "layout", "measure", "rows"]

WIDTHS = (*range(1, 17), *sorted({*range(20, 129, 4), *(w + d for w in range(24, 129, 8) for d in (-1, 1))}))


# Models


@dataclass
class Builder:
    """Appends layers to an ONNX graph; each method takes a tensor's name and returns its output's."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    generator: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def weight(self, *shape: int) -> str:
        """Add an initializer of small random numbers."""
        name = f"weight{len(self.weights)}"
        values = self.generator.normal(0, 0.05, shape).astype(np.float32)
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def node(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output."""
        name = f"{op_type.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], name=name, **attributes))
        return name

    def conv(self, x: str, inputs: int, outputs: int, kernel: int = 1, groups: int = 1) -> str:
        """Convolution with bias and 'same' padding."""
        weight = self.weight(outputs, inputs // groups, kernel, kernel)
        return self.node("Conv", x, weight, self.weight(outputs), group=groups, pads=[kernel // 2] * 4)

    def relu6(self, x: str) -> str:
        """Clip to [0, 6], as torch exports ReLU6."""
        if not any(weight.name == "six" for weight in self.weights):
            self.weights.append(numpy_helper.from_array(np.array(0, np.float32), "zero"))
            self.weights.append(numpy_helper.from_array(np.array(6, np.float32), "six"))
        return self.node("Clip", x, "zero", "six")

    def model(self, output: str, shape: Sequence[int]) -> onnx.ModelProto:
        """Finish: one input 'x' of the given shape, one output."""
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            "stack",
            [value("x", TensorProto.FLOAT, shape)],
            [value(output, TensorProto.FLOAT, [None] * len(shape))],
            self.weights,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def convolutions(width: int, *, kernel: int, size: int) -> onnx.ModelProto:
    """3 to w, then six times w to w, ReLU after each."""
    build = Builder()
    x = build.node("Relu", build.conv("x", 3, width, kernel))
    for _ in range(6):
        x = build.node("Relu", build.conv(x, width, width, kernel))
    return build.model(x, (1, 3, size, size))


def ends(width: int, *, size: int) -> onnx.ModelProto:
    """First and last layer only: 3 to w by 3x3, ReLU, w to 5 classes by 1x1."""
    build = Builder()
    x = build.node("Relu", build.conv("x", 3, width, 3))
    return build.model(build.conv(x, width, 5), (1, 3, size, size))


def classes(width: int, *, size: int) -> onnx.ModelProto:
    """Four heads of w channels, each a 3x3 convolution on the same 64 channels."""
    build = Builder()
    x = build.node("Relu", build.conv("x", 3, 64, 3))
    heads = [build.conv(x, 64, width, 3) for _ in range(4)]
    return build.model(build.node("Sum", *heads), (1, 3, size, size))


def bottlenecks(width: int, *, size: int) -> onnx.ModelProto:
    """Three residual blocks 64 to w to w to 64: what pruning the inside of a block does."""
    build = Builder()
    x = build.node("Relu", build.conv("x", 3, 64, 3))
    for _ in range(3):
        y = build.node("Relu", build.conv(x, 64, width))
        y = build.node("Relu", build.conv(y, width, width, 3))
        x = build.node("Relu", build.node("Add", build.conv(y, width, 64), x))
    return build.model(x, (1, 3, size, size))


def residuals(width: int, *, size: int) -> onnx.ModelProto:
    """Three residual blocks w to 64 to w: what pruning the residual stream does."""
    build = Builder()
    x = build.node("Relu", build.conv("x", 3, width, 3))
    for _ in range(3):
        y = build.conv(build.node("Relu", build.conv(x, width, 64, 3)), 64, width, 3)
        x = build.node("Relu", build.node("Add", y, x))
    return build.model(x, (1, 3, size, size))


def inverted_residuals(width: int, *, size: int) -> onnx.ModelProto:
    """Three MobileNetV2 blocks w to 6w, depthwise 3x3, 6w to w, with ReLU6 and shortcut."""
    build = Builder()
    x = build.conv("x", 3, width, 3)
    for _ in range(3):
        y = build.relu6(build.conv(x, width, 6 * width))
        y = build.relu6(build.conv(y, 6 * width, 6 * width, 3, groups=6 * width))
        x = build.node("Add", build.conv(y, 6 * width, width), x)
    return build.model(x, (1, 3, size, size))


def inverted_inside(width: int, *, size: int) -> onnx.ModelProto:
    """Three MobileNetV2 blocks 32 to w, depthwise 3x3, w to 32: what pruning the expansion does."""
    build = Builder()
    x = build.conv("x", 3, 32, 3)
    for _ in range(3):
        y = build.relu6(build.conv(x, 32, width))
        y = build.relu6(build.conv(y, width, width, 3, groups=width))
        x = build.node("Add", build.conv(y, width, 32), x)
    return build.model(x, (1, 3, size, size))


def depthwise(width: int, *, size: int) -> onnx.ModelProto:
    """Six depthwise 3x3 convolutions."""
    build = Builder()
    x = build.conv("x", 3, width)
    for _ in range(6):
        x = build.relu6(build.conv(x, width, width, 3, groups=width))
    return build.model(x, (1, 3, size, size))


def grouped(width: int, *, size: int) -> onnx.ModelProto:
    """Three blocks 64 to 4w, 3x3 in 4 groups of w, 4w to 64: w is the width of one group."""
    build = Builder()
    x = build.conv("x", 3, 64, 3)
    for _ in range(3):
        y = build.node("Relu", build.conv(x, 64, 4 * width))
        y = build.node("Relu", build.conv(y, 4 * width, 4 * width, 3, groups=4))
        x = build.node("Relu", build.conv(y, 4 * width, 64))
    return build.model(x, (1, 3, size, size))


def dense(width: int, *, size: int) -> onnx.ModelProto:
    """Six DenseNet layers of growth w on 64 channels, each 1x1 to 64 then 3x3 to w, joined by Concat."""
    build = Builder()
    features = [build.node("Relu", build.conv("x", 3, 64, 3))]
    for index in range(6):
        x = build.node("Concat", *features, axis=1) if index else features[0]
        x = build.node("Relu", build.conv(x, 64 + index * width, 64))
        features.append(build.node("Relu", build.conv(x, 64, width, 3)))
    return build.model(build.node("Concat", *features, axis=1), (1, 3, size, size))


def transposed(width: int, *, size: int) -> onnx.ModelProto:
    """Two U-Net steps upward: 3x3 w to w, ConvTranspose 2x2 stride 2 w to w."""
    build = Builder()
    x = build.conv("x", 3, width)
    for _ in range(2):
        x = build.node("Relu", build.conv(x, width, width, 3))
        x = build.node(
            "ConvTranspose", x, build.weight(width, width, 2, 2), build.weight(width), strides=[2, 2]
        )
    return build.model(x, (1, 3, size, size))


def linear(width: int, *, tokens: int) -> onnx.ModelProto:
    """Six MatMul, Add, ReLU of w by w on a batch of tokens."""
    build = Builder()
    x = "x"
    for _ in range(6):
        x = build.node("MatMul", x, build.weight(width, width))
        x = build.node("Relu", build.node("Add", x, build.weight(width)))
    return build.model(x, (1, tokens, width))


def mlp(width: int, *, tokens: int) -> onnx.ModelProto:
    """Three transformer MLPs 192 to w to 192, ReLU for GELU: what pruning the hidden layer does."""
    build = Builder()
    x = "x"
    for _ in range(3):
        y = build.node("Add", build.node("MatMul", x, build.weight(192, width)), build.weight(width))
        x = build.node("MatMul", build.node("Relu", y), build.weight(width, 192))
    return build.model(x, (1, tokens, 192))


def gemm(width: int) -> onnx.ModelProto:
    """Six Gemm of w by w on one row."""
    build = Builder()
    x = "x"
    for _ in range(6):
        x = build.node(
            "Relu", build.node("Gemm", x, build.weight(width, width), build.weight(width), transB=1)
        )
    return build.model(x, (1, width))


STACKS: dict[str, partial[onnx.ModelProto]] = {
    "conv3x3_28": partial(convolutions, kernel=3, size=28),
    "conv3x3_56": partial(convolutions, kernel=3, size=56),
    "conv1x1_28": partial(convolutions, kernel=1, size=28),
    "conv3x3_14": partial(convolutions, kernel=3, size=14),
    "conv1x1_7": partial(convolutions, kernel=1, size=7),
    "classes_28": partial(classes, size=28),
    "ends_56": partial(ends, size=56),
    "bottleneck_28": partial(bottlenecks, size=28),
    "residual_28": partial(residuals, size=28),
    "inverted_28": partial(inverted_residuals, size=28),
    "inverted_inside_28": partial(inverted_inside, size=28),
    "depthwise_28": partial(depthwise, size=28),
    "grouped_28": partial(grouped, size=28),
    "dense_28": partial(dense, size=28),
    "transposed_28": partial(transposed, size=28),
    "linear_197": partial(linear, tokens=197),
    "mlp_197": partial(mlp, tokens=197),
    "gemm": partial(gemm),
}


# Measuring


def session_options(optimised: Path | None = None) -> ort.SessionOptions:
    """One thread, all optimisations; with a path, the optimised graph is written there."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    return options


def session(model: onnx.ModelProto, optimised: Path | None = None) -> ort.InferenceSession:
    """Load a model on the CPU provider."""
    options = session_options(optimised)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def optimised_graph(model: onnx.ModelProto) -> onnx.GraphProto:
    """Return the graph ONNX Runtime would run here."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        session(model, path)
        return onnx.load(path).graph


def block_size() -> int:
    """Ask ONNX Runtime for the channel block of its NCHWc kernels: 16 or 8, or 1 where it has none.

    A convolution to one channel is optimised; its filter comes back padded to one block.
    """
    build = Builder()
    graph = optimised_graph(build.model(build.conv("x", 3, 1, 3), (1, 3, 8, 8)))
    [convolution] = [node for node in graph.node if node.op_type == "Conv"]
    [filters] = [weight for weight in graph.initializer if weight.name == convolution.input[1]]
    return int(filters.dims[0])


def layout(model: onnx.ModelProto) -> str:
    """Count blocked (NCHWc) and plain convolutions of the optimised graph, and changes of layout."""
    counts = {"blocked": 0, "plain": 0, "reorders": 0}
    for node in optimised_graph(model).node:
        if node.op_type in ("ReorderInput", "ReorderOutput"):
            counts["reorders"] += 1
        elif node.op_type in ("Conv", "FusedConv"):
            counts["blocked" if node.domain == "com.microsoft.nchwc" else "plain"] += 1
    return " ".join(f"{count} {name}" for name, count in counts.items() if count)


def measure(models: dict[int, onnx.ModelProto], seconds: float) -> dict[int, float]:
    """Return the minimal time of one run of each model, in seconds.

    Args:
        models: by width.
        seconds: time for all models together; at least three rounds are run.
    """
    runs: dict[int, Callable[[], object]] = {}
    for width, model in models.items():
        shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
        feeds = {"x": np.random.default_rng(0).normal(size=shape).astype(np.float32)}
        runs[width] = partial(session(model).run, None, feeds)
    best = {width: min(timed(run, 1) for _ in range(2)) for width, run in runs.items()}
    # Short runs are repeated within a round, up to a millisecond, to stay above the clock's resolution.
    repeats = {width: max(1, int(1e-3 / time_)) for width, time_ in best.items()}
    order, shuffle, start, rounds = list(runs), random.Random(0), time.perf_counter(), 0
    while rounds < 3 or time.perf_counter() - start < seconds:
        shuffle.shuffle(order)
        for width in order:
            best[width] = min(best[width], timed(runs[width], repeats[width]))
        rounds += 1
    return best


def timed(run: Callable[[], object], repeats: int) -> float:
    """Return the mean time of a run over a few repeats, after one that is not counted."""
    run()
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


# Reading the measurements


@dataclass(frozen=True)
class Row:
    """One width of one stack.

    Attributes:
        width: w.
        milliseconds: minimal time of a run.
        layout: see ``layout``.
        faster_wider: the fastest wider width, if it is faster by more than the tolerance.
        step: every wider width is slower by more than the tolerance.
    """

    width: int
    milliseconds: float
    layout: str
    faster_wider: int | None
    step: bool


def rows(times: dict[int, float], layouts: dict[int, str], tolerance: float) -> Iterator[Row]:
    """Compare each width with all wider ones, in ascending order of width."""
    for width in sorted(times):
        wider = {other: time_ for other, time_ in times.items() if other > width}
        best = min(wider, key=lambda other: (wider[other], -other), default=None)
        here = times[width]
        faster = best is not None and wider[best] < here * (1 - tolerance)
        step = best is None or wider[best] > here * (1 + tolerance)
        yield Row(width, 1e3 * here, layouts[width], best if faster else None, step)


def table(name: str, measured: Sequence[Row]) -> str:
    """Format the rows of one stack."""
    lines = [f"{name}: {STACKS[name].func.__doc__}", f"{'w':>5} {'ms':>8}  {'':20} layout"]
    for row in measured:
        word = "step" if row.step else ""
        if row.faster_wider is not None:
            word = f"slower than {row.faster_wider}"
        lines.append(f"{row.width:5} {row.milliseconds:8.3f}  {word:20} {row.layout}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the stacks named on the command line and print a table for each."""
    parser = argparse.ArgumentParser(description="Time ONNX Runtime's CPU kernels at each channel width.")
    parser.add_argument("stacks", nargs="*", help=f"of {', '.join(STACKS)} (default: all)")
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS, metavar="W")
    parser.add_argument("--seconds", type=float, default=30.0, help="time for one stack")
    parser.add_argument("--tolerance", type=float, default=0.03, help="relative difference taken for noise")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.stacks) - set(STACKS))
    if unknown:
        parser.error(f"unknown stack {unknown[0]!r}, expected some of {', '.join(STACKS)}")
    results = {}
    print(f"onnxruntime {ort.__version__}, {platform.machine()}, NCHWc block {block_size()}", flush=True)
    for name in options.stacks or STACKS:
        models = {width: STACKS[name](width) for width in options.widths}
        layouts = {width: layout(model) for width, model in models.items()}
        measured = list(rows(measure(models, options.seconds), layouts, options.tolerance))
        results[name] = [asdict(row) for row in measured]
        print(table(name, measured), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps({"block": block_size(), "stacks": results}, indent=1))


if __name__ == "__main__":
    main()
