"""Fix the free dimensions of a model's inputs, for runtimes that compile a model for one shape."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from edgeq.errors import RecipeError
from edgeq.graph.edit import all_graphs, copied, static_shape

ANONYMOUS = (None, "", "?")


def fix_shapes(model: ir.Model, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Give the named inputs these shapes, in place. What follows from them is left to shape inference.

    A dimension name that an input shares with other values takes the same number everywhere; "?" is no name, and a
    size below 0 is free (exporters write both for what they don't know). Raises RecipeError for
    an unknown input, a rank or a fixed dimension that differs, and two numbers for one dimension name.
    """
    inputs = {v.name: v for v in model.graph.inputs if v.name not in model.graph.initializers}
    numbers: dict[str, int] = {}
    for name, wanted in shapes.items():
        if name not in inputs:
            raise RecipeError(f"no input {name!r} to give a shape: the model has {', '.join(map(str, inputs))}")
        old = inputs[name].shape
        if old is not None and len(old) != len(wanted):
            raise RecipeError(f"input {name!r} has {len(old)} dimensions, the shape given has {len(wanted)}")
        for had, dim in zip(old if old is not None else (), wanted, strict=False):
            if isinstance(had, int) and had >= 0 and had != dim:
                raise RecipeError(f"input {name!r} has shape {list(map(_text, old or ()))}, not {list(wanted)}")
            if (
                isinstance(had, ir.SymbolicDim)
                and had.value not in ANONYMOUS
                and numbers.setdefault(had.value, dim) != dim
            ):
                raise RecipeError(
                    f"dimension {had.value!r} of input {name!r} is {dim}, of another {numbers[had.value]}"
                )
        inputs[name].shape = copied(wanted)
    for graph in all_graphs(model):
        for value in [*graph.inputs, *graph.outputs, *(v for node in graph for v in node.outputs)]:
            if value.shape is not None:
                dims = [numbers.get(d.value or "", d) if isinstance(d, ir.SymbolicDim) else d for d in value.shape]
                value.shape = copied(dims)


def free_input(model: ir.Model) -> tuple[str, list[str]] | None:
    """The first input whose shape is not fixed, and its dimensions; None when all are."""
    for value in model.graph.inputs:
        if value.name not in model.graph.initializers and static_shape(value) is None:
            return value.name or "", [_text(d) for d in value.shape or ()]
    return None


def input_dims(model: ir.Model) -> dict[str, tuple[int | str | None, ...] | None]:
    """The inputs that a caller must give, with the names of their free dimensions; None for one that has no name."""
    return {
        v.name or "": None if v.shape is None else tuple(map(_dim, v.shape))
        for v in model.graph.inputs
        if v.name not in model.graph.initializers
    }


def _dim(dim: int | ir.SymbolicDim) -> int | str | None:
    if isinstance(dim, int):
        return dim if dim >= 0 else None
    return dim.value if dim.value not in ANONYMOUS else None


def _text(dim: int | ir.SymbolicDim) -> str:
    return str(dim) if isinstance(dim, int) else dim.value or "?"
