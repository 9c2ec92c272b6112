"""Models on disk: loaded with everything that can be wrong checked once, saved whole or not at all.

**Load.** The proto is read without its external data, and then believed only as far as it has been checked,
so that no later stage has to: every tensor holds the bytes its shape and type ask for, external data lies
inside the model's folder, each name is made once and before it is read. The checks compare lengths and names,
they never touch a weight: protobuf hands out ``raw_data`` as a copy, so the lengths of the initializers come
from the file's own wire format. ONNX requires nodes in topological order; a model that merely breaks this
rule means something definite (ONNX Runtime runs it), so it is sorted, keeping the order of nodes wherever the
edges allow.

**Save.** Everything is written into a temporary folder beside OUT, flushed to the disk, verified there if the
caller wants to, and then renamed into place. Until the last rename, a failure leaves what was there before.

**Memory.** The caller's proto is never changed: protobuf would not give back the memory of a weight it lets
go of (its arena only grows). A model with external data is written from an *outline*, a copy of the proto
without the weights, while the weights are streamed to the data file one at a time. So a save costs one
tensor, or one block of a file, on top of what the caller holds.

Format: https://github.com/onnx/onnx/blob/main/docs/IR.md and
https://github.com/onnx/onnx/blob/main/docs/ExternalData.md
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import os
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from math import prod
from pathlib import Path, PureWindowsPath
from typing import BinaryIO, NamedTuple

import onnx
from google.protobuf.message import DecodeError, EncodeError, Message  # type: ignore[import-untyped]
from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    TrainingInfoProto,
    numpy_helper,
)
from onnx.external_data_helper import uses_external_data

from onnxprune.errors import ModelError, UsageError
from onnxprune.graph import node_name, subgraphs

__all__ = ["LoadedModel", "check_writable", "default_output", "load", "save"]

_PROTOBUF_LIMIT = 2**31 - 1
"""Bytes a protobuf message can have, https://protobuf.dev/programming-guides/proto-limits/."""
_INSIDE_LIMIT = 2_000_000_000
"""Bytes of tensors that are put into the model file: the limit less room for nodes and names."""
_SMALL = 1024
"""Tensors below this many bytes stay in the model file, where shape inference sees them (as in ONNX)."""
_LARGE, _PAGE, _LINE = 2**20, 4096, 64
"""Tensors from ``_LARGE`` bytes on begin at a page, so that they can be mapped; others at a cache line."""
_BLOCK = 8 * 2**20
"""Bytes copied at a time."""


@dataclass(frozen=True)
class LoadedModel:
    """A model that was checked, and where it came from.

    ``folder`` is where external data lies (None: everything is inside); ``file_size`` is the bytes of the
    model file and of its ``data_files`` together.
    """

    proto: ModelProto
    path: Path
    folder: Path | None
    file_size: int
    data_files: tuple[Path, ...] = ()


def default_output(path: str | Path) -> Path:
    """Where a pruned model goes unless told otherwise: ``model.onnx`` → ``model.pruned.onnx``."""
    path = Path(path)
    stem = path.stem if path.suffix.lower() == ".onnx" else path.name
    return path.with_name(f"{stem}.pruned.onnx")


# ---- load


def load(path: str | Path) -> LoadedModel:
    """Read and check a model; external data is checked, not read.

    Ensures that every tensor's length fits its shape and type, that names are made once, and that nodes are
    in topological order (sorted where they were not).

    Raises:
        UsageError: there is no such file.
        ModelError: it cannot be read, is not an ONNX model, or contradicts itself.
    """
    path = Path(path)
    try:
        content = _content(path)
        proto = _parsed(content)
        _check_model(proto)
        files = _DataFiles(path.parent)
        lengths = chain(_raw_lengths(proto, content), repeat(None))
        for tensor, length in zip(_tensors(proto), lengths, strict=False):
            _check_tensor(tensor, length, files)
        _arrange(proto)
    except OSError as error:
        raise ModelError(f"'{path}' cannot be read: {error.strerror or error}") from None
    except ModelError as error:
        raise ModelError(f"'{path}': {error}") from None
    return LoadedModel(
        proto,
        path,
        path.parent if files.sizes else None,
        len(content) + sum(files.sizes.values()),
        tuple(sorted(files.sizes)),
    )


