"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeq.errors import RecipeError

Model = Annotated[Path, typer.Argument(help="An .onnx file.", show_default=False)]
TargetName = Annotated[str, typer.Option("--target", "-t", help="A name of `edgeq targets`, or a .toml file.")]
TargetOrRecipes = Annotated[
    str | None,
    typer.Option("--target", "-t", help="A name of `edgeq targets`, or a .toml file; default: the recipe's."),
]
Shapes = Annotated[
    list[str], typer.Option("--shape", help="INPUT=1,3,224,224: fix the free dimensions of an input; repeat it.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no tables.")]
Labels = Annotated[str | None, typer.Option(help="Array of the data that holds labels: measures top-1.")]
MetricSpec = Annotated[str | None, typer.Option(help="MODULE:FUNCTION(outputs, extras) -> number, higher is better.")]
MaxDrop = Annotated[float | None, typer.Option(help="Most that the metric may drop.")]
MinSqnr = Annotated[float | None, typer.Option(help="Least SQNR of every output, in dB.")]
Host = Annotated[str | None, typer.Option(help="A board that SSH reaches, such as user@pi or user@pi:2222.")]
HostPython = Annotated[str, typer.Option(help="The board's Python that has numpy and onnxruntime.")]


def shapes_of(given: list[str]) -> tuple[tuple[str, tuple[int, ...]], ...] | None:
    """The recipe's `shapes` from --shape options, None for none. Raises RecipeError for a shape that is not numbers."""
    found = []
    for text in given:
        name, _, dims = text.rpartition("=")
        if not name or not all(d.isdigit() and int(d) > 0 for d in dims.split(",")):
            raise RecipeError(f"--shape {text}: give INPUT=DIMENSIONS, such as input=1,3,224,224")
        found.append((name, tuple(int(d) for d in dims.split(","))))
    return tuple(found) or None
