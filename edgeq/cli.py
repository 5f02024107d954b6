"""The command line. Exit codes: 0 fine, 1 verification failed, 2 bad usage or input.

Only this module prints. Each command imports what it needs when it runs, so that `--help` is immediate.
"""

from __future__ import annotations

import json
import re
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from edgeq import __version__
from edgeq.errors import EdgeqError

app = typer.Typer(
    help="Takes a trained model to the artifact that an edge target really executes, and proves it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

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


def main() -> None:
    """Run the command line; every deliberate error is one line on stderr."""
    signal.signal(signal.SIGTERM, _interrupt)  # so that a polite kill tidies up as Ctrl-C does
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        code = app(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except EdgeqError as error:
        _complain(str(error))
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _complain("interrupted; nothing was written")
        sys.exit(130)
    except Exception as error:
        if not hasattr(error, "format_message"):  # click's usage errors have it, whichever click typer carries
            raise
        _complain(error.format_message())
        sys.exit(2)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        _print(__version__)
        raise typer.Exit


@app.command()
def export(
    factory: Annotated[str, typer.Argument(help="MODULE:FACTORY that returns (torch module, example inputs).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .onnx file to write.")],
    opset: Annotated[int, typer.Option(help="ONNX opset.")] = 20,
    dynamic: Annotated[list[str], typer.Option(help="INPUT:AXIS that may vary; repeat it.")] = [],  # noqa: B006
) -> None:
    """Export a torch model to ONNX, checked at once against torch's own output."""
    from edgeq.export import export_factory

    worst = export_factory(factory, output, opset, dynamic)
    _print(f"{output}: exported; largest difference from torch {worst:.2e}")


@app.command()
def inspect(model: Model, as_json: AsJson = False) -> None:
    """Operators, sizes, opset, dynamic axes and the largest tensors of a model."""
    from edgeq.report.inspect import inspect_file, inspect_tables

    found = inspect_file(model)
    _print_json(found) if as_json else _show(inspect_tables(found))


@app.command()
def plan(
    model: Model,
    target: TargetOrRecipes = None,
    method: Annotated[str | None, typer.Option(help="static or dynamic.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="A recipe.toml.")] = None,
    as_json: AsJson = False,
) -> None:
    """What each node would get, or why it stays float. Nothing is written."""
    import msgspec

    from edgeq.pipeline import plan_file, resolve_recipe
    from edgeq.report.tables import plan_table

    chosen = resolve_recipe(recipe, target, method, None)
    made = plan_file(model, chosen.target, chosen)
    _print_json(msgspec.to_builtins(made)) if as_json else _show(plan_table(made))


@app.command()
def quantize(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")],
    target: TargetOrRecipes = None,
    calib: Annotated[str | None, typer.Option(help="Calibration data: .npz, folder, or MODULE:CALLABLE.")] = None,
    eval_data: Annotated[
        str | None, typer.Option("--eval", help="Data to verify on; default: the calibration data.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="static or dynamic.")] = None,
    calibrator: Annotated[str | None, typer.Option(help="A calibrator of `edgeq methods`.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="A recipe.toml; options given beside it win.")] = None,
    labels: Labels = None,
    metric: MetricSpec = None,
    max_drop: MaxDrop = None,
    min_sqnr: MinSqnr = None,
    check: Annotated[bool, typer.Option("--verify/--no-verify", help="Run the result against the float model.")] = True,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Quantize a model for a target, verify it there, and write model.onnx, recipe.toml and report.json."""
    from edgeq import pipeline
    from edgeq.report.schema import dump
    from edgeq.report.tables import failure_table, result_table
    from edgeq.verify import Budget

    with _progress(quiet or as_json) as progress:
        result = pipeline.quantize(
            model,
            target,
            calib,
            output,
            recipe=recipe,
            method=method,
            calibrator=calibrator,
            eval_data=eval_data,
            labels=labels,
            metric=metric,
            budget=Budget(max_drop, min_sqnr),
            check=check,
            progress=progress,
        )
    if as_json:
        _print(dump(result.report).decode().rstrip())
    elif not quiet:
        _show(result_table(result.report, result.folder))
    _judge(result.report.verification, failure_table, quiet or as_json)


@app.command()
def verify(
    reference: Annotated[Path, typer.Argument(help="The float model.", show_default=False)],
    quantized: Annotated[Path, typer.Argument(help="The artifact.", show_default=False)],
    data: Annotated[str, typer.Option(help="Evaluation data: .npz, folder, or MODULE:CALLABLE.")],
    target: TargetName = "x86_64",
    labels: Labels = None,
    metric: MetricSpec = None,
    max_drop: MaxDrop = None,
    min_sqnr: MinSqnr = None,
    layers: Annotated[bool, typer.Option("--layers", help="Also measure every layer that both models have.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run reference and artifact on the same samples; exit 1 when the artifact is over its budget."""
    from edgeq import pipeline
    from edgeq.report.schema import dump
    from edgeq.report.tables import failure_table, verify_table
    from edgeq.verify import Budget

    with _progress(quiet or as_json) as progress:
        found = pipeline.verify_files(
            reference,
            quantized,
            target,
            data,
            labels=labels,
            metric=metric,
            budget=Budget(max_drop, min_sqnr),
            layers=layers,
            progress=progress,
        )
    if as_json:
        _print(dump(found).decode().rstrip())
    elif not quiet:
        _show(verify_table(found))
    _judge(found, failure_table, quiet or as_json)


@app.command()
def targets(as_json: AsJson = False) -> None:
    """The targets that there are, and whether their runtime is installed."""
    from edgeq.report.listings import target_rows
    from edgeq.report.tables import listing

    rows = target_rows()
    _print_json(rows) if as_json else _show(listing(rows))


@app.command()
def methods(as_json: AsJson = False) -> None:
    """Calibrators and weight algorithms."""
    from edgeq.report.listings import method_rows
    from edgeq.report.tables import listing

    rows = method_rows()
    _print_json(rows) if as_json else _show(listing(rows))


@app.command()
def doctor(
    install: Annotated[str | None, typer.Option(help="Install a runner's runtime, such as arm64.")] = None,
    as_json: AsJson = False,
) -> None:
    """Which runtimes are here, and how to get the others."""
    from edgeq.registry import load
    from edgeq.report.listings import runtime_rows
    from edgeq.report.tables import listing

    if install is not None:
        load("edgeq.runners", install, "install").install(lambda line: _print(line))
    rows = runtime_rows()
    _print_json(rows) if as_json else _show(listing(rows))


def _judge(found: Any, failure_table: Any, silent: bool) -> None:
    """Exit 1 when the verification failed, with the table of the worst layers."""
    if found is None or not found.failures:
        return
    if not silent and found.layers:
        _show(failure_table(found))
    for failure in found.failures:
        _complain(failure)
    raise typer.Exit(1)


def _progress(silent: bool) -> Any:
    from edgeq.report.progress import bars

    return bars(silent or not sys.stderr.isatty())


def _complain(message: str) -> None:
    """One line on stderr, whatever the names in it hold."""
    from edgeq.report.tables import UNPRINTABLE

    line = re.sub(r"[\r\n]+", " ", message)
    sys.stderr.write(f"edgeq: {UNPRINTABLE.sub('�', line)}\n")


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")


def _print_json(found: Any) -> None:
    _print(json.dumps(found, indent=2, default=str))


def _show(*renderables: Any) -> None:
    from rich.console import Console, Group

    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    console.print(Group(*[r for group in renderables for r in (group if isinstance(group, list) else [group])]))
