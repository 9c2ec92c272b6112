"""Running models on ONNX Runtime: where they run, and what comes out.

A *session* is opened on a provider that really works here; `run` maps named inputs to named outputs. Whatever
ONNX Runtime has to say comes back as one line of a `ModelError`; nothing of it reaches the terminal.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]
from onnx import TensorProto, helper
from onnx.external_data_helper import uses_external_data

from onnxprune.errors import ModelError, UsageError
from onnxprune.files.tensor_bytes import raw_size

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, IOBinding, OrtValue

__all__ = [
    "Array",
    "Inputs",
    "Model",
    "Provider",
    "bind",
    "existing_file",
    "is_large",
    "load_structure",
    "open_session",
    "output_names",
    "provider_of",
    "resolve_provider",
    "run",
]

Provider = Literal["auto", "cpu", "cuda", "tensorrt"]
Model = onnx.ModelProto | bytes | str | Path  # in memory, serialised, or in a file
Array = npt.NDArray[Any]
Inputs = dict[str, Array]

# Providers

_CHAINS: Final[dict[str, tuple[str, ...]]] = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
}
_LARGE: Final = 1_000_000_000  # bytes
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
    in_place: bool = False,
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
        in_place: read weights where they lie in data files, instead of rearranging them for speed in memory.

    Raises:
        UsageError: there is no such file, or the provider does not work here.
        ModelError: ONNX Runtime cannot load the model.
    """
    providers = resolve_provider(provider, tf32=tf32)
    folder = None if isinstance(model, str | Path) else folder
    session = _create(_loadable(model, folder), providers, _options(threads, optimize, folder, in_place))
    if not any(0 in value.shape for value in session.get_inputs()):
        return session
    if isinstance(model, str | Path):
        folder = Path(model).resolve().parent
    relaxed = _without_empty_sizes(load_structure(model))
    return _create(_loadable(relaxed, folder), providers, _options(threads, optimize, folder, in_place))


def is_large(model: onnx.ModelProto) -> bool:
    """Whether a model has so many weights in data files that a copy of them in memory is to be avoided."""
    outside = (weight for weight in model.graph.initializer if uses_external_data(weight))
    return sum(map(raw_size, outside)) > _LARGE


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
            model if isinstance(model, bytes) else existing_file(model).read_bytes()
        )
    except DecodeError:
        raise ModelError(f"{where} not an ONNX model, or a damaged one") from None
    except OSError as error:
        raise UsageError(f"{where} not readable: {error.strerror}") from None
    if not proto.HasField("graph"):
        raise ModelError(f"{where} not an ONNX model: there is no graph in it")
    return proto


def existing_file(path: str | Path) -> Path:
    """The path, if there is a file. Raises UsageError."""
    if not Path(path).is_file():
        raise UsageError(f"'{path}': no such file")
    return Path(path)


def _loadable(model: Model, folder: str | Path | None) -> str | bytes:
    """What ONNX Runtime takes: a path or bytes."""
    if isinstance(model, str | Path):
        return str(existing_file(model))
    if isinstance(model, bytes):
        return model
    if folder is None and any(uses_external_data(weight) for weight in model.graph.initializer):
        raise ModelError("the model's weights are in other files: open it by its path, or name their folder")
    try:
        data: bytes = model.SerializeToString()
    except (EncodeError, ValueError):
        raise ModelError("a model in memory must be under 2 GB: save it, and open it by its path") from None
    return data


def _options(
    threads: int | None, optimize: bool = True, folder: str | Path | None = None, in_place: bool = False
) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = threads or 0
    # Threads that spin while they wait take the cores from others: two sessions that took turns on two busy
    # cores were three times as slow with it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if in_place:
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
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
    names = output_names(session)
    try:
        if _numpy_has_the_types(session):
            return dict(zip(names, session.run(names, inputs), strict=True))
        binding = bind(session, inputs)
        session.run_with_iobinding(binding)
        return dict(zip(names, map(_to_numpy, binding.get_outputs()), strict=True))
    except _failures() as error:
        raise ModelError(f"ONNX Runtime cannot run the model: {_condensed(error)}") from None


def run_bound(session: InferenceSession, binding: IOBinding) -> None:
    """Run a session on what is bound. Raises ModelError where ONNX Runtime cannot."""
    try:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
    except _failures() as error:
        raise ModelError(f"ONNX Runtime cannot run the model: {_condensed(error)}") from None


def output_names(session: InferenceSession) -> list[str]:
    """The outputs, all of them tensors. Raises ModelError where one is not."""
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
