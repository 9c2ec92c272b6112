"""Models on disk or in memory: everything that can be wrong checked once; saved whole or not at all.

**Load.** The proto is read without its external data, and then believed only as far as it has been checked,
so that no later stage has to: every tensor holds the bytes its shape and type ask for (`files.tensor_bytes`),
external data lies inside the model's folder (`files.external_data`), each name is made once and before it is read
(`files.node_order`). The checks compare lengths and names, they never touch a weight. What a caller built in memory
is checked in the same way.

**Save.** Everything is written into a temporary folder beside OUT, flushed to the disk, verified there if the
caller wants to, and then renamed into place (`files.staging`). Until the last rename, a failure leaves what was
there before.

**Memory.** The caller's proto is never changed. A model with external data is written from an *outline*, a copy
of the proto without the weights (`files.outline`), while the weights are streamed to the data file one at a time
(`files.data_file`). So a save costs one tensor, or one block of a file, on top of what the caller holds.

Format: https://github.com/onnx/onnx/blob/main/docs/IR.md and
https://github.com/onnx/onnx/blob/main/docs/ExternalData.md
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, repeat
from pathlib import Path
from typing import TypeAlias

import onnx
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]
from onnx import ModelProto, TensorProto
from onnx.external_data_helper import uses_external_data

from onnxprune.deferred import Pending, is_promise
from onnxprune.errors import ModelError, UsageError
from onnxprune.files.data_file import write_data
from onnxprune.files.external_data import DataFiles
from onnxprune.files.node_order import arrange, out_of_order
from onnxprune.files.node_schema import check_nodes
from onnxprune.files.outline import outline_of, places_of
from onnxprune.files.staging import commit, flush, reporting, staging_folder
from onnxprune.files.tensor_bytes import check_tensor, raw_size
from onnxprune.files.tensor_walk import tensors
from onnxprune.files.wire_format import fields, raw_lengths

__all__ = ["LoadedModel", "check_unchanged", "check_writable", "checked", "default_output", "load", "loaded", "save"]

_PROTOBUF_LIMIT = 2**31 - 1
"""Bytes a protobuf message can have, https://protobuf.dev/programming-guides/proto-limits/."""
_INSIDE_LIMIT = 2_000_000_000
"""Bytes of tensors that are put into the model file: the limit less room for nodes and names."""


Stamp: TypeAlias = tuple[int, int, int]
"""Number, size and time of the last change of a file (nanoseconds)."""


@dataclass(frozen=True)
class LoadedModel:
    """A model that was checked, and where it came from.

    ``path`` and ``file_size`` are None for a model in memory. ``folder`` is where external data lies (None:
    everything is inside); ``file_size`` is the bytes of the model file and of its ``data_files`` together. ``stamps``:
    what tells whether a data file is still the one that was checked.
    """

    proto: ModelProto
    path: Path | None
    folder: Path | None
    file_size: int | None
    data_files: tuple[Path, ...] = ()
    stamps: tuple[Stamp, ...] = field(default=(), repr=False)


def default_output(path: str | Path) -> Path:
    """Where a pruned model goes unless told otherwise: ``model.onnx`` → ``model.pruned.onnx``."""
    path = Path(path)
    stem = path.stem if path.suffix.lower() == ".onnx" else path.name
    return path.with_name(f"{stem}.pruned.onnx")


# ---- load


def loaded(model: ModelProto | LoadedModel | str | Path, folder: str | Path | None = None) -> LoadedModel:
    """A model that was checked, from wherever it comes; ``folder`` is where the external data of one in memory lies.

    Raises: UsageError and ModelError as ``load`` does; UsageError for what is no model at all.
    """
    if isinstance(model, LoadedModel):
        return model
    if isinstance(model, ModelProto):
        return checked(model, folder)
    if isinstance(model, str | Path):
        return load(model)
    raise UsageError(f"a model is given as {type(model).__name__}, expected a path or an onnx.ModelProto")


def checked(proto: ModelProto, folder: str | Path | None = None) -> LoadedModel:
    """Check a model in memory as ``load`` checks a file; it is not changed, where nodes have to be sorted a copy is.

    Args:
        proto: the model.
        folder: where its external data lies.

    Raises: ModelError where it contradicts itself, or keeps weights in other files and ``folder`` is not given.
    """
    files = DataFiles(Path(folder)) if folder is not None else None
    try:
        _check(proto, files, repeat(None))
        if out_of_order(proto):
            proto = _copied(proto)
            arrange(proto)
        outside = tuple(sorted(files.sizes)) if files is not None else ()
        stamps = tuple(map(_stamp, outside))
    except OSError as error:
        raise ModelError(f"the external data in '{folder}' cannot be read: {error.strerror or error}") from None
    own = Path(folder) if folder is not None and outside else None
    return LoadedModel(proto, None, own, None, outside, stamps)


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
        files = DataFiles(path.parent)
        _check(proto, files, chain(raw_lengths(proto, content), repeat(None)))
        arrange(proto)
        outside = tuple(sorted(files.sizes))
        stamps = tuple(map(_stamp, outside))
    except OSError as error:
        raise ModelError(f"'{path}' cannot be read: {error.strerror or error}") from None
    except ModelError as error:
        raise ModelError(f"'{path}': {error}") from None
    return LoadedModel(
        proto,
        path,
        path.parent if files.sizes else None,
        len(content) + sum(files.sizes.values()),
        outside,
        stamps,
    )


def _stamp(file: Path) -> Stamp:
    found = file.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


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
        for _, _, end in fields(content, 0, len(content)):
            if end > len(content):
                return f"cut short: {len(content)} of at least {end} bytes are there; fetch it again"
    return "not an ONNX model, or a damaged one"


