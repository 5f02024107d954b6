"""GGUF files: `read` maps one, `write` streams one.

    "GGUF" | version u32 = 3 | tensors u64 | pairs u64
    pairs:   key string | type u32 | value                   string = length u64, UTF-8 bytes
    tensors: name string | dims u32 | dims x u64, the fastest first | type u32 | offset u64
    padding to general.alignment (32), then the tensors' bytes, each padded likewise

Everything is little-endian. A file is not trusted: every count and offset is checked against the bytes that are there
before anything is allocated. Source: the GGUF specification in the ggml repository (docs/gguf.md).
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from edgeq.errors import ModelError
from edgeq.files import replacing
from edgeq.numerics.gguf import KINDS, dequantize, kind_of, quantize

MAGIC, VERSION = b"GGUF", 3
ALIGNMENT = 32
STRING, ARRAY, BOOL = 8, 9, 7
SCALARS: dict[int, np.dtype] = {
    0: np.dtype("u1"), 1: np.dtype("i1"), 2: np.dtype("<u2"), 3: np.dtype("<i2"), 4: np.dtype("<u4"),
    5: np.dtype("<i4"), 6: np.dtype("<f4"), BOOL: np.dtype("?"), 10: np.dtype("<u8"), 11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}  # fmt: skip
_CODES = {dtype: code for code, dtype in SCALARS.items()}
_BY_NUMBER = {kind.number: name for name, kind in KINDS.items()}

Value = Any
"""bool, str, a numpy scalar, a numpy array, or a list of str. `write` takes int (u32) and float (f32) as well."""


@dataclass(frozen=True, eq=False)
class Tensor:
    """shape: as numpy has it, the blocked axis last. data: uint8 [rows, row bytes], mapped and read-only."""

    name: str
    shape: tuple[int, ...]
    kind: str
    data: np.ndarray

    def floats(self) -> np.ndarray:
        """The weights as float32, of `shape`."""
        return dequantize(self.data, self.kind).reshape(self.shape)


@dataclass(frozen=True, eq=False)
class Gguf:
    metadata: dict[str, Value]
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class Source:
    """A tensor to write.

    weights: called once, when its turn comes, so that one tensor at a time is in memory; it gives floats of `shape`, or
    uint8 [rows, row bytes] that are encoded already. imatrix: float32 [K] or None.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    weights: Callable[[], np.ndarray]
    imatrix: np.ndarray | None = None


def row_bytes(shape: tuple[int, ...], kind: str, name: str) -> tuple[int, int]:
    """(rows, bytes a row). Raises ModelError when the rows are not whole blocks."""
    k = kind_of(kind)
    width = shape[-1] if shape else 1
    if width % k.size:
        raise ModelError(f"tensor {name!r} {shape}: {kind} needs rows of a multiple of {k.size}; choose another type")
    rows = 1
    for dim in shape[:-1]:
        rows *= dim
    return rows, width // k.size * k.nbytes


class _Cursor:
    """Reads forward through the mapped file and refuses to pass its end."""

    def __init__(self, path: Path, buffer: mmap.mmap | bytes) -> None:
        self.path, self.buffer, self.at, self.end = path, buffer, 0, len(buffer)

    def bad(self, what: str) -> ModelError:
        return ModelError(f"{self.path}: not a valid GGUF file ({what}); download or convert it again")

    def need(self, count: int, size: int, what: str) -> None:
        if count * size > self.end - self.at:
            raise self.bad(f"{count} {what} at byte {self.at} do not fit in its {self.end} bytes")

    def number(self, form: str) -> int:
        self.need(1, struct.calcsize(form), "number")
        (value,) = struct.unpack_from("<" + form, self.buffer, self.at)
        self.at += struct.calcsize(form)
        return int(value)

    def string(self) -> str:
        length = self.number("Q")
        self.need(length, 1, "bytes of text")
        raw = self.buffer[self.at : self.at + length]
        self.at += length
        return raw.decode("utf-8", errors="surrogateescape")

    def value(self, code: int) -> Value:
        if code == STRING:
            return self.string()
        if code in SCALARS:
            return self.numbers(code, 1)[0]
        if code != ARRAY:
            raise self.bad(f"metadata of unknown type {code} at byte {self.at}")
        inner, count = self.number("I"), self.number("Q")
        if inner == STRING:
            self.need(count, 8, "strings")
            return [self.string() for _ in range(count)]
        if inner not in SCALARS:
            raise self.bad(f"an array of type {inner} at byte {self.at}; arrays hold numbers or strings")
        return self.numbers(inner, count)

    def numbers(self, code: int, count: int) -> np.ndarray:
        dtype = SCALARS[code]
        self.need(count, dtype.itemsize, "numbers")
        raw = np.frombuffer(self.buffer, "u1" if code == BOOL else dtype, count, self.at)
        self.at += count * dtype.itemsize
        return raw != 0 if code == BOOL else raw.copy()


