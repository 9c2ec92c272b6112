"""Loading refuses whatever contradicts itself, in one line; saving writes the whole model or nothing."""

from __future__ import annotations

import copy
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser
from onnx.external_data_helper import uses_external_data

from onnxprune import model_io
from onnxprune.errors import ModelError, OnnxpruneError, UsageError
from onnxprune.files.wire_format import raw_lengths
from onnxprune.model_io import check_writable, default_output, load, save

HEADER = '<ir_version: 8, opset_import: ["" : 17]>'
TWO_LAYERS = f"""{HEADER} net (float[N,2] x) => (float[N,2] y)
    <float[2,2] w = {{1, 2, 3, 4}}> {{ h = MatMul(x, w)  y = Relu(h) }}"""
WIDTH = 512
"""Floats in a tensor of an external-data model: 2 KB, enough to leave the model file."""

Weights = dict[str, NDArray[np.float32]]


@pytest.fixture
def two_layers() -> ModelProto:
    return parser.parse_model(TWO_LAYERS)


def write(model: ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def refuse(model: ModelProto, folder: Path, reason: str) -> None:
    """Loading the model fails in one line that names the file and the reason."""
    path = write(model, folder / "refused.onnx")
    with pytest.raises(ModelError, match=reason) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def graph_of(text: str) -> ModelProto:
    return parser.parse_model(f"{HEADER} net {text}")


def weights_of(count: int = 3) -> Weights:
    return {f"w{i}": np.arange(WIDTH, dtype=np.float32) + i for i in range(count)}


def refer(tensor: TensorProto, location: str, offset: object, length: object) -> None:
    """Let a tensor's numbers be in a file."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)


def external_model(folder: Path, weights: Weights) -> Path:
    """``model.onnx``, which adds up the weights it keeps in ``weights.bin``."""
    value = helper.make_tensor_value_info
    adds = helper.make_node("Sum", ["x", *weights], ["y"])
    stored = [numpy_helper.from_array(values, name) for name, values in weights.items()]
    graph = helper.make_graph([adds], "net", [value("x", 1, [WIDTH])], [value("y", 1, [WIDTH])], stored)
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    content = b""
    for tensor in model.graph.initializer:
        raw = tensor.raw_data
        refer(tensor, "weights.bin", len(content), len(raw))
        content += raw
    (folder / "weights.bin").write_bytes(content)
    return write(model, folder / "model.onnx")


def numbers(path: Path) -> Weights:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A file system of its own, as long as the test lasts."""
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"no mount command: {error}")
    if done.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path, "size=1m")


@pytest.fixture
def read_only_disk(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path, "ro")


# ---- load: files


@pytest.mark.parametrize("name", ["absent.onnx", "absent/model.onnx", "."])
def test_missing_file_and_folder_are_usage_errors(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"no such file|is a folder"):
        load(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"Dear reader,\nthis is a letter.\n", "a text file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n", "git lfs pull"),
        (b"\x08\x08", "no graph"),
        (b"PK\x03\x04\xff\xff\xff", "not an ONNX model"),
    ],
)
def test_files_of_another_kind(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=reason):
        load(path)


def test_every_truncation_is_refused(tmp_path: Path, two_layers: ModelProto) -> None:
    content = two_layers.SerializeToString()
    path = tmp_path / "model.onnx"
    for end in range(len(content)):
        path.write_bytes(content[:end])
        with pytest.raises(ModelError, match=r"cut short|empty|text file|no graph|not an ONNX"):
            load(path)


def test_truncation_says_how_much_is_missing(tmp_path: Path, two_layers: ModelProto) -> None:
    content = two_layers.SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(content[:100])
    with pytest.raises(ModelError, match=r"cut short: 100 of at least \d+ bytes"):
        load(path)


def test_damage_never_ends_in_another_exception(tmp_path: Path, two_layers: ModelProto) -> None:
    content = two_layers.SerializeToString()
    chance = random.Random(0)
    path = tmp_path / "model.onnx"
    reasons = []
    for _ in range(300):
        damaged = bytearray(content)
        damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            load(path)
        except OnnxpruneError as error:
            reasons.append(str(error))
    assert 10 < len(reasons) < 300
    assert not any("\n" in reason for reason in reasons)


