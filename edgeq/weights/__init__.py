"""Weight algorithms, one a file: `quantize(w, spec, stats) -> QTensor`, or `encode(w, spec, stats) -> Coded`.

Those that `encode` also say `BITS`, the sizes of their codes, `BLOCK`, how many weights share a scale unless the recipe
says it (0: a channel), and `SCALED`: whether any number may be a scale. With data, `feedback.refine` goes on from it.

One with `input_scale(layers, stats)` has its layers' inputs divided by that before, where their producers can do it.
"""

from __future__ import annotations

from types import ModuleType

from edgeq.registry import load


def algorithm(name: str) -> ModuleType:
    """The module of that name. Raises RecipeError that lists those there are."""
    return load(__name__, name, "quantize", "encode")
