"""How much faster int8 is than float: `python -m benchmarks.latency [--models a,b] [--threads 1,2] [--peers]`.

Every row is measured in one run, in turns: the float model, onnxruntime's own int8 of it, edgeq's int8, and with
--peers what NNCF and Quark write. All sessions have onnxruntime's default optimization (all), the same thread counts
and no spinning. The batch is 1 and the number is the median over the rounds.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import measure, models, peers

CALIBRATION_SAMPLES = 16

# The best that any of six published tools reached on each row, at 1 and 2 threads of another x86-64 machine.
BEST_PEER = {
    "mobilenetv2": (1.76, 1.59),
    "resnet50": (3.09, 2.89),
    "encoder": (3.99, 3.08),
    "ppocr_rec": (1.26, 1.08),
}


@dataclass
class Row:
    """One model at one thread count: seconds and speed-ups by tool; `failed` says why a tool has none."""

    model: str
    threads: int
    seconds: dict[str, float] = field(default_factory=dict)
    speedup: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def edgeq_int8(model: Path, feeds: list[dict[str, np.ndarray]], out: Path, target: str) -> Path:
    import edgeq

    return Path(edgeq.quantize(model=model, target=target, calib=feeds, output=out, check=False).artifact)


def quantize_all(name: str, work: Path, tools: list[str], target: str) -> tuple[dict[str, Path], dict[str, str]]:
    """({tool: int8 model}, {tool: why there is none}); `float` is always among the first."""
    source = models.build(name, peers.cache() / "models")
    feeds = list(models.feeds(name, CALIBRATION_SAMPLES, seed=1))
    data = measure.save_feeds(feeds, work / f"{name}.npz")
    made, failed = {"float": source}, {}
    for tool in tools:
        if tool == "edgeq":
            made[tool] = edgeq_int8(source, feeds, work / f"{name}.edgeq", target)
            continue
        out = work / f"{name}.{tool}.onnx"
        cost = peers.run(tool, source, data, out, samples=CALIBRATION_SAMPLES)
        try:
            if cost.error:
                raise RuntimeError(cost.error)
            measure.session(out, 1)
            made[tool] = out
        except Exception as error:  # a peer's file that onnxruntime refuses is a result of this benchmark
            failed[tool] = str(error).splitlines()[0][:160]
    return made, failed


def rows(names: list[str], threads: list[int], tools: list[str], work: Path, rounds: int, target: str) -> Iterator[Row]:
    for name in names:
        made, failed = quantize_all(name, work, tools, target)
        feed = next(models.feeds(name, 1, seed=2))
        for count in threads:
            found = measure.latency(made, feed, count, rounds=rounds)
            yield Row(
                name, count, {k: t for k, (t, _) in found.items()}, {k: r for k, (_, r) in found.items()}, dict(failed)
            )


def table(found: list[Row], tools: list[str]) -> Table:
    shown = Table(title="int8 over float, onnxruntime CPU, batch 1", caption=machine())
    for heading in ("model", "threads", "float ms", *(f"{t} ms" for t in tools), *tools, "best published"):
        shown.add_column(heading, justify="left" if heading == "model" else "right")
    for row in found:
        shown.add_row(*cells(row, tools))
    return shown


def cells(row: Row, tools: list[str]) -> list[str]:
    times = [f"{row.seconds[t] * 1e3:.2f}" if t in row.seconds else "-" for t in ("float", *tools)]
    ratios = [f"{row.speedup[t]:.2f}×" if t in row.speedup else "failed" for t in tools]
    best = BEST_PEER.get(row.model, ())
    published = f"{best[row.threads - 1]:.2f}×" if row.threads <= len(best) else "-"
    return [row.model, str(row.threads), *times, *ratios, published]


def markdown(found: list[Row], tools: list[str]) -> str:
    head = ["model", "threads", "float ms", *(f"{t} ms" for t in tools), *tools, "best published"]
    lines = [head, ["---"] * len(head), *(cells(row, tools) for row in found)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{machine()}\n"


def machine() -> str:
    import onnxruntime

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line.partition(":") for line in info.read_text().splitlines()]
        facts = {key.strip(): value.strip() for key, _, value in lines}
        kinds = [
            f
            for f in ("avx2", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
            if f in facts.get("flags", facts.get("Features", "")).split()
        ]
        cpu = f"{facts.get('model name', cpu)} ({', '.join(kinds)})"
    return f"onnxruntime {onnxruntime.__version__}, {cpu}, {time.strftime('%Y-%m-%d')}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default=",".join(models.BUILDERS), help="comma list of rows")
    parser.add_argument("--threads", default="1,2", help="comma list of thread counts")
    parser.add_argument("--peers", action="store_true", help="NNCF and Quark too (each gets a virtual environment)")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--target", default="x86_64")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--json", type=Path, help="also write every number there")
    args = parser.parse_args(argv)
    names = args.models.split(",")
    unknown = sorted(set(names) - set(models.BUILDERS))
    if unknown:
        parser.error(f"no model {', '.join(unknown)}: choose from {', '.join(models.BUILDERS)}")
    tools = ["ort", *(peers.PACKAGES if args.peers else ()), "edgeq"]
    work = peers.cache() / "latency"
    threads = [int(t) for t in args.threads.split(",")]
    found = list(rows(names, threads, tools, work, args.rounds, args.target))
    if args.markdown:
        print(markdown(found, tools))
    else:
        Console(width=160).print(table(found, tools))
    for line in dict.fromkeys(f"{r.model}: {tool} failed: {why}" for r in found for tool, why in r.failed.items()):
        print(line)
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in found], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