def _content(path: Path) -> bytes:
    if not path.exists():
        raise UsageError(f"'{path}': no such file")
    if not path.is_file():
        raise UsageError(f"'{path}' is {_kind(path)}, not an ONNX model")
    if path.stat().st_size > _PROTOBUF_LIMIT:
        raise ModelError(
            "over 2 GB, more than protobuf can hold; larger models keep weights in external data"
        )
    return path.read_bytes()


def _kind(path: Path) -> str:
    return "a folder" if path.is_dir() else "not a regular file"


def _parsed(content: bytes) -> ModelProto:
    """The message in a file's bytes. Raises ModelError that says what the bytes are instead."""
    if not content:
        raise ModelError("the file is empty")
    head = content[:512]
    if head.startswith(b"version https://git-lfs"):
        raise ModelError("a Git LFS pointer, not the model itself; fetch it with 'git lfs pull'")
    if all(byte >= 32 or byte in b"\t\n\r" for byte in head):
        raise ModelError("a text file, not an ONNX model (a binary protobuf)")
    try:
        return onnx.load_model_from_string(content)
    except DecodeError:
        raise ModelError(_damage(content)) from None


def _damage(content: bytes) -> str:
    with contextlib.suppress(ValueError, IndexError):
        for _, _, end in _fields(content, 0, len(content)):
            if end > len(content):
                return f"cut short: {len(content)} of at least {end} bytes are there; fetch it again"
    return "not an ONNX model, or a damaged one"


def _check_model(proto: ModelProto) -> None:
    """Presence of what every model has."""
    if not proto.HasField("graph"):
        raise ModelError("not an ONNX model: there is no graph in it")
    if not proto.graph.output:
        raise ModelError("the graph has no outputs, so nothing in it matters")
    if proto.ir_version >= 3 and not proto.opset_import:
        raise ModelError("no operator set is named (opset_import); the file may be cut short")