def test_presence_of_outputs_and_operator_sets(tmp_path: Path, two_layers: ModelProto) -> None:
    without = ModelProto()
    without.CopyFrom(two_layers)
    del without.opset_import[:]
    refuse(without, tmp_path, "opset_import")
    del two_layers.graph.output[:]
    refuse(two_layers, tmp_path, "no outputs")


def test_what_is_loaded(tmp_path: Path, two_layers: ModelProto) -> None:
    path = write(two_layers, tmp_path / "model.onnx")
    loaded = load(str(path))
    assert loaded.proto == two_layers
    assert (loaded.path, loaded.folder, loaded.data_files) == (path, None, ())
    assert loaded.file_size == path.stat().st_size


# ---- load: tensors


def test_lengths_of_raw_data_are_read_off_the_file(two_layers: ModelProto) -> None:
    two_layers.graph.initializer.append(numpy_helper.from_array(np.zeros((3, 100), np.int8), "zeros"))
    found = raw_lengths(two_layers, two_layers.SerializeToString())
    assert found == [len(tensor.raw_data) for tensor in two_layers.graph.initializer]


@pytest.mark.parametrize("kind", sorted(set(TensorProto.DataType.keys()) - {"UNDEFINED", "STRING"}))
def test_every_type_packed_and_unpacked(tmp_path: Path, two_layers: ModelProto, kind: str) -> None:
    number = TensorProto.DataType.Value(kind)
    plain = helper.make_tensor("plain", number, [7], [0] * 7)
    raw = numpy_helper.from_array(numpy_helper.to_array(plain), "raw")
    two_layers.graph.initializer.extend([plain, raw])
    assert load(write(two_layers, tmp_path / "model.onnx")).proto == two_layers
    raw.raw_data = raw.raw_data[:-1]
    two_layers.graph.initializer[-1].CopyFrom(raw)
    refuse(two_layers, tmp_path, f"'raw' holds .* {kind} needs")


def test_text_tensors_are_taken_unless_raw(tmp_path: Path, two_layers: ModelProto) -> None:
    words = TensorProto(name="words", dims=[2], data_type=TensorProto.STRING, string_data=[b"a", b"\xff"])
    two_layers.graph.initializer.append(words)
    load(write(two_layers, tmp_path / "model.onnx"))
    two_layers.graph.initializer[-1].raw_data = b"ab"
    refuse(two_layers, tmp_path, "'words' keeps text as raw bytes")


@pytest.mark.parametrize(
    ("dims", "data_type", "reason"),
    [
        ([2, 3], TensorProto.FLOAT, r"shape \[2, 3\] of FLOAT needs 24"),
        ([-2, -2], TensorProto.FLOAT, "negative size -2"),
        ([2**62, 2**62], TensorProto.FLOAT, "needs"),
        ([4], 99, "type 99"),
    ],
)
def test_tensors_that_contradict_their_shape(
    tmp_path: Path, two_layers: ModelProto, dims: list[int], data_type: int, reason: str
) -> None:
    tensor = TensorProto(name="t", dims=dims, data_type=data_type, raw_data=bytes(16))
    in_attribute = ModelProto()
    in_attribute.CopyFrom(two_layers)
    in_attribute.graph.node[0].attribute.append(helper.make_attribute("value", tensor))
    refuse(in_attribute, tmp_path, reason)
    two_layers.graph.initializer.append(tensor)
    refuse(two_layers, tmp_path, reason)


def test_missing_entries(tmp_path: Path, two_layers: ModelProto) -> None:
    tensor = TensorProto(name="t", dims=[4], data_type=TensorProto.FLOAT, float_data=[1, 2, 3])
    two_layers.graph.initializer.append(tensor)
    refuse(two_layers, tmp_path, "'t' holds 3 entries of float_data")


# ---- load: external data


