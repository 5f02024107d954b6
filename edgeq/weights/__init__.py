"""Weight algorithms, one a file: `quantize(w, spec, stats) -> QTensor`, or `encode(w, spec, stats) -> Coded`.

Those that `encode` also say `BITS`, the sizes of their codes, `BLOCK`, how many weights share a scale unless the recipe
says it (0: a channel), and `SCALED`: whether any number may be a scale. With data, `feedback.refine` goes on from it.

One with `ANY_SHAPE` gives a group the same bits whatever tile of the weight it is solved in (see `tiles.py`).

One with `input_scale(layers, stats)` has its layers' inputs divided by that before, where their producers can do it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import ModuleType

from edgeq.errors import RecipeError
from edgeq.registry import load

Setting = bool | int | float


def algorithm(name: str) -> ModuleType:
    """The module of that name. Raises RecipeError that lists those there are."""
    return load(__name__, name, "quantize", "encode")


def checked(name: str, given: Mapping[str, Setting]) -> tuple[tuple[str, Setting], ...]:
    """Settings of that algorithm, in the order of their names: what it takes behind weight, spec and statistics.

    Raises RecipeError for one that it has not, or of another type than it is by default.
    """
    module = algorithm(name)
    taken = inspect.signature(module.encode if hasattr(module, "encode") else module.quantize).parameters
    usual = {key: p.default for key, p in list(taken.items())[3:]}
    for key, value in given.items():
        if key not in usual:
            raise RecipeError(f"weight_settings: {name} has no {key!r}; it has {', '.join(usual) or 'none'}")
        kind = float if usual[key] is None else type(usual[key])
        if not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool) is not (
            kind is bool
        ):
            raise RecipeError(f"weight_settings: {key} of {name} is {value!r}, and has to be a {kind.__name__}")
    return tuple(sorted(given.items()))
