"""Running models on ONNX Runtime: where they run, what they are fed, what comes out.

A *session* is opened on a provider that really works here; *inputs* are loaded, or guessed and tried until
the session runs; `run` maps named inputs to named outputs. Whatever ONNX Runtime has to say comes back as
one line of a `ModelError`; nothing of it reaches the terminal.

How inputs are guessed. What the model gives away itself is used first: the channels a weight takes, the
rows of a table, the constant that a scalar is compared with. Any other dimension without a size gets a
*kind* from its name, or else from its place (``x[N, C, H, W]``, ``ids[N, length]``, ``state[layers, N,
width]``); all dimensions of one kind or one name get one size. Every kind has a list of sizes, likely ones
first, and combinations are tried in the order of their distance from the likeliest.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import itertools
import math
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import uses_external_data

from onnxprune.errors import ModelError, UsageError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, IOBinding, OrtValue

__all__ = [
    "Array",
    "InputSpec",
    "Inputs",
    "Model",
    "Provider",
    "Shapes",
    "bind",
    "check_inputs",
    "first_run",
    "format_shapes",
    "guess_inputs",
    "input_specs",
    "load_inputs",
    "load_structure",
    "open_session",
    "provider_of",
    "resolve_provider",
    "run",
    "runnable_inputs",
]

Provider = Literal["auto", "cpu", "cuda", "tensorrt"]
Model = onnx.ModelProto | bytes | str | Path  # in memory, serialised, or in a file
Array = npt.NDArray[Any]
Inputs = dict[str, Array]
Shapes = Mapping[str, Sequence[int]]

# Providers

_CHAINS: Final[dict[str, tuple[str, ...]]] = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
}
_FATAL: Final = 4  # the only severity that ONNX Runtime may print: its errors come back as exceptions
_WARNING: Final = 2  # its own default


def resolve_provider(name: Provider, *, tf32: bool = True) -> list[str | tuple[str, dict[str, str]]]:
    """What ONNX Runtime is to be given as ``providers``; the first of them has been seen to work here.

    ``auto`` is CUDA where a model really runs on it, else the CPU. Without ``tf32``, CUDA multiplies float32
    in full precision (TensorRT has no such option).

    Raises:
        UsageError: the name is unknown, or the provider does not work on this machine.
    """
    if name not in get_args(Provider):
        raise UsageError(f"unknown provider '{name}': choose one of {', '.join(get_args(Provider))}")
    chosen = name if name != "auto" else "cuda" if _works("cuda") else "cpu"
    if not _works(chosen):
        raise UsageError(
            f"provider '{name}' does not work here: ONNX Runtime cannot run a model on {_CHAINS[chosen][0]} "
            "(it needs onnxruntime-gpu, a GPU with its driver, and CUDA's libraries); use --provider cpu"
        )
    precise = ("CUDAExecutionProvider", {"use_tf32": "0"})
    return [precise if not tf32 and each == precise[0] else each for each in _CHAINS[chosen]]


@functools.cache
def _works(name: str) -> bool:
    """Whether a small model really runs there; being listed as available says only 'compiled in'."""
    import onnxruntime as ort

    if _CHAINS[name][0] not in ort.get_available_providers():
        return False
    x, y = (helper.make_tensor_value_info(each, TensorProto.FLOAT, [1]) for each in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "probe", [x], [y])
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    with _silence():
        try:
            if name != "cpu":
                getattr(ort, "preload_dlls", lambda: None)()
            session = _create(model.SerializeToString(), _CHAINS[name], _options(1))
            run(session, {"x": np.ones(1, np.float32)})
        except (ModelError, OSError):
            return False
    return provider_of(session) == name


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Hold back what ONNX Runtime prints outside of sessions when a provider's libraries are missing."""
    import onnxruntime as ort

    ort.set_default_logger_severity(_FATAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        ort.set_default_logger_severity(_WARNING)


def provider_of(session: InferenceSession) -> str:
    """Where a session runs ('cpu', 'cuda', 'tensorrt'); single nodes may still fall back to the CPU."""
    first: str = session.get_providers()[0]
    return next((name for name, chain in _CHAINS.items() if chain[0] == first), first)


# Sessions


def open_session(
    model: Model,
    *,
    provider: Provider = "auto",
    threads: int | None = None,
    optimize: bool = True,
    folder: str | Path | None = None,
    tf32: bool = True,
) -> InferenceSession:
    """A session that can run the model.

    A size that an input declares as 0 is taken as symbolic; ONNX Runtime would admit only empty tensors.

    Args:
        model: a file, or what would be in it; in memory it must be under 2 GB.
        provider: where to run; see `resolve_provider`.
        threads: how many threads a node may use; None leaves it to ONNX Runtime.
        optimize: whether ONNX Runtime may fuse and rearrange nodes.
        folder: where the external data is, for a model in memory. A file's is beside it.
        tf32: see `resolve_provider`.

    Raises:
        UsageError: there is no such file, or the provider does not work here.
        ModelError: ONNX Runtime cannot load the model.
    """
    providers = resolve_provider(provider, tf32=tf32)
    session = _create(_loadable(model, folder), providers, _options(threads, optimize, folder))
    if not any(0 in value.shape for value in session.get_inputs()):
        return session
    if isinstance(model, str | Path):
        folder = Path(model).resolve().parent
    relaxed = _without_empty_sizes(load_structure(model))
    return _create(_loadable(relaxed, folder), providers, _options(threads, optimize, folder))


def load_structure(model: Model) -> onnx.ModelProto:
    """The model without its external data; the very same object, if a ``ModelProto`` was given.

    Raises:
        UsageError: there is no such file.
        ModelError: it is not an ONNX model.
    """
    if isinstance(model, onnx.ModelProto):
        return model
    where = "the given bytes are" if isinstance(model, bytes) else f"'{model}' is"
    try:
        proto = onnx.load_model_from_string(
            model if isinstance(model, bytes) else _existing(model).read_bytes()
        )
    except DecodeError:
        raise ModelError(f"{where} not an ONNX model, or a damaged one") from None
    except OSError as error:
        raise UsageError(f"{where} not readable: {error.strerror}") from None
    if not proto.HasField("graph"):
        raise ModelError(f"{where} not an ONNX model: there is no graph in it")
    return proto


def _existing(path: str | Path) -> Path:
    if not Path(path).is_file():
        raise UsageError(f"'{path}': no such file")
    return Path(path)


def _loadable(model: Model, folder: str | Path | None) -> str | bytes:
    """What ONNX Runtime takes: a path or bytes."""
    if isinstance(model, str | Path):
        return str(_existing(model))
    if isinstance(model, bytes):
        return model
    if folder is None and any(uses_external_data(weight) for weight in model.graph.initializer):
        raise ModelError("the model's weights are in other files: open it by its path, or name their folder")
    try:
        data: bytes = model.SerializeToString()
    except (EncodeError, ValueError):
        raise ModelError("a model in memory must be under 2 GB: save it, and open it by its path") from None
    return data


def _options(threads: int | None, optimize: bool = True, folder: str | Path | None = None) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = threads or 0
    # Threads that spin while they wait take the cores from others: two sessions that took turns on two busy
    # cores were three times as slow with it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    return options


def _create(source: str | bytes, providers: Sequence[Any], options: Any) -> InferenceSession:
    import onnxruntime as ort

    try:
        # Without enable_fallback=0 a failing provider is replaced behind our back, with a banner on stdout.
        return ort.InferenceSession(source, options, providers=list(providers), enable_fallback=0)
    except _failures() as error:
        where = f"'{source}'" if isinstance(source, str) else "the model"
        raise ModelError(f"ONNX Runtime cannot load {where}: {_condensed(error)}") from None


def _without_empty_sizes(model: onnx.ModelProto) -> onnx.ModelProto:
    relaxed = onnx.ModelProto()
    relaxed.CopyFrom(model)
    for value in (*relaxed.graph.input, *relaxed.graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.HasField("dim_value") and dimension.dim_value <= 0:
                dimension.Clear()
    return relaxed


def _failures() -> tuple[type[Exception], ...]:
    """Everything that ONNX Runtime raises; its own exceptions share no base class."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [each for each in vars(state).values() if isinstance(each, type) and issubclass(each, Exception)]
    return (*own, RuntimeError, ValueError, TypeError)


_NOISE: Final = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : \w+ : |Load model from .*? failed: ?"
    r"|\S+\.(?:cc|h|hpp|cu|cuh):\d+ (?:.*?\)(?: const)?(?: \[with .*?\])? )?"  # file:line and C++ signature
)
_NODE: Final = re.compile(
    r".*status code returned while running (\w+) node\. Name:'(.*?)' Status Message: (.*)"
)


def _condensed(error: Exception, limit: int = 300) -> str:
    """ONNX Runtime's message as one line: the innermost node and the reason."""
    text = _NOISE.sub("", " ".join(str(error).split()))
    if found := _NODE.fullmatch(text):
        text = f"{found[1]} '{found[2]}': {found[3]}"
    return text if len(text) <= limit else text[: limit - 1] + "…"


# Running


def run(session: InferenceSession, inputs: Inputs) -> Inputs:
    """All outputs by name, for all inputs by name.

    Raises:
        ModelError: ONNX Runtime cannot run the model on these inputs, or an output is not a tensor.
    """
    names = _output_names(session)
    try:
        if _numpy_has_the_types(session):
            return dict(zip(names, session.run(names, inputs), strict=True))
        binding = bind(session, inputs)
        session.run_with_iobinding(binding)
        return dict(zip(names, map(_to_numpy, binding.get_outputs()), strict=True))
    except _failures() as error:
        raise ModelError(f"ONNX Runtime cannot run the model: {_condensed(error)}") from None


def _output_names(session: InferenceSession) -> list[str]:
    for value in session.get_outputs():
        if not value.type.startswith("tensor("):
            raise ModelError(f"output '{value.name}' is of type {value.type}: only tensors are run")
    return [value.name for value in session.get_outputs()]


def bind(session: InferenceSession, inputs: Inputs, *, outputs_on: str = "cpu") -> IOBinding:
    """Inputs put, once, where the session wants them, and outputs to be left on a device ('cpu', 'cuda').

    For ``session.run_with_iobinding``; it keeps the inputs alive. Raises what ONNX Runtime raises.
    """
    import onnxruntime as ort

    binding = session.io_binding()
    for name, array in inputs.items():
        if array.dtype.kind != "V":
            binding.bind_cpu_input(name, np.asarray(array, order="C"))
            continue
        # bfloat16 and float8 are not numpy's own: ONNX Runtime takes their bits.
        bits = np.asarray(array, order="C").view(f"u{array.dtype.itemsize}")
        element = helper.np_dtype_to_tensor_dtype(array.dtype)
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, element))
    for value in session.get_outputs():
        binding.bind_output(value.name, "cpu" if value.type == "tensor(string)" else outputs_on)
    return binding


