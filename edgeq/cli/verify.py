"""`edgeq verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeq.cli.options import AsJson, Labels, MaxDrop, MetricSpec, MinSqnr, Quiet, TargetName
from edgeq.cli.say import judge, print_line, progress, show


def verify(
    reference: Annotated[Path, typer.Argument(help="The float model.", show_default=False)],
    quantized: Annotated[Path, typer.Argument(help="The artifact.", show_default=False)],
    data: Annotated[str, typer.Option(help="Evaluation data: .npz, folder, or MODULE:CALLABLE.")],
    target: TargetName = "x86_64",
    recipe: Annotated[Path | None, typer.Option(help="The recipe.toml that prepares images or feeds a state.")] = None,
    labels: Labels = None,
    metric: MetricSpec = None,
    max_drop: MaxDrop = None,
    min_sqnr: MinSqnr = None,
    layers: Annotated[bool, typer.Option("--layers", help="Also measure every layer that both models have.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run reference and artifact on the same samples; exit 1 when the artifact is over its budget."""
    from edgeq.report.schema import dump
    from edgeq.report.tables import failure_table, verify_table
    from edgeq.verification import verify_files
    from edgeq.verify import Budget

    with progress(quiet or as_json) as advance:
        found = verify_files(
            reference,
            quantized,
            target,
            data,
            recipe=recipe,
            labels=labels,
            metric=metric,
            budget=Budget(max_drop, min_sqnr),
            layers=layers,
            progress=advance,
        )
    if as_json:
        print_line(dump(found).decode().rstrip())
    elif not quiet:
        show(verify_table(found))
    judge(found, failure_table, quiet or as_json)
