"""`edgeq bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeq.cli.options import AsJson, Host, HostPython, Quiet, TargetName
from edgeq.cli.say import print_json, progress, show


def bench(
    models: Annotated[list[Path], typer.Argument(help="Models, the float one first.", show_default=False)],
    data: Annotated[str | None, typer.Option(help="Data, whose first sample is run; default: a drawn one.")] = None,
    target: TargetName = "x86_64",
    host: Host = None,
    host_python: HostPython = "python3",
    threads: Annotated[str, typer.Option(help="Thread counts, such as 1,2.")] = "1",
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="Turns of each model; the median counts.")] = 9,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Time models side by side, in turns; speed-ups are over the first one."""
    from edgeq import target as targets
    from edgeq.errors import RecipeError
    from edgeq.report.comparisons import bench_table
    from edgeq.report.schema import dump
    from edgeq.runners.places import board, of_target
    from edgeq.verifying.bench import bench as run

    counts = threads.split(",")
    if not all(count.isdecimal() and int(count) for count in counts):
        raise RecipeError(f"--threads {threads!r}: give counts, such as 1,2")
    place = board(host, host_python) if host else of_target(targets.load(target))
    with progress(quiet or as_json) as advance:
        found = run(models, place, data, threads=[int(count) for count in counts], rounds=rounds, progress=advance)
    if as_json:
        print_json(dump(found))
    elif not quiet:
        show(bench_table(found))
