from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxprune import runtime
from onnxprune.errors import ModelError, UsageError
from onnxprune.input_guesses import first_run, guess_inputs, runnable_inputs
from onnxprune.inputs import check_inputs, format_shapes, input_specs, load_inputs
from onnxprune.runtime import Inputs, bind, load_structure, open_session, provider_of, resolve_provider, run


def model(text: str) -> onnx.ModelProto:
    return parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')


RELU = model("g (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }")


def first_shapes(text: str) -> dict[str, tuple[int, ...]]:
    return next(guess_inputs(model(text)))[0]


def first_values(text: str) -> Inputs:
    return next(guess_inputs(model(text)))[1]


# Providers


def test_auto_is_the_cpu_where_cuda_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_works", lambda name: name == "cpu")
    assert resolve_provider("auto") == ["CPUExecutionProvider"]


def test_auto_is_cuda_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_works", lambda name: name != "tensorrt")
    assert resolve_provider("auto") == ["CUDAExecutionProvider", "CPUExecutionProvider"]


def test_a_provider_that_does_not_run_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_works", lambda name: name == "cpu")
    with pytest.raises(UsageError, match=r"^provider 'cuda' does not work here: .*--provider cpu$"):
        resolve_provider("cuda")


def test_tf32_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_works", lambda name: True)
    assert resolve_provider("cuda", tf32=False)[0] == ("CUDAExecutionProvider", {"use_tf32": "0"})


def test_an_unknown_provider_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown provider 'gpu'"):
        resolve_provider("gpu")  # type: ignore[arg-type]


def test_looking_for_a_gpu_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    runtime._works.cache_clear()
    resolve_provider("auto")
    assert capfd.readouterr() == ("", "")


def test_the_cpu_is_used_when_asked_for() -> None:
    assert provider_of(open_session(RELU, provider="cpu")) == "cpu"


# Sessions