def test_external_data_is_counted_but_not_read(tmp_path: Path) -> None:
    path = external_model(tmp_path, weights_of())
    loaded = load(path)
    assert loaded.folder == tmp_path
    assert loaded.data_files == (tmp_path / "weights.bin",)
    assert loaded.file_size == path.stat().st_size + 3 * 4 * WIDTH
    assert not any(tensor.HasField("raw_data") for tensor in loaded.proto.graph.initializer)


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("/etc/passwd", "outside the model's folder"),
        ("../weights.bin", "outside the model's folder"),
        ("sub/../weights.bin", "outside the model's folder"),
        ("..\\weights.bin", "outside the model's folder"),
        ("C:\\weights.bin", "outside the model's folder"),
        ("escape.bin", "a link to a place outside the model's folder"),
        ("deeper/weights.bin", "a link to a place outside the model's folder"),
        ("inside.bin", "ONNX does not read: it is a link"),
        ("absent.bin", "no such file"),
        ("sub", "no such file"),
        ("", "not a file name"),
        ("weights\0.bin", "not a file name"),
    ],
)
def test_unsafe_and_missing_data_files(tmp_path: Path, location: str, reason: str) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    model = onnx.load(external_model(folder, weights_of()), load_external_data=False)
    (tmp_path / "weights.bin").write_bytes((folder / "weights.bin").read_bytes())
    (folder / "escape.bin").symlink_to(tmp_path / "weights.bin")
    (folder / "deeper").symlink_to(tmp_path, target_is_directory=True)
    (folder / "inside.bin").symlink_to(folder / "weights.bin")
    refer(model.graph.initializer[1], location, 0, 4 * WIDTH)
    refuse(model, folder, reason)


@pytest.mark.parametrize(
    ("offset", "length", "reason"),
    [
        (4 * WIDTH * 2 + 1, 4 * WIDTH, "but that has 6144 bytes"),
        (-1, 4 * WIDTH, "but that has 6144 bytes"),
        (0, -5, "but that has 6144 bytes"),
        (2**64, 4 * WIDTH, "but that has 6144 bytes"),
        (0, 4 * WIDTH - 4, "needs 2048"),
        ("many", 4 * WIDTH, "no number"),
    ],
)
def test_ranges_of_external_data(tmp_path: Path, offset: object, length: object, reason: str) -> None:
    model = onnx.load(external_model(tmp_path, weights_of()), load_external_data=False)
    refer(model.graph.initializer[1], "weights.bin", offset, length)
    refuse(model, tmp_path, reason)


def test_places_of_external_data_are_said_once(tmp_path: Path) -> None:
    model = onnx.load(external_model(tmp_path, weights_of()), load_external_data=False)
    model.graph.initializer[1].external_data.add(key="location", value="/etc/passwd")
    refuse(model, tmp_path, "'w1' says twice where")


def test_external_data_without_offset_and_length(tmp_path: Path) -> None:
    model = onnx.load(external_model(tmp_path, weights_of(1)), load_external_data=False)
    del model.graph.initializer[0].external_data[1:]
    load(write(model, tmp_path / "model.onnx"))


# ---- load: names and order


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        ("(float[2] x) => (float[2] y) { y = Add(x, w) }", "node 'Add→y' reads 'w', which is no input"),
        ("(float[2] x) => (float[2] y, float[2] z) { y = Relu(x) }", "outputs of the graph reads 'z'"),
        ("(float[2] x) => (float[2] y) { y = Relu(x)  y = Abs(x) }", "'y' is there twice"),
        ("(float[2] x) => (float[2] y) { y = Relu(x)  x = Abs(y) }", "'x' is there twice"),
        ("(float[2] x, float[2] x) => (float[2] y) { y = Relu(x) }", "'x' is there twice"),
        (
            "(float[2] x) => (float[2] y) <float w = {1}, float w = {2}> { y = Add(x, w) }",
            "'w' is there twice",
        ),
        (
            "(float[2] x) => (float[2] y) { a = Add(x, b)  b = Relu(a)  y = Abs(b) }",
            "'Add→a' → 'Relu→b' → 'Add→a'",
        ),
        ("(float[2] x) => (float[2] y) { y = Add(x, y) }", "cycle: 'Add→y' → 'Add→y'"),
    ],
)
def test_names_and_cycles(tmp_path: Path, graph: str, reason: str) -> None:
    refuse(graph_of(graph), tmp_path, reason)


def test_names_that_are_not_text(tmp_path: Path, two_layers: ModelProto) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(two_layers.SerializeToString().replace(b"MatMul", b"Mat\xff\xfel"))
    with pytest.raises(ModelError, match="not UTF-8"):
        load(path)


