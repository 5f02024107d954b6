"""Load and save ONNX models: lazily, atomically, and without trusting the file.

Weights stay memory-mapped until somebody asks for them. External data must be a regular file inside the model's
own folder and long enough for what the tensor claims; all of that is checked before anything is allocated.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir import external_data
from onnx_ir.passes.common import CheckerPass

from edgeq.errors import ModelError
from edgeq.files import replacing
from edgeq.graph import spliced
from edgeq.graph.valid import require_graph, require_tensor

PROTOBUF_LIMIT = 2**31 - 1
LAZY_LIMIT = 256 << 20  # of weights that are made while they are written: inside one file they would all be in memory
LONGEST_NAME = 1024  # of external data, in characters
INLINE_LIMIT = 1_900_000_000  # protobuf's 2 GiB less room for the graph itself


def load(path: str | os.PathLike[str]) -> ir.Model:
    """The model in `path`, with external tensors mapped, not read.

    Raises ModelError when the file is missing, is not an ONNX model or none that could be run (see `valid.py`), or has
    external data that is missing, truncated or outside the model's folder.
    """
    path = Path(path)
    model = read_graph(path)
    for tensor in _tensors(model):
        require_tensor(tensor, str(path))
        if isinstance(tensor, ir.ExternalTensor):
            _check_external(path, tensor)
    require_graph(model, str(path))
    return model


def read_graph(path: Path) -> ir.Model:
    """The model without its external data, which may not be there. Raises ModelError as `load` does."""
    if not path.is_file():
        raise ModelError(f"{path}: no such file; give the path of an .onnx model")
    size = path.stat().st_size
    if size > PROTOBUF_LIMIT:
        raise ModelError(f"{path}: {size} bytes is over protobuf's 2 GiB; save its weights as external data")
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of what `load` refuses
    try:
        model = ir.load(path)
    except Exception as error:  # a hostile file raises anything from DecodeError to KeyError
        if "Map types" in one_line(error):
            advice = "export without them (skl2onnx: options={'zipmap': False})"
            raise ModelError(f"{path}: has values that are maps, as of ZipMap; {advice}") from None
        raise ModelError(f"{path}: not a valid ONNX model ({one_line(error)}); export it again") from None
    finally:
        logger.setLevel(level)
    if model.graph is None or not model.graph.outputs:
        raise ModelError(f"{path}: not a valid ONNX model (it has no outputs); export it again")
    return model


def check(model: ir.Model, name: str = "model") -> None:
    """Run the ONNX checker. Raises ModelError with its first complaint."""
    # The checker wants a shape for each input and output, though runtimes take models whose ranks nobody knows.
    bare = [v for v in dict.fromkeys([*model.graph.inputs, *model.graph.outputs]) if v.shape is None]
    for value in bare:
        value.shape = ir.Shape([])
    try:
        CheckerPass()(model)
    except Exception as error:  # the checker and the serializer raise many types
        raise ModelError(f"{name}: the ONNX checker refuses it ({one_line(error)})") from None
    finally:
        for value in bare:
            value.shape = None


def save(model: ir.Model, path: str | os.PathLike[str], beside: bool = False) -> None:
    """Write the model atomically; weights go beside it (`NAME.data`) when it would exceed protobuf's limit.

    beside: they go there in any case, from where they can be mapped. The same model gives the same bytes. Weights that
    another file holds are read into memory first when they fit inside this one: its folder is not theirs.
    """
    path = Path(path)
    model.producer_name, model.producer_version = "edgeq", None
    lazy = sum(t.nbytes for t in _tensors(model) if isinstance(t, ir.LazyTensor))
    beside = beside or lazy > LAZY_LIMIT or weight_bytes(model) > INLINE_LIMIT
    if not beside:
        to_memory(model)
    with replacing(path) as temporary:
        if beside:
            ir.save(model, temporary, external_data=f"{path.name}.data", size_threshold_bytes=1024)
        else:
            spliced.write(model, temporary)


def save_graph(model: ir.Model, path: Path) -> None:
    """Write a graph beside the external data that it was loaded with, which stays where it is."""
    with replacing(path) as temporary:
        ir.save(model, temporary)


def files(path: str | os.PathLike[str]) -> list[Path]:
    """The model's file and every external data file that it names, in name order; a .tflite file names none."""
    path = Path(path)
    if path.suffix == ".tflite" or (path.is_file() and not _mentions(path, b"location")):
        return [path]
    beside = {Path(t.path) for t in _tensors(load(path)) if isinstance(t, ir.ExternalTensor)}
    return [path, *sorted(beside)]


