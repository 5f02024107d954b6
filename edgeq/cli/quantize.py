"""`edgeq quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from edgeq.cli.options import (
    AsJson,
    Labels,
    MaxDrop,
    MetricSpec,
    MinSqnr,
    Model,
    Quiet,
    Shapes,
    TargetOrRecipes,
    shapes_of,
)
from edgeq.cli.say import judge, print_json, progress, show


def quantize(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")],
    target: TargetOrRecipes = None,
    calib: Annotated[
        str | None, typer.Option(help="Calibration data: .npz, folder of arrays or images, or MODULE:CALLABLE.")
    ] = None,
    eval_data: Annotated[
        str | None, typer.Option("--eval", help="Data to verify on; default: the calibration data.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="static, dynamic, weight_only, float16 or bfloat16.")] = None,
    calibrator: Annotated[str | None, typer.Option(help="A calibrator of `edgeq methods`.")] = None,
    weight: Annotated[str | None, typer.Option(help="A weight algorithm of `edgeq methods`.")] = None,
    bits: Annotated[int | None, typer.Option(help="Of packed weights: 2, 3, 4 or 8; codebooks 2 to 8.")] = None,
    block: Annotated[int | None, typer.Option(help="Weights that share a scale; 0: one a channel.")] = None,
    outliers: Annotated[float | None, typer.Option(help="Share of a packed layer's features kept real: 0.01.")] = None,
    low_rank: Annotated[int | None, typer.Option(help="Rank of what makes up for a packed layer's rounding.")] = None,
    sequential: Annotated[
        bool | None,
        typer.Option("--sequential/--at-once", help="Solve packed weights on what quantized layers before give."),
    ] = None,
    keep: Annotated[Path | None, typer.Option(help="Folder of finished layers, to go on after a kill.")] = None,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where GPTQ solves layers; cuda needs torch.")] = "cpu",
    bpw: Annotated[float | None, typer.Option(help="Bits a packed weight, on average: layers share them out.")] = None,
    max_bytes: Annotated[int | None, typer.Option(help="Bytes of the artifact, in place of --bpw.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="A recipe.toml; options given beside it win.")] = None,
    shape: Shapes = [],  # noqa: B006
    integer_only: Annotated[
        bool | None, typer.Option("--integer-only", help="No float between the ends: the same bits everywhere.")
    ] = None,
    integer_io: Annotated[bool | None, typer.Option("--integer-io", help="Codes in and out too.")] = None,
    rounding: Annotated[str | None, typer.Option(help="Of --integer-only: double (TFLite's) or single.")] = None,
    data_free: Annotated[
        bool, typer.Option("--data-free", help="Calibrate on made-up data and BatchNormalization's statistics.")
    ] = False,
    workers: Annotated[int, typer.Option(help="Processes that calibrate; the result is the same.")] = 1,
    dask: Annotated[str | None, typer.Option(help="Scheduler of a Dask cluster that calibrates, HOST:PORT.")] = None,
    save_stats: Annotated[Path | None, typer.Option(help="Also write the statistics of the data to this file.")] = None,
    stats: Annotated[Path | None, typer.Option(help="Such a file, in place of calibration data.")] = None,
    labels: Labels = None,
    metric: MetricSpec = None,
    max_drop: MaxDrop = None,
    min_sqnr: MinSqnr = None,
    check: Annotated[bool, typer.Option("--verify/--no-verify", help="Run the result against the float model.")] = True,
    layers: Annotated[bool, typer.Option("--layers", help="Also measure every layer that both models have.")] = False,
    rank: Annotated[bool, typer.Option("--sensitivity", help="Also what each node's rounding alone does.")] = False,
    also: Annotated[list[str], typer.Option(help="A further target to verify the artifact on; repeat it.")] = [],  # noqa: B006
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Quantize a model for a target, verify it there, and write model.onnx, recipe.toml and report.json."""
    from edgeq import pipeline
    from edgeq.report.schema import dump
    from edgeq.report.tables import failure_table, result_table, sensitivity_table
    from edgeq.verifying.verify import Budget

    with progress(quiet or as_json) as advance:
        result = pipeline.quantize(
            model,
            target,
            calib,
            output,
            recipe=recipe,
            method=method,
            calibrator=calibrator,
            weight=weight,
            bits=bits,
            block=block,
            outliers=outliers,
            low_rank=low_rank,
            sequential=sequential,
            keep=keep,
            device=device,
            bpw=bpw,
            max_bytes=max_bytes,
            shapes=shapes_of(shape),
            integer_only=integer_only,
            integer_io=integer_io,
            rounding=rounding,
            eval_data=eval_data,
            labels=labels,
            metric=metric,
            budget=Budget(max_drop, min_sqnr),
            check=check,
            layers=layers,
            also=also,
            rank=rank,
            data_free=data_free,
            workers=workers,
            dask=dask,
            stats=stats,
            save_stats=save_stats,
            progress=advance,
        )
    if as_json:
        print_json(dump(result.report))
    elif not quiet:
        show(result_table(result.report, result.folder), sensitivity_table(result.report))
    judge(result.report.verification, failure_table, quiet or as_json)