# ---- the wire format, for lengths without copies


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """The number that begins at a place, and the place after it."""
    value = shift = 0
    while True:
        byte = content[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def _fields(content: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(number, begin, end) of the length-delimited fields of a message.

    Raises ValueError or IndexError where the bytes are not one.
    https://protobuf.dev/programming-guides/encoding/
    """
    while at < end:
        tag, at = _varint(content, at)
        if tag & 7 == 2:
            length, at = _varint(content, at)
            yield tag >> 3, at, at + length
            at += length
        elif tag & 7 == 0:
            _, at = _varint(content, at)
        elif tag & 7 in (1, 5):
            at += 8 if tag & 7 == 1 else 4
        else:
            raise ValueError("a group")


def _raw_lengths(proto: ModelProto, content: bytes) -> list[int | None]:
    """Bytes of raw data of each initializer of the main graph; empty where the file is laid out oddly."""
    lengths: list[int | None] = []
    with contextlib.suppress(ValueError, IndexError):
        for number, begin, end in _fields(content, 0, len(content)):
            if number == ModelProto.GRAPH_FIELD_NUMBER:
                for inner, first, last in _fields(content, begin, end):
                    if inner == GraphProto.INITIALIZER_FIELD_NUMBER:
                        lengths.append(_raw_length(content, first, last))
    return lengths if len(lengths) == len(proto.graph.initializer) else []


def _raw_length(content: bytes, begin: int, end: int) -> int:
    length = 0
    for number, first, last in _fields(content, begin, end):
        if number == TensorProto.RAW_DATA_FIELD_NUMBER:
            length = last - first
    return length


# ---- tensors


class _Layout(NamedTuple):
    """How numbers of a type are stored: bits in raw data, or in which field and how many bits an entry."""

    bits: int
    field: str
    entry: int


_LAYOUTS = {
    "FLOAT": _Layout(32, "float_data", 32),
    "COMPLEX64": _Layout(64, "float_data", 32),
    "DOUBLE": _Layout(64, "double_data", 64),
    "COMPLEX128": _Layout(128, "double_data", 64),
    "INT64": _Layout(64, "int64_data", 64),
    "UINT64": _Layout(64, "uint64_data", 64),
    "UINT32": _Layout(32, "uint64_data", 32),
    "INT32": _Layout(32, "int32_data", 32),
    **dict.fromkeys(("INT16", "UINT16", "FLOAT16", "BFLOAT16"), _Layout(16, "int32_data", 16)),
    **dict.fromkeys(("INT8", "UINT8", "BOOL", "FLOAT8E8M0"), _Layout(8, "int32_data", 8)),
    **dict.fromkeys(("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ"), _Layout(8, "int32_data", 8)),
    **dict.fromkeys(("FLOAT8E5M2", "FLOAT8E5M2FNUZ"), _Layout(8, "int32_data", 8)),
    **dict.fromkeys(("FLOAT6E2M3", "FLOAT6E3M2"), _Layout(6, "int32_data", 6)),
    **dict.fromkeys(("INT4", "UINT4", "FLOAT4E2M1"), _Layout(4, "int32_data", 8)),
    **dict.fromkeys(("INT2", "UINT2"), _Layout(2, "int32_data", 8)),
    "STRING": _Layout(8, "string_data", 8),
}
"""https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, TensorProto."""

_LAYOUT_OF = {number: _LAYOUTS[name] for name, number in TensorProto.DataType.items() if name in _LAYOUTS}


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor of a model; those of the main graph's initializers first, in order."""
    pending: deque[GraphProto | FunctionProto] = deque([model.graph, *model.functions])
    pending.extend(graph for info in model.training_info for graph in (info.initialization, info.algorithm))
    while pending:
        scope = pending.popleft()
        if isinstance(scope, GraphProto):
            yield from scope.initializer
            for sparse in scope.sparse_initializer:
                yield from (sparse.values, sparse.indices)
        for node in scope.node:
            for held in node.attribute:
                yield from _attribute_tensors(held)
            pending.extend(subgraphs(node))


def _attribute_tensors(held: AttributeProto) -> Iterator[TensorProto]:
    if held.type == AttributeProto.TENSOR:
        yield held.t
    elif held.type == AttributeProto.TENSORS:
        yield from held.tensors
    elif held.type in (AttributeProto.SPARSE_TENSOR, AttributeProto.SPARSE_TENSORS):
        for sparse in (held.sparse_tensor, *held.sparse_tensors):
            yield from (part for part in (sparse.values, sparse.indices) if part.data_type)


def _raw_size(tensor: TensorProto) -> int:
    """Bytes that a tensor's numbers take (0 for strings and unknown types)."""
    layout = _LAYOUT_OF.get(tensor.data_type)
    return -(-prod(tensor.dims) * layout.bits // 8) if layout else 0


def _check_tensor(tensor: TensorProto, length: int | None, files: _DataFiles) -> None:
    """Length against shape and type. ``length``: bytes of raw data where they are known already."""
    layout = _LAYOUT_OF.get(tensor.data_type)
    if layout is None:
        raise ModelError(
            f"tensor {tensor.name!r} has the type {tensor.data_type}, which this onnx does not know"
        )
    if any(size < 0 for size in tensor.dims):
        raise ModelError(f"tensor {tensor.name!r} has the negative size {min(tensor.dims)}")
    if tensor.data_type == TensorProto.STRING and (tensor.HasField("raw_data") or uses_external_data(tensor)):
        raise ModelError(f"tensor {tensor.name!r} keeps text as raw bytes, which ONNX does not allow")
    if uses_external_data(tensor):
        files.range_of(tensor)
        return
    if tensor.HasField("raw_data"):
        held = len(tensor.raw_data) if length is None else length
        unit, needed = "bytes", _raw_size(tensor)
    else:
        held, count = len(getattr(tensor, layout.field)), prod(tensor.dims)
        unit, needed = f"entries of {layout.field}", -(-count * layout.bits // layout.entry)
    if held != needed:
        raise _wrong_length(tensor, f"holds {held} {unit}, but", needed)


def _wrong_length(tensor: TensorProto, held: str, needed: int) -> ModelError:
    kind = TensorProto.DataType.Name(tensor.data_type)
    return ModelError(f"tensor {tensor.name!r} {held} its shape {list(tensor.dims)} of {kind} needs {needed}")


# ---- external data


class _Range(NamedTuple):
    """Where the bytes of a tensor lie."""

    file: Path
    offset: int
    length: int


class _DataFiles:
    """The files beside a model that hold its external data, each checked when it is first met.

    ``sizes`` are their bytes; the keys are absolute, links resolved.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sizes: dict[Path, int] = {}
        self._known: dict[str, Path] = {}

    def range_of(self, tensor: TensorProto) -> _Range:
        """Where a tensor's bytes lie. Raises ModelError where they cannot be what the tensor declares."""
        entries = {entry.key: entry.value for entry in tensor.external_data}
        file = self._file(entries.get("location", ""), tensor.name)
        try:
            offset = int(entries.get("offset", 0))
            length = int(entries.get("length", max(self.sizes[file] - offset, 0)))
        except ValueError:
            raise ModelError(f"tensor {tensor.name!r}: the place of its external data is no number") from None
        where = f"keeps bytes {offset} to {offset + length} of {file.name!r}, but"
        if offset < 0 or length < 0 or offset + length > self.sizes[file]:
            raise ModelError(
                f"tensor {tensor.name!r} {where} that has {self.sizes[file]} bytes; fetch it again"
            )
        if length != _raw_size(tensor):
            raise _wrong_length(tensor, where, _raw_size(tensor))
        return _Range(file, offset, length)

    def _file(self, location: str, name: str) -> Path:
        if location not in self._known:
            file = self._resolved(location, name)
            self._check_readable(location, file, name)
            self.sizes[file] = file.stat().st_size
            self._known[location] = file
        return self._known[location]

    def _resolved(self, location: str, name: str) -> Path:
        """The file of a location, which may come from a stranger: nothing outside the folder is touched."""
        says = f"tensor {name!r} keeps its data in {location!r},"
        outside = "outside the model's folder, which is refused; put the file beside the model and name it so"
        if not isinstance(location, str) or not location or "\0" in location:
            raise ModelError(f"{says} which is not a file name")
        plain = PureWindowsPath(location)  # knows the separators of every system
        if plain.anchor or ".." in plain.parts:
            raise ModelError(f"{says} {outside}")
        file = (self.folder / location).resolve()
        if not file.is_relative_to(self.folder.resolve()):
            raise ModelError(f"{says} a link to a place {outside}")
        if not file.is_file():
            raise ModelError(f"{says} but there is no such file; fetch it and put it beside the model")
        return file

    def _check_readable(self, location: str, file: Path, name: str) -> None:
        """ONNX itself reads the numbers later, and refuses links of any kind; better now than then."""
        if file.stat().st_size == 0:
            return
        probe = TensorProto(dims=[1], data_type=TensorProto.UINT8, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", location), ("offset", "0"), ("length", "1")):
            probe.external_data.add(key=key, value=value)
        try:
            numpy_helper.to_array(probe, str(self.folder))
        except Exception as error:
            reason = "it is a link" if self._is_link(location) else str(error).splitlines()[0]
            raise ModelError(
                f"tensor {name!r} keeps its data in {location!r}, which ONNX does not read: {reason}; "
                "put a plain copy of the file in its place"
            ) from None

    def _is_link(self, location: str) -> bool:
        status = (self.folder / location).lstat()
        return (self.folder / location).is_symlink() or status.st_nlink > 1


# ---- names and order


@dataclass
class _Scope:
    """A graph, a body or a function: nodes, the names they may start from, what must be made in the end."""

    where: str
    nodes: Sequence[NodeProto]
    inputs: list[str]
    stored: list[str]
    results: list[str]
    owner: tuple[int, int] | None = None
    captured: dict[int, list[str]] | None = None


def _arrange(model: ModelProto) -> None:
    """Check that each name is made once and from something, and bring the nodes into topological order.

    A body may read what the graphs around it make; the node that carries it then waits for these.
    Raises: ModelError for names made twice or by nobody, and for cycles.
    """
    scopes = _scopes(model)
    for scope in reversed(scopes):  # bodies come after what carries them
        free = _arrange_scope(scope)
        if scope.owner is None and free:
            name, reader = next(iter(free.items()))
            raise ModelError(f"{reader} reads {name!r}, which is no input, not stored, and made by no node")
        if scope.owner is not None:
            carrier, node = scopes[scope.owner[0]], scope.owner[1]
            carrier.captured = carrier.captured or {}
            carrier.captured.setdefault(node, []).extend(free)


def _scopes(model: ModelProto) -> list[_Scope]:
    found = [_graph_scope(model.graph, "the graph", None)]
    for function in model.functions:
        inputs, results = list(function.input), list(function.output)
        found.append(_Scope(f"function {function.name!r}", function.node, inputs, [], results))
    for i, scope in enumerate(found):  # grows on the way
        for k, node in enumerate(scope.nodes):
            for body in subgraphs(node):
                found.append(_graph_scope(body, f"a body of node {node_name(node)!r}", (i, k)))
    return found


def _graph_scope(graph: GraphProto, where: str, owner: tuple[int, int] | None) -> _Scope:
    stored = [tensor.name for tensor in graph.initializer]
    stored += [sparse.values.name for sparse in graph.sparse_initializer]
    inputs, outputs = [value.name for value in graph.input], [value.name for value in graph.output]
    return _Scope(where, graph.node, inputs, stored, outputs, owner)


def _arrange_scope(scope: _Scope) -> dict[str, str]:
    """Sort one scope. Returns what it reads from around it: name → who reads it."""
    nodes = list(scope.nodes)
    _check_names(scope, nodes, [name for node in nodes for name in node.output if name])
    reads = [[name for name in node.input if name] for node in nodes]
    for k, names in (scope.captured or {}).items():
        reads[k] += names
    maker = {name: k for k, node in enumerate(nodes) for name in node.output if name}
    given = {*scope.inputs, *scope.stored}
    known = given | maker.keys()
    free = {name: f"the list of outputs of {scope.where}" for name in scope.results if name not in known}
    for node, names in zip(nodes, reads, strict=True):
        free.update({name: f"node {node_name(node)!r}" for name in names if name not in known})
    before = [{maker[name] for name in names if name in maker} for names in reads]
    if any(makers and max(makers) >= k for k, makers in enumerate(before)):
        _sort(scope, nodes, before)
    return free


def _check_names(scope: _Scope, nodes: Sequence[NodeProto], made: Sequence[str]) -> None:
    """Names are text, and each tensor has its own. (An initializer may be declared as an input, too.)"""
    called = [name for node in nodes for name in (node.name, node.op_type, node.domain, *node.input)]
    for names in (called, made, scope.inputs, scope.stored, scope.results):
        if bytes in map(type, names):
            broken = next(name for name in names if not isinstance(name, str))
            raise ModelError(f"a name in {scope.where} is not UTF-8 text ({broken!r}); the file is damaged")
    for names in ([*scope.inputs, *made], [*scope.stored, *made]):
        if len(set(names)) < len(names):
            double = next(name for name, count in Counter(names).items() if count > 1)
            raise ModelError(f"tensor {double!r} is there twice in {scope.where}; names have to differ")


def _sort(scope: _Scope, nodes: Sequence[NodeProto], before: Sequence[set[int]]) -> None:
    """Reorder nodes: of those whose inputs are made, always the first in the old order (Kahn)."""
    after: list[list[int]] = [[] for _ in nodes]
    for k, makers in enumerate(before):
        for made in makers:
            after[made].append(k)
    waiting = [len(makers) for makers in before]
    ready = [k for k, count in enumerate(waiting) if count == 0]
    rank: dict[int, int] = {}
    while ready:
        k = heapq.heappop(ready)
        rank[k] = len(rank)
        for reader in after[k]:
            waiting[reader] -= 1
            if waiting[reader] == 0:
                heapq.heappush(ready, reader)
    if len(rank) < len(nodes):
        raise ModelError(f"{scope.where} has a cycle: {_cycle(nodes, before, rank)}")
    place = {id(node): rank[k] for k, node in enumerate(nodes)}
    scope.nodes.sort(key=lambda node: place[id(node)])  # type: ignore[attr-defined]  # in place, weights stay put


def _cycle(nodes: Sequence[NodeProto], before: Sequence[set[int]], sorted_: dict[int, int]) -> str:
    """A cycle among the nodes that could not be sorted, as text."""
    k = next(k for k in range(len(nodes)) if k not in sorted_)
    path: dict[int, None] = {}
    while k not in path:
        path[k] = None
        k = min(maker for maker in before[k] if maker not in sorted_)
    members = list(path)[list(path).index(k) :][::-1]
    first = members.index(min(members))
    members = members[first:] + members[:first]
    shown = [repr(node_name(nodes[m])) for m in members[:5]]
    return " → ".join([*shown, *(["…"] if len(members) > 5 else []), shown[0]])


# ---- save


def save(
    proto: ModelProto,
    out: str | Path,
    *,
    source: LoadedModel | None,
    check: Callable[[Path], None] | None = None,
) -> list[Path]:
    """Write a model, whole or not at all; ``proto`` is left as it is.

    With external data in the source, or beyond protobuf's 2 GB, weights go to ``OUT.data`` beside OUT: what
    is in memory from ``proto``, what still refers to the files of the source from there.

    Args:
        proto: the model; may hold tensors that refer to the source's external data.
        out: the file to write; what is there is replaced.
        source: the model this one was made from (None: it has no external data).
        check: called with the staged model, in its final form and under its final name but in another folder.
            What it raises is passed on, and nothing is saved.

    Returns: the files written, OUT first.

    Raises:
        UsageError: OUT cannot be a file, or would overwrite data that the source needs.
        ModelError: the disk is full, OUT cannot be written, or the source's data went away.
    """
    out = Path(out)
    with contextlib.ExitStack() as stack:
        with _reporting(out):
            _check_place(out, source)
            staging = stack.enter_context(_staging(out))
            staged = _write(proto, staging / out.name, source.folder if source else None)
        if check is not None:
            check(staged[0])
        with _reporting(out):
            return _commit(staged, out.parent, staging)


def check_writable(out: str | Path, source: LoadedModel | None = None) -> None:
    """Find out before hours of work whether OUT can be written; leaves nothing behind.

    Raises: UsageError and ModelError as ``save`` does.
    """
    out = Path(out)
    with _reporting(out):
        _check_place(out, source)
        with _staging(out) as staging:
            _try_names(staging / out.name)


def _try_names(staged: Path) -> None:
    for path in (staged, _data_path(staged)):
        path.touch()


def _data_path(model: Path) -> Path:
    return model.with_name(f"{model.name}.data")


def _check_place(out: Path, source: LoadedModel | None) -> None:
    if not out.parent.is_dir():
        raise UsageError(f"'{out}' cannot be written: there is no folder '{out.parent}'; make it first")
    if out.exists() and not out.is_file():
        raise UsageError(f"'{out}' cannot be written: it is {_kind(out)}; choose another name")
    if out.exists() and not os.access(out, os.W_OK):
        raise ModelError(f"'{out}' cannot be written: it is write-protected; choose another name")
    if source is not None and out.resolve() != source.path.resolve():
        for file in (out, _data_path(out)):
            if file.resolve() in source.data_files:
                raise UsageError(
                    f"'{file}' holds weights of '{source.path}'; choose another name for '{out}'"
                )


@contextlib.contextmanager
def _reporting(out: Path) -> Iterator[None]:
    """Errors of the file system as one line."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
            reason = "the disk is full; free some space or choose another folder"
        raise ModelError(f"'{out}' cannot be written: {reason}") from None


@contextlib.contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """A folder on the file system of OUT that is gone afterwards, whatever happens."""
    with tempfile.TemporaryDirectory("", ".onnxprune-", out.parent, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _write(proto: ModelProto, staged: Path, folder: Path | None) -> list[Path]:
    """The model at ``staged``, its data beside it. ``folder``: the source's, where it has external data."""
    inside = folder is None and not any(map(uses_external_data, _tensors(proto)))
    if inside and sum(map(_raw_size, _tensors(proto))) <= _INSIDE_LIMIT:
        _write_message(proto, staged)
        return [staged]
    outline, moved = _outline(proto)
    lost = next((t.name for t, _ in moved if folder is None and uses_external_data(t)), None)
    if lost is not None:
        raise ModelError(f"tensor {lost!r} is in another file; say of which loaded model (source)")
    if moved:
        _write_data(moved, _data_path(staged), _DataFiles(folder or staged.parent))
    _write_message(outline, staged)
    return [staged, _data_path(staged)] if moved else [staged]


def _write_message(proto: ModelProto, path: Path) -> None:
    try:
        content = proto.SerializeToString()
    except (EncodeError, ValueError):
        raise ModelError(
            f"'{path.name}' is over 2 GB even without its weights, too much for protobuf"
        ) from None
    with path.open("xb") as file:
        file.write(content)
        _flush(file)


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


_GRAPHS = (ModelProto, GraphProto, FunctionProto, TrainingInfoProto)
_HOLDERS = (*_GRAPHS, NodeProto, AttributeProto, SparseTensorProto)
"""Messages in which tensors can be."""


def _outline(model: ModelProto) -> tuple[ModelProto, list[tuple[TensorProto, TensorProto]]]:
    """A copy without the numbers that go to the data file, and (tensor, its copy) for each of these."""
    outline = ModelProto()
    moved: list[tuple[TensorProto, TensorProto]] = []
    pending: deque[tuple[Message, Message, bool]] = deque([(model, outline, False)])
    while pending:
        source, target, movable = pending.popleft()
        if isinstance(source, TensorProto) and _goes_out(source, movable):
            _copy_declaration(source, target)
            moved.append((source, target))
        elif isinstance(source, _HOLDERS):
            pending.extend(_parts(source, target))
        else:
            target.CopyFrom(source)
    return outline, moved


def _parts(source: Message, target: Message) -> Iterator[tuple[Message, Message, bool]]:
    """Copy what is plain; the messages inside, with their places in the copy, are left to the caller.

    The flag says whether ONNX Runtime takes external data there: initializers, and the value of a Constant.
    """
    in_constant = isinstance(source, AttributeProto) and source.name == "value"
    movable = in_constant or isinstance(source, GraphProto)
    for field, value in source.ListFields():
        if field.message_type is None:
            _copy_plain(target, field.name, value)
        elif isinstance(value, Message):
            getattr(target, field.name).SetInParent()
            yield value, getattr(target, field.name), movable
        else:
            yield from ((item, getattr(target, field.name).add(), movable) for item in value)


def _copy_plain(target: Message, name: str, value: object) -> None:
    if isinstance(value, str | bytes | int | float):
        setattr(target, name, value)
    else:
        getattr(target, name).extend(value)


def _goes_out(tensor: TensorProto, movable: bool) -> bool:
    if uses_external_data(tensor):
        return True
    return movable and tensor.data_type != TensorProto.STRING and _raw_size(tensor) >= _SMALL


def _copy_declaration(source: TensorProto, target: TensorProto) -> None:
    """All but the numbers and where they are."""
    target.dims.extend(source.dims)
    target.data_type = source.data_type
    for name in ("name", "doc_string"):
        if source.HasField(name):
            setattr(target, name, getattr(source, name))
    if hasattr(source, "metadata_props"):
        target.metadata_props.extend(source.metadata_props)


def _write_data(moved: Iterable[tuple[TensorProto, TensorProto]], path: Path, files: _DataFiles) -> None:
    """Write the numbers of each tensor one after another, and note in its copy where they are.

    Tensors that shared a range of the source's data go on sharing one.
    """
    written: dict[_Range, int] = {}
    end = 0
    with path.open("xb") as data:
        for source, target in moved:
            held = files.range_of(source) if uses_external_data(source) else None
            size = _raw_size(source)
            offset = written.get(held) if held else None
            if offset is None:
                step = _PAGE if size >= _LARGE else _LINE
                offset = -(-end // step) * step
                data.seek(offset)
                _write_numbers(source, held, data)
                end = offset + size
            if held:
                written[held] = offset
            _refer(source, target, path.name, offset, size)
        _flush(data)


def _write_numbers(tensor: TensorProto, held: _Range | None, data: BinaryIO) -> None:
    if held:
        _copy_range(held, data)
    elif tensor.HasField("raw_data"):
        data.write(tensor.raw_data)
    else:
        data.write(numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data)


def _copy_range(held: _Range, data: BinaryIO) -> None:
    left = held.length
    with held.file.open("rb", buffering=0) as file:
        file.seek(held.offset)
        while left:
            block = file.read(min(left, _BLOCK))
            if not block:
                raise ModelError(
                    f"'{held.file}' was cut short while it was read; leave it as it is meanwhile"
                )
            data.write(block)
            left -= len(block)


def _refer(source: TensorProto, target: TensorProto, location: str, offset: int, length: int) -> None:
    """Declare where the numbers are. A checksum stays with numbers that do."""
    target.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        target.external_data.add(key=key, value=value)
    target.external_data.extend(entry for entry in source.external_data if entry.key == "checksum")


def _commit(staged: Sequence[Path], folder: Path, staging: Path) -> list[Path]:
    """Rename staged files (the model, its data) into place; the model last, so that it is never without data.

    Until the model is in place, old data is kept aside and put back if anything goes wrong.
    """
    model, *data = staged
    aside = Path(tempfile.mkdtemp(dir=staging))
    try:
        for file in data:
            if (folder / file.name).is_file():
                os.replace(folder / file.name, aside / file.name)
            os.replace(file, folder / file.name)
        os.replace(model, folder / model.name)
    except BaseException:
        if model.exists():
            for file in data:
                _put_back(file, aside / file.name, folder / file.name)
        raise
    _flush_folder(folder)
    return [folder / file.name for file in staged]


def _put_back(staged: Path, aside: Path, place: Path) -> None:
    if aside.exists():
        os.replace(aside, place)
    elif not staged.exists():
        place.unlink()


def _flush_folder(folder: Path) -> None:
    """Make the renames last through a power cut, where the system has a way to."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
