"""Every form of `.tflite` file of every model, run: `python -m benchmarks.litert [--models a,b] [--forms c,d]`.

A float file is compared with onnxruntime. Of an integer one, each operator is computed by edgeq's emulator from what
LiteRT's reference kernels gave to it, and must give the same bits; by LiteRT's default kernels it may be one step off
(over a whole network such steps add up, so that the last tensor is no measure of a kernel). Operators that are float,
or floats times integers ("hybrid"), are not counted.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from rich.console import Console
from rich.table import Table

import edgeq
from benchmarks import baseline, integer, models, peers, tasks
from benchmarks.tasks import Feed
from benchmarks.tflite import nhwc
from edgeq import registry
from edgeq.errors import EdgeqError, TargetError
from edgeq.formats.tflite_emulate import run
from edgeq.formats.tflite_file import TfModel, TfOp, build
from edgeq.formats.tflite_read import read
from edgeq.numerics.metrics import sqnr_db

MODELS = ("digits", "tinypy", "ocr_cls", "ocr_det", "ocr_rec", "efficientnet", "minilm", "resnet50")
FORMS = {  # target and method
    "float32": ("litert", "float32"),
    "float16": ("litert", "float16"),
    "hybrid": ("litert", "dynamic"),
    "int8": ("litert", "static"),
    "int16": ("litert-int16", "static"),
}
CALIBRATION, SAMPLES, FLOAT_ERROR = 16, 2, 1e-4
HEADINGS = ("model", "file", "bytes", "of float", "SQNR dB", "error", "TRANSPOSE", "integer operators", "≠ emulator",
            "default kernels off by")  # fmt: skip


@dataclass
class Row:
    """error: of the outputs, over the larger of 1 and their magnitude. integers: operators, of so many.

    differing: codes that the emulator has otherwise than the reference kernels, of so many. step: the most codes that
    the default kernels are off in one operator.
    """

    model: str
    form: str
    bytes: int = 0
    share: float = 0.0
    sqnr_db: float = 0.0
    error: float = 0.0
    transposes: int = 0
    integers: tuple[int, int] = (0, 0)
    differing: tuple[int, int] = (0, 0)
    step: int = 0
    failed: str = ""

    @property
    def good(self) -> bool:
        exact = self.form != "float32" or self.error <= FLOAT_ERROR
        return not self.failed and exact and self.differing[0] == 0 and self.step <= 1


def _shapes(feed: Feed) -> tuple[tuple[int, ...], ...]:
    return tuple(array.shape for array in feed.values())


def subject(name: str) -> tuple[Path, list[Feed], list[Feed]]:
    """(float model, calibration samples, samples): one each a feed, and all of the most frequent shape."""
    if name in tasks.names():
        task = tasks.load(name)
        parts = [[{k: v[:1] for k, v in feed.items()} for feed in part] for part in (task.calib, task.eval)]
        (usual, _), *_ = Counter(map(_shapes, parts[0])).most_common(1)
        calib, found = ([feed for feed in part if _shapes(feed) == usual] for part in parts)
        return task.model, calib[:CALIBRATION], found[:SAMPLES]
    model = models.build(name, peers.cache() / "models")
    return model, list(models.feeds(name, CALIBRATION, seed=1)), list(models.feeds(name, SAMPLES, seed=2))


def interpreter(data: bytes, reference: bool) -> Interpreter:
    kind = OpResolverType.BUILTIN_REF if reference else OpResolverType.AUTO
    made = Interpreter(
        model_content=data, experimental_op_resolver_type=kind, experimental_preserve_all_tensors=reference,
        num_threads=1,
    )  # fmt: skip
    made.allocate_tensors()
    return made


def every_tensor(file: TfModel, feed: Feed) -> dict[str, np.ndarray]:
    """What the reference kernels compute, by tensor name."""
    made = interpreter(build(file), True)
    indices = {d["name"]: d["index"] for d in made.get_tensor_details()}
    given = nhwc(file, feed)
    for name, tensor in file.signatures[0].inputs.items():
        made.set_tensor(indices[tensor], given[name].astype(made.get_tensor(indices[tensor]).dtype))
    made.invoke()
    names = {*file.inputs, *(name for op in file.ops for name in op.outputs)}
    return {name: made.get_tensor(indices[name]) for name in names}


def alone(file: TfModel, op: TfOp) -> TfModel:
    """A file of one operator."""
    names = {*op.inputs, *op.outputs}
    tensors = tuple(t for t in file.tensors if t.name in names)
    inputs = tuple(t.name for t in tensors if t.data is None and t.name not in op.outputs)
    return TfModel(tensors, (op,), inputs, op.outputs)


def by_default(file: TfModel, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    """The one output by the kernels that LiteRT chooses."""
    made = interpreter(build(file), False)
    for detail in made.get_input_details():
        made.set_tensor(detail["index"], feeds[detail["name"]])
    made.invoke()
    found: np.ndarray = made.get_tensor(made.get_output_details()[0]["index"])
    return found


def compare(row: Row, file: TfModel, feed: Feed) -> None:
    """Each integer operator by the emulator and by the default kernels, from the reference kernels' tensors."""
    wrong = total = count = 0
    arrays = every_tensor(file, feed)
    for op in file.ops:
        one, want = alone(file, op), arrays[op.outputs[0]]
        try:
            (got,) = run(one, {name: arrays[name] for name in one.inputs}).values()
        except TargetError:  # float, or hybrid
            continue
        wrong, total, count = wrong + int((got != want).sum()), total + want.size, count + 1
        if want.dtype != np.float32:
            other = by_default(one, {name: arrays[name] for name in one.inputs})
            row.step = max(row.step, int(np.abs(other.astype(np.int64) - want).max(initial=0)))
    row.integers, row.differing = (count, len(file.ops)), (wrong, total)


