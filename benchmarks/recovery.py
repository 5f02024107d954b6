"""What wins back accuracy: `python -m benchmarks.recovery [--tasks digits,unequal] [--peers [nncf,quark]]`.

Each task in one run, on the same samples and by the same code in plain onnxruntime: the float model, edgeq without
repair, each repair alone (`bias_correct` is the default), and `edgeq tune` to a drop of 0.5 % with at least 90 % of the
multiply-accumulates in integers; with --peers NNCF and Quark in environments of their own, as they are and with what
they have against lost accuracy: NNCF's accuracy control to the same drop, Quark's CLE and AdaRound. `tune` and NNCF
judge by the samples that are shown. The task `unequal` is EfficientNet-lite0 (MobileNetV2's blocks) with channels that
were pulled apart by factors up to a thousand, which the layers behind them make up for, and one scale for each weight
(the peers keep theirs of each channel). Its Clips stay: without them it is another network, which agrees with the
trained one on two samples of three, and that no int8 form keeps.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import numpy_helper
from rich.console import Console
from rich.table import Table

import edgeq
from benchmarks import baseline, peers, tasks
from benchmarks.latency import machine
from benchmarks.measure import save_folder
from edgeq import target as targets
from edgeq.data import Dataset
from edgeq.data.arrays import read_npz
from edgeq.errors import EdgeqError
from edgeq.graph import io
from edgeq.graph.prepare import prepare
from edgeq.passes.equalize import pairs
from edgeq.planning.coverage import integer_share
from edgeq.recipe import Recipe
from edgeq.report.tables import tuning_table
from edgeq.search.recovery import channels
from edgeq.target import Target
from edgeq.tune import Goal, tune

MAX_DROP, MIN_INTEGER, TIME_BUDGET = 0.005, 0.9, 540.0  # a peer has as long as tune
PEERS = {"nncf": "quantize", "nncf recover": "recover", "quark": "quantize", "quark recover": "recover"}
LIMIT = 6.0  # of the Clips of EfficientNet-lite0
ALONE: dict[str, dict[str, Any]] = {
    "plain": {"passes": ()},
    "equalize": {"passes": ("equalize",)},
    "smooth": {"passes": ("smooth",)},
    "bias_correct": {"passes": ("bias_correct",)},
    "adaround": {"weight": "adaround", "passes": ()},
}


@dataclass
class Row:
    """drop: float's metric less this one's. size: bytes over float's. integer: share of multiply-accumulates."""

    task: str
    tool: str
    value: float | None = None
    drop: float | None = None
    size: float | None = None
    integer: float | None = None
    seconds: float | None = None
    failed: str = ""


def unequal(cache: Path) -> tasks.Task:
    """EfficientNet-lite0 with pulled-apart channels, judged by how often its top class is its own in float."""
    base = tasks.load("efficientnet")
    path = cache / "unequal_relu6.onnx"
    if not path.exists():
        folded = cache / "unequal_relu6.part"  # BatchNormalization has gone into the convolutions
        io.save(prepare(io.load(base.model)), folded)
        model = io.load(folded)
        samples = Dataset("all", lambda: iter([*base.calib, *base.eval]))
        seen = channels(folded, {pair.value: 1 for pair in pairs(model)}, samples)
        onnx.save(pull_apart(onnx.load(folded), {k: hi for k, (_, hi) in seen.items()}, np.random.default_rng(8)), path)
        folded.unlink()
    wanted = tasks.top1(baseline.run(path, base.eval), "logits")

    def metric(outputs: list[tasks.Feed]) -> float:
        return float(np.mean(tasks.top1(outputs, "logits") == wanted))

    return tasks.Task("unequal", path, base.calib, base.eval, metric, "agreement with float")


