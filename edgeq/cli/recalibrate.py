"""`edgeq recalibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeq.cli.options import AsJson, Quiet
from edgeq.cli.say import print_json, progress, show


def recalibrate(
    artifact: Annotated[Path, typer.Argument(help="A static .onnx artifact.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .onnx file to write.")],
    stats: Annotated[
        Path | None,
        typer.Option(help="From the field: as --save-stats writes them, or an .npz of the observer's outputs."),
    ] = None,
    calib: Annotated[
        str | None, typer.Option(help="In their place data from the field: the artifact runs on it.")
    ] = None,
    save_stats: Annotated[Path | None, typer.Option(help="Also write the statistics of that data here.")] = None,
    observe: Annotated[
        bool, typer.Option("--observe", help="Write an observer: the artifact that also gives edgeq_low, edgeq_high.")
    ] = False,
    calibrator: Annotated[str, typer.Option(help="A calibrator of `edgeq methods`.")] = "mse",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Give an artifact new activation scales from what it meets in the field, without the float model."""
    import msgspec

    from edgeq.errors import RecipeError
    from edgeq.recalibration import observe_file
    from edgeq.recalibration import recalibrate as run
    from edgeq.report.tables import plain, table

    if observe:
        if (stats, calib, save_stats) != (None, None, None):
            raise RecipeError("--observe makes the graph that is to look: leave out --stats, --calib and --save-stats")
        count = observe_file(artifact, output)
        if as_json:
            print_json({"observer": str(output), "values": count})
        elif not quiet:
            show([plain(f"{output}: also gives the extrema of {count} values, edgeq_low and edgeq_high")])
        return
    with progress(quiet or as_json) as advance:
        found = run(
            artifact, output, stats=stats, data=calib, save_stats=save_stats, calibrator=calibrator, progress=advance
        )
    if as_json:
        print_json(msgspec.to_builtins(found))
    elif not quiet:
        rows = [
            (
                d.value,
                *(f"{lo:.4g} … {hi:.4g}" for lo, hi in (d.before, d.after)),
                f"{d.ratio:.2f}×",
                f"{d.outside:.2%}",
                d.note,
            )
            for d in found[:20]
        ]
        columns = ("value", "range before", "range now", "width", "was cut off", "")
        show([table(f"{len(found)} ranges, those that moved most", columns, rows, right=(3, 4))])
