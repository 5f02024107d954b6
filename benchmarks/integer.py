"""What integers alone cost, and that all machines agree: `python -m benchmarks.integer [--models a,b] [--rounding r]`.

Each model is evaluated four times on the same samples, one at a time: float, edgeq's QDQ artifact (onnxruntime),
edgeq's integer-only artifact (onnxruntime) and the `.tflite` file of the same quantization (LiteRT). The integer-only
artifact then runs on every machine that is installed: here, x86-64 without VNNI and three Arm cores under emulation,
WebAssembly; the hash of its outputs must be one. Its codes are compared with edgeq's emulator of the `.tflite` file,
and that one with LiteRT's reference kernels. The file's size stands beside that of ai-edge-quantizer's.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass
from rich.console import Console
from rich.table import Table

import edgeq
from benchmarks import baseline, measure, models, peers, tasks
from benchmarks.latency import machine
from benchmarks.tasks import Feed
from benchmarks.tflite import Tflite, figures, nhwc
from edgeq import registry
from edgeq import target as targets
from edgeq.errors import EdgeqError
from edgeq.formats.tflite_convert import convert
from edgeq.formats.tflite_emulate import run
from edgeq.formats.tflite_file import TfModel, build
from edgeq.graph import io
from edgeq.passes.integer_ends import as_codes, strip_ends
from edgeq.passes.integer_only import integer_only
from edgeq.recipe import Recipe
from edgeq.report.inspect import float_tensors

MODELS = ("digits", "ocr_cls", "efficientnet", "mobilenetv2")
PLACES: dict[str, tuple[str, dict[str, str]]] = {
    "x86_64": ("cpu", {}),
    "avx2": ("avx2", {}),
    "a53": ("arm64", {"cpu": "a53"}),
    "a76": ("arm64", {"cpu": "a76"}),
    "i8mm": ("arm64", {"cpu": "i8mm"}),
    "wasm": ("web", {}),
}
AGREEMENT, HASHED = 200, 4  # samples: of the model without labels, and of those that every machine runs
HEADINGS = (
    "model", "metric", "float", "QDQ", "integer", ".tflite", "floats left", "≠ emulator", "≠ LiteRT", "TRANSPOSE",
    ".tflite bytes", "ai-edge-quantizer's", "hash of the outputs", "time of float", "time of QDQ",
)  # fmt: skip


@dataclass
class Row:
    """values: metric by artifact. floats: float tensors between the ends. differing: codes that the emulator has

    otherwise, of so many. hashes: of the outputs, by machine. ratios: time over that of float and of QDQ.
    """

    model: str
    metric: str
    rounding: str
    values: dict[str, float] = field(default_factory=dict)
    floats: int = 0
    differing: tuple[int, int] = (0, 0)
    hashes: dict[str, str] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    tflite: Tflite | None = None

    @property
    def one_hash(self) -> bool:
        return len(set(self.hashes.values())) == 1


def subject(name: str) -> tasks.Task:
    """A task with its batches taken apart, or the model without labels, whose labels are its own first classes."""
    if name in tasks.names():
        task = tasks.load(name)
        parts = [{k: v[i : i + 1] for k, v in f.items()} for f in task.eval for i in range(len(next(iter(f.values()))))]
        return tasks.Task(name, task.model, task.calib, parts, task.metric, task.metric_name)
    model = models.build(name, peers.cache() / "models")
    feeds = list(models.feeds(name, AGREEMENT, seed=2))
    labels = tasks.top1(baseline.run(model, feeds), "output")

    def metric(outputs: list[Feed]) -> float:
        return float(np.mean(tasks.top1(outputs, "output") == labels))

    return tasks.Task(name, model, list(models.feeds(name, 32, seed=1)), feeds, metric, "agreement with float")


def fixed(it: tasks.Task, folder: Path) -> Path:
    """The float model with the samples' shapes: means over dimensions of unknown size have no integer form."""
    model = io.load(it.model)
    for value in model.graph.inputs:
        if value.name in it.eval[0]:
            value.shape = ir.Shape(it.eval[0][value.name].shape)
    for value in model.graph.outputs:
        value.shape = None
    io.save(model, folder / "float.onnx")
    return folder / "float.onnx"


def digest(outputs: Sequence[Feed]) -> str:
    found = hashlib.sha256()
    for out in outputs:
        for name in sorted(out):
            found.update(np.ascontiguousarray(out[name]).tobytes())
    return found.hexdigest()


def tflite(qdq: Path) -> TfModel:
    """The integer file of a QDQ artifact, codes in and out."""
    model = io.load(qdq)
    ShapeInferencePass(strict_mode=False, data_prop=True)(model)
    return convert(model, integer_io=True)


def signed(arrays: Feed) -> Feed:
    """uint8 codes as int8 ones, which TFLite has."""
    return {n: (x.astype(np.int16) - 128).astype(np.int8) for n, x in arrays.items()}


def tflite_outputs(file: TfModel, ends: ir.Model, feeds: Sequence[Feed], folder: Path) -> list[Feed]:
    """What LiteRT gives for float feeds: codes, under the names of the ONNX outputs."""
    path = folder / "m.tflite"
    path.write_bytes(build(file))
    session = registry.load("edgeq.runners", "litert").open_session(path)
    return list(session.run_many([signed(as_codes(ends, feed)) for feed in feeds]))


