"""Intermediate values of an ONNX model made readable: their names are added to the graph's outputs."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from edgeq.errors import ModelError
from edgeq.graph.io import one_line


def load(path: Path) -> ir.Model:
    """The model with its external weights left on disk. Raises ModelError when it can't be read."""
    try:
        return ir.load(path)
    except Exception as error:  # protobuf, onnx-ir and the file system each raise their own kinds
        raise ModelError(f"{path}: not a readable ONNX model: {one_line(error)}") from error


def external(model: ir.Model) -> list[ir.ExternalTensor]:
    """The weights that lie in files beside the model."""
    weights = [v.const_value for g in model.graphs() for v in g.initializers.values()]
    return [w for w in weights if isinstance(w, ir.ExternalTensor)]


def with_taps(model_path: Path, names: Sequence[str], out_dir: Path) -> Path:
    """Writes `out_dir/tapped.onnx`, which also outputs the values `names`; weights are not loaded into memory.

    External weights are copied, one tensor at a time, into `out_dir/tapped.onnx.data`: runtimes refuse links that
    leave the model's folder. Raises ModelError that names a value which the graph doesn't have.
    """
    model = load(model_path)
    graph = model.graph
    values = {v.name: v for v in [*graph.inputs, *graph.initializers.values()]}
    values |= {v.name: v for node in graph for v in node.outputs}
    present = {v.name for v in graph.outputs}
    for name in dict.fromkeys(names):
        if name not in values:
            raise ModelError(
                f"{model_path}: no value {name!r} to read in the graph; take names from its nodes' outputs"
            )
        if name not in present:
            graph.outputs.append(values[name])
    path = out_dir / "tapped.onnx"
    data = "tapped.onnx.data" if external(model) else None
    ir.save(model, path, external_data=data)
    return path


def signature(model_path: Path) -> tuple[list[str], list[str]]:
    """The names of a model's inputs (without initializers) and outputs."""
    graph = load(model_path).graph
    return [str(v.name) for v in graph.inputs if v.name not in graph.initializers], [str(v.name) for v in graph.outputs]


def copy_data(model_path: Path, folder: Path) -> list[str]:
    """Copies the external weights of a model to where a copy of it in `folder` finds them; their locations.

    Raises ModelError when one lies, or would be written, outside the folder.
    """
    files = {str(w.location): Path(w.path) for w in external(load(model_path))}
    for location, file in sorted(files.items()):
        copy = folder / location
        if not copy.resolve().is_relative_to(folder.resolve()):
            raise ModelError(f"{model_path}: its external data {location!r} lies outside the model's folder")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    return sorted(files)
