"""Graph rewrites, one a file: model in, model out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from edgeq.registry import load

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgeq.planning.plan import Plan
    from edgeq.recipe import Recipe
    from edgeq.target import Method, Target
    from edgeq.types import Solution

REWRITES: dict[Method, str] = {
    "static": "qdq",
    "dynamic": "dynamic",
    "weight_only": "weight_only",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "float32": "",
}
"""The pass that writes a plan of each method into the graph."""


def run(model: ir.Model, names: Iterable[str]) -> None:
    """Rewrite the model in place by the passes of those names, one after the other."""
    for name in names:
        load("edgeq.passes", name, "rewrite").rewrite(model)


def write(model: ir.Model, plan: Plan, solution: Solution, target: Target, recipe: Recipe) -> ir.Model:
    """Write the plan into the graph, in place where the passes do: the recipe's method first, then those of its rules.

    A pass leaves alone what others write: it takes the nodes that the plan decided for it.
    """
    asked = {recipe.method, *(row.method for row in recipe.rule if row.method is not None)}
    for method in sorted(asked, key=lambda name: (name != recipe.method, list(REWRITES).index(name))):
        if name := target.rewrites.get(method, REWRITES[method]):
            model = load("edgeq.passes", name, "apply").apply(model, plan, solution, target)
    return model
