"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[Path, typer.Argument(help="An .onnx file.", show_default=False)]
TargetName = Annotated[str, typer.Option("--target", "-t", help="A name of `edgeq targets`, or a .toml file.")]
TargetOrRecipes = Annotated[
    str | None,
    typer.Option("--target", "-t", help="A name of `edgeq targets`, or a .toml file; default: the recipe's."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no tables.")]
Labels = Annotated[str | None, typer.Option(help="Array of the data that holds labels: measures top-1.")]
MetricSpec = Annotated[str | None, typer.Option(help="MODULE:FUNCTION(outputs, extras) -> number, higher is better.")]
MaxDrop = Annotated[float | None, typer.Option(help="Most that the metric may drop.")]
MinSqnr = Annotated[float | None, typer.Option(help="Least SQNR of every output, in dB.")]
