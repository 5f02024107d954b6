"""What an NVIDIA GPU makes of each artifact: `python -m benchmarks.cuda [--models resnet50,tinypy] [--json FILE]`.

Needs onnxruntime-gpu and a GPU. Each model is quantized here by every method that the CUDA target has, and by the one
that it refuses (int8 QDQ), verified on the GPU against the float model on the CPU, and timed in turns. Times include
the copies of inputs and outputs, as onnxruntime's `run` makes them; float32 is timed with TensorFloat-32, which is the
provider's default, and without.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

import edgeq
from benchmarks import models
from edgeq import target as targets
from edgeq.errors import EdgeqError
from edgeq.runners.places import Place, of_target
from edgeq.verifying.bench import bench
from edgeq.verifying.verification import verify_files
from sample_models import tinypy

Feeds = list[dict[str, np.ndarray]]
TARGET = "cuda"
INT8 = "x86_64"  # the target whose static artifacts are int8 QDQ
BATCH, TOKENS = 16, 256


@dataclass
class Row:
    """One artifact. sqnr_db: on the GPU, against float on the CPU; ratio: times as fast as float32 with TF32.

    gpu_nodes, cpu_nodes: where its nodes ran. failed: one line that says why there are no numbers.
    """

    model: str
    artifact: str
    megabytes: float = 0.0
    sqnr_db: float | None = None
    gpu_nodes: int = 0
    cpu_nodes: int = 0
    milliseconds: float | None = None
    ratio: float | None = None
    failed: str = ""


def resnet50(folder: Path) -> tuple[Path, Feeds, Feeds]:
    """(model, calibration, feeds): pictures in batches of 16."""
    calib = list(models.feeds("resnet50", 16, seed=1))
    single = list(models.feeds("resnet50", 2 * BATCH, seed=2))
    feeds = [{"input": np.concatenate([f["input"] for f in single[i : i + BATCH]])} for i in (0, BATCH)]
    return models.build("resnet50", folder), calib, feeds


def tiny(folder: Path) -> tuple[Path, Feeds, Feeds]:
    """Windows of 256 bytes of Python."""
    tokens, _ = tinypy.windows(range(18))
    feeds = [{"tokens": tokens[i : i + 1, :TOKENS]} for i in range(len(tokens))]
    return tinypy.build(folder / "tinypy.onnx"), feeds[:16], feeds[16:]


MODELS: dict[str, Callable[[Path], tuple[Path, Feeds, Feeds]]] = {"resnet50": resnet50, "tinypy": tiny}


def artifacts(model: Path, calib: Feeds, folder: Path) -> dict[str, Path | EdgeqError]:
    """What edgeq makes of a model for the GPU, and its int8 QDQ for comparison; or why it makes nothing."""
    found: dict[str, Path | EdgeqError] = {"float32": model}
    wanted = {method: (TARGET, method) for method in sorted({rule.method for rule in targets.load(TARGET).rule})}
    wanted["int8 QDQ"] = INT8, "static"
    for name, (aim, method) in wanted.items():
        out = folder / f"{model.stem}-{aim}-{method}"
        try:
            found[name] = edgeq.quantize(model, aim, calib, out, method=method, check=False).artifact
        except EdgeqError as error:
            found[name] = error
    return found


def placed(place: Place, artifact: Path, feed: dict[str, np.ndarray]) -> tuple[int, int]:
    """How many nodes the GPU executed, and the CPU."""
    session = place.open(artifact, proof=True)
    try:
        session.run(feed)
        counts: dict[str, int] = session.report.get("placement", {})
    finally:
        session.close()
    own = counts.get(place.runner.PROVIDER, 0)
    return own, sum(counts.values()) - own


def rows(name: str, place: Place, folder: Path, rounds: int) -> list[Row]:
    model, calib, feeds = MODELS[name](folder)
    made = artifacts(model, calib, folder)
    found = [Row(name, artifact) for artifact in made]
    fast = replace(place, options={**place.options, "tf32": True})
    usable = [row for row in found if isinstance(made[row.artifact], Path)]
    for row in found:
        path = made[row.artifact]
        if isinstance(path, EdgeqError):
            row.failed = str(path)
            continue
        row.megabytes = path.stat().st_size / 1e6
        try:
            row.sqnr_db = verify_files(model, path, TARGET, feeds, strict=True, at_levels=False).outputs[0].sqnr_db
            row.gpu_nodes, row.cpu_nodes = placed(place, path, feeds[0])
        except EdgeqError as error:
            row.failed = str(error)
            usable.remove(row)
    if not usable:
        return found
    timed = bench([made[row.artifact] for row in usable], fast, feeds[:1], rounds=rounds)  # type: ignore[misc]
    for row, time in zip(usable, timed.rows, strict=True):
        row.milliseconds, row.ratio = time.latency_ms, time.ratio
    if found[0] in usable:
        plain = bench([model], place, feeds[:1], rounds=rounds).rows[0]
        found.insert(1, replace(found[0], artifact="float32 without TF32", milliseconds=plain.latency_ms,
                                ratio=(found[0].milliseconds or 0) / plain.latency_ms))  # fmt: skip
    return found


def markdown(found: list[Row]) -> str:
    head = ["model", "artifact", "MB", "SQNR", "nodes on GPU", "on CPU", "ms", "over float32", "over int8 QDQ"]
    lines = [head, ["---"] * len(head)]
    int8 = {r.model: r.milliseconds for r in found if r.artifact.startswith("int8")}
    for r in found:
        start = [r.model, r.artifact]
        if r.failed:
            lines.append([*start, r.failed, *([""] * 6)])
            continue
        sqnr = "exact" if r.sqnr_db is None else f"{r.sqnr_db:.1f} dB"
        ratio = f"{int8[r.model] / r.milliseconds:.2f}×" if int8.get(r.model) and r.milliseconds else ""  # type: ignore[operator]
        numbers = [f"{r.megabytes:.1f}", sqnr, str(r.gpu_nodes), str(r.cpu_nodes)]
        lines.append([*start, *numbers, f"{r.milliseconds:.2f}", f"{r.ratio:.2f}×", ratio])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS), help="comma list of rows")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write every number there")
    args = parser.parse_args(argv)
    unknown = sorted(set(args.models.split(",")) - set(MODELS))
    if unknown:
        parser.error(f"no model {', '.join(unknown)}: choose from {', '.join(MODELS)}")
    try:
        place = of_target(targets.load(TARGET), strict=True)
        found: list[Row] = []
        with tempfile.TemporaryDirectory(prefix="edgeq-cuda-") as folder:
            for name in args.models.split(","):
                found += rows(name, place, Path(folder), args.rounds)
    except EdgeqError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(markdown(found))
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in found], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
