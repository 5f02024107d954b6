"""Arrays with samples on axis 0, `.npz` files of them, and folders of one sample a file. No pickle is ever read."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path
from tokenize import TokenError
from typing import IO

import numpy as np

from edgeq.data.dataset import Dataset, Feeds
from edgeq.errors import CalibrationError

Shape = tuple[int | None, ...] | None
Shapes = Mapping[str, Shape]
MAX_ARRAY_BYTES = 64 << 30
MOST_DENSE, FREE_BYTES = 200, 256 << 20  # what a file may unpack to: times its own size, or so many bytes
UNREADABLE = (
    OSError, ValueError, OverflowError, zipfile.BadZipFile, zlib.error, EOFError, KeyError, RuntimeError, SyntaxError,
    TokenError,
)  # fmt: skip
"""What numpy, zipfile and zlib raise for damaged, encrypted or pickled files."""


def from_arrays(arrays: Mapping[str, np.ndarray], inputs: Shapes, name: str, source: str | None = None) -> Dataset:
    """Arrays with samples on axis 0; each sample keeps its axis 0 with length 1, unless the input has no such axis.

    Arrays that are no input become extras. Raises CalibrationError.
    """
    feeds = {k: v for k, v in arrays.items() if k in inputs}
    extras = {k: v for k, v in arrays.items() if k not in inputs}
    if not feeds:
        raise CalibrationError(
            f"{name} holds {', '.join(arrays) or 'nothing'}, but the model's inputs are {', '.join(inputs)}"
        )
    lengths = {k: len(v) if v.ndim else 0 for k, v in feeds.items()}
    count = next(iter(lengths.values()))
    if len(set(lengths.values())) != 1 or count == 0:
        raise CalibrationError(f"{name}: inputs need equally many samples on axis 0, at least one; found {lengths}")
    for key, value in feeds.items():
        shape = inputs[key]
        if shape is not None and len(shape) not in (value.ndim, value.ndim - 1):
            raise CalibrationError(f"{name}: {key!r} has shape {value.shape}; want samples on axis 0, each {shape}")

    def get(index: int) -> Feeds:
        return {k: _sample(v, index, inputs[k]) for k, v in feeds.items()}

    return Dataset.indexed(name, get, count, extras, source)


def _sample(array: np.ndarray, index: int, shape: Shape) -> np.ndarray:
    batch = shape[0] if shape else None
    if shape is not None and len(shape) == array.ndim - 1:
        return array[index]
    if batch not in (None, 1):
        raise CalibrationError(
            f"the model's batch is fixed at {batch}: give samples of that batch with one more axis in front"
        )
    return array[index : index + 1]


def read_npz(file: Path | BytesIO, name: str = "") -> dict[str, np.ndarray]:
    """All arrays of an .npz without pickle, each header checked against the file before memory is taken.

    name: of `file` in messages, by default its path. Raises CalibrationError.
    """
    name = name or str(file)
    try:
        with zipfile.ZipFile(file) as archive:
            total = sum(info.file_size for info in archive.infolist())
            if total > MAX_ARRAY_BYTES:
                raise CalibrationError(
                    f"{name}: unpacks to {total >> 30} GiB, over the limit of {MAX_ARRAY_BYTES >> 30}"
                )
            packed = file.getbuffer().nbytes if isinstance(file, BytesIO) else file.stat().st_size
            if total > max(FREE_BYTES, MOST_DENSE * packed):
                raise CalibrationError(
                    f"{name}: unpacks to {total} bytes, {total // packed} times its own; save it without compression"
                )
            for info in archive.infolist():
                with archive.open(info) as stream:
                    _check_header(stream, info.file_size, info.filename)
        if isinstance(file, BytesIO):
            file.seek(0)
        with np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except UNREADABLE as error:
        raise CalibrationError(f"{name}: not a readable .npz of plain arrays ({error})") from None


def _check_header(stream: IO[bytes], size: int, name: str) -> None:
    """Raises ValueError unless the .npy header claims no more bytes than the file has."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(stream)
    if version not in readers:
        raise ValueError(f"{name} is of .npy version {version}")
    shape, _, dtype = readers[version](stream)
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects; pickles are not read")
    if math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"{name} claims shape {shape} of {dtype}, but the file has only {size} bytes")


def array_folder(path: Path, files: list[Path], inputs: Iterable[str]) -> Dataset:
    """One sample a file: an .npz of inputs as the model takes them, or an .npy for the only one of `inputs`."""
    names = list(inputs)

    def get(index: int) -> Feeds:
        file = files[index]
        if file.suffix == ".npz":
            return read_npz(file)
        if len(names) != 1:
            raise CalibrationError(f"{file}: the model has {len(names)} inputs, so each sample must be an .npz")
        try:
            with open(file, "rb") as stream:
                _check_header(stream, file.stat().st_size, file.name)
            return {names[0]: np.load(file, allow_pickle=False)}
        except UNREADABLE as error:
            raise CalibrationError(f"{file}: not a readable .npy array ({error})") from None

    return Dataset.indexed(str(path), get, len(files), source=str(path.absolute()))
