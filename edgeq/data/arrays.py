"""Arrays with samples on axis 0, `.npz` files of them, and folders of one sample a file. No pickle is ever read."""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from struct import Struct
from tokenize import TokenError
from typing import IO

import numpy as np

from edgeq.data.dataset import Dataset, Feeds
from edgeq.errors import CalibrationError

Shape = tuple[int | None, ...] | None
Shapes = Mapping[str, Shape]
MAX_ARRAY_BYTES = 64 << 30
MOST_DENSE, FREE_BYTES = 200, 256 << 20  # what a file may unpack to: times its own size, or so many bytes
MAX_HEADER = 10_000  # numpy's own limit for what it parses
LENGTH = {(1, 0): 2, (2, 0): 4}  # bytes of a .npy header's length, by version
LOCAL, ENCRYPTED = Struct("<26xHH"), 1  # of the ZIP format: a member's header, with the sizes of what follows; a flag
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


def read_npz(file: Path | BytesIO, name: str = "", sums: bool = True) -> dict[str, np.ndarray]:
    """All arrays of an .npz without pickle, each header checked against the file before memory is taken.

    name: of `file` in messages, by default its path. sums: whether what is not compressed is read by way of its
    checksum, which takes longer than all else. Raises CalibrationError.
    """
    name = name or str(file)
    try:
        with (
            nullcontext(file) if isinstance(file, BytesIO) else open(file, "rb") as stream,
            zipfile.ZipFile(stream) as archive,
        ):
            members, packed = archive.infolist(), stream.seek(0, os.SEEK_END)
            total = sum(member.file_size for member in members)
            if total > MAX_ARRAY_BYTES:
                raise CalibrationError(
                    f"{name}: unpacks to {total >> 30} GiB, over the limit of {MAX_ARRAY_BYTES >> 30}"
                )
            if total > max(FREE_BYTES, MOST_DENSE * packed):
                raise CalibrationError(
                    f"{name}: unpacks to {total} bytes, {total // packed} times its own; save it without compression"
                )
            found = {}
            for member in members:
                plain = member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & ENCRYPTED
                with nullcontext(_at(stream, member, packed)) if plain and not sums else archive.open(member) as place:
                    found[member.filename.removesuffix(".npy")] = _array(place, member.file_size, member.filename)
            return found
    except UNREADABLE as error:
        raise CalibrationError(f"{name}: not a readable .npz of plain arrays ({error})") from None


def _at(stream: IO[bytes], member: zipfile.ZipInfo, packed: int) -> IO[bytes]:
    """The archive of `packed` bytes itself, where an uncompressed member's content begins."""
    stream.seek(member.header_offset)
    local = stream.read(LOCAL.size)
    if len(local) < LOCAL.size or not local.startswith(b"PK\3\4"):
        raise ValueError(f"{member.filename} isn't where the directory has it")
    stream.seek(sum(LOCAL.unpack(local)), os.SEEK_CUR)
    if stream.tell() + member.file_size > packed:
        raise ValueError(f"{member.filename} has {member.file_size} bytes, more than follow: truncated")
    return stream


def _array(stream: IO[bytes], size: int, name: str) -> np.ndarray:
    """The array of a .npy file of `size` bytes. Raises ValueError when its header claims more than those."""
    version = np.lib.format.read_magic(stream)
    if version not in LENGTH:
        raise ValueError(f"{name} is of .npy version {version}")
    prefix = stream.read(LENGTH[version])
    header = stream.read(min(int.from_bytes(prefix, "little"), MAX_HEADER))
    shape, columns_first, dtype = _header(version, prefix + header)
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects; pickles are not read")
    wanted, left = math.prod(shape) * dtype.itemsize, size - np.lib.format.MAGIC_LEN - len(prefix) - len(header)
    if wanted > left:
        raise ValueError(f"{name} claims shape {shape} of {dtype}, but the file has only {left} bytes")
    content = np.empty(wanted, np.uint8)
    rest = memoryview(content.data)
    while rest:
        got = stream.readinto(rest)  # type: ignore[attr-defined]
        if not got:
            raise EOFError(f"{name} ends early")
        rest = rest[got:]
    return np.ndarray(shape, dtype, content, order="F" if columns_first else "C")


@lru_cache(64)
def _header(version: tuple[int, int], content: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, Fortran order, dtype) of a .npy header, its length in front. A folder's samples mostly have the same."""
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(BytesIO(content))


def array_folder(path: Path, files: list[Path], inputs: Iterable[str]) -> Dataset:
    """One sample a file: an .npz of inputs as the model takes them, or an .npy for the only one of `inputs`."""
    names = list(inputs)

    def get(index: int) -> Feeds:
        file = files[index]
        if file.suffix == ".npz":
            return read_npz(file, sums=False)
        if len(names) != 1:
            raise CalibrationError(f"{file}: the model has {len(names)} inputs, so each sample must be an .npz")
        try:
            with open(file, "rb") as stream:
                return {names[0]: _array(stream, file.stat().st_size, file.name)}
        except UNREADABLE as error:
            raise CalibrationError(f"{file}: not a readable .npy array ({error})") from None

    return Dataset.indexed(str(path), get, len(files), source=str(path.absolute()))
