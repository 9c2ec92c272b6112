"""Where the weights in the files beside a model lie, believed only as far as it has been checked.

Every range lies inside its file, and every file inside the model's folder. Large weights are not copied into memory:
they are views of the file, of which the system holds as much as it has room for.

Format: https://github.com/onnx/onnx/blob/main/docs/ExternalData.md
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.files.tensor_bytes import is_packed, raw_size, wrong_length

__all__ = ["DataFiles", "Range"]

_LARGE = 2**30
_MAPPED = 2**16  # bytes from which on a tensor is not copied
_HOLES = 100  # times what is on the disk, from which size on a large file counts as one without content


class Range(NamedTuple):
    """Where the bytes of a tensor lie."""

    file: Path
    offset: int
    length: int


class DataFiles:
    """The files beside a model that hold its external data, each checked when it is first met.

    ``sizes`` are their bytes; the keys are absolute, links resolved.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sizes: dict[Path, int] = {}
        self._known: dict[str, Path] = {}

    def range_of(self, tensor: TensorProto) -> Range:
        """Where a tensor's bytes lie. Raises ModelError where they cannot be what the tensor declares."""
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if len(entries) < len(tensor.external_data):
            raise ModelError(f"tensor {tensor.name!r} says twice where its external data is; the model is damaged")
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
        if length != raw_size(tensor):
            raise wrong_length(tensor, where, raw_size(tensor))
        return Range(file, offset, length)

    def mapped(self, tensor: TensorProto) -> NDArray[np.generic] | None:
        """A tensor's numbers as they are in the file, a read-only view of it; None where they cannot be used so.

        Numbers that share bytes have to be unpacked, those that cross the processor's words to be moved; and a system
        may not replace a file that is mapped. What is small is copied: a view keeps its file open.
        Raises: ModelError as ``range_of`` does; OSError and ValueError where the file is gone or cut short.
        """
        file, offset, length = self.range_of(tensor)
        dtype, dims = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)), tuple(tensor.dims)
        if not length:
            return np.zeros(dims, dtype)
        if is_packed(tensor) or offset % dtype.itemsize or sys.byteorder != "little" or os.name != "posix":
            return None
        found = np.memmap(file, dtype, "r", offset, dims)
        return np.asarray(found) if length >= _MAPPED else np.array(found)

    def _file(self, location: str, name: str) -> Path:
        if location not in self._known:
            file = self._resolved(location, name)
            self._check_readable(location, file, name)
            self.sizes[file] = self._size(location, file, name)
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

    def _size(self, location: str, file: Path, name: str) -> int:
        """Bytes of a file. A few bytes on the disk can claim terabytes of zeros, which nobody could go through."""
        size = file.stat().st_size
        if size > _LARGE and _stored(file, size // _HOLES) < size // _HOLES:
            raise ModelError(
                f"tensor {name!r} keeps its data in {location!r}, a file of {size / 1e9:,.1f} GB of which next to "
                "nothing is on the disk (it is sparse); fetch it again"
            )
        return size

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


def _stored(file: Path, enough: int) -> int:
    """How many bytes of a file are no holes, counted until they are enough; all, where the system does not say."""
    if not hasattr(os, "SEEK_DATA"):
        return enough
    found = end = 0
    with file.open("rb") as opened:
        while found < enough:
            try:
                begin = os.lseek(opened.fileno(), end, os.SEEK_DATA)
                end = os.lseek(opened.fileno(), begin, os.SEEK_HOLE)
            except OSError as error:
                return found if error.errno == errno.ENXIO else enough  # no more data; not supported
            found += end - begin
    return found