def test_initializers_may_be_declared_as_inputs(tmp_path: Path, two_layers: ModelProto) -> None:
    two_layers.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, 2]))
    load(write(two_layers, tmp_path / "model.onnx"))


def branching(read: str) -> ModelProto:
    """A body that reads a tensor of the graph, made by the last node."""
    return graph_of(f"""(bool c, float[2] x) => (float[2] y) {{
        y = If (c) <then_branch = then () => (float[2] t) {{ t = Relu({read}) }},
                    else_branch = other () => (float[2] e) {{ e = Identity(x) }}>
        late = Abs(x) }}""")


def test_bodies_read_what_is_around_them(tmp_path: Path) -> None:
    loaded = load(write(branching("x"), tmp_path / "model.onnx"))
    assert [node.op_type for node in loaded.proto.graph.node] == ["If", "Abs"]
    loaded = load(write(branching("late"), tmp_path / "model.onnx"))
    assert [node.op_type for node in loaded.proto.graph.node] == ["Abs", "If"]
    refuse(branching("never"), tmp_path, "node 'If→y' reads 'never'")


def test_unsorted_nodes_are_sorted_and_stay_in_order_where_they_can(tmp_path: Path) -> None:
    model = graph_of("""(float[2] x) => (float[2] y, float[2] z)
        { z = Neg(x)  y = Add(b, a)  a = Relu(x)  c = Sin(x)  b = Abs(a) }""")
    loaded = load(write(model, tmp_path / "model.onnx"))
    assert [node.op_type for node in loaded.proto.graph.node] == ["Neg", "Relu", "Sin", "Abs", "Add"]
    onnx.checker.check_model(loaded.proto)


def test_a_long_chain_in_the_wrong_order(tmp_path: Path) -> None:
    length = 20_000
    nodes = [helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"]) for i in reversed(range(length))]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "net", [value("t0", 1, [2])], [value(f"t{length}", 1, [2])])
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    loaded = load(write(model, tmp_path / "model.onnx"))
    assert [node.output[0] for node in loaded.proto.graph.node] == [f"t{i + 1}" for i in range(length)]


# ---- save


def test_an_untouched_model_comes_out_as_it_went_in(tmp_path: Path, two_layers: ModelProto) -> None:
    two_layers.metadata_props.add(key="author", value="someone")
    source = load(write(two_layers, tmp_path / "model.onnx"))
    assert save(source.proto, tmp_path / "out.onnx", source=source) == [tmp_path / "out.onnx"]
    assert onnx.load(tmp_path / "out.onnx") == two_layers
    assert listing(tmp_path) == ["model.onnx", "out.onnx"]


def test_external_data_round_trip(tmp_path: Path) -> None:
    """Changed, unchanged, shared and small tensors, in the order of the model, aligned."""
    weights = weights_of(5)
    source = load(external_model(tmp_path, weights))
    model = ModelProto()
    model.CopyFrom(source.proto)
    changed, small, shared = (
        np.ones(WIDTH, np.float32),
        np.ones(3, np.float32),
        source.proto.graph.initializer[0],
    )
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(changed, "w1"))
    model.graph.initializer[2].CopyFrom(numpy_helper.from_array(small, "w2"))
    model.graph.initializer[3].external_data[1].value = shared.external_data[1].value
    before = model.SerializeToString()

    out = tmp_path / "out.onnx"
    assert save(model, out, source=source) == [out, tmp_path / "out.onnx.data"]
    assert model.SerializeToString() == before
    found = numbers(out)
    expected = {**weights, "w1": changed, "w2": small, "w3": weights["w0"]}
    assert list(found) == list(expected)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    stored = onnx.load(out, load_external_data=False).graph.initializer
    assert all(uses_external_data(tensor) for tensor in stored)
    entries = [{e.key: e.value for e in tensor.external_data} for tensor in stored if tensor.external_data]
    assert [int(e["offset"]) for e in entries] == [0, 2048, 4096, 0, 4160]
    assert (tmp_path / "out.onnx.data").stat().st_size == 4160 + 4 * WIDTH
    assert load(out).folder == tmp_path


