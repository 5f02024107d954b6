"""`edgeq plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeq.cli.options import AsJson, Model, Shapes, shapes_of
from edgeq.cli.say import print_json, show


def plan(
    model: Model,
    target: Annotated[
        str | None,
        typer.Option("--target", "-t", help="A name of `edgeq targets`, or a .toml file; a,b,c are compared."),
    ] = None,
    method: Annotated[str | None, typer.Option(help="static, dynamic, weight_only, float16 or bfloat16.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="A recipe.toml.")] = None,
    shape: Shapes = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """What each node would get, or why it stays float; of several targets, how much each runs on integers."""
    import msgspec

    from edgeq.pipeline import coverage_files, plan_file
    from edgeq.report.tables import coverage_table, plan_table
    from edgeq.request import resolve_recipe

    names = [name for name in (target or "").split(",") if name]
    chosen = resolve_recipe(recipe, names[0] if names else None, method=method, shapes=shapes_of(shape))
    if len(names) > 1:
        found = coverage_files(model, names, chosen)
        print_json(msgspec.to_builtins(found)) if as_json else show(coverage_table(found))
    else:
        made = plan_file(model, chosen.target, chosen)
        print_json(msgspec.to_builtins(made)) if as_json else show(plan_table(made))