def differing(file: TfModel, codes: Path, ends: ir.Model, feeds: Sequence[Feed], rounding: str) -> tuple[int, int]:
    """(codes that differ from the emulator's, all codes)."""
    wrong = total = 0
    fed = [as_codes(ends, feed) for feed in feeds]
    for given, got in zip(fed, baseline.run(codes, fed), strict=True):
        emulated = run(file, nhwc(file, signed(given)), rounding).values()  # type: ignore[arg-type]
        for mine, its in zip(got.values(), emulated, strict=True):
            wrong += int((mine.astype(int) != its.astype(int) + 128).sum())
            total += mine.size
    return wrong, total


def measured(name: str, rounding: str, places: Sequence[str], folder: Path, beside: bool = False) -> Row:
    """Everything about one model."""
    it = subject(name)
    row = Row(name, it.metric_name, rounding)
    source = fixed(it, folder)
    qdq = edgeq.quantize(source, "x86_64", it.calib, folder / "qdq", check=False).artifact
    made = edgeq.quantize(
        source, "x86_64", it.calib, folder / "integer", check=False, integer_only=True, rounding=rounding
    ).artifact
    row.floats = len(float_tensors(made))
    for kind, path in (("float", it.model), ("QDQ", qdq), ("integer", made)):
        row.values[kind] = it.metric(baseline.run(path, it.eval))
    few = it.eval[:HASHED]
    for place in places:
        runner, options = PLACES[place]
        try:
            session = registry.load("edgeq.runners", runner).open_session(made, **options)
            row.hashes[place] = digest(list(session.run_many(few)))
            session.close()
        except EdgeqError as error:
            row.failed[place] = str(error)
    recipe = Recipe(elementwise="all", attention=True)
    whole = edgeq.quantize(
        source, targets.load("integer"), it.calib, folder / "whole", recipe=recipe, check=False
    )  # the same, before its floats are taken out
    ends, codes = integer_only(io.load(whole.artifact), rounding), folder / "codes.onnx"  # type: ignore[arg-type]
    io.save(strip_ends(ends), codes)
    try:
        file = tflite(whole.artifact)
        row.differing = differing(file, codes, ends, few, rounding)
        row.values[".tflite"] = it.metric(tflite_outputs(file, ends, it.eval, folder))
        row.tflite = figures(source, file, [signed(as_codes(ends, feed)) for feed in few], it.calib, folder, beside)
        if row.tflite.peer_error:
            row.failed["ai-edge-quantizer"] = row.tflite.peer_error
    except EdgeqError as error:
        row.failed[".tflite"] = str(error)
    times = measure.latency({"float": it.model, "QDQ": qdq, "integer": made}, it.eval[0], threads=1)
    row.ratios = {kind: times["integer"][0] / times[kind][0] for kind in ("float", "QDQ")}
    return row


def cells(row: Row) -> list[str]:
    found = [f"{row.values[k]:.4f}" if k in row.values else "-" for k in ("float", "QDQ", "integer", ".tflite")]
    wrong, total = row.differing
    hashed = f"{next(iter(row.hashes.values()))[:12]} on {len(row.hashes)}" if row.one_hash else "DIFFER"
    ratios = [f"{row.ratios[k]:.1f}×" for k in ("float", "QDQ")]
    made, litert = row.tflite, ["-"] * 4
    if made is not None:
        apart, codes = made.differing
        litert = [
            f"{apart} of {codes}",
            str(made.transposes),
            f"{made.bytes:,}",
            f"{made.peer_bytes:,}" if made.peer_bytes else "-",
        ]
    return [row.model, row.metric, *found, str(row.floats), f"{wrong} of {total}", *litert, hashed, *ratios]


def wrong(row: Row) -> int:
    """Codes that the emulator has otherwise than LiteRT's reference kernels."""
    return row.tflite.differing[0] if row.tflite is not None else 0


def main(argv: list[str] | None = None) -> int:
    """Print the table. Returns 1 when a float is left, hashes differ or the emulator disagrees."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.integer", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS), help="comma list")
    parser.add_argument("--places", default=",".join(PLACES), help="comma list of machines")
    parser.add_argument("--rounding", default="double", choices=("double", "single"))
    parser.add_argument("--beside", action="store_true", help="ai-edge-quantizer's file too; installs it once")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--json", type=Path, help="also write every number there")
    args = parser.parse_args(argv)
    found = []
    for name in args.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            row = measured(name, args.rounding, args.places.split(","), Path(folder), args.beside)
        Console(stderr=True).print(" ".join(cells(row)), style="dim", highlight=False)
        found.append(row)
    if args.markdown:
        lines = [list(HEADINGS), ["---"] * 2 + ["--:"] * 10 + ["---"] + ["--:"] * 2, *(cells(row) for row in found)]
        print("\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{machine()}")
    else:
        shown = Table(title=f"integers only, {args.rounding} rounding", caption=machine())
        for heading in HEADINGS:
            shown.add_column(heading)
        for row in found:
            shown.add_row(*cells(row))
        Console(width=190).print(shown)
    for row in found:
        for what, why in row.failed.items():
            print(f"{row.model}: {what}: {why}")
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in found], indent=1) + "\n")
    return int(any(row.floats or not row.one_hash or row.differing[0] or wrong(row) for row in found))


if __name__ == "__main__":
    sys.exit(main())