def _mentions(path: Path, word: bytes) -> bool:
    """Whether a file holds these bytes. Without `location`, the key that names one, no tensor can lie in another file:
    a model's weights need not be read into memory, twice as protobuf does it, to learn that.
    """
    held = b""
    with open(path, "rb") as stream:
        while chunk := stream.read(1 << 20):
            if word in (held := held[1 - len(word) :] + chunk):
                return True
    return False


def copy_weights(model: Path, folder: Path) -> list[str]:
    """Copy the external weights of a model to where a copy of it in `folder` finds them; gives their locations."""
    locations = [str(file.relative_to(model.parent)) for file in files(model)[1:]]
    for location in locations:
        (folder / location).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(model.parent / location, folder / location)
    return locations


def sha256(paths: list[Path]) -> str:
    """SHA-256 over the concatenated contents of the files."""
    digest = hashlib.sha256()
    held = memoryview(bytearray(1 << 18))  # stays in a core's cache, where a new piece of memory each time would not
    for path in paths:
        with open(path, "rb", buffering=0) as stream:
            while count := stream.readinto(held):
                digest.update(held[:count])
    return digest.hexdigest()


def content(path: Path) -> str | None:
    """SHA-256 of a file, or of all files below a folder in the order of their paths; None of a device or a pipe,
    which may never end, and of what is not there."""
    if path.is_dir():
        return sha256(sorted(p for p in path.rglob("*") if p.is_file()))
    return sha256([path]) if path.is_file() else None


def mapped(tensor: ir.TensorProtocol) -> np.ndarray:
    """The tensor's array; external data mapped anew, so that it leaves memory with the array."""
    if isinstance(tensor, ir.ExternalTensor) and tensor.dtype == ir.DataType.FLOAT and tensor.nbytes:
        return np.memmap(tensor.path, np.float32, "r", tensor.offset or 0, tensor.shape.numpy())
    return tensor.numpy()


def weight_bytes(model: ir.Model) -> int:
    return sum(tensor.nbytes for tensor in _tensors(model))


def to_memory(model: ir.Model) -> None:
    """Read every external tensor into memory, so that the model no longer needs its files."""
    external_data.load_to_model(model)


def one_line(error: BaseException, limit: int = 200) -> str:
    """What first went wrong, in one line without control characters."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip() or type(error).__name__
    text = re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    seen: set[int] = set()

    def new(tensor: ir.TensorProtocol | None) -> bool:
        if tensor is None or id(tensor) in seen:
            return False
        seen.add(id(tensor))
        return True

    graphs = [model.graph, *model.graph.subgraphs()]
    for function in model.functions.values():
        graphs += function.graph.subgraphs()
    for graph in graphs:
        for value in graph.initializers.values():
            if new(value.const_value):
                yield value.const_value  # type: ignore[misc]
    nodes = list(model.graph.all_nodes()) + [n for f in model.functions.values() for n in f.all_nodes()]
    for node in nodes:
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref() and new(attribute.value):
                yield attribute.value


def _check_external(model: Path, tensor: ir.ExternalTensor) -> None:
    location = str(tensor.location)
    where = f"{model}: tensor {tensor.name!r} has external data {location[:255]!r}"
    if len(location) > LONGEST_NAME:
        raise ModelError(f"{where}…, a longer name than files have; export it again")
    if "\x00" in location or os.path.isabs(location) or ".." in Path(location).parts:
        raise ModelError(f"{where} outside the model's folder; that is refused")
    folder, target = model.parent.resolve(), model.parent / location
    if not os.path.isfile(target):  # False, too, for a name that the system refuses to look up
        raise ModelError(f"{where}, which is missing; put it beside the model")
    if not target.resolve().is_relative_to(folder):
        raise ModelError(f"{where}, a link that leaves the model's folder; copy both files into one folder (cp -rL)")
    if target.stat().st_nlink > 1:
        raise ModelError(f"{where}, a hard-linked file; copy both files into one folder first")
    offset = tensor.offset or 0
    length = tensor.length if tensor.length is not None else tensor.nbytes
    if offset < 0 or length < tensor.nbytes or offset + length > target.stat().st_size:
        raise ModelError(f"{where} of {target.stat().st_size} bytes, but needs {tensor.nbytes} at {offset}: truncated")


def input_shapes(model: ir.Model) -> dict[str, tuple[int | None, ...] | None]:
    """Names and shapes of the inputs that a caller must give; a size below 0 (some exporters) is unknown."""
    return {
        v.name or "": None if v.shape is None else tuple(d if isinstance(d, int) and d >= 0 else None for d in v.shape)
        for v in model.graph.inputs
        if v.name not in model.graph.initializers
    }
