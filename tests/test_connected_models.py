"""The topological guarantee on whole models: what the masked reference keeps, against reachability as it is defined.

hypothesis grows networks of convolutions (grouped, depthwise, transposed, some slices zero, some weights shared), sums,
concatenations, splits and heads, with several outputs. The definition below reads the emitted file and walks from
channel to channel; it knows nothing of the channel graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
from generate import Choices, Seeded
from hypothesis import assume, given, note
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from test_property import Drawn, examples

import onnxprune
from onnxprune.errors import UnreachableError
from onnxprune.passes.kernel_scores import KERNEL_METHODS

Channel = tuple[str, int]
Pair = tuple[Channel, Channel]
Floats = NDArray[np.float32]
SIDE = 4  # every image is so large


# ---- models ---------------------------------------------------------------------------------------------------------


@dataclass
class Net:
    """A network under construction. ``images``: tensor → its channels; ``layout``: weight → how it is read."""

    choices: Choices
    rng: np.random.Generator
    nodes: list[NodeProto] = field(default_factory=list)
    tensors: dict[str, Floats] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)
    layout: dict[str, tuple[object, ...]] = field(default_factory=dict)

    def weight(self, shape: Sequence[int], *read: object) -> str:
        """A new weight, of which some slices are zero, or one that is there and read like this."""
        alike = [name for name, layout in self.layout.items() if layout == (*shape, *read)]
        if alike and self.choices.integer(1, 3) == 1:
            return self.choices.pick(alike)
        name, missing = f"w{len(self.tensors)}", self.choices.pick((0.0, 0.0, 0.3, 0.6))
        there = self.rng.random((*shape[:2], *(1,) * (len(shape) - 2))) >= missing
        self.tensors[name] = (self.rng.standard_normal(tuple(shape)) * there).astype(np.float32)
        self.layout[name] = (*shape, *read)
        return name

    def node(self, op: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> list[str]:
        made = [f"t{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, made, f"n{len(self.nodes)}", **attributes))
        return made

    def image(self, channels: int, op: str, *inputs: str, **attributes: Any) -> str:
        made = self.node(op, inputs, **attributes)[0]
        self.images[made] = channels
        return made

    def conv(self, x: str, out: int, groups: int = 1) -> str:
        kernel, inputs = self.choices.pick((1, 3)), self.images[x]
        if self.choices.integer(1, 3) == 1:
            shape, op = (inputs, out // groups, kernel, kernel), "ConvTranspose"
        else:
            shape, op = (out, inputs // groups, kernel, kernel), "Conv"
        return self.image(out, op, x, self.weight(shape, op, groups), group=groups, pads=[kernel // 2] * 4)


def plain(net: Net, x: str) -> None:
    net.conv(x, net.choices.integer(1, 5))


def grouped(net: Net, x: str) -> None:
    groups = net.choices.pick([g for g in range(1, net.images[x] + 1) if net.images[x] % g == 0])
    net.conv(x, groups * net.choices.integer(1, 2), groups)


def relu(net: Net, x: str) -> None:
    net.image(net.images[x], "Relu", x)


def residual(net: Net, x: str) -> None:
    net.image(net.images[x], "Add", net.conv(x, net.images[x]), x)


def added(net: Net, x: str) -> None:
    other = net.choices.pick([name for name, channels in net.images.items() if channels == net.images[x]])
    net.image(net.images[x], "Add", x, other)


def joined(net: Net, x: str) -> None:
    other = net.choices.pick(list(net.images))
    net.image(net.images[x] + net.images[other], "Concat", x, other, axis=1)


def split(net: Net, x: str) -> None:
    if net.images[x] % 2 == 0:
        halves = net.node("Split", [x], 2, axis=1, num_outputs=2)
        net.images.update(dict.fromkeys(halves, net.images[x] // 2))


STEPS: tuple[Callable[[Net, str], None], ...] = (plain, plain, plain, grouped, relu, residual, added, joined, split)


def head(net: Net, x: str) -> tuple[str, list[int]]:
    """An output: the image, a convolution of it, or classes."""
    kind = net.choices.integer(1, 4)
    if kind <= 2:
        name = net.node("Identity", [net.conv(x, net.choices.integer(1, 4)) if kind == 2 else x])[0]
        net.images[name] = net.images[net.nodes[-1].input[0]]
        return name, [1, net.images[name], SIDE, SIDE]
    flat = net.node("Flatten", net.node("GlobalAveragePool", [x]))[0]
    classes, turned = net.choices.integer(1, 4), kind == 3
    shape = (classes, net.images[x]) if turned else (net.images[x], classes)
    return net.node("Gemm", [flat, net.weight(shape, "Gemm", turned)], transB=int(turned))[0], [1, classes]


def grown(choices: Choices) -> ModelProto:
    net = Net(choices, np.random.default_rng(choices.integer(0, 2**16)))
    net.images["x"] = choices.integer(1, 3)
    first = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, net.images["x"], SIDE, SIDE])
    net.conv("x", choices.integer(1, 5))
    for _ in range(choices.integer(1, 7)):
        choices.pick(STEPS)(net, choices.pick(list(net.images)[-3:]))
    ends = [head(net, choices.pick(list(net.images)[-3:])) for _ in range(choices.integer(1, 3))]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in ends]
    stored = [numpy_helper.from_array(held, name) for name, held in net.tensors.items()]
    graph = helper.make_graph(net.nodes, "grown", [first], outputs, stored)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 18)])


@st.composite
def models(draw: st.DrawFn) -> ModelProto:
    return grown(Drawn(draw))


# ---- reachability as it is defined ----------------------------------------------------------------------------------


@dataclass
class Reachability:
    """Of a model file: ``slices``, the pairs of channels that each non-zero kernel slice joins, one for every node that
    reads it; ``links``, those that other nodes join; ``width``, the channels of each tensor."""

    model: ModelProto
    width: dict[str, int] = field(default_factory=dict)
    slices: dict[tuple[str, int, int], list[Pair]] = field(default_factory=dict)
    links: list[Pair] = field(default_factory=list)

    def __post_init__(self) -> None:
        graph = self.model.graph
        held = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self.width = {v.name: v.type.tensor_type.shape.dim[1].dim_value for v in graph.input}
        for node in graph.node:
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            if node.op_type in ("Conv", "ConvTranspose", "Gemm"):
                self._weighted(node, held[node.input[1]], attributes)
            elif node.op_type == "Split":
                half = self.width[node.input[0]] // 2
                for place, name in enumerate(node.output):
                    self.width[name] = half
                    self.links += [((node.input[0], place * half + i), (name, i)) for i in range(half)]
            else:
                self._passed_on(node)

    def _passed_on(self, node: NodeProto) -> None:
        start = 0
        for name in node.input:
            channels = range(self.width[name])
            self.links += [((name, i), (node.output[0], start + i)) for i in channels]
            start += len(channels) if node.op_type == "Concat" else 0
        self.width[node.output[0]] = start or self.width[node.input[0]]

    def _weighted(self, node: NodeProto, w: Floats, attributes: dict[str, int]) -> None:
        source, target, inputs = node.input[0], node.output[0], self.width[node.input[0]]
        groups = attributes.get("group", 1)
        if node.op_type == "Gemm" and not attributes["transB"]:
            w = w.T
        turned = node.op_type == "ConvTranspose"
        self.width[target] = w.shape[1] * groups if turned else len(w)
        outputs = self.width[target] // groups
        for out in range(self.width[target]):
            group = out // outputs
            for i in range(inputs // groups):
                k = group * (inputs // groups) + i
                if np.any(w[k, out % outputs] if turned else w[out, i]):
                    self.slices.setdefault((node.input[1], out, i), []).append(((source, k), (target, out)))

    @property
    def joined(self) -> list[Pair]:
        """By slices."""
        return [pair for pairs in self.slices.values() for pair in pairs]

    def accessible(self) -> set[Channel]:
        start = [(v.name, i) for v in self.model.graph.input for i in range(self.width[v.name])]
        return walked([*self.joined, *self.links], start)

    def coaccessible(self) -> set[Channel]:
        return walked([(b, a) for a, b in [*self.joined, *self.links]], self.outputs())

    def outputs(self) -> list[Channel]:
        return [(v.name, i) for v in self.model.graph.output for i in range(self.width[v.name])]


def walked(pairs: Sequence[Pair], start: Sequence[Channel]) -> set[Channel]:
    """Everything that a walk along the pairs gets to."""
    ways: dict[Channel, list[Channel]] = {}
    for a, b in pairs:
        ways.setdefault(a, []).append(b)
    found, pending = set(start), list(start)
    while pending:
        for channel in ways.get(pending.pop(), ()):
            if channel not in found:
                found.add(channel)
                pending.append(channel)
    return found


def broken(before: ModelProto, masked: ModelProto, reach_all: bool) -> Iterator[str]:
    """How a masked reference breaks what is promised."""
    possible, found = Reachability(before), Reachability(masked)
    ahead, behind = found.accessible(), found.coaccessible()
    for name, pairs in found.slices.items():
        if not any(a in ahead and b in behind for a, b in pairs):
            yield f"{name} is kept for nothing"
    if reach_all:
        lost = possible.accessible() & set(possible.outputs()) - ahead
        yield from (f"output {end} is lost" for end in sorted(lost))


# ---- the guarantee --------------------------------------------------------------------------------------------------


def masked(model: ModelProto, sparsity: float, method: str) -> ModelProto:
    return onnxprune.prune(model, sparsity=sparsity, method=method, measure="kernels", granularity="kernel",
                           restructure="never", check=False).masked  # fmt: skip


def least(model: ModelProto) -> float:
    """The largest sparsity at which every output is reached, as the refusal of a larger one tells; else that one."""
    try:
        masked(model, 0.9999, "topology")
    except UnreachableError as error:
        return math.floor(error.reachable * 1e9) / 1e9
    return 0.9999


@examples(150)
@given(models(), st.sampled_from((0.2, 0.4, 0.6, 0.8, 0.9)), st.sampled_from(sorted(KERNEL_METHODS)))
def test_every_slice_that_stays_is_on_a_path(model: ModelProto, sparsity: float, method: str) -> None:
    note(onnx.printer.to_text(model))
    try:
        found = masked(model, sparsity, method)
    except UnreachableError:
        assume(False)
    assert not list(broken(model, found, reach_all=method == "topology"))


@examples(100)
@given(models(), st.sampled_from((0.0, 0.3, 0.7, 1.0)))
def test_every_output_is_reached_by_as_few_slices_as_are_said_to_be_enough(model: ModelProto, share: float) -> None:
    """From all slices (0) to the least number that reaches every output (1)."""
    note(onnx.printer.to_text(model))
    sparsity, before = share * least(model), Reachability(model)
    found = masked(model, sparsity, "topology")
    assert not list(broken(model, found, reach_all=True))
    assert len(Reachability(found).joined) <= (1 - sparsity) * len(before.joined) + 1e-6


def test_the_definition_finds_what_is_cut_off() -> None:
    """Of two layers, the first loses all that the last output reads."""
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Conv", ["x", "a"], ["h"]), helper.make_node("Conv", ["h", "b"], ["y"])],
            "two layers",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, SIDE, SIDE])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, SIDE, SIDE])],
            [numpy_helper.from_array(np.eye(2, dtype=np.float32)[:, :, None, None], name) for name in "ab"],
        )
    )
    assert not list(broken(model, model, reach_all=True))
    cut = ModelProto.FromString(model.SerializeToString())
    left = np.diag(np.array([1, 0], np.float32))[:, :, None, None]
    cut.graph.initializer[0].CopyFrom(numpy_helper.from_array(left, "a"))
    assert list(broken(model, cut, reach_all=True)) == [
        "('b', 1, 1) is kept for nothing",
        "output ('y', 1) is lost",
    ]


@pytest.mark.parametrize("method", sorted(KERNEL_METHODS))
def test_grown_models_are_not_empty(method: str) -> None:
    """The properties would say nothing if hardly any model were pruned."""
    done = 0
    for seed in range(20):
        model = grown(Seeded(seed))
        try:
            done += 0 < len(Reachability(masked(model, 0.5, method)).slices) < len(Reachability(model).slices)
        except UnreachableError:
            continue
    assert done > 8