def read(path: str | os.PathLike[str]) -> Gguf:
    """The metadata and the mapped tensors of a GGUF file, version 2 or 3.

    Raises ModelError when the file is missing, truncated, inconsistent, or holds a type that edgeq does not know.
    """
    path = Path(path)
    try:
        with open(path, "rb") as stream:
            if os.fstat(stream.fileno()).st_size < 24:
                raise ModelError(f"{path}: too short for a GGUF file; download or convert it again")
            buffer = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ModelError(f"{path}: can't be read ({error.strerror}); give the path of a .gguf file") from None
    cursor = _Cursor(path, buffer)
    if buffer[:4] != MAGIC:
        raise cursor.bad(f"it begins with {bytes(buffer[:4])!r}")
    cursor.at = 4
    version, tensor_count, pair_count = cursor.number("I"), cursor.number("Q"), cursor.number("Q")
    if version not in (2, VERSION):
        raise cursor.bad(f"version {version}; edgeq reads little-endian versions 2 and 3")
    cursor.need(pair_count, 13, "metadata pairs")
    metadata: dict[str, Value] = {}
    for _ in range(pair_count):
        key = cursor.string()
        if key in metadata:
            raise cursor.bad(f"key {key!r} twice")
        metadata[key] = cursor.value(cursor.number("I"))
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int | np.integer) or not 8 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        raise cursor.bad(f"general.alignment {alignment!r} is not a power of two of at least 8")
    cursor.need(tensor_count, 24, "tensors")
    infos = [_info(cursor) for _ in range(tensor_count)]
    start = -(-cursor.at // int(alignment)) * int(alignment)
    tensors: dict[str, Tensor] = {}
    for name, shape, kind, offset in infos:
        rows, width = row_bytes(shape, kind, name)
        if name in tensors:
            raise cursor.bad(f"tensor {name!r} twice")
        if offset % int(alignment) or start + offset + rows * width > cursor.end:
            raise cursor.bad(f"tensor {name!r} {shape} {kind} at offset {offset} does not fit in the file")
        data = np.frombuffer(buffer, np.uint8, rows * width, start + offset)
        tensors[name] = Tensor(name, shape, kind, data.reshape(rows, width))
    return Gguf(metadata, tensors)


def _info(cursor: _Cursor) -> tuple[str, tuple[int, ...], str, int]:
    name, dims = cursor.string(), cursor.number("I")
    if not 1 <= dims <= 4:
        raise cursor.bad(f"tensor {name!r} of {dims} dimensions; 1 to 4 are allowed")
    shape = tuple(cursor.number("Q") for _ in range(dims))[::-1]
    if 0 in shape:
        raise cursor.bad(f"tensor {name!r} {shape} is empty")
    number, offset = cursor.number("I"), cursor.number("Q")
    if number not in _BY_NUMBER:
        raise ModelError(
            f"{cursor.path}: tensor {name!r} has GGUF type {number}, which edgeq can't read; "
            f"convert the model to one of {', '.join(KINDS)}"
        )
    return name, shape, _BY_NUMBER[number], offset


def _string(text: str) -> bytes:
    raw = text.encode("utf-8", errors="surrogateescape")
    return struct.pack("<Q", len(raw)) + raw


def _value(key: str, value: Value) -> bytes:
    """Type number and bytes of one metadata value."""
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _string(value)
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(_string, value))
    if isinstance(value, bool):
        value = np.bool_(value)
    elif isinstance(value, int):
        value = np.uint32(value) if 0 <= value < 2**32 else np.int64(value)
    elif isinstance(value, float) and not isinstance(value, np.generic):  # numpy's float64 is a Python float as well
        value = np.float32(value)
    if isinstance(value, np.generic | np.ndarray) and np.ndim(value) <= 1:
        dtype = value.dtype.newbyteorder("<") if value.dtype.itemsize > 1 else value.dtype
        if dtype in _CODES:
            array = np.asarray(value, dtype)
            if array.ndim == 0:
                return struct.pack("<I", _CODES[dtype]) + array.tobytes()
            return struct.pack("<IIQ", ARRAY, _CODES[dtype], len(array)) + array.tobytes()
    raise ModelError(f"metadata {key!r}: GGUF holds bool, numbers, text and lists of them, not {type(value).__name__}")


def write(path: str | os.PathLike[str], metadata: Mapping[str, Value], tensors: Iterable[Source]) -> None:
    """Write a GGUF file atomically, one tensor in memory at a time. The same input gives the same bytes.

    Raises ModelError for a value or a shape that GGUF can't hold, or when the file can't be written.
    """
    path, sources = Path(path), list(tensors)
    header = [struct.pack("<4sIQQ", MAGIC, VERSION, len(sources), len(metadata))]
    header += [_string(key) + _value(key, value) for key, value in metadata.items()]
    offset, sizes = 0, []
    for t in sources:
        rows, width = row_bytes(t.shape, t.kind, t.name)
        dims = struct.pack(f"<I{len(t.shape)}Q", len(t.shape), *reversed(t.shape))
        header.append(_string(t.name) + dims + struct.pack("<IQ", kind_of(t.kind).number, offset))
        sizes.append((rows, width))
        offset += -(-rows * width // ALIGNMENT) * ALIGNMENT
    with replacing(path) as temporary, open(temporary, "wb") as stream:
        _padded(stream, b"".join(header))
        for t, (rows, width) in zip(sources, sizes, strict=True):
            _padded(stream, _encode(t, rows, width).tobytes())


def _encode(t: Source, rows: int, width: int) -> np.ndarray:
    weights = t.weights()
    encoded = weights.dtype == np.uint8
    if weights.shape != ((rows, width) if encoded else t.shape):
        raise ModelError(f"tensor {t.name!r} was announced as {t.shape} {t.kind} and came as {weights.shape}")
    return weights if encoded else quantize(weights.reshape(rows, -1), t.kind, t.imatrix, search=True)


def _padded(stream: BinaryIO, data: bytes) -> None:
    stream.write(data)
    stream.write(b"\0" * (-len(data) % ALIGNMENT))
