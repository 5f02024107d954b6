"""`edgeq retarget`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeq.cli.options import AsJson, Quiet, TargetName
from edgeq.cli.say import print_json, print_line, show


def retarget(
    model: Annotated[
        Path, typer.Argument(help="An .onnx file with Q-DQ pairs, or operators on codes.", show_default=False)
    ],
    target: TargetName,
    output: Annotated[Path, typer.Option("--output", "-o", help="The .onnx file to write.")],
    encodings: Annotated[Path | None, typer.Option(help="AIMET's .encodings file of a float model.")] = None,
    calib: Annotated[
        str | None, typer.Option(help="Data to measure what has no scale on; else it stays float.")
    ] = None,
    method: Annotated[
        str, typer.Option(help="static, or weight_only: weights in the blocks that they have.")
    ] = "static",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Take a model that another tool quantized to a target, with the scales that it has."""
    from edgeq.report.tables import table
    from edgeq.retarget import retarget as run

    found = run(model, target, output, encodings=encodings, calib=calib, method=method)  # type: ignore[arg-type]
    if as_json:
        print_json({"kept": found.kept, "measured": found.measured, "lost": found.lost, "nodes": found.plan.counts()})
    elif not quiet:
        counts = ", ".join(f"{count} {decision}" for decision, count in found.plan.counts().items())
        print_line(f"{output}: {found.kept} scales kept, {found.measured} measured; nodes: {counts}")
        if found.lost:
            show([table("What could not be kept", ("node or weight", "why"), list(found.lost.items())[:20])])