def test_an_untouched_model_keeps_its_layout(tmp_path: Path) -> None:
    """Which tensors are inside, which keys are given, and every place in the data file."""
    model = onnx.load(external_model(tmp_path, weights_of(3)), load_external_data=False)
    content = (tmp_path / "weights.bin").read_bytes()
    first, last, third = model.graph.initializer
    (tmp_path / "weights.bin").write_bytes(b"head" + content[4 * WIDTH :] + b"gap" + content[: 4 * WIDTH])
    refer(third, "weights.bin", 4 + 4 * WIDTH, 4 * WIDTH)
    refer(first, "weights.bin", 4 + 8 * WIDTH + 3, 4 * WIDTH)
    del first.external_data[2:]
    refer(last, "weights.bin", 4, 4 * WIDTH)
    last.external_data.add(key="checksum", value="0" * 40)
    model.graph.initializer.append(numpy_helper.from_array(np.ones(WIDTH, np.float32), "inside"))
    source = load(write(model, tmp_path / "model.onnx"))
    save(source.proto, tmp_path / "out.onnx", source=source)
    stored = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    for tensor in stored.graph.initializer:
        if tensor.external_data:
            assert tensor.external_data[0].value == "out.onnx.data"
            tensor.external_data[0].value = "weights.bin"
    assert stored == model
    found = (tmp_path / "out.onnx.data").read_bytes()
    assert found[4 : 4 + 8 * WIDTH] == content[4 * WIDTH :]
    assert found[4 + 8 * WIDTH + 3 :] == content[: 4 * WIDTH]


def test_what_is_inside_stays_inside(tmp_path: Path) -> None:
    """Beside external data, and whatever leaves: only what is new, or was outside, goes out."""
    model = onnx.load(external_model(tmp_path, weights_of(2)), load_external_data=False)
    ones = numpy_helper.from_array(np.ones(WIDTH, np.float32), "inside")
    model.graph.initializer.append(ones)
    model.graph.node.add(op_type="Constant", output=["k"]).attribute.append(helper.make_attribute("value", ones))
    source = load(write(model, tmp_path / "model.onnx"))
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones(WIDTH - 4, np.float32), "w0"))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(WIDTH, np.float32), "new"))
    save(model, tmp_path / "out.onnx", source=source)
    stored = onnx.load(tmp_path / "out.onnx", load_external_data=False).graph
    assert {t.name for t in stored.initializer if uses_external_data(t)} == {"w0", "w1", "new"}
    assert not uses_external_data(stored.node[1].attribute[0].t)


def test_large_tensors_begin_at_a_page(tmp_path: Path) -> None:
    source = load(external_model(tmp_path, weights_of(1)))
    model = copy.deepcopy(source.proto)
    for name in ("large", "small"):
        values = np.zeros(2**18 if name == "large" else WIDTH, np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    save(model, tmp_path / "out.onnx", source=source)
    stored = onnx.load(tmp_path / "out.onnx", load_external_data=False).graph.initializer
    assert [int(tensor.external_data[1].value) for tensor in stored] == [0, 4096, 4096 + 2**20]


def test_external_data_in_constants_and_bodies(tmp_path: Path) -> None:
    model = graph_of("""(bool c, float[512] x) => (float[512] y) {
        k = Constant<value = float[1] {0}>()
        y = If (c) <then_branch = then () => (float[512] t) <float[1] w = {0}> { t = Add(k, w) },
                    else_branch = other () => (float[512] e) { e = Add(x, k) }> }""")
    values = np.arange(WIDTH, dtype=np.float32)
    values.tofile(tmp_path / "weights.bin")
    body = next(held.g for held in model.graph.node[1].attribute if held.name == "then_branch")
    for tensor in (model.graph.node[0].attribute[0].t, body.initializer[0]):
        tensor.ClearField("float_data")
        tensor.dims[0] = WIDTH
        refer(tensor, "weights.bin", 0, 4 * WIDTH)
    source = load(write(model, tmp_path / "model.onnx"))
    model = copy.deepcopy(source.proto)
    model.graph.node[0].attribute[0].t.CopyFrom(numpy_helper.from_array(values * 2, ""))
    save(model, tmp_path / "out.onnx", source=source)
    (tmp_path / "weights.bin").unlink()
    assert (tmp_path / "out.onnx").stat().st_size < 2048
    session = ort.InferenceSession(str(tmp_path / "out.onnx"), providers=["CPUExecutionProvider"])
    result = session.run(None, {"c": np.array(True), "x": values})[0]
    assert np.array_equal(np.asarray(result), values * 3)


def test_a_model_beyond_the_limit_gets_external_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_io, "_INSIDE_LIMIT", 1000)
    model = onnx.load(external_model(tmp_path, weights_of(2)))
    typed = TensorProto(name="w1", dims=[WIDTH], data_type=TensorProto.FLOAT, float_data=range(WIDTH))
    model.graph.initializer[1].CopyFrom(typed)
    assert len(save(model, tmp_path / "out.onnx", source=None)) == 2
    assert (tmp_path / "out.onnx").stat().st_size < 1000
    found = numbers(tmp_path / "out.onnx")
    assert np.array_equal(found["w0"], weights_of()["w0"])
    assert np.array_equal(found["w1"], np.arange(WIDTH))


