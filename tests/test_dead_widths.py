"""Dead channels stay where a layer without them would be slower, and only there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from exactness import assert_same_outputs, model_of
from numpy.typing import NDArray
from onnx import ModelProto
from onnx.helper import make_tensor_value_info

import onnxprune
from onnxprune.graph import Graph
from onnxprune.passes.latency import Target
from onnxprune.passes.layout import model_microseconds
from onnxprune.shapes import infer_shapes

DEPTHWISE = "d = Conv<group = 32, pads = [1, 1, 1, 1]>(r, k)"


def first_rows(shape: tuple[int, ...], alive: int) -> NDArray[np.float32]:
    """Random weights, of which only the first filters are not zero."""
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    values[alive:] = 0
    return values


TWO = model_of(
    """(float[1, 16, 56, 56] x) => (float[1, 4, 1, 1] y)
    {
        a = Conv(x, w) r = Relu(a) d = Conv<group = 32, pads = [1, 1, 1, 1]>(r, k) e = Conv(d, v)
        p = AveragePool<kernel_shape = [28, 28], strides = [28, 28]>(e)
        a2 = Conv(p, w2) r2 = Relu(a2) e2 = Conv(r2, v2) y = GlobalAveragePool(e2)
    }""",
    w=first_rows((32, 16, 1, 1), 17), k=(32, 1, 3, 3), v=(16, 32, 1, 1), w2=first_rows((32, 16, 1, 1), 9),
    v2=(4, 32, 1, 1),
)  # fmt: skip


def net(middle: str, kernel: tuple[int, ...], alive: int, side: int) -> ModelProto:
    """1 × 1 to 32 channels, of which the first few are alive, something in the middle, and 1 × 1 again."""
    text = f"(float[1, 16, {side}, {side}] x) => (float[1, 16, {side}, {side}] y)"
    return model_of(f"{text} {{ a = Conv(x, w) r = Relu(a) {middle} y = Conv(d, v) }}",
                    w=first_rows((32, 16, 1, 1), alive), k=kernel, v=(16, 32, 1, 1))  # fmt: skip


def width(model: ModelProto) -> int:
    """Channels that are left between the first and the last convolution."""
    return next(int(tensor.dims[0]) for tensor in model.graph.initializer if tensor.name == "w")


def modelled(model: ModelProto) -> float:
    graph = Graph(model)
    return model_microseconds(Target(), graph, infer_shapes(graph).of)


@pytest.fixture(autouse=True)
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decisions by the constants that are shipped."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.parametrize(("alive", "kept"), [(13, 16), (17, 20), (23, 24), (31, 32)])
def test_dead_channels_stay_where_odd_widths_leave_the_blocks(alive: int, kept: int) -> None:
    model = net(DEPTHWISE, (32, 1, 3, 3), alive, 56)
    pruned, odd = (onnxprune.prune(model, align=align, provider="cpu").model for align in (None, "none"))
    assert width(odd) == alive
    assert width(pruned) == kept
    assert modelled(pruned) < modelled(odd)


@pytest.mark.parametrize("alive", [4, 16, 20])
def test_nothing_dead_stays_on_widths_that_run_well(alive: int) -> None:
    assert width(onnxprune.prune(net(DEPTHWISE, (32, 1, 3, 3), alive, 56), provider="cpu").model) == alive


def test_nothing_dead_stays_where_little_could_be_gained() -> None:
    assert width(onnxprune.prune(net(DEPTHWISE, (32, 1, 3, 3), 17, 4), provider="cpu").model) == 17


def test_weights_that_a_caller_may_override_are_not_computed_in_blocks() -> None:
    """ONNX Runtime brings only constants into blocks; so there is nothing to fall out of."""
    model = net(DEPTHWISE, (32, 1, 3, 3), 17, 56)
    constant = modelled(model)
    model.graph.input.extend(make_tensor_value_info(w.name, w.data_type, w.dims) for w in model.graph.initializer)
    assert modelled(model) > 1.5 * constant
    assert width(onnxprune.prune(model, provider="cpu").model) == 17
    model.ir_version = 3  # all constants are listed then
    assert modelled(model) == constant


def test_an_odd_family_is_rounded_up_without_the_others() -> None:
    """One depthwise convolution has 17 channels left, and a convolution of a small image 9."""
    model = onnxprune.prune(TWO, provider="cpu").model
    sizes = {tensor.name: tensor.dims[0] for tensor in model.graph.initializer}
    assert (sizes["w"], sizes["w2"]) == (20, 9)
    feeds = {"x": np.random.default_rng(1).standard_normal((1, 16, 56, 56)).astype(np.float32)}
    assert_same_outputs(TWO, model, feeds)
