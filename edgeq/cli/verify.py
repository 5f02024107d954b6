"""`edgeq verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeq.cli.options import AsJson, Host, HostPython, Labels, MaxDrop, MetricSpec, MinSqnr, Quiet
from edgeq.cli.say import judge, print_json, progress, show


def verify(
    reference: Annotated[Path, typer.Argument(help="The float model.", show_default=False)],
    quantized: Annotated[Path, typer.Argument(help="The artifact.", show_default=False)],
    data: Annotated[str, typer.Option(help="Evaluation data: .npz, folder, or MODULE:CALLABLE.")],
    target: Annotated[
        str, typer.Option("--target", "-t", help="Names of `edgeq targets`, such as x86_64,arm64,web, or .toml files.")
    ] = "x86_64",
    host: Host = None,
    host_python: HostPython = "python3",
    proof: Annotated[bool, typer.Option("--proof", help="Also tell which kernels each runtime really runs.")] = False,
    require: Annotated[bool, typer.Option("--require", help="Exit 2 where a target's own runtime is missing.")] = False,
    recipe: Annotated[Path | None, typer.Option(help="The recipe.toml that prepares images or feeds a state.")] = None,
    labels: Labels = None,
    metric: MetricSpec = None,
    max_drop: MaxDrop = None,
    min_sqnr: MinSqnr = None,
    layers: Annotated[bool, typer.Option("--layers", help="Also measure every layer that both models have.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run reference and artifact on the same samples; exit 1 when the artifact is over its budget.

    Several targets, or a board beside one, make a matrix: every output's SQNR, and how far it is from the first target.
    """
    from edgeq.report.comparisons import matrix_table
    from edgeq.report.schema import dump
    from edgeq.report.tables import failure_table, verify_table
    from edgeq.runners.places import board
    from edgeq.verifying.verification import verify_files
    from edgeq.verifying.verify import Budget

    with progress(quiet or as_json) as advance:
        found = verify_files(
            reference,
            quantized,
            target,
            data,
            boards=[board(host, host_python)] if host else [],
            strict=require,
            proof=proof,
            recipe=recipe,
            labels=labels,
            metric=metric,
            budget=Budget(max_drop, min_sqnr),
            layers=layers,
            progress=advance,
        )
    if as_json:
        print_json(dump(found))
    elif not quiet:
        show(verify_table(found), *([matrix_table(found)] if found.matrix else []))
    judge(found, failure_table, quiet or as_json)