def test_the_check_sees_the_final_form_elsewhere(tmp_path: Path) -> None:
    source = load(external_model(tmp_path, weights_of()))
    seen: list[Path] = []

    def run(staged: Path) -> None:
        ort.InferenceSession(str(staged), providers=["CPUExecutionProvider"])
        assert not (tmp_path / "out.onnx").exists()
        seen.append(staged)

    save(source.proto, tmp_path / "out.onnx", source=source, check=run)
    assert [path.name for path in seen] == ["out.onnx"]
    assert listing(tmp_path) == ["model.onnx", "out.onnx", "out.onnx.data", "weights.bin"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ModelError("it does not agree"), MemoryError()])
def test_a_failing_check_leaves_everything_as_it_was(tmp_path: Path, error: BaseException) -> None:
    source = load(external_model(tmp_path, weights_of()))
    for name in ("out.onnx", "out.onnx.data"):
        (tmp_path / name).write_bytes(b"old")

    def fail(staged: Path) -> None:
        assert staged.exists()
        raise error

    with pytest.raises(type(error)):
        save(source.proto, tmp_path / "out.onnx", source=source, check=fail)
    assert listing(tmp_path) == ["model.onnx", "out.onnx", "out.onnx.data", "weights.bin"]
    assert (tmp_path / "out.onnx").read_bytes() == (tmp_path / "out.onnx.data").read_bytes() == b"old"


@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
def test_data_goes_back_when_the_model_cannot_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: bool, error: BaseException
) -> None:
    source = load(external_model(tmp_path, weights_of()))
    if existing:
        (tmp_path / "out.onnx.data").write_bytes(b"old")
    before = listing(tmp_path)
    replace: Callable[[Path, Path], None] = os.replace

    def fail(old: Path, new: Path) -> None:
        if new == tmp_path / "out.onnx":
            raise error
        replace(old, new)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(ModelError if isinstance(error, OSError) else KeyboardInterrupt):
        save(source.proto, tmp_path / "out.onnx", source=source)
    assert listing(tmp_path) == before
    assert not existing or (tmp_path / "out.onnx.data").read_bytes() == b"old"


@pytest.mark.parametrize("external", [True, False])
def test_full_disk(small_disk: Path, tmp_path_factory: pytest.TempPathFactory, external: bool) -> None:
    elsewhere = tmp_path_factory.mktemp("source")
    source = load(external_model(elsewhere, weights_of(1000)))
    model = source.proto if external else onnx.load(elsewhere / "model.onnx")
    (small_disk / "out.onnx").write_bytes(b"old")
    check_writable(small_disk / "out.onnx")
    with pytest.raises(ModelError, match="the disk is full"):
        save(model, small_disk / "out.onnx", source=source if external else None)
    assert listing(small_disk) == ["out.onnx"]
    assert (small_disk / "out.onnx").read_bytes() == b"old"


def test_a_disk_with_too_little_space_is_found_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = load(external_model(tmp_path, weights_of(1000)))
    free = sum(file.stat().st_size for file in source.data_files) // 2
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    monkeypatch.setattr(model_io, "write_data", lambda *_, **__: pytest.fail("written"))
    with pytest.raises(ModelError, match="the disk is full"):
        save(source.proto, tmp_path / "out.onnx", source=source)