def _numpy_has_the_types(session: InferenceSession) -> bool:
    values = (*session.get_inputs(), *session.get_outputs())
    return not any("bfloat16" in value.type or "float8" in value.type for value in values)


def _to_numpy(value: OrtValue) -> Array:
    dtype = helper.tensor_dtype_to_np_dtype(value.element_type())
    if dtype.kind != "V":
        return np.asarray(value.numpy())
    shape = tuple(value.shape())
    bits = ctypes.string_at(value.data_ptr(), math.prod(shape) * dtype.itemsize)
    return np.frombuffer(bits, dtype).reshape(shape)


# Inputs: what a model takes


@dataclass(frozen=True)
class InputSpec:
    """A graph input that has to be fed.

    Attributes:
        name: its name.
        dtype: of its elements, as numpy or ml_dtypes name it; strings are objects.
        shape: a size, a name, or None for each dimension; None when not even the rank is known.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...] | None


def input_specs(model: onnx.ModelProto) -> tuple[InputSpec, ...]:
    """The inputs to feed, in order; those that an initializer already gives a value (IR 3) are left out.

    Raises:
        ModelError: an input is a sequence, an optional, a map or a sparse tensor.
    """
    given = {weight.name for weight in model.graph.initializer}
    given |= {weight.values.name for weight in model.graph.sparse_initializer}
    return tuple(_input_spec(value) for value in model.graph.input if value.name not in given)


def _input_spec(value: onnx.ValueInfoProto) -> InputSpec:
    kind = str(value.type.WhichOneof("value")).removesuffix("_type")
    if kind != "tensor":
        raise ModelError(f"input '{value.name}' is of type {kind}, not a tensor: such models are not run")
    tensor = value.type.tensor_type
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    if not tensor.HasField("shape"):
        return InputSpec(value.name, dtype, None)
    # Some exporters write 0 or -1 for 'any'.
    sizes = (each.dim_value if each.dim_value > 0 else each.dim_param or None for each in tensor.shape.dim)
    return InputSpec(value.name, dtype, tuple(sizes))


def check_inputs(model: onnx.ModelProto, inputs: Inputs) -> None:
    """Require exactly the inputs that the model takes, of its types, ranks and fixed sizes.

    Raises:
        UsageError: names the first input that does not fit.
    """
    specs = {spec.name: spec for spec in input_specs(model)}
    if set(specs) != set(inputs):
        raise UsageError(f"the inputs given are {_listed(inputs)}; the model takes {_listed(specs)}")
    for name, array in inputs.items():
        if array.dtype != specs[name].dtype:
            raise UsageError(
                f"input '{name}' takes {specs[name].dtype}, but {array.dtype} is given: convert it"
            )
        _check_shape(specs[name], array.shape)


def _check_shape(spec: InputSpec, shape: Sequence[int]) -> None:
    if spec.shape is None:
        return
    pairs = zip(shape, spec.shape, strict=False)
    fits = all(size >= 0 and (size == declared or not isinstance(declared, int)) for size, declared in pairs)
    if not fits or len(shape) != len(spec.shape):
        declared = ", ".join(str(each or "?") for each in spec.shape)
        raise UsageError(f"input '{spec.name}' has shape [{declared}]; {list(shape)} does not fit it")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"


def format_shapes(shapes: Shapes) -> str:
    """``x=1,3,224,224 state=2,1,128``: as ``--shape`` takes them; scalars are left out."""
    return " ".join(f"{name}={','.join(map(str, shape))}" for name, shape in shapes.items() if shape)


# Inputs: what the constants of a model say about them


@dataclass(frozen=True)
class _Hints:
    """What a model gives away about its inputs.

    Attributes:
        sizes: (input, axis) → the size that a weight takes there.
        rows: input → how many rows the table has that it is an index into.
        compared: input → the whole numbers it is compared with.
    """

    sizes: dict[tuple[str, int], int]
    rows: dict[str, int]
    compared: dict[str, list[int]]


# x op weight → (axis of x, its size)
_WIDTHS: Final[dict[str, Callable[[onnx.NodeProto, Sequence[int]], tuple[int, int]]]] = {
    "Conv": lambda node, dims: (
        1,
        dims[1] * _attribute(node, "group", 1),
    ),  # x[N, C, ...], w[K, C / group, ...]
    "Gemm": lambda node, dims: (1, dims[_attribute(node, "transB", 0)]),  # x[M, K], w[K, N] or w[N, K]
    "MatMul": lambda node, dims: (-1, dims[max(-2, -len(dims))]),  # x[..., K], w[..., K, N] or w[K]
}
_COMPARISONS: Final = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})


def _hints(model: onnx.ModelProto) -> _Hints:
    hints = _Hints({}, {}, {})
    for node, name, place, constant in _meetings(model):
        if node.op_type in _WIDTHS and place == 0:
            axis, size = _WIDTHS[node.op_type](node, constant.dims)
            hints.sizes[name, axis] = size
        elif node.op_type == "Gather" and place == 1:
            hints.rows[name] = constant.dims[_attribute(node, "axis", 0)]
        elif node.op_type == "OneHot" and place == 0:
            hints.rows[name] = max(_whole_numbers(constant), default=2)
        elif node.op_type in _COMPARISONS:
            hints.compared.setdefault(name, []).extend(_whole_numbers(constant))
    return hints


def _meetings(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, str, int, TensorProto]]:
    """(node, input, its place, constant), wherever the first two operands are an input and a constant."""
    constants = {weight.name: weight for weight in model.graph.initializer}
    copies = {spec.name: spec.name for spec in input_specs(model)}
    for node in model.graph.node:
        if node.op_type == "Constant":
            constants.update((node.output[0], each.t) for each in node.attribute if each.name == "value")
        elif node.op_type in ("Cast", "Identity") and node.input[0] in copies:
            copies[node.output[0]] = copies[node.input[0]]
        elif len(node.input) > 1:
            for place, (here, other) in enumerate(itertools.permutations(node.input[:2])):
                if here in copies and other in constants:
                    yield node, copies[here], place, constants[other]


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((each.i for each in node.attribute if each.name == name), default)


def _whole_numbers(constant: TensorProto) -> list[int]:
    if uses_external_data(constant) or math.prod(constant.dims) != 1:
        return []
    number = numpy_helper.to_array(constant).item()
    return [int(number)] if isinstance(number, int | float) and number >= 0 and number == int(number) else []


# Inputs: guessing them

_Kind = Literal["batch", "channels", "spatial", "length", "other"]
_SIZES: Final[dict[_Kind, tuple[int, ...]]] = {
    "batch": (1, 2, 4),
    "channels": (3, 1, 4),
    "spatial": (224, 256, 320, 640, 64, 128, 32, 28, 416, 512, 299, 96, 384, 48, 160, 192),
    "length": (128, 16, 64, 256, 512, 32, 8, 1, 100, 1024, 16000),
    "other": (1, 2, 16, 8, 100),
}
_KIND_BY_NAME: Final[tuple[tuple[re.Pattern[str], _Kind], ...]] = (
    (re.compile(r"batch|^(n|b|bs)$"), "batch"),
    (re.compile(r"channel|^c$"), "channels"),
    (re.compile(r"height|width|depth|spatial|^(h|w|d)$"), "spatial"),
    (re.compile(r"seq|len|time|frame|token|sample|^(t|l|s)$"), "length"),
    (re.compile(r"^\?other$"), "other"),
)
_NAMELESS: Final = frozenset(
    {"none", "?", "unk", "unknown", "dynamic", "-1"}
)  # what exporters write for no name
_MOST_TRIES: Final = 64


def guess_inputs(
    model: onnx.ModelProto,
    *,
    shapes: Shapes | None = None,
    batch: int | None = None,
    seed: int = 0,
    variant: int = 0,
) -> Iterator[tuple[dict[str, tuple[int, ...]], Inputs]]:
    """Shapes and inputs that the model may run on, likely ones first; the same for the same arguments.

    Floats are standard normal; 8-bit integers take their full range; other integers are 1 in a mask, else 0
    or 1. Where the model indexes a table with them, they are its row numbers. A scalar integer is a number
    that the model compares it with, or the next one.

    Args:
        model: the model; its weights are not needed.
        shapes: shapes to be used as they are. The size they give to a named dimension holds for all inputs.
        batch: the size of all batch dimensions.
        seed: of the values.
        variant: each puts other sizes (batch 1, 2, 4; image 224, 256, 320) and other scalars first.

    Raises:
        UsageError: ``shapes`` or ``batch`` do not fit the model, or leave out an input of unknown rank.
        ModelError: an input is not a tensor.
    """
    hints = _hints(model)
    specs = [_spelled_out(spec, hints) for spec in input_specs(model)]
    scalars = {
        spec.name: _rotated(_scalar_values(hints.compared.get(spec.name, [])), variant)
        for spec in specs
        if _is_scalar(spec) and spec.name not in hints.rows
    }
    candidates = _candidate_shapes(specs, shapes or {}, batch, variant)
    for turn in range(max(map(len, scalars.values()), default=1)):
        for used in candidates:
            inputs = {
                spec.name: _values(spec, used[spec.name], hints.rows.get(spec.name), seed) for spec in specs
            }
            for name, values in scalars.items():
                inputs[name] = np.full_like(inputs[name], values[turn % len(values)])
            yield used, inputs


def runnable_inputs(
    model: Model,
    *,
    session: InferenceSession | None = None,
    shapes: Shapes | None = None,
    batch: int | None = None,
    seed: int = 0,
    variant: int = 0,
) -> tuple[dict[str, tuple[int, ...]], Inputs]:
    """The first of `guess_inputs` that the model runs on, with its shapes; see `first_run`."""
    session = session or open_session(model, provider="cpu")
    used, inputs, _ = first_run(model, session, shapes=shapes, batch=batch, seed=seed, variant=variant)
    return used, inputs


def first_run(
    model: Model,
    session: InferenceSession,
    *,
    shapes: Shapes | None = None,
    batch: int | None = None,
    seed: int = 0,
    variant: int = 0,
) -> tuple[dict[str, tuple[int, ...]], Inputs, Inputs]:
    """Shapes, inputs and outputs for the first of `guess_inputs` that the model runs on.

    If an output has infinities or NaNs for it (a logarithm, a square root), the floats are moved into [0, 1]
    where that helps: comparing NaNs would say nothing.

    Args:
        model: the model.
        session: an open session of it.
        shapes: see `guess_inputs`.
        batch: see `guess_inputs`.
        seed: see `guess_inputs`.
        variant: see `guess_inputs`.

    Raises:
        UsageError: ``shapes`` or ``batch`` do not fit the model.
        ModelError: it ran on none of them; says which were tried, and why the likeliest was refused.
    """
    _output_names(session)
    refused: list[tuple[str, ModelError]] = []
    guesses = guess_inputs(load_structure(model), shapes=shapes, batch=batch, seed=seed, variant=variant)
    for used, inputs in guesses:
        try:
            return used, *_tamed(session, inputs, run(session, inputs))
        except ModelError as error:
            refused.append((format_shapes(used), error))
    raise ModelError(_refusal(refused))


def _refusal(refused: Sequence[tuple[str, ModelError]]) -> str:
    tried = list(dict.fromkeys(shown for shown, _ in refused))
    more = f"; … {len(tried)} in all" if len(tried) > 3 else ""
    return (
        f"no inputs found that the model runs on (tried {'; '.join(tried[:3])}{more}); with the first, "
        f"{refused[0][1]}; give sizes that fit with --shape NAME=1,3,224,224"
    )


def _tamed(session: InferenceSession, inputs: Inputs, outputs: Inputs) -> tuple[Inputs, Inputs]:
    if not _all_finite(outputs):
        tamer = {name: np.abs(each).clip(0, 1) if _is_float(each) else each for name, each in inputs.items()}
        with contextlib.suppress(ModelError):
            found = run(session, tamer)
            return (tamer, found) if _all_finite(found) else (inputs, outputs)
    return inputs, outputs


def _all_finite(arrays: Inputs) -> bool:
    return all(bool(np.isfinite(array).all()) for array in arrays.values() if _is_float(array))


def _is_float(array: Array) -> bool:
    return array.dtype.kind in "fV"


def _spelled_out(spec: InputSpec, hints: _Hints) -> InputSpec:
    """Every dimension a size or a symbol: sizes that weights ask for, kinds for missing names."""
    if spec.shape is None:
        return spec
    rank = len(spec.shape)
    asked = {axis % rank: size for (name, axis), size in hints.sizes.items() if name == spec.name}
    shape = [size if isinstance(size, int) else asked.get(axis, size) for axis, size in enumerate(spec.shape)]
    symbols = [
        f"?{_kind_by_place(shape, axis)}" if size is None or str(size).lower() in _NAMELESS else size
        for axis, size in enumerate(shape)
    ]
    return replace(spec, shape=tuple(symbols))


def _kind_by_place(shape: Sequence[int | str | None], axis: int) -> _Kind:
    rank = len(shape)
    fixed = [isinstance(size, int) for size in shape]
    if axis == 0 or (axis == 1 and rank == 3 and fixed[0] and shape[0] != 1):
        return "batch"  # x[N, ...], state[layers, N, width]
    if rank < 4:
        return (
            "length" if axis == 1 or fixed[1] else "other"
        )  # ids[N, length], x[N, C, length], x[N, length, ?]
    channels_last = fixed[-1] and not fixed[1]
    return "channels" if axis == 1 and not channels_last else "spatial"


def _candidate_shapes(
    specs: Sequence[InputSpec], shapes: Shapes, batch: int | None, variant: int
) -> list[dict[str, tuple[int, ...]]]:
    given = _sizes_in(shapes, specs)
    kinds = {symbol: kind for symbol, kind in _kinds(specs).items() if symbol not in given}
    _check_batch(batch, specs, kinds)
    lists = {kind: _rotated(_SIZES[kind], variant) for kind in dict.fromkeys(kinds.values())}
    if batch is not None and "batch" in lists:
        lists["batch"] = [batch]
    candidates = []
    for picked in _nearest(list(lists.values())):
        of_kind = dict(zip(lists, picked, strict=True))
        sizes = given | {symbol: of_kind[kind] for symbol, kind in kinds.items()}
        candidates.append(
            {spec.name: tuple(shapes.get(spec.name, ())) or _concrete(spec, sizes) for spec in specs}
        )
    return candidates


def _rotated(values: Sequence[int], turn: int) -> list[int]:
    at = turn % len(values)
    return [*values[at:], *values[:at]]


def _kinds(specs: Iterable[InputSpec]) -> dict[str, _Kind]:
    """Symbol → kind, from where it first occurs; the terms of a sum like ``past + length`` are symbols."""
    kinds: dict[str, _Kind] = {}
    for spec in specs:
        for axis, size in enumerate(spec.shape or ()):
            for term in _terms(size):
                kinds.setdefault(term, _kind_by_name(term) or _kind_by_place(spec.shape or (), axis))
    return kinds


def _kind_by_name(symbol: str) -> _Kind | None:
    return next((kind for pattern, kind in _KIND_BY_NAME if pattern.search(symbol.lower())), None)


def _terms(size: int | str | None) -> list[str]:
    return [term.strip() for term in str(size).split("+") if not term.strip().isdigit()]


def _concrete(spec: InputSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    if spec.shape is None:
        raise UsageError(f"not even the rank of input '{spec.name}' is known: give --shape {spec.name}=...")
    sums = ([term.strip() for term in str(size).split("+")] for size in spec.shape)
    return tuple(sum(int(term) if term.isdigit() else sizes[term] for term in terms) for terms in sums)


def _sizes_in(shapes: Shapes, specs: Sequence[InputSpec]) -> dict[str, int]:
    """Symbol → size, from the shapes the user gives."""
    by_name = {spec.name: spec for spec in specs}
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        if name not in by_name:
            raise UsageError(f"no input '{name}' to give a shape to: the inputs are {_listed(by_name)}")
        _check_shape(by_name[name], shape)
        for symbol, size in zip(by_name[name].shape or (), shape, strict=False):
            if isinstance(symbol, str):
                sizes.setdefault(symbol, size)
    return sizes


def _check_batch(batch: int | None, specs: Sequence[InputSpec], kinds: Mapping[str, _Kind]) -> None:
    if batch is None or "batch" in kinds.values():
        return
    for spec in specs:
        if spec.shape and spec.shape[0] != batch:
            raise UsageError(f"no batch of {batch}: input '{spec.name}' has the shape {list(spec.shape)}")


def _nearest(lists: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """One element of every list: combinations by their distance from the first elements; not too many."""
    places = itertools.product(*(range(len(each)) for each in lists))
    nearest = sorted(places, key=lambda each: (sum(each), each))[:_MOST_TRIES]
    return [tuple(values[place] for values, place in zip(lists, each, strict=True)) for each in nearest]


def _is_scalar(spec: InputSpec) -> bool:
    return spec.dtype.kind in "iu" and spec.shape is not None and all(size == 1 for size in spec.shape)


def _scalar_values(compared: Sequence[int]) -> list[int]:
    """For every number that a scalar is compared with, that number and another one."""
    return list(dict.fromkeys(value for each in compared for value in (each, each + 1))) or [1, 0]


def _values(spec: InputSpec, shape: Sequence[int], rows: int | None, seed: int) -> Array:
    random = np.random.default_rng([seed, zlib.crc32(spec.name.encode())])
    kind = spec.dtype.kind
    if kind == "O":
        return np.full(shape, "a", dtype=object)
    if kind in "biu" and "mask" in spec.name.lower():
        return np.ones(shape, spec.dtype)
    if kind in "iu" and spec.dtype.itemsize == 1 and rows is None:
        limits = np.iinfo(spec.dtype)
        return random.integers(limits.min, limits.max, shape, spec.dtype, endpoint=True)
    if kind in "biu" or rows is not None:
        return np.asarray(random.integers(0, rows or 2, shape)).astype(spec.dtype)
    return np.asarray(random.standard_normal(shape)).astype(spec.dtype)


# Inputs: reading them

_NUMBERED: Final = re.compile(r"input_(\d+)\.pb")


def load_inputs(path: str | Path, names: Sequence[str]) -> Inputs:
    """Inputs from an ``.npz`` with an array for each, a ``.pb`` tensor, or a folder of ``input_0.pb``, ...

    Args:
        path: the file, or the folder of an ONNX test set.
        names: the model's inputs, in order; a tensor that has none of these names goes by its number.

    Raises:
        UsageError: there is nothing there, it cannot be read, or it is not for these inputs.
    """
    path = Path(path)
    if not path.is_dir():
        return (
            dict([_load_tensor(path, names)])
            if _existing(path).suffix == ".pb"
            else _load_arrays(path, names)
        )
    files = [each for each in path.iterdir() if _NUMBERED.fullmatch(each.name)]
    if not files:
        raise UsageError(f"'{path}': no input_0.pb in this folder")
    return dict(_load_tensor(file, names) for file in sorted(files))


def _load_tensor(path: Path, names: Sequence[str]) -> tuple[str, Array]:
    try:
        tensor = onnx.load_tensor_from_string(path.read_bytes())
        array = numpy_helper.to_array(tensor)
    except (DecodeError, ValueError, TypeError, OSError):
        raise UsageError(f"'{path}': not a tensor (sequences and optionals are not read)") from None
    if tensor.name in names:
        return tensor.name, array
    numbered = _NUMBERED.fullmatch(path.name)
    number = int(numbered[1]) if numbered else 0
    if number >= len(names):
        raise UsageError(
            f"'{path}': input {number} ('{tensor.name}') of a model whose inputs are {_listed(names)}"
        )
    return names[number], array


def _load_arrays(path: Path, names: Sequence[str]) -> Inputs:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {str(name): np.asarray(archive[name]) for name in archive}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile):
        raise UsageError(f"'{path}': not an .npz file of arrays, nor a .pb tensor") from None
    if missing := [name for name in names if name not in arrays]:
        raise UsageError(f"'{path}' holds {_listed(arrays)}, but not the model's input '{missing[0]}'")
    return {name: arrays[name] for name in names}