@pytest.mark.parametrize("form", ["proto", "bytes", "path", "str"])
def test_a_model_runs_from_memory_and_from_a_file(form: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(RELU, path)
    source = {"proto": RELU, "bytes": RELU.SerializeToString(), "path": path, "str": str(path)}[form]
    x = np.array([[-1, 2, -3, 4]], np.float32)
    assert run(open_session(source, provider="cpu"), {"x": x})["y"].tolist() == [[0, 2, 0, 4]]


def test_a_missing_file_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no such file"):
        open_session("nowhere.onnx", provider="cpu")


@pytest.mark.parametrize("content", [b"", b"some text\n", RELU.SerializeToString()[:40]])
def test_what_is_not_a_model_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    for read in (lambda: open_session(path, provider="cpu"), lambda: load_structure(path)):
        with pytest.raises(ModelError, match=r"m\.onnx") as error:
            read()
        assert "\n" not in str(error.value)


def test_external_data_is_found_in_the_folder_given(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.full((4, 300), 2, np.float32), "w")
    whole = model("g (float[N, 4] x) => (float[N, 300] y) { y = MatMul(x, w) }")
    whole.graph.initializer.append(weight)
    path = tmp_path / "m.onnx"
    onnx.save(whole, path, save_as_external_data=True, location="m.data", size_threshold=0)
    structure = load_structure(path)
    with pytest.raises(ModelError, match="in other files"):
        open_session(structure, provider="cpu")
    session = open_session(structure, provider="cpu", folder=tmp_path)
    assert run(session, {"x": np.ones((1, 4), np.float32)})["y"][0, 0] == 8


@pytest.mark.parametrize("form", ["proto", "path"])
def test_a_size_of_zero_is_taken_as_symbolic(form: str, tmp_path: Path) -> None:
    zero = model("g (float[0, 4] x) => (float[0, 4] y) { y = Relu(x) }")
    onnx.save(zero, tmp_path / "m.onnx")
    source = zero if form == "proto" else tmp_path / "m.onnx"
    assert runnable_inputs(source)[0] == {"x": (1, 4)}
    assert zero.graph.input[0].type.tensor_type.shape.dim[0].HasField("dim_value")


def test_a_failure_is_one_line_with_node_and_reason(capfd: pytest.CaptureFixture[str]) -> None:
    reshape = model("g (float[N, 4] x) => (float[1, 9] y) <int64[2] s = {1, 9}> { [nine] y = Reshape(x, s) }")
    with pytest.raises(ModelError) as error:
        run(open_session(reshape, provider="cpu"), {"x": np.ones((2, 4), np.float32)})
    message = str(error.value)
    assert "Reshape 'nine': " in message
    assert "requested shape:{1,9}" in message
    assert "\n" not in message
    assert ".h:" not in message
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("dtype", ["bfloat16", "string", "float16"])
def test_types_that_numpy_lacks_pass_through(dtype: str) -> None:
    identity = model(f"g ({dtype}[N, 4] x) => ({dtype}[N, 4] y) {{ y = Identity(x) }}")
    _, inputs, outputs = first_run(identity, open_session(identity, provider="cpu"))
    assert outputs["y"].dtype == inputs["x"].dtype
    assert (outputs["y"] == inputs["x"]).all()


def test_bound_inputs_give_the_same_outputs() -> None:
    session = open_session(RELU, provider="cpu")
    _, inputs, outputs = first_run(RELU, session)
    binding = bind(session, inputs)
    session.run_with_iobinding(binding)
    assert (binding.copy_outputs_to_cpu()[0] == outputs["y"]).all()


def test_a_sequence_is_refused() -> None:
    sequence = model("g (seq(float[N]) x) => (float[M] y) { y = ConcatFromSequence <axis = 0> (x) }")
    with pytest.raises(ModelError, match="input 'x' is of type sequence"):
        input_specs(sequence)


# Guesses: sizes


@pytest.mark.parametrize(
    ("declared", "guessed"),
    [
        ("N, 3, H, W", (1, 3, 224, 224)),
        ("batch, height, width, 3", (1, 224, 224, 3)),
        ("N, s1, s2, 3", (1, 224, 224, 3)),
        ("N, 3, 32, 40", (1, 3, 32, 40)),
        ("batch, sequence", (1, 128)),
        ("batch, 40, time", (1, 40, 128)),
        ("2, unk__7, 16", (2, 1, 16)),
        ("N, s1, s2, s3", (1, 3, 224, 224)),
        ("batch, N", (1, 128)),
        ("batch, samples", (1, 16000)),
    ],
)
def test_sizes_come_from_names_and_places(declared: str, guessed: tuple[int, ...]) -> None:
    assert first_shapes(f"g (float[{declared}] x) => (float y) {{ y = ReduceSum(x) }}") == {"x": guessed}


def test_one_name_is_one_size() -> None:
    shapes = first_shapes("g (float[N, L] x, float[L, 3] z) => (float[N, 3] y) { y = MatMul(x, z) }")
    assert shapes["x"][1] == shapes["z"][0]


def test_sound_is_long() -> None:
    shapes = first_shapes("g (float[batch, N] waveform) => (float y) { y = ReduceSum(waveform) }")
    assert shapes == {"waveform": (1, 16000)}


def test_lengths_fit_the_other_inputs() -> None:
    inputs = first_values(
        "g (float[N, L, 8] x, int64[N] x_lens, int64[N, 4] lens_of_nothing) => (float y) { y = ReduceSum(x) }"
    )
    assert inputs["x_lens"].tolist() == [inputs["x"].shape[1]]
    assert inputs["lens_of_nothing"].max() <= 1


def test_a_sum_of_names_is_the_sum_of_their_sizes() -> None:
    cached = model(
        "g (int64[N, length] ids, float[N, past] k, float[N, both] m) => (int64 y) { y = Size(m) }"
    )
    cached.graph.input[2].type.tensor_type.shape.dim[1].dim_param = "past + length + 1"
    shapes = next(guess_inputs(cached))[0]
    assert shapes["m"][1] == shapes["k"][1] + shapes["ids"][1] + 1


def test_channels_come_from_the_weight() -> None:
    text = "g (float[N, C, H, W] x) => (float[N, 2, H, W] y) <float[2, 5, 1, 1] w = {1,1,1,1,1,1,1,1,1,1}>"
    assert first_shapes(f"{text} {{ z = Identity(x) y = Conv(z, w) }}")["x"][1] == 5


def test_a_bigger_batch_comes_later() -> None:
    batches = [shapes["x"][0] for shapes, _ in guess_inputs(RELU)]
    assert batches[0] == 1
    assert 2 in batches


def test_a_variant_takes_other_sizes() -> None:
    image = model("g (float[N, 3, H, W] x) => (float y) { y = ReduceSum(x) }")
    assert next(guess_inputs(image, variant=1))[0] == {"x": (2, 3, 256, 256)}


def test_the_batch_asked_for_is_used() -> None:
    assert next(guess_inputs(RELU, batch=7))[0] == {"x": (7, 4)}


def test_a_batch_that_a_fixed_size_rules_out_is_refused() -> None:
    fixed = model("g (float[1, 4] x) => (float[1, 4] y) { y = Relu(x) }")
    with pytest.raises(UsageError, match=r"no batch of 7: input 'x' has the shape \[1, 4\]"):
        next(guess_inputs(fixed, batch=7))


def test_a_refused_guess_is_followed_by_another() -> None:
    square = model(
        "g (float[N, 3, H, W] x) => (float[A, 307200] y) <int64[2] s = {-1, 307200}> { y = Reshape(x, s) }"
    )
    assert runnable_inputs(square)[0] == {"x": (1, 3, 320, 320)}


def test_when_nothing_runs_the_error_says_what_was_tried() -> None:
    odd = model("g (float[N, 3, H, W] x) => (float[1, 7] y) <int64[2] s = {1, 7}> { y = Reshape(x, s) }")
    with pytest.raises(ModelError, match=r"tried x=1,3,224,224; .* in all.*Reshape.*--shape NAME="):
        runnable_inputs(odd)


def test_unknown_rank_takes_a_shape() -> None:
    loose = onnx.ModelProto()
    loose.CopyFrom(RELU)
    loose.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(UsageError, match="--shape x="):
        runnable_inputs(loose)
    assert runnable_inputs(loose, shapes={"x": (2, 4)})[0] == {"x": (2, 4)}


# Guesses: shapes given by the user


def test_given_shapes_are_used_as_they_are() -> None:
    assert runnable_inputs(RELU, shapes={"x": (9, 4)})[0] == {"x": (9, 4)}


def test_a_given_size_holds_for_its_name_elsewhere() -> None:
    both = model("g (float[N, L] x, float[N, L] z) => (float[N, L] y) { y = Add(x, z) }")
    assert runnable_inputs(both, shapes={"x": (3, 7)})[0]["z"] == (3, 7)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"q": (1, 4)}, "no input 'q' .* the inputs are 'x'"),
        ({"x": (4,)}, r"input 'x' has shape \[N, 4\]; \[4\] does not fit it"),
        ({"x": (1, 5)}, r"input 'x' has shape \[N, 4\]; \[1, 5\] does not fit it"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        runnable_inputs(RELU, shapes=shapes)


def test_shapes_are_shown_as_the_command_line_takes_them() -> None:
    assert format_shapes({"x": (1, 3, 8, 8), "rate": (), "h": (2, 1)}) == "x=1,3,8,8 h=2,1"


# Guesses: values


def test_the_same_seed_gives_the_same_values() -> None:
    one, two, other = (next(guess_inputs(RELU, seed=seed))[1]["x"] for seed in (3, 3, 4))
    assert (one == two).all()
    assert (one != other).any()


def test_row_numbers_stay_within_the_table() -> None:
    text = "g (int64[N, L] ids) => (float[N, L, 2] y) <float[3, 2] table = {1, 2, 3, 4, 5, 6}>"
    ids = first_values(f"{text} {{ y = Gather(table, ids) }}")["ids"]
    assert set(ids.flat) == {0, 1, 2}


def test_integers_that_index_nothing_are_small() -> None:
    assert set(first_values("g (int64[N, L] k) => (int64[N, L] y) { y = Identity(k) }")["k"].flat) == {0, 1}


def test_bytes_take_their_full_range() -> None:
    found = first_values("g (int8[N, 99, L] k) => (int8[N, 99, L] y) { y = Identity(k) }")["k"]
    assert (found.min(), found.max()) == (-128, 127)


def test_a_mask_lets_everything_through() -> None:
    assert first_values("g (int64[N, L] attention_mask) => (int64 y) { y = Size(attention_mask) }")[
        "attention_mask"
    ].all()


def test_a_scalar_is_what_it_is_compared_with_and_the_other_way_round() -> None:
    rate = model("g (int64 rate) => (bool y) <int64 sixteen = {16000}> { y = Equal(rate, sixteen) }")
    answers = [first_run(rate, open_session(rate, provider="cpu"), variant=each)[2]["y"] for each in (0, 1)]
    assert [bool(answer) for answer in answers] == [True, False]


def test_inputs_move_where_outputs_are_finite() -> None:
    root = model("g (float[N, 4] x) => (float[N, 4] y) { y = Sqrt(x) }")
    _, inputs, outputs = first_run(root, open_session(root, provider="cpu"))
    assert np.isfinite(outputs["y"]).all()
    assert (outputs["y"] == np.sqrt(inputs["x"])).all()


def test_an_input_with_an_initializer_is_not_fed() -> None:
    old = model("g (float[N, 4] x, float[4] w) => (float[N, 4] y) { y = Add(x, w) }")
    old.graph.initializer.append(numpy_helper.from_array(np.ones(4, np.float32), "w"))
    assert list(runnable_inputs(old)[1]) == ["x"]


# Inputs from files


def test_arrays_are_taken_by_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "io.npz", z=np.zeros(2), x=np.ones(3))
    assert load_inputs(tmp_path / "io.npz", ["x"])["x"].tolist() == [1, 1, 1]


