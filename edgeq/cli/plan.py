"""`edgeq plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeq.cli.options import AsJson, Model, TargetOrRecipes
from edgeq.cli.say import print_json, show


def plan(
    model: Model,
    target: TargetOrRecipes = None,
    method: Annotated[str | None, typer.Option(help="static or dynamic.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="A recipe.toml.")] = None,
    as_json: AsJson = False,
) -> None:
    """What each node would get, or why it stays float. Nothing is written."""
    import msgspec

    from edgeq.pipeline import plan_file, resolve_recipe
    from edgeq.report.tables import plan_table

    chosen = resolve_recipe(recipe, target, method=method)
    made = plan_file(model, chosen.target, chosen)
    print_json(msgspec.to_builtins(made)) if as_json else show(plan_table(made))