def measured(name: str, form: str, folder: Path) -> Row:
    """One model in one form."""
    path, calib, feeds = subject(name)
    source = integer.fixed(tasks.Task(name, path, calib, feeds, lambda _: 0.0, ""), folder)
    row, (target, method) = Row(name, form), FORMS[form]
    data = calib if method == "static" else None
    try:
        artifact = edgeq.quantize(source, target, data, folder / "out", method=method, check=False).artifact
    except EdgeqError as error:
        row.failed = str(error)
        return row
    file = read(artifact.read_bytes())
    row.bytes, row.share = artifact.stat().st_size, artifact.stat().st_size / source.stat().st_size
    row.transposes = sum(op.code == "TRANSPOSE" for op in file.ops)
    session = registry.load("edgeq.runners", "litert").open_session(artifact)
    pairs = [
        (want, got[key])
        for wanted, got in zip(baseline.run(source, feeds), session.run_many(feeds), strict=True)
        for key, want in wanted.items()
    ]
    session.close()
    row.error = max(float(np.abs(got - want).max() / max(1, np.abs(want).max())) for want, got in pairs)
    row.sqnr_db = float(np.mean([sqnr_db(want, got) for want, got in pairs]))
    if form in ("int8", "int16"):
        compare(row, file, feeds[0])
    return row


def cells(row: Row) -> list[str]:
    if row.failed:
        return [row.model, row.form, *["-"] * 7, row.failed]
    parts = [f"{row.bytes:,}", f"{row.share:.3f}", f"{row.sqnr_db:.1f}", f"{row.error:.0e}", str(row.transposes)]
    if not row.integers[0]:
        return [row.model, row.form, *parts, *["-"] * 3]
    shown = [f"{part} of {whole}" for part, whole in (row.integers, row.differing)]
    return [row.model, row.form, *parts, *shown, str(row.step)]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table. Returns 1 when a file fails, a float one is over 1e-4 or an operator is another than here."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.litert", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS), help="comma list")
    parser.add_argument("--forms", default=",".join(FORMS), help="comma list")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--json", type=Path, help="also write every number there")
    args = parser.parse_args(argv)
    rows = []
    for name in args.models.split(","):
        for form in args.forms.split(","):
            with tempfile.TemporaryDirectory() as folder:
                rows.append(measured(name, form, Path(folder)))
            Console(stderr=True).print(" ".join(cells(rows[-1])), style="dim", highlight=False)
    if args.markdown:
        head = [list(HEADINGS), ["---"] * 2 + ["--:"] * 8]
        print("\n".join("| " + " | ".join(line) + " |" for line in [*head, *map(cells, rows)]))
    else:
        shown = Table(title="LiteRT files")
        for heading in HEADINGS:
            shown.add_column(heading)
        for row in rows:
            shown.add_row(*cells(row))
        Console(width=170).print(shown)
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return int(not all(row.good for row in rows))


if __name__ == "__main__":
    sys.exit(main())
