"""What was asked for, made whole: the recipe, the target with it, and the samples as the model's inputs want them."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any, get_args

import msgspec
import onnx_ir as ir

from edgeq import recipe as recipes
from edgeq import target as targets
from edgeq.data import Dataset, open_data
from edgeq.data.images import resolve
from edgeq.data.padding import paddings
from edgeq.errors import RecipeError
from edgeq.graph import io
from edgeq.graph.shapes import input_dims
from edgeq.recipe import Override, Recipe
from edgeq.registry import load
from edgeq.target import Method, Target
from edgeq.weights import algorithm

MASK_TYPES = {ir.DataType[name] for name in ("BOOL", "INT8", "UINT8", "INT32", "INT64")}


def resolve_recipe(
    recipe: Recipe | str | os.PathLike[str] | None, target: str | Target | None, **settings: Any
) -> Recipe:
    """The recipe with what was asked for beside it written in. Raises RecipeError for an unknown name."""
    chosen = recipe if isinstance(recipe, Recipe) else Recipe() if recipe is None else recipes.load(recipe)
    settings["target"] = target.name if isinstance(target, Target) else target
    changes = {field: value for field, value in settings.items() if value is not None}
    if unknown := [field for field in changes if field not in Recipe.__struct_fields__]:
        raise RecipeError(f"no setting {unknown[0]!r}: choose one of {', '.join(Recipe.__struct_fields__)}")
    chosen = msgspec.structs.replace(chosen, **changes)
    if chosen.integer_only:
        chosen = msgspec.structs.replace(chosen, elementwise="all", attention=True)
    if (chosen.integer_only and chosen.method != "static") or (chosen.integer_io and not chosen.integer_only):
        raise RecipeError("integer_io goes with integer_only, and that with the method static")
    if chosen.method not in get_args(Method):
        raise RecipeError(f"no method {chosen.method!r}: choose one of {', '.join(get_args(Method))}")
    if chosen.rounding not in ("double", "single"):
        raise RecipeError(f"no rounding {chosen.rounding!r}: choose double or single")
    named: tuple[Recipe | Override, ...] = (chosen, *chosen.rule)
    for row in named:
        if row.calibrator is not None:
            load("edgeq.calibrate", row.calibrator, "choose")
        if row.weight is not None:
            algorithm(row.weight)
    return chosen


def aim_of(target: str | Target | None, recipe: Recipe) -> Target:
    """The target, with other rules where nothing may be float. By default the recipe's."""
    aim = target if isinstance(target, Target) else targets.load(target or recipe.target)
    return targets.integers(aim) if recipe.integer_only else aim


def with_images(recipe: Recipe, source: ir.Model) -> Recipe:
    """The recipe with `preprocess` complete, as the model's input has it."""
    if recipe.preprocess is None:
        return recipe
    shapes = [shape for name, shape in _shapes(recipe, source).items() if name not in dict(recipe.state).values()]
    return msgspec.structs.replace(recipe, preprocess=resolve(recipe.preprocess, shapes[0] if shapes else None))


def _shapes(recipe: Recipe, source: ir.Model) -> dict[str, tuple[int | None, ...] | None]:
    return io.input_shapes(source) | dict(recipe.shapes)


def shaped_as(data: Dataset, recipe: Recipe, source: ir.Model) -> Recipe:
    """The recipe with the first sample's shapes for free inputs, on a target that takes fixed shapes only."""
    given = dict(recipe.shapes)
    free = {name for name, shape in io.input_shapes(source).items() if shape is None or None in shape} - set(given)
    first = next(iter(data), {}) if free else {}
    given |= {name: tuple(first[name].shape) for name in sorted(free) if name in first}
    return msgspec.structs.replace(recipe, shapes=tuple(given.items()))


def open_samples(given: Any, recipe: Recipe, source: ir.Model) -> Dataset | None:
    """The samples that `given` holds; None for none."""
    if given is None:
        return None
    return open_data(given, _shapes(recipe, source), recipe.preprocess, [into for _, into in recipe.state])


def with_padding(recipe: Recipe, data: Dataset | None, model: ir.Model) -> tuple[Recipe, Dataset | None]:
    """The recipe with `padding` complete, and the data that calibrates with what that means for the model's inputs.

    model: with the shapes that it runs in, because where the length is fixed nothing is left out. Raises RecipeError.
    """
    if recipe.state and recipe.padding:
        raise RecipeError("padding and state don't go together: what belongs to one sequence stays as it is")
    masks = () if recipe.state else recipe.padding
    found = paddings(input_dims(model), [v.name or "" for v in model.graph.inputs if v.dtype in MASK_TYPES], masks)
    complete = msgspec.structs.replace(recipe, padding=tuple(padding.mask for padding in found))
    return complete, replace(data, padding=found) if data is not None else None
