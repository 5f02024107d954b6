"""`edgeq tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeq.cli.options import AsJson, Labels, MetricSpec, MinSqnr, Model, Quiet, TargetOrRecipes
from edgeq.cli.say import print_json, progress, show


def tune(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results and the trials.")],
    target: TargetOrRecipes = None,
    calib: Annotated[str | None, typer.Option(help="Calibration data, as for quantize.")] = None,
    eval_data: Annotated[
        str | None, typer.Option("--eval", help="Data to judge by; default: the calibration's.")
    ] = None,
    labels: Labels = None,
    metric: MetricSpec = None,
    max_drop: Annotated[
        str | None, typer.Option(help="Most that the metric may drop: 0.005, or 0.5% of float's. Default: agreement.")
    ] = None,
    min_sqnr: MinSqnr = None,
    max_bytes: Annotated[int | None, typer.Option(help="Of the file.")] = None,
    min_speedup: Annotated[float | None, typer.Option(help="Times as fast as float.")] = None,
    max_energy: Annotated[float | None, typer.Option(help="Millijoules of a run, as edgeq estimates them.")] = None,
    min_integer: Annotated[float, typer.Option(help="Share of multiplications in integers, 0 to 1.")] = 0.0,
    time_budget: Annotated[float, typer.Option(help="Seconds after which no further trial begins.")] = float("inf"),
    recipe: Annotated[Path | None, typer.Option(help="A recipe.toml to start from.")] = None,
    everything: Annotated[bool, typer.Option("--everything", help="Go on when the budget is met.")] = False,
    workers: Annotated[int, typer.Option(help="Processes that run trials; the result is the same.")] = 1,
    dask: Annotated[
        str | None,
        typer.Option(help="Scheduler of a Dask cluster, HOST:PORT, whose workers see the same files as this machine."),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Find the artifact that meets a budget; without one, the best there is, and why none does."""
    import msgspec

    from edgeq.errors import RecipeError
    from edgeq.report.tables import tuning_table
    from edgeq.tune import Goal
    from edgeq.tune import tune as find

    try:
        drop = None if max_drop is None else float(max_drop.rstrip("%")) / (100 if max_drop.endswith("%") else 1)
    except ValueError:
        raise RecipeError(f"--max-drop {max_drop}: give a number, such as 0.005 or 0.5%") from None
    goal = Goal(
        drop, (max_drop or "").endswith("%"), min_sqnr, max_bytes, min_speedup, max_energy, min_integer, time_budget
    )
    with progress(quiet or as_json) as advance:
        found = find(
            model,
            target,
            calib,
            output,
            goal=goal,
            recipe=recipe,
            eval_data=eval_data,
            labels=labels,
            metric=metric,
            everything=everything,
            workers=workers,
            dask=dask,
            progress=advance,
        )
    if as_json:
        print_json(msgspec.to_builtins(found))
    elif not quiet:
        show(tuning_table(found))
    if not found.met:
        raise typer.Exit(1)
