"""Models that nobody here made: the backend tests of the `onnx` package, each with its inputs and its answers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.backend.test import loader

Feeds = dict[str, Any]
LARGEST = 30_000_000  # elements of all weights of a network that is drawn here
ON_DISK = ("simple", "pytorch-converted", "pytorch-operator")


@dataclass(frozen=True, eq=False)
class Case:
    """A model, one sample of its inputs, and what its authors say that it answers (None: they don't)."""

    name: str
    source: str
    model: onnx.ModelProto
    feeds: Feeds
    answers: list[Any] | None = None


def node_tests() -> Iterator[Case]:
    """One operator each, as specified. Its operands are inputs there; `frozen` has all but the first as constants."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tests overflow on purpose
        found = loader.load_model_tests(kind="node")
    for test in found:
        inputs, answers = test.data_sets[0]
        feeds = {v.name: plain(x) for v, x in zip(test.model.graph.input, inputs, strict=False)}
        yield Case(test.name, "node", test.model, feeds, [plain(x) for x in answers])
        if (fixed := frozen(test.model, feeds)) is not None:
            yield Case(f"{test.name}+frozen", "node, frozen", *fixed, [plain(x) for x in answers])


def frozen(model: onnx.ModelProto, feeds: Feeds) -> tuple[onnx.ModelProto, Feeds] | None:
    """The model with all tensors that it is fed but the first float one as initializers, or None if there is none."""
    tensors = {k: v for k, v in feeds.items() if isinstance(v, np.ndarray) and v.dtype.kind in "fiub"}
    kept = next((k for k, v in tensors.items() if v.dtype == np.float32), None)
    if kept is None or len(tensors) < 2:
        return None
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    rest = [v for v in changed.graph.input if v.name == kept or v.name not in tensors]
    del changed.graph.input[:]
    changed.graph.input.extend(rest)
    changed.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in tensors.items() if k != kept)
    return changed, {k: v for k, v in feeds.items() if k == kept or k not in tensors}


def stored_tests(kind: str) -> Iterator[Case]:
    """Tests that lie beside the package as files."""
    for folder in sorted(path.parent for path in (Path(loader.DATA_DIR) / kind).glob("*/model.onnx")):
        model = onnx.load(folder / "model.onnx")
        data = folder / "test_data_set_0"
        inputs = [_read(f, v) for f, v in _files(data, "input", list(model.graph.input))]
        answers = [_read(f, v) for f, v in _files(data, "output", list(model.graph.output))]
        feeds = {v.name: x for v, x in zip(model.graph.input, inputs, strict=False)}
        yield Case(folder.name, kind, model, feeds, answers)


def light_tests() -> Iterator[Case]:
    """Whole networks whose weights are made by their own nodes, all alike; `drawn` has random ones as constants."""
    for path in sorted((Path(loader.DATA_DIR) / "light").glob("*.onnx")):
        model = onnx.load(path)
        weights = {t.name for t in model.graph.initializer}
        rng = np.random.default_rng(0)
        feeds = {
            v.name: rng.normal(size=[d.dim_value or 1 for d in v.type.tensor_type.shape.dim]).astype(np.float32)
            for v in model.graph.input
            if v.name not in weights
        }
        yield Case(path.stem, "light", model, feeds)
        if (large := drawn(model, rng)) is not None:
            yield Case(f"{path.stem}+drawn", "light, drawn", large, feeds)


def drawn(model: onnx.ModelProto, rng: np.random.Generator) -> onnx.ModelProto | None:
    """The model with each ConstantOfShape as an initializer: weights after He, vectors of 0.5 to 1.5. None if large."""
    shapes = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    made = {n.output[0]: shapes[n.input[0]] for n in model.graph.node if n.op_type == "ConstantOfShape"}
    if sum(int(np.prod(shape)) for shape in made.values()) > LARGEST:
        return None
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    kept = [n for n in changed.graph.node if n.op_type != "ConstantOfShape"]
    del changed.graph.node[:]
    changed.graph.node.extend(kept)
    for name, shape in made.items():
        spread = np.sqrt(2 / max(int(np.prod(shape[1:])), 1))
        array = rng.normal(size=shape) * spread if len(shape) > 1 else rng.uniform(0.5, 1.5, shape)
        changed.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    for node in changed.graph.node:
        if node.op_type == "Softmax" and node.output[0] == changed.graph.output[0].name:
            node.op_type = "Identity"  # of random logits it leaves one class, right or wrong
            del node.attribute[:]
    changed.ir_version = max(changed.ir_version, 4)
    return changed


def _files(folder: Path, what: str, values: list[onnx.ValueInfoProto]) -> list[tuple[Path, onnx.ValueInfoProto]]:
    count = len(list(folder.glob(f"{what}_*.pb")))
    return [(folder / f"{what}_{i}.pb", v) for i, v in zip(range(count), values, strict=False)]


def _read(path: Path, value: onnx.ValueInfoProto) -> Any:
    kind = value.type.WhichOneof("value")
    proto = {"sequence_type": onnx.SequenceProto, "optional_type": onnx.OptionalProto}.get(kind or "", TensorProto)()
    proto.ParseFromString(path.read_bytes())
    return plain(proto)


def plain(value: Any) -> Any:
    """Arrays for tensors, lists of them for sequences, None for an empty optional."""
    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, onnx.SequenceProto):
        return numpy_helper.to_list(value)
    if isinstance(value, onnx.OptionalProto):
        return numpy_helper.to_optional(value)
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value if value is None else np.asarray(value)


SOURCES: dict[str, Callable[[], Iterable[Case]]] = {
    "node": node_tests,
    **{kind: (lambda kind=kind: stored_tests(kind)) for kind in ON_DISK},  # type: ignore[misc]
    "light": light_tests,
}
