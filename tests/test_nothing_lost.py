"""What pruning does not touch comes out as it went in, whatever a model says."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command import run
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser
from proto_differences import differences, say_everything

import onnxprune

_HEADER = """<ir_version: 10, opset_import: ["" : 21, "own" : 1, "never.used" : 3], producer_name: "maker",
    producer_version: "1.2", domain: "org.example", model_version: 7, doc_string: "a model">"""
_PRUNED = """
    [first] a = Conv<pads=[1,1,1,1]>(image, w, b)
    [relu] r = Relu(a)
    [last] y = Conv(r, v)"""
_UNTOUCHED = """
    [if] s = If(yes) <then_branch = then () => (float[N,3,8,8] t) <float[3,1,1] shift = {1, 2, 3}, float[N,3,8,8] t0>
                          { [shifted] t0 = Add(image, shift) [abs] t = Abs(t0) },
                      else_branch = other () => (float[N,3,8,8] e) { [neg] e = Neg(image) }>
    [int4] q = DequantizeLinear(int4, scale)
    [side] side = Mul(s, q)
    [words] words = Identity(text)
    [unread] nothing = Abs(image)"""
_INPUTS = "float[N,3,8,8] image, bool yes, float[8,3,3,3] w"
_VALUES = "float[8,3,3,3] w, float[8] b, float[N,8,H,W] a, float[N,8,8,8] r, float[3,1,1] q"
_FUNCTIONS = """
    <domain: "own", opset_import: ["" : 21]> times <factor> (p) => (q)
        { [k] k = Constant<value_float: float = @factor>() [mul] q = Mul(p, k) }
    <domain: "own", opset_import: ["" : 21]> never (p) => (q) { [n] q = Neg(p) }"""


def _model(text: str, functions: str = "") -> ModelProto:
    return parser.parse_model(f"{_HEADER} g {text} {functions}")


def _weights(**shapes: Sequence[int]) -> list[TensorProto]:
    rng = np.random.default_rng(0)
    return [numpy_helper.from_array(rng.standard_normal(s, np.float32), name) for name, s in shapes.items()]


def _rich(*zeros: int, body: str = _PRUNED + _UNTOUCHED, functions: str = "") -> ModelProto:
    """Two convolutions of 8 channels, of which nobody reads ``zeros``, beside everything else that a model can hold."""
    model = _model(f"({_INPUTS}) => (float[N,4,8,8] y, float[N,3,8,8] side, string[2] words) <{_VALUES}> {{ {body} }}",
                   functions)  # fmt: skip
    graph = model.graph
    graph.initializer.extend(_weights(w=(8, 3, 3, 3), b=(8,), v=(4, 8, 1, 1)))
    kernels = np.array(numpy_helper.to_array(graph.initializer[2]))
    kernels[:, zeros] = 0
    graph.initializer[2].CopyFrom(numpy_helper.from_array(kernels, "v"))
    graph.initializer.extend(_rare_tensors())
    sparse = graph.sparse_initializer.add(dims=[3, 4])
    sparse.values.CopyFrom(helper.make_tensor("sparse", TensorProto.FLOAT, [2], [1.0, 2.0]))
    sparse.indices.CopyFrom(helper.make_tensor("", TensorProto.INT64, [2], [1, 5]))
    for name in ("a", "side"):
        held = graph.quantization_annotation.add(tensor_name=name)
        held.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="scale")
    training = model.training_info.add()
    training.algorithm.CopyFrom(helper.make_graph([helper.make_node("Relu", ["y"], ["loss"])], "training", [], []))
    training.update_binding.add(key="w", value="loss")
    return _saying_everything(model)


def _rare_tensors() -> list[TensorProto]:
    """Most of them nobody reads."""
    make: Any = helper.make_tensor
    return [
        make("scale", TensorProto.FLOAT, [], [0.5]),
        make("int4", TensorProto.INT4, [3, 1, 1], [1, -2, 3]),
        make("uint4", TensorProto.UINT4, [3], [1, 2, 15]),
        make("float8", TensorProto.FLOAT8E4M3FNUZ, [3], [1, 2, 3]),
        make("bfloat16", TensorProto.BFLOAT16, [3], [1, 2, 3]),
        make("text", TensorProto.STRING, [2], [b"a", "ä".encode()]),
    ]


def _saying_everything(model: ModelProto) -> ModelProto:
    say_everything(model)
    return model


def _without_checking(model: ModelProto, **options: Any) -> ModelProto:
    return onnxprune.prune(model, check=False, **options).model


def _same_bytes(a: ModelProto, b: ModelProto) -> bool:
    one, other = (model.SerializeToString(deterministic=True) for model in (a, b))
    return bool(one == other)


def _unexpected(found: Sequence[str], *expected: str) -> list[str]:
    """Differences that no pattern matches in full."""
    return [path for path in found if not any(re.fullmatch(pattern, path) for pattern in expected)]


# ---- the comparison itself


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda m: m.graph.node[0].metadata_props.pop(), "-graph.node[first].metadata_props[empty]"),
        (lambda m: m.graph.node[0].ClearField("doc_string"), "graph.node[first].doc_string"),
        (lambda m: m.graph.initializer.add(name="z"), "+graph.initializer[z]"),
        (lambda m: m.graph.output.reverse(), "~graph.output"),
        (lambda m: m.graph.node[2].DiscardUnknownFields(), "graph.node[last]?"),
    ],
)
def test_differences_are_seen(change: Callable[[ModelProto], object], path: str) -> None:
    model, other = _rich(), _rich()
    assert differences(model, other) == []
    change(other)
    assert path in differences(model, other)


# ---- nothing to prune


def _untouched() -> dict[str, ModelProto]:
    opaque = "[opaque] o = own.Opaque<nothing: ints = []>(image) [opaque2] o2 = own.Opaque(o)"
    constants = "y = Constant<value_floats = [1.0, 2.0]>() e = Constant<value_ints: ints = []>() z = Identity(x)"
    return {
        "everything": _rich(),
        "functions": _rich(
            body=_PRUNED + _UNTOUCHED + "[call] f = own.times<factor = 2.0>(image)", functions=_FUNCTIONS
        ),
        "custom operators": _rich(body=_PRUNED + _UNTOUCHED + opaque),
        "constants": _saying_everything(_model(f"(float[2] x) => (float[2] y, float[2] z) {{ {constants} }}")),
        "old": _old(),
    }


def _old() -> ModelProto:
    """Before IR 4 every initializer is an input, too."""
    model = parser.parse_model("""<ir_version: 3, opset_import: ["" : 8]>
        g (float[N,6] x, float[8,6] w, float[8] b, float[4,8] v) => (float[N,4] y)
        { h = Gemm<transB=1>(x, w, b) r = Relu(h) y = Gemm<transB=1>(r, v) }""")
    model.graph.initializer.extend(_weights(v=(4, 8), w=(8, 6), b=(8,)))
    return _saying_everything(model)


@pytest.mark.parametrize("name", sorted(_untouched()))
def test_nothing_to_prune_nothing_changed(name: str, tmp_path: Path) -> None:
    model = _untouched()[name]
    before = model.SerializeToString(deterministic=True)
    result = _without_checking(model)
    assert differences(model, result) == []
    assert _same_bytes(model, result)
    assert model.SerializeToString(deterministic=True) == before, "the caller's own model was changed"
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    assert run(tmp_path / "model.onnx", "--no-verify", "-q", "-o", tmp_path / "out.onnx") == 0
    assert (tmp_path / "out.onnx").read_bytes() == (tmp_path / "model.onnx").read_bytes()


def test_real_models_without_anything_dead(real_models: Path) -> None:
    untouched = 0
    for path in sorted(real_models.glob("*.onnx")):
        result = onnxprune.prune(path, check=False)
        if not result.plan.cuts and not result.narrowed and not result.blocks:
            untouched += 1
            assert _same_bytes(onnx.load(path), result.model), path.name
    assert untouched >= 10


# ---- something is pruned

_SIZE = r"\.type\.tensor_type\.shape\.dim\[\d\]\.dim_value"
_CUT = (
    r"graph\.initializer\[[wbv]\]\.(dims|raw_data)",
    rf"graph\.value_info\[[wbar]\]{_SIZE}",
    rf"graph\.input\[w\]{_SIZE}",
)


def test_dead_channels_leave_alone() -> None:
    model = _rich(2, 5)
    found = differences(model, onnxprune.prune(model).model)
    declared = ("input[w]", 0), ("value_info[a]", 1), ("value_info[b]", 0), ("value_info[r]", 1), ("value_info[w]", 0)
    assert found == [
        *(f"graph.initializer[{name}].{field}" for name in "bvw" for field in ("dims", "raw_data")),
        *(f"graph.{value}.type.tensor_type.shape.dim[{axis}].dim_value" for value, axis in declared),
    ]


@pytest.mark.parametrize("options", [{"sparsity": 0.5}, {"sparsity": 0.5, "granularity": "kernel"}])
def test_only_what_is_cut_changes(options: dict[str, Any]) -> None:
    model = _rich()
    result = onnxprune.prune(model, restructure="never", **options)
    found = differences(model, result.model)
    assert found
    assert _unexpected(found, *_CUT) == []
    masked = differences(model, result.masked)
    assert masked
    assert _unexpected(masked, r"graph\.initializer\[[wbv]\]\.raw_data") == []


def test_edited_nodes_keep_what_is_said_of_them() -> None:
    """A grouped convolution and a Reshape get other numbers; the rest of their attributes are as they were."""
    text = """(float[2,3,4,4] x) => (float[2,8,4,4] y) {
        [stem] a = Conv(x, w)
        [deep] d = Conv<group = 8, pads = [1,1,1,1], auto_pad = "NOTSET", strides = [1,1]>(a, k)
        [shape] s = Constant<value_ints = [2, 8, 16]>()
        [flat] f = Reshape(d, s)
        [back] shape2 = Constant<value: tensor = int64[4] {2, 8, 4, 4}>()
        [square] q = Reshape(f, shape2)
        [last] y = Conv(q, v) }"""
    model = _model(text)
    model.graph.initializer.extend(_weights(w=(8, 3, 1, 1), k=(8, 1, 3, 3), v=(8, 8, 1, 1)))
    _dead(model.graph.initializer[2], 1, 6)
    _saying_everything(model)
    odd = helper.make_attribute("odd", [], attr_type=onnx.AttributeProto.INTS)
    raw = onnx.AttributeProto(name="raw", type=onnx.AttributeProto.STRING, s=b"\xff\x00")
    model.graph.node[1].attribute.extend([odd, raw])
    found = differences(model, _without_checking(model))
    assert found == [
        *(f"graph.initializer[{name}].{field}" for name in "kvw" for field in ("dims", "raw_data")),
        "graph.node[back].attribute[value].t.int64_data",
        "graph.node[back].attribute[value].t.raw_data",
        "graph.node[deep].attribute[group].i",
        "graph.node[shape].attribute[value_ints].ints",
    ]


def _dead(tensor: TensorProto, *channels: int) -> None:
    values = np.array(numpy_helper.to_array(tensor))
    values[:, channels] = 0
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def test_bodies_that_lose_channels() -> None:
    """The stem is outside, the rest of a layer and its constants are in one branch, the other makes zeros."""
    body = """
        [first] a = Conv<pads=[1,1,1,1]>(image, w, b)
        [branch] y = If(yes) <
            then_branch = then () => (float[N,4,8,8] t) <float[N,8,8,8] r>
                { [inner] r = Relu(a) [last] t = Conv(r, v) },
            else_branch = other () => (float[N,4,8,8] e) { [f] f = Sub(a, a) [m] e = Conv(f, v) }>"""
    model = _rich(2, 5, body=body + _UNTOUCHED)
    found = differences(model, onnxprune.prune(model).model)
    declared = rf"graph\.node\[branch\]\.attribute\[then_branch\]\.g\.value_info\[r\]{_SIZE}"
    assert "graph.initializer[w].dims" in found
    assert _unexpected(found, *_CUT, declared) == []


def test_layers_that_are_narrowed() -> None:
    """Two layers read the same 8 channels; one of them has kernels for 5 alone, and reads a copy of these."""
    model = _rich(body=_PRUNED + "[other] z = Conv(r, u)" + _UNTOUCHED)
    model.graph.initializer.extend(_weights(u=(4, 8, 1, 1)))
    _dead(model.graph.initializer[-1], 1, 3, 6)
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    result = onnxprune.prune(model, restructure="always")
    assert result.narrowed == {"z": 5}
    found = differences(model, result.model)
    assert "graph.node[other].input" in found
    new, changed = [path for path in found if path[0] == "+"], [path for path in found if path[0] != "+"]
    assert all(re.match(r"\+graph\.(node|initializer)\[\w+\]$", path) for path in new), new
    assert _unexpected(changed, r"graph\.initializer\[u\]\..*", r"graph\.node\[other\]\.input", *_CUT) == []


@pytest.mark.parametrize("channels", [(), (2, 5)])
def test_external_data(channels: tuple[int, ...], tmp_path: Path) -> None:
    model = _rich(*channels)
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=128)
    assert run(tmp_path / "model.onnx", "-q", "-o", tmp_path / "out.onnx") == 0
    before, after = (onnx.load(tmp_path / name, load_external_data=False) for name in ("model.onnx", "out.onnx"))
    found = differences(before, after)
    if channels:
        assert _unexpected(found, r"graph\.initializer\[[wv]\]\.external_data\[\w+\]\.value", *_CUT) == []
    else:
        assert found == [f"graph.initializer[{name}].external_data[location].value" for name in "vw"]
