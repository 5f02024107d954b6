"""`edgeq export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeq.cli.say import print_line


def export(
    factory: Annotated[str, typer.Argument(help="MODULE:FACTORY that returns (torch module, example inputs).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .onnx file to write.")],
    opset: Annotated[int, typer.Option(help="ONNX opset.")] = 20,
    dynamic: Annotated[list[str], typer.Option(help="INPUT:AXIS that may vary; repeat it.")] = [],  # noqa: B006
) -> None:
    """Export a torch model to ONNX, checked at once against torch's own output."""
    from edgeq.export import export_factory

    worst = export_factory(factory, output, opset, dynamic)
    print_line(f"{output}: exported; largest difference from torch {worst:.2e}")
