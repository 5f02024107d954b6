"""How much accuracy int8 costs: `python -m benchmarks.accuracy [--tasks a,b] [--calibrators mse,percentile]`.

Every task is evaluated three times in one run, on the same samples and by the same code in plain onnxruntime: the
float model, onnxruntime's own static quantizer at its usual settings (int8, per-channel, MinMax) and edgeq, with the
default recipe or once for each calibrator named. Higher metrics are better; the loss is float's minus the row's.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

import edgeq
from benchmarks import baseline, tasks
from benchmarks.latency import machine
from edgeq.errors import EdgeqError, ToolError
from edgeq.recipe import Recipe

HEADINGS = ("task", "metric", "tool", "value", "loss", "size", "seconds")
TARGET = "x86_64"


@dataclass
class Row:
    """One model of a task. value: its metric. loss: float's value minus it. size: file bytes over float's.

    seconds: what quantizing took, None for float. failed: one line that says why there is no value.
    """

    task: str
    metric: str
    tool: str
    value: float | None = None
    loss: float | None = None
    size: float | None = None
    seconds: float | None = None
    failed: str = ""


def quantize(tool: str, task: tasks.Task, folder: Path) -> Path:
    """The int8 model that a tool makes: `ort`, `edgeq`, or `edgeq CALIBRATOR`. Raises EdgeqError when it can't."""
    if tool == "ort":
        made = folder / "ort.onnx"
        if error := baseline.ort_static(task.model, task.calib, made):
            raise ToolError(error)
        return made
    _, _, calibrator = tool.partition(" ")
    recipe = Recipe(calibrator=calibrator) if calibrator else Recipe()
    return edgeq.quantize(task.model, TARGET, task.calib, folder / "edgeq", recipe=recipe, check=False).artifact


def measure(task: tasks.Task, tools: Sequence[str]) -> Iterator[Row]:
    """The float row, then one for each tool; what a tool fails at is a row too."""
    reference = baseline.evaluate(task.model, task)
    yield Row(task.name, task.metric_name, "float", reference, 0.0, 1.0)
    for tool in tools:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            try:
                made = quantize(tool, task, Path(folder))
            except EdgeqError as error:
                yield Row(task.name, task.metric_name, tool, failed=str(error))
                continue
            seconds = time.perf_counter() - start
            value = baseline.evaluate(made, task)
            size = made.stat().st_size / task.model.stat().st_size
            yield Row(task.name, task.metric_name, tool, value, reference - value, size, seconds)


def rows(names: Sequence[str], tools: Sequence[str]) -> Iterator[Row]:
    for name in names:
        try:
            task = tasks.load(name)
        except ToolError as error:
            yield Row(name, "", "float", failed=str(error))
        else:
            yield from measure(task, tools)


def cells(row: Row) -> list[str]:
    value = "failed" if row.value is None else f"{row.value:.4f}"
    loss = "-" if row.loss is None or row.tool == "float" else f"{row.loss:+.4f}"
    size = "-" if row.size is None else f"{row.size:.3f}×"
    seconds = "-" if row.seconds is None else f"{row.seconds:.1f}"
    return [row.task, row.metric, row.tool, value, loss, size, seconds]


def table(found: Sequence[Row]) -> Table:
    shown = Table(title="accuracy of int8 models, onnxruntime CPU", caption=machine())
    for heading in HEADINGS:
        shown.add_column(heading, justify="left" if heading in HEADINGS[:3] else "right")
    for index, row in enumerate(found):
        last = index + 1 == len(found) or found[index + 1].task != row.task
        shown.add_row(*cells(row), end_section=last)
    return shown


def markdown(found: Sequence[Row]) -> str:
    lines = [list(HEADINGS), ["---"] * 3 + ["--:"] * 4, *(cells(row) for row in found)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{machine()}\n"


def main(argv: list[str] | None = None) -> int:
    """Print the table. Returns 1 when edgeq failed at a task, 0 otherwise: a peer's failure is a result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", default=",".join(tasks.names()), help="comma list of tasks")
    parser.add_argument("--calibrators", default="", help="comma list; the default recipe when none is named")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True, help="onnxruntime's quantizer")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--json", type=Path, help="also write every number there")
    args = parser.parse_args(argv)
    names = args.tasks.split(",")
    if unknown := sorted(set(names) - set(tasks.names())):
        parser.error(f"no task {', '.join(unknown)}: choose from {', '.join(tasks.names())}")
    ours = [f"edgeq {c}" for c in args.calibrators.split(",") if c] or ["edgeq"]
    logging.getLogger().setLevel(logging.ERROR)  # onnxruntime's quantizer warns of every per-tensor weight
    console = Console(stderr=True)
    found = []
    for row in rows(names, [*(["ort"] if args.peers else []), *ours]):
        console.print(" ".join(cells(row)), style="dim", highlight=False)
        found.append(row)
    if args.markdown:
        print(markdown(found))
    else:
        Console(width=120).print(table(found))
    for row in found:
        if row.failed:
            print(f"{row.task}: {row.tool} failed: {row.failed}")
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in found], indent=1) + "\n")
    return int(any(row.failed and row.tool != "ort" for row in found))


if __name__ == "__main__":
    sys.exit(main())
