"""Samples as people have them: an `.npz`, a folder of `.npy`/`.npz` files, or a Python callable.

    data.npz           arrays named like the model's inputs, samples on axis 0; other arrays (labels) are extras
    folder/            one sample a file: an .npz of inputs (as the model takes them), or an .npy for the only input
    module:callable    called without arguments, yields {input name: array}, each as the model takes it

No pickle is ever read. A `Dataset` can be walked through more than once, and gives the same samples each time.
"""

from __future__ import annotations

import importlib
import math
import os
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from edgeq.errors import CalibrationError

Feeds = dict[str, np.ndarray]
MAX_ARRAY_BYTES = 64 << 30
UNREADABLE = (OSError, ValueError, zipfile.BadZipFile, zlib.error, EOFError, KeyError, RuntimeError, SyntaxError)
"""What numpy, zipfile and zlib raise for damaged, encrypted or pickled files."""


@dataclass
class Dataset:
    """name: for messages. make: a fresh iterator over samples. count: how many, None when only walking can tell.

    extras: arrays beside the inputs, such as labels, with samples on axis 0.
    """

    name: str
    make: Callable[[], Iterator[Feeds]]
    count: int | None = None
    extras: dict[str, np.ndarray] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Feeds]:
        return self.make()

    def take(self, limit: int) -> Dataset:
        """The first `limit` samples; all of them for 0."""
        if not limit or (self.count is not None and self.count <= limit):
            return self
        return Dataset(
            self.name,
            lambda: (f for f, _ in zip(self.make(), range(limit), strict=False)),
            limit,
            {k: v[:limit] for k, v in self.extras.items()},
        )


def open_data(source: Any, inputs: Mapping[str, tuple[int | None, ...] | None]) -> Dataset:
    """Whatever holds samples, as a Dataset. `inputs`: the model's input names and shapes (None where unknown).

    Takes a Dataset, a path, `module:callable`, or an iterable of feeds. Raises CalibrationError.
    """
    if isinstance(source, Dataset):
        return source
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if path.is_dir():
            return _folder(path, inputs)
        if path.is_file():
            if path.suffix != ".npz":
                raise CalibrationError(f"{path}: expected an .npz file, a folder, or module:callable")
            return _npz(path, inputs)
        if ":" in str(source):
            return _callable(str(source))
        raise CalibrationError(f"{path}: no such file or folder; give an .npz, a folder of arrays, or module:callable")
    if isinstance(source, Mapping):
        return from_arrays({k: np.asarray(v) for k, v in source.items()}, inputs, "data")
    if callable(source):
        name = getattr(source, "__name__", "callable")
        return Dataset(name, lambda: _walk(name, source))
    if isinstance(source, Iterable):
        kept = list(_walk("data", lambda: source))
        return Dataset("data", lambda: iter(kept), len(kept))
    raise CalibrationError(f"can't read samples from a {type(source).__name__}: give a path, arrays or an iterable")


def from_arrays(arrays: Mapping[str, np.ndarray], inputs: Mapping[str, Any], name: str) -> Dataset:
    """Arrays with samples on axis 0; each sample keeps its axis 0 with length 1, unless the input has no such axis."""
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

    def make() -> Iterator[Feeds]:
        for index in range(count):
            yield {k: _sample(v, index, inputs[k]) for k, v in feeds.items()}

    return Dataset(name, make, count, extras)


def _sample(array: np.ndarray, index: int, shape: tuple[int | None, ...] | None) -> np.ndarray:
    batch = shape[0] if shape else None
    if shape is not None and len(shape) == array.ndim - 1:
        return array[index]
    if batch not in (None, 1):
        raise CalibrationError(
            f"the model's batch is fixed at {batch}: give samples of that batch with one more axis in front"
        )
    return array[index : index + 1]


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz without pickle, each header checked against the file before memory is taken."""
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(info.file_size for info in archive.infolist())
            if total > MAX_ARRAY_BYTES:
                raise CalibrationError(
                    f"{path}: unpacks to {total >> 30} GiB, over the limit of {MAX_ARRAY_BYTES >> 30}"
                )
            for info in archive.infolist():
                with archive.open(info) as stream:
                    _check_header(stream, info.file_size, info.filename)
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except UNREADABLE as error:
        raise CalibrationError(f"{path}: not a readable .npz of plain arrays ({error})") from None


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


def _npz(path: Path, inputs: Mapping[str, Any]) -> Dataset:
    return from_arrays(read_npz(path), inputs, str(path))


def _folder(path: Path, inputs: Mapping[str, Any]) -> Dataset:
    files = sorted(p for p in path.iterdir() if p.suffix in (".npy", ".npz"))
    if not files:
        raise CalibrationError(f"{path}: no .npy or .npz file in it")

    def make() -> Iterator[Feeds]:
        for file in files:
            if file.suffix == ".npz":
                yield read_npz(file)
                continue
            if len(inputs) != 1:
                raise CalibrationError(f"{file}: the model has {len(inputs)} inputs, so each sample must be an .npz")
            try:
                with open(file, "rb") as stream:
                    _check_header(stream, file.stat().st_size, file.name)
                array = np.load(file, allow_pickle=False)
            except UNREADABLE as error:
                raise CalibrationError(f"{file}: not a readable .npy array ({error})") from None
            yield {next(iter(inputs)): array}

    return Dataset(str(path), make, len(files))


def _callable(spec: str) -> Dataset:
    made = load_object(spec)
    if not callable(made):
        raise CalibrationError(f"{spec!r} is a {type(made).__name__}; give a callable that yields {{input: array}}")
    return Dataset(spec, lambda: _walk(spec, made))


def _walk(name: str, make: Callable[[], Iterable[Any]]) -> Iterator[Feeds]:
    """The samples that a callable yields, each a mapping of arrays. Raises CalibrationError for anything else."""
    index = 0
    samples: Iterator[Any] | None = None
    while True:
        try:
            samples = iter(make()) if samples is None else samples
            feeds = next(samples)
        except StopIteration:
            return
        except Exception as error:  # the user's own code may raise anything
            raise CalibrationError(f"{name} failed at sample {index}: {type(error).__name__}: {error}") from None
        if not isinstance(feeds, Mapping):
            raise CalibrationError(f"{name}: sample {index} is a {type(feeds).__name__}; yield {{input name: array}}")
        yield {key: np.asarray(value) for key, value in feeds.items()}
        index += 1


def load_object(spec: str) -> Any:
    """The object that `module:name` names; the current folder is searched too. Raises CalibrationError."""
    module, _, name = spec.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:  # importing runs the user's own code, which may raise anything
        raise CalibrationError(
            f"{spec!r} can't be loaded ({type(error).__name__}: {error}): give module:name of something importable"
        ) from None
    return found