def test_unwritable_folder(read_only_disk: Path, two_layers: ModelProto) -> None:
    for attempt in (check_writable, lambda out: save(two_layers, out, source=None)):
        with pytest.raises(ModelError, match=r"cannot be written: Read-only file system"):
            attempt(read_only_disk / "out.onnx")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everything")
def test_write_protected_output(tmp_path: Path) -> None:
    (tmp_path / "out.onnx").touch(0o444)
    with pytest.raises(ModelError, match="write-protected"):
        check_writable(tmp_path / "out.onnx")


@pytest.mark.parametrize("name", ["absent/out.onnx", "folder", "."])
def test_places_that_cannot_be_a_file(tmp_path: Path, two_layers: ModelProto, name: str) -> None:
    (tmp_path / "folder").mkdir()
    for attempt in (check_writable, lambda out: save(two_layers, out, source=None)):
        with pytest.raises(UsageError, match="cannot be written"):
            attempt(tmp_path / name)
    assert listing(tmp_path) == ["folder"]


def test_names_too_long_are_found_early(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be written"):
        check_writable(tmp_path / f"{'x' * 250}.onnx")


def test_trying_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "out.onnx").write_bytes(b"old")
    check_writable(tmp_path / "out.onnx")
    assert listing(tmp_path) == ["out.onnx"]
    assert (tmp_path / "out.onnx").read_bytes() == b"old"


def test_the_weights_of_the_source_are_not_overwritten(tmp_path: Path) -> None:
    path = external_model(tmp_path, weights_of())
    (tmp_path / "weights.bin").rename(tmp_path / "other.onnx.data")
    model = onnx.load(path, load_external_data=False)
    for i, tensor in enumerate(model.graph.initializer):
        refer(tensor, "other.onnx.data", 4 * WIDTH * i, 4 * WIDTH)
    source = load(write(model, path))
    for name in ("other.onnx", "other.onnx.data"):
        with pytest.raises(UsageError, match="holds weights of"):
            check_writable(tmp_path / name, source)


def test_a_model_can_take_the_place_of_its_source(tmp_path: Path) -> None:
    weights = weights_of()
    path = external_model(tmp_path, weights)
    for _ in range(2):  # the second time its data file is replaced, too
        source = load(path)
        save(source.proto, path, source=source)
    assert listing(tmp_path) == ["model.onnx", "model.onnx.data", "weights.bin"]
    assert all(np.array_equal(values, weights[name]) for name, values in numbers(path).items())


def test_external_tensors_need_a_source(tmp_path: Path) -> None:
    model = onnx.load(external_model(tmp_path, weights_of()), load_external_data=False)
    with pytest.raises(ModelError, match="'w0' is in another file"):
        save(model, tmp_path / "out.onnx", source=None)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere peak memory is counted in other units")
def test_memory_does_not_grow_with_the_data_file(tmp_path: Path) -> None:
    """256 MB of weights, 64 MB each, pass through a process that grows by less than one of them."""
    size = 2**24
    model = onnx.load(external_model(tmp_path, weights_of(4)), load_external_data=False)
    with (tmp_path / "weights.bin").open("wb") as file:
        file.truncate(4 * 4 * size)
    for i, tensor in enumerate(model.graph.initializer):
        tensor.dims[0] = size
        refer(tensor, "weights.bin", 4 * size * i, 4 * size)
    path = write(model, tmp_path / "model.onnx")
    program = f"""
import resource
from onnxprune.model_io import load, save
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
source = load({str(path)!r})
save(source.proto, {str(tmp_path / "out.onnx")!r}, source=source)
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 40_000
    assert (tmp_path / "out.onnx.data").stat().st_size == 4 * 4 * size


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.onnx", "model.pruned.onnx"),
        ("model.v1.5.ONNX", "model.v1.5.pruned.onnx"),
        ("net-1.5", "net-1.5.pruned.onnx"),
    ],
)
def test_default_output(name: str, expected: str) -> None:
    assert default_output(Path("folder") / name) == Path("folder") / expected