def _check(proto: ModelProto, files: DataFiles | None, lengths: Iterable[int | None]) -> None:
    """Everything but names and order. ``lengths``: bytes of raw data of the first tensors, where known."""
    _check_model(proto)
    for tensor, length in zip(tensors(proto), lengths, strict=False):
        check_tensor(tensor, length)
        if not uses_external_data(tensor):
            continue
        if files is None:
            raise ModelError(
                f"tensor {tensor.name!r} keeps its data in another file; say in which folder that is (folder), "
                "or give the model by its path"
            )
        files.range_of(tensor)


def _copied(proto: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(proto)
    return copy


def _check_model(proto: ModelProto) -> None:
    """Presence of what every model has."""
    if not proto.HasField("graph"):
        raise ModelError("not an ONNX model: there is no graph in it")
    if not proto.graph.output:
        raise ModelError("the graph has no outputs, so nothing in it matters")
    if proto.ir_version >= 3 and not proto.opset_import:
        raise ModelError("no operator set is named (opset_import); the model may be cut short")
    check_nodes(proto)


# ---- save


def save(
    proto: ModelProto,
    out: str | Path,
    *,
    source: LoadedModel | None,
    check: Callable[[Path], None] | None = None,
    pending: Mapping[str, Pending] | None = None,
) -> list[Path]:
    """Write a model, whole or not at all; ``proto`` is left as it is.

    With external data in the source, or beyond protobuf's 2 GB, weights go to ``OUT.data`` beside OUT: what
    is in memory from ``proto``, what still refers to the files of the source from there. What the source has
    inside its model file stays inside, what it has outside stays outside, and an untouched model keeps all places
    in its data file.

    Args:
        proto: the model; may hold tensors that refer to the source's external data.
        out: the file to write; what is there is replaced.
        source: the model this one was made from (None: it has no external data).
        check: called with the staged model, in its final form and under its final name but in another folder.
            What it raises is passed on, and nothing is saved.
        pending: initializer → its numbers, of those that are computed as they are written (``onnxprune.deferred``).

    Returns: the files written, OUT first.

    Raises:
        UsageError: OUT cannot be a file, or would overwrite data that the source needs.
        ModelError: the disk is full, OUT cannot be written, or the source's data went away or was changed.
    """
    out = Path(out)
    with reporting(out):
        _check_place(out, source)
        check_unchanged(source)
    with staging_folder(out) as staging:
        with reporting(out):
            staged = _write(proto, staging / out.name, source, pending or {})
            check_unchanged(source)
        if check is not None:
            check(staged[0])
        with reporting(out):
            return commit(staged, out.parent, staging)


def check_writable(out: str | Path, source: LoadedModel | None = None) -> None:
    """Find out before hours of work whether OUT can be written; leaves nothing behind.

    Raises: UsageError and ModelError as ``save`` does.
    """
    out = Path(out)
    with reporting(out):
        _check_place(out, source)
    with staging_folder(out) as staging, reporting(out):
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
    if source is not None and (source.path is None or out.resolve() != source.path.resolve()):
        for file in (out, _data_path(out)):
            if file.resolve() in source.data_files:
                whose = f"'{source.path}'" if source.path else "the model"
                raise UsageError(f"'{file}' holds weights of {whose}; choose another name for '{out}'")


def check_unchanged(source: LoadedModel | None) -> None:
    """Data files are read again when a result is written or looked at. Raises ModelError where one is another now."""
    for file, stamp in zip(source.data_files, source.stamps, strict=False) if source else ():
        if file.exists() and _stamp(file) != stamp:
            raise ModelError(f"'{file}' was changed after the model was read; read the model again")


def _write(
    proto: ModelProto, staged: Path, source: LoadedModel | None, pending: Mapping[str, Pending]
) -> list[Path]:
    """The model at ``staged``, its data beside it. What the source has inside stays there, if it has data outside."""
    folder = source.folder if source else None
    inside = folder is None and not any(map(uses_external_data, tensors(proto)))
    if inside and sum(map(raw_size, tensors(proto))) <= _INSIDE_LIMIT:
        _write_message(proto, staged)
        return [staged]
    outline, moved = outline_of(proto, places_of(source.proto) if source and folder else None)
    lost = next((t.name for t, _ in moved if folder is None and uses_external_data(t)), None)
    if lost is not None:
        raise ModelError(f"tensor {lost!r} is in another file; say of which loaded model (source)")
    if moved:
        files = DataFiles(folder or staged.parent)
        _check_space(moved, files, staged.parent)
        untouched = source is not None and len(source.data_files) == 1 and proto == source.proto
        write_data(moved, _data_path(staged), files, pending=pending, in_place=untouched)
    _write_message(outline, staged)
    return [staged, _data_path(staged)] if moved else [staged]


def _check_space(moved: Sequence[tuple[TensorProto, TensorProto]], files: DataFiles, folder: Path) -> None:
    """Better now than after hours of writing. Raises OSError. Tensors may share a range of the source's data."""
    sources = [source for source, _ in moved]
    made = sum(raw_size(tensor) for tensor in sources if not uses_external_data(tensor) or is_promise(tensor))
    ranges = {files.range_of(tensor) for tensor in sources if uses_external_data(tensor) and not is_promise(tensor)}
    if made + sum(held.length for held in ranges) > shutil.disk_usage(folder).free:
        raise OSError(errno.ENOSPC, "no space left on device")


def _write_message(proto: ModelProto, path: Path) -> None:
    try:
        content = proto.SerializeToString()
    except (EncodeError, ValueError):
        raise ModelError(
            f"'{path.name}' is over 2 GB even without its weights, too much for protobuf"
        ) from None
    with path.open("xb") as file:
        file.write(content)
        flush(file)
