"""What anyone can find out from two model files alone, without onnxprune: what they store, and whether they agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf.message import Message  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

__all__ = ["assert_zeroed_copy", "constants", "feeds", "largest_error", "outputs", "stored_weights"]

Array = NDArray[np.generic]
Model = ModelProto | Path

_OPEN_BATCH, _OPEN_SIZE = 2, 16  # fed for dimensions that the model leaves open
_COUNTED = [getattr(TensorProto, name) for name in ("FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16", "INT8", "UINT8")]


def loaded(model: Model) -> ModelProto:
    return onnx.load(model) if isinstance(model, Path) else model


def stored_weights(model: Model) -> int:
    """Elements of all float or 8-bit tensors of rank ≥ 2, wherever in the file they are."""
    return sum(prod(t.dims) for t in _tensors(loaded(model)) if len(t.dims) > 1 and t.data_type in _COUNTED)


def _tensors(message: Message) -> Iterator[TensorProto]:
    pending = [message]
    while pending:
        found = pending.pop()
        if isinstance(found, TensorProto):
            yield found
            continue
        for field, value in found.ListFields():
            if field.message_type is not None:
                pending += [value] if isinstance(value, Message) else list(value)


def constants(model: ModelProto) -> dict[str, Array]:
    """Name → numbers, of initializers and Constant nodes of the main graph."""
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    held |= {n.output[0]: numpy_helper.to_array(_value(n)) for n in model.graph.node if n.op_type == "Constant"}
    return held


def _value(node: NodeProto) -> TensorProto:
    tensor: TensorProto = node.attribute[0].t
    return tensor


def feeds(model: Model, seed: int = 0, sizes: Mapping[str, tuple[int, ...]] | None = None) -> dict[str, Array]:
    """Random inputs; an open batch gets 2, another open dimension 16, unless ``sizes`` has the input's shape."""
    rng = np.random.default_rng(seed)
    graph = loaded(model).graph
    stored = {tensor.name for tensor in graph.initializer}
    found: dict[str, Array] = {}
    for value in graph.input:
        if value.name not in stored:
            held = value.type.tensor_type
            shape = (sizes or {}).get(value.name) or tuple(
                d.dim_value or (_OPEN_SIZE if axis else _OPEN_BATCH) for axis, d in enumerate(held.shape.dim)
            )
            dtype = onnx.helper.tensor_dtype_to_np_dtype(held.elem_type)
            high = 2 if dtype.kind == "b" else 3
            drawn = rng.standard_normal(shape) if dtype.kind == "f" else rng.integers(0, high, shape)
            found[value.name] = np.asarray(drawn, dtype)
    return found


def outputs(model: Model, given: Mapping[str, Array]) -> dict[str, Array]:
    """What ONNX Runtime makes of the inputs, on one thread of the CPU."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(given)), strict=True))


def largest_error(expected: Mapping[str, Array], found: Mapping[str, Array]) -> float:
    """Largest |a − b| as a share of the largest |a|, over all outputs; infinite where names, shapes or types differ."""
    if list(expected) != list(found):
        return np.inf
    errors = [0.0]
    for a, b in ((expected[name], found[name]) for name in expected):
        if a.shape != b.shape or a.dtype != b.dtype:
            return np.inf
        exact, tried = a.astype(np.float64), b.astype(np.float64)
        difference = float(np.abs(exact - tried).max(initial=0.0))
        scale = float(np.abs(exact).max(initial=0.0))
        errors.append(difference / max(scale, 1e-6) if np.isfinite(difference) else np.inf)
    return max(errors)


def assert_zeroed_copy(original: ModelProto, masked: ModelProto) -> None:
    """Same nodes, and numbers that are the original's or zero, but for biases into which a constant was folded."""
    assert len(original.graph.node) == len(masked.graph.node)
    folded: set[str] = set()
    for was, now in zip(original.graph.node, masked.graph.node, strict=True):
        assert (now.op_type, now.name, list(now.output)) == (was.op_type, was.name, list(was.output))
        has_bias = was.op_type in ("Conv", "Gemm")
        assert list(now.input)[: 2 if has_bias else None] == list(was.input)[: 2 if has_bias else None]
        folded |= set(list(now.input)[2:]) if has_bias else set()
    before, after = constants(original), constants(masked)
    assert set(before) - folded <= set(after)
    for name in set(before) & set(after):
        assert after[name].shape == before[name].shape
        changed = after[name] != before[name]
        assert not np.any(after[name][changed]) or (name in folded and after[name].ndim == 1), name