def test_a_test_set_is_taken_by_name_and_else_by_number(tmp_path: Path) -> None:
    for number, (name, value) in enumerate([("b", 1.0), ("", 2.0), ("a", 3.0)]):
        tensor = numpy_helper.from_array(np.array([value]), name)
        (tmp_path / f"input_{number}.pb").write_bytes(tensor.SerializeToString())
    found = load_inputs(tmp_path, ["a", "x", "b"])
    assert {name: array.item() for name, array in found.items()} == {"a": 3.0, "x": 2.0, "b": 1.0}


def test_one_tensor_is_taken_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "cat.pb"
    path.write_bytes(numpy_helper.from_array(np.arange(3.0)).SerializeToString())
    assert load_inputs(path, ["x"])["x"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["io.npz", "input_0.pb", "text.txt"])
def test_damaged_inputs_are_a_usage_error(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\xff no inputs")
    with pytest.raises(UsageError, match=name):
        load_inputs(tmp_path / name, ["x"])


def test_missing_inputs_are_a_usage_error(tmp_path: Path) -> None:
    np.savez(tmp_path / "io.npz", z=np.zeros(2))
    with pytest.raises(UsageError, match="holds 'z', but not the model's input 'x'"):
        load_inputs(tmp_path / "io.npz", ["x"])
    with pytest.raises(UsageError, match="no such file"):
        load_inputs(tmp_path / "none.npz", ["x"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no input_0\.pb"):
        load_inputs(tmp_path / "empty", ["x"])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"z": np.ones((1, 4), np.float32)}, "are 'z'; the model takes 'x'"),
        ({"x": np.ones((1, 4))}, "takes float32, but float64 is given"),
        ({"x": np.ones((1, 3), np.float32)}, r"\[1, 3\] does not fit"),
    ],
)
def test_inputs_have_to_fit_the_model(inputs: Inputs, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_inputs(RELU, inputs)


def test_importing_loads_neither_torch_nor_onnx_runtime() -> None:
    code = "import sys, onnxprune.runtime; sys.exit('torch' in sys.modules or 'onnxruntime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_sizes_that_contradict_the_model_are_tried_last() -> None:
    """Only an image of 32 rows leaves the single row that a Squeeze takes."""
    source = parser.parse_model("""<ir_version: 8, opset_import: ["" : 11]>
        g (float[N, 3, H, W] x) => (float[N, 4, A] q)
        { w = ConstantOfShape(s) p = Conv(x, w) q = Squeeze<axes=[2]>(p) }""")
    source.graph.initializer.append(numpy_helper.from_array(np.array([4, 3, 32, 1]), "s"))
    tried = [shapes["x"][2] for shapes, _ in guess_inputs(source)]
    assert tried[0] == 224  # the likeliest, before the model is looked at
    assert tried[1] == 32
    assert runnable_inputs(source)[0]["x"][2] == 32
