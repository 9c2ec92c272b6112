"""The check behind the exactness contract: pruned equals masked reference, on ONNX Runtime, for any choice of channels.

The tests of single operators, of random graphs and of planted faults all go through ``assert_exact``.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper, parser

from onnxprune.bodies import flatten, laid_out
from onnxprune.channels import ChannelMap
from onnxprune.consistency import assert_consistent
from onnxprune.graph import Graph
from onnxprune.measure import count_weights, is_weight
from onnxprune.ops import build_map
from onnxprune.passes.masked import masked_reference
from onnxprune.passes.rewrite import rewrite

__all__ = ["Outcome", "assert_exact", "assert_same_outputs", "model_of", "random_feeds", "random_keep", "run_model"]

_OPEN = 3  # size fed for an open dimension; the analysis guesses another
Array = NDArray[np.generic]
Sizes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Outcome:
    """A model pruned once. ``removed``: how many groups went."""

    map: ChannelMap
    keep: NDArray[np.bool_]
    pruned: ModelProto

    @property
    def removed(self) -> int:
        return int(np.count_nonzero(~self.keep))


# ---- models and choices ---------------------------------------------------------------------------------------------


def model_of(text: str, opset: int = 17, ir: int = 8, /, **weights: Any) -> ModelProto:
    """A model from ONNX text. ``weights``: constant → its numbers, or a shape (random numbers of a sensible size)."""
    domains = f'"" : {opset}, "com.microsoft" : 1'
    model = parser.parse_model(f"<ir_version: {ir}, opset_import: [{domains}]> g {text}")
    for name, held in weights.items():
        values = held if isinstance(held, np.ndarray) else _random_weight(name, np.atleast_1d(held))
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
    return model


def _random_weight(name: str, shape: Iterable[int]) -> NDArray[np.float32]:
    sizes = tuple(int(n) for n in shape)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    fan = max(float(np.prod(sizes)) / max(sizes), 1.0)
    return np.asarray(rng.standard_normal(sizes) / np.sqrt(fan), np.float32)


def random_keep(channel_map: ChannelMap, share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Drop about ``share`` of the free groups, then give back what ``ChannelMap.needs`` asks for."""
    keep = channel_map.frozen | (rng.random(channel_map.groups) >= share)
    missing = True
    while missing:
        missing = False
        for outputs, inputs in reversed(channel_map.needs):
            if len(inputs) and np.any(keep[outputs]) and not np.any(keep[inputs]):
                keep[rng.choice(inputs)] = missing = True
    return np.asarray(keep)


# ---- running --------------------------------------------------------------------------------------------------------


def random_feeds(model: ModelProto, rng: np.random.Generator, sizes: Sizes | None = None) -> dict[str, Array]:
    return {v.name: _feed(v, rng, sizes or {}) for v in _fed(model)}


def _fed(model: ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs a caller has to feed; before IR 4 the constants are listed among them."""
    stored = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in stored]


def _feed(value: onnx.ValueInfoProto, rng: np.random.Generator, sizes: Sizes) -> Array:
    kind = value.type.tensor_type
    shape = sizes.get(value.name, [d.dim_value if d.dim_value > 0 else _OPEN for d in kind.shape.dim])
    if kind.elem_type == TensorProto.BOOL:
        return np.asarray(rng.random(shape) < 0.5)
    if kind.elem_type in (TensorProto.INT64, TensorProto.INT32):
        return np.asarray(rng.integers(0, 3, shape)).astype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return np.asarray(rng.standard_normal(shape)).astype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))


def run_model(model: ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(found) for found in session.run(None, dict(feeds))]


# ---- the check ------------------------------------------------------------------------------------------------------


def assert_exact(model: ModelProto, share: float = 0.5, seeds: Iterable[int] = range(3), *,
                 sizes: Sizes | None = None, channel_map: ChannelMap | None = None) -> list[Outcome]:  # fmt: skip
    """Prune a model at random, once a seed, and check everything that has to hold of the result.

    ``sizes``: input → the shape fed. Tolerance: 1e-4 (float64: 1e-9) of the largest output.
    """
    channel_map = channel_map or build_map(Graph(laid_out(model)))
    outcomes = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        keep = random_keep(channel_map, share, rng)
        masked, pruned = masked_reference(channel_map, keep), rewrite(channel_map, keep)
        _assert_valid(model, pruned)
        _assert_masked(channel_map, masked)
        _assert_smaller(channel_map, keep, pruned)
        assert_same_outputs(masked, pruned, random_feeds(model, rng, sizes or {}))
        outcomes.append(Outcome(channel_map, keep, pruned))
    return outcomes


def assert_same_outputs(masked: ModelProto, pruned: ModelProto, feeds: Mapping[str, Array]) -> None:
    """Same shapes, types and, to rounding, numbers."""
    for name, a, b in zip(masked.graph.output, run_model(masked, feeds), run_model(pruned, feeds), strict=True):
        assert a.shape == b.shape, f"{name.name}: shape {b.shape}, expected {a.shape}"
        assert a.dtype == b.dtype, f"{name.name}: type {b.dtype}, expected {a.dtype}"
        if a.dtype.kind == "f":
            _assert_close(name.name, a, b)
        else:
            assert np.array_equal(a, b), f"{name.name}: other values"


def _assert_close(name: str, expected: Array, found: Array) -> None:
    a, b = np.asarray(expected, np.float64), np.asarray(found, np.float64)
    assert np.all(np.isfinite(a)), f"{name}: the masked reference is not finite"
    relative = 1e-9 if expected.dtype == np.float64 else 1e-4
    allowed = relative * max(1.0, float(np.abs(a).max(initial=0)))
    error = float(np.abs(a - b).max(initial=0))
    assert error <= allowed, f"{name}: differs by {error:.3g}, allowed {allowed:.3g}"


def _assert_valid(model: ModelProto, pruned: ModelProto) -> None:
    """The checker passes, and names, order, types and shapes of inputs and outputs are as they were."""
    onnx.checker.check_model(pruned, full_check=True)
    assert_consistent(pruned, model)
    assert _fed(model) == _fed(pruned)
    assert list(model.graph.output) == list(pruned.graph.output)


def _assert_masked(channel_map: ChannelMap, masked: ModelProto) -> None:
    """Same nodes; every number of every constant as it was, or zero (for quantised weights: the zero point)."""
    source = channel_map.graph
    assert [(n.op_type, list(n.input), list(n.output)) for n in source.nodes] == [
        (n.op_type, list(n.input), list(n.output)) for n in flatten(masked).graph.node
    ]
    after = Graph(flatten(masked))
    assert list(after.constants) == list(source.constants)
    for name in source.constants:
        old, new = source.values(name), after.values(name)
        changed = old != new
        if new.dtype.kind == "f":
            assert not np.any(new[changed]), f"{name}: neither original nor zero"
        assert old.dtype == new.dtype


def _assert_smaller(channel_map: ChannelMap, keep: NDArray[np.bool_], pruned: ModelProto) -> None:
    """Where a removed group runs along a weight, the file holds fewer weights."""
    source = channel_map.graph
    cut = any(
        is_weight(source.constants[source.nodes[index].input[k]]) and not np.all(keep[ids])
        for (index, k), axes in channel_map.uses.items()
        for ids in axes
        if ids is not None
    )
    before, after = count_weights(source.model), count_weights(pruned)
    assert after < before if cut else after <= before, f"{after} weights are left of {before}"