def pull_apart(model: onnx.ModelProto, greatest: Mapping[str, np.ndarray], rng: np.random.Generator) -> onnx.ModelProto:
    """Scale what Conv → Clip → Conv passes on by 10^±1.5 a channel, and undo it in the second.

    greatest: of each channel of what the Clips read. One that comes near 6, or would, is scaled no further than that.
    """
    weights = {t.name: t for t in model.graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for clip in [n for n in model.graph.node if n.op_type == "Clip"]:
        first = next(n for n in model.graph.node if clip.input[0] in n.output)
        (second,) = readers[clip.output[0]]
        if second.op_type != "Conv":
            continue
        most = np.maximum(greatest[clip.input[0]], 1e-3)
        far = np.minimum(10.0 ** rng.uniform(-1.5, 1.5, most.shape), 0.5 * LIMIT / most)
        far = np.where(most < 0.5 * LIMIT, far, 1.0)
        kernel = (-1, 1, 1, 1)
        depthwise = next((a.i for a in second.attribute if a.name == "group"), 1) > 1
        for name, factor in (
            (first.input[1], far.reshape(kernel)),
            (first.input[2], far),
            (second.input[1], 1 / far.reshape(kernel if depthwise else (1, -1, 1, 1))),
        ):
            scaled = (numpy_helper.to_array(weights[name]) * factor).astype(np.float32)
            weights[name].CopyFrom(numpy_helper.from_array(scaled, name))
    return model


def per_tensor() -> Target:
    aim = targets.load("x86_64")
    return msgspec.structs.replace(aim, types=aim.types | {"s8c": aim.types["s8t"]})


def load(name: str) -> tasks.Task:
    return unequal(tasks.cache_folder()) if name == "unequal" else tasks.load(name)


def measure(task: tasks.Task, beside: list[str], names: list[str], max_drop: float) -> Iterator[Row]:
    """The float row, then one for each tool; a tool's failure is a row too."""
    aim: Target | str = per_tensor() if task.name == "unequal" else "x86_64"
    reference = baseline.evaluate(task.model, task)
    yield Row(task.name, "float", reference, 0.0, 1.0)
    for name in names:
        settings = ALONE[name]

        def alone(folder: Path, settings: dict[str, Any] = settings) -> Path:
            recipe = Recipe(**settings)
            return edgeq.quantize(task.model, aim, task.calib, folder / "out", recipe=recipe, check=False).artifact

        yield _row(task, name, reference, alone)
    for name in beside:

        def theirs(folder: Path, name: str = name) -> Path:
            return _peer(name.split()[0], PEERS[name], task, folder, max_drop * abs(reference))

        yield _row(task, name, reference, theirs)
    yield _row(task, "tune", reference, lambda folder: _tune(task, aim, folder, max_drop))


def _tune(task: tasks.Task, aim: Target | str, folder: Path, max_drop: float) -> Path:
    """By the task's own metric, on the samples that the row shows too."""
    goal = Goal(max_drop, relative=True, min_integer=MIN_INTEGER, time_budget=TIME_BUDGET)
    name = aim if isinstance(aim, str) else str(_written(aim, folder))

    def metric(outputs: list[tasks.Feed], extras: tasks.Feed) -> float:
        return task.metric(outputs)

    found = tune(task.model, name, task.calib, folder / "out", goal=goal, eval_data=task.eval, metric=metric)
    Console(stderr=True, width=150).print(*tuning_table(found))
    return folder / "out" / "model.onnx"


def _written(aim: Target, folder: Path) -> Path:
    """The target as a file, which is how tune takes it."""
    path = folder / "whole.toml"
    (folder / "generic.toml").write_text((targets.folder() / "generic.toml").read_text())
    row = aim.types["s8c"]
    path.write_text(
        'name = "x86_64"\ntitle = "one scale a weight"\nrunner = "cpu"\nextends = "generic"\n[types]\n'
        f's8c = {{dtype = "{row.dtype}", symmetric = true, narrow = true}}\n'
    )
    return path


def _peer(name: str, way: str, task: tasks.Task, folder: Path, max_drop: float) -> Path:
    places = [save_folder(feeds, folder / kind) for kind, feeds in (("calib", task.calib), ("eval", task.eval))]
    judge = shlex.join([sys.executable, "-m", "benchmarks.recovery", "--judge", task.name])
    env = {"MAX_DROP": str(max_drop), "EVAL": str(places[1]), "JUDGE": judge}
    made = folder / f"{name}.onnx"
    cost = peers.run(name, task.model, places[0], made, samples=len(task.calib), timeout=TIME_BUDGET, way=way, env=env)
    if cost.error:
        raise EdgeqError(cost.error)
    return made


def judged(task: tasks.Task, folder: Path) -> float:
    """The task's metric of outputs in a folder, one file for each sample."""
    return task.metric([read_npz(file) for file in sorted(folder.glob("*.npz"))])


def _row(task: tasks.Task, tool: str, reference: float, make: Callable[[Path], Path]) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        try:
            made = make(Path(folder))
        except EdgeqError as error:
            return Row(task.name, tool, failed=str(error))
        seconds = time.perf_counter() - start
        value = baseline.evaluate(made, task)
        size = made.stat().st_size / task.model.stat().st_size
        return Row(task.name, tool, value, reference - value, size, integer_share(io.load(made)), seconds)


def table(rows: list[Row]) -> Table:
    made = Table(title="accuracy recovered, onnxruntime CPU", caption=machine())
    for heading in ("task", "tool", "metric", "drop", "size", "integer MACs", "seconds"):
        made.add_column(heading, justify="left" if heading in ("task", "tool") else "right")
    for row in rows:
        made.add_row(*cells(row))
    return made


def cells(row: Row) -> list[str]:
    if row.failed:
        return [row.task, row.tool, "failed", row.failed[:40], "", "", ""]
    forms = ((row.value, ".4f"), (row.drop, "+.4f"), (row.size, ".3f"), (row.integer, ".0%"), (row.seconds, ".1f"))
    return [row.task, row.tool, *("-" if v is None else format(v, f) for v, f in forms)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", default=",".join([*tasks.names(), "unequal"]))
    parser.add_argument("--alone", default=",".join(ALONE), help="comma list of repairs to run alone")
    parser.add_argument("--peers", nargs="?", const=",".join(PEERS), default="", help="also these, by default all")
    parser.add_argument("--max-drop", type=float, default=MAX_DROP, help="relative, of tune and of NNCF's control")
    parser.add_argument("--judge", nargs=2, metavar=("TASK", "OUTPUTS"), help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="also write every number there")
    args = parser.parse_args()
    if args.judge:
        print(judged(load(args.judge[0]), Path(args.judge[1])))
        return
    rows: list[Row] = []
    console = Console(stderr=True)
    for name in args.tasks.split(","):
        beside, alone = ([one for one in given.split(",") if one] for given in (args.peers, args.alone))
        for row in measure(load(name), beside, alone, args.max_drop):
            console.print(" ".join(cells(row)), style="dim", highlight=False)
            rows.append(row)
    Console(width=120).print(table(rows))
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
