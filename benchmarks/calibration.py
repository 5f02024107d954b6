"""What calibration costs over the bare forward pass: `python -m benchmarks.calibration [--rows …] [--peers …]`.

Every run is a process of its own, on the same samples (a folder with one file each), with the same number of threads.
The bare forward pass is onnxruntime's `session.run` of the float model, reading the samples not counted: one sample at
a time on all threads, or as many at a time as there are threads, with one each; whichever is faster. The columns, for
a model, a tool and a calibrator:

    whole     wall time of the whole quantization of N samples / wall time of the bare forward pass of N samples
    marginal  (t(N2) - t(N1)) / (N2 - N1) / one sample's forward pass: what one more sample costs
    CPU       the same of CPU time, over that of one sample's forward pass: what other programs take is not in it
    MB        peak resident memory of the process at N samples
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import measure, models, peers
from benchmarks.latency import machine
from benchmarks.peers.peer import Feeds

# Those of edgeq that have no counterpart among the peers are shown too.
EDGEQ_ONLY = ("mse",)
CHUNK = 8  # samples held at a time


@dataclass(frozen=True)
class Cell:
    """One process. seconds, cpu: what it took; forward, forward_cpu: what the bare forward pass of its samples took.

    peak_rss: bytes. error: one line, or ''.
    """

    model: str
    tool: str
    calibrator: str
    samples: int
    seconds: float
    cpu: float
    forward: float
    forward_cpu: float
    peak_rss: int
    error: str


def forward(model: Path, data: Path, samples: int, threads: int, streams: int) -> measure.Cost:
    """A process that loads the float model and runs the samples through it; its seconds and cpu are the runs' alone."""
    program = [sys.executable, "-m", "benchmarks.calibration", "--forward", str(model), str(data), str(samples)]
    program += ["--num-threads", str(threads), "--streams", str(streams)]
    ran = measure.peak_rss(program, threads=threads, extra_env={"PYTHONPATH": str(peers.ROOT)})
    return ran if ran.error else replace(ran, **measure.last_json(ran.output))


def bare(model: Path, data: Path, samples: int, threads: int, streams: int) -> dict[str, float]:
    """Seconds and CPU seconds of bare session.run over the samples, `streams` at a time, after one to warm up."""
    session = measure.session(model, threads, spinning=streams == 1)
    session.run(None, next(iter(Feeds(data, samples))))
    feeds, seconds, cpu = iter(Feeds(data, samples)), 0.0, 0.0
    with ThreadPoolExecutor(streams) as pool:
        while chunk := list(islice(feeds, CHUNK)):
            start, start_cpu = time.perf_counter(), time.process_time()
            if streams == 1:
                for feed in chunk:
                    session.run(None, feed)
            else:
                list(pool.map(lambda feed: session.run(None, feed) and None, chunk))
            seconds += time.perf_counter() - start
            cpu += time.process_time() - start_cpu
    return {"seconds": seconds, "cpu": cpu}


def edgeq_run(model: Path, data: Path, out: Path, calibrator: str, samples: int, threads: int) -> measure.Cost:
    """The command line, as a user runs it, without the verification that no peer does."""
    subset = out.with_suffix(".data")
    subset.mkdir(parents=True)
    for file in sorted(data.glob("*.npz"))[:samples]:
        (subset / file.name).symlink_to(file)
    command = [sys.executable, "-m", "edgeq", "quantize", str(model), "-t", "x86_64", "--calib", str(subset)]
    recipe = out.with_suffix(".toml")
    recipe.write_text(f'calibrator = "{calibrator}"\nsamples = 0\n')  # all of them
    command += ["--recipe", str(recipe), "-o", str(out), "--no-verify", "--quiet"]
    try:
        return measure.peak_rss(command, threads=threads, extra_env={"PYTHONPATH": str(peers.ROOT)})
    finally:
        shutil.rmtree(subset)


def cells(
    rows: list[str], tools: list[str], calibrators: list[str], counts: list[int], threads: int, limit: float
) -> Iterator[Cell]:
    for name in rows:
        source = models.build(name, peers.cache() / "models")
        with tempfile.TemporaryDirectory(prefix="calibration-") as folder:
            work = Path(folder)
            data = measure.save_folder(models.feeds(name, max(counts)), work / "data")
            for samples in counts:
                ways = [forward(source, data, samples, *ways) for ways in ((threads, 1), (1, threads))]
                base = min(ways, key=lambda way: way.seconds)
                runs = quantizations(source, data, work / str(samples), tools, calibrators, samples, threads, limit)
                for tool, calibrator, cost in chain([("forward", "-", ways[0])], runs):
                    took = (cost.seconds, cost.cpu, base.seconds, base.cpu, cost.peak_rss)
                    yield Cell(name, tool, calibrator, samples, *took, cost.error)


def quantizations(
    model: Path, data: Path, work: Path, tools: list[str], calibrators: list[str], samples: int, threads: int,
    limit: float,
) -> Iterator[tuple[str, str, measure.Cost]]:  # fmt: skip
    """(tool, calibrator, what it took) for each."""
    for tool in tools:
        for calibrator in [*calibrators, *(EDGEQ_ONLY if tool == "edgeq" else ())]:
            out = work / f"{tool}-{calibrator}"
            if tool == "edgeq":
                yield tool, calibrator, edgeq_run(model, data, out, calibrator, samples, threads)
            else:
                made = out.with_suffix(".onnx")
                yield tool, calibrator, peers.run(tool, model, data, made, calibrator, samples, threads, limit)


def lines(found: list[Cell], counts: list[int]) -> list[list[str]]:
    """The table's rows: model, tool, calibrator, whole at each count, marginal, its CPU, peak at each count, error."""
    by_key: dict[tuple[str, str, str], dict[int, Cell]] = {}
    for cell in found:
        by_key.setdefault((cell.model, cell.tool, cell.calibrator), {})[cell.samples] = cell
    made = []
    for key, runs in by_key.items():
        good = {n: c for n, c in runs.items() if not c.error}
        whole = [f"{good[n].seconds / good[n].forward:.2f}×" if n in good else "-" for n in counts]
        few, many = good.get(counts[0]), good.get(counts[-1])
        extra = ["-", "-"]
        if few and many and few is not many:
            share = (many.samples - few.samples) / many.samples
            extra[0] = f"{(many.seconds - few.seconds) / (many.forward * share):.2f}×"
            extra[1] = f"{(many.cpu - few.cpu) / (many.forward_cpu * share):.2f}×"
        peak = [f"{good[n].peak_rss / 2**20:.0f}" if n in good else "-" for n in counts]
        error = next((c.error for c in runs.values() if c.error), "")
        made.append([*key, *whole, *extra, *peak, error[:60]])
    return made


def table(found: list[Cell], counts: list[int], threads: int) -> Table:
    shown = Table(title=f"calibration over the bare forward pass, {threads} threads", caption=machine())
    headings = ["model", "tool", "calibrator", *(f"whole, {n}" for n in counts), "marginal", "CPU"]
    for i, heading in enumerate([*headings, *(f"MB, {n}" for n in counts), "error"]):
        shown.add_column(heading, justify="left" if i < 3 else "right")
    for line in lines(found, counts):
        shown.add_row(*line)
    return shown


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.calibration", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--rows", default=",".join(models.BUILDERS), help="comma list of models")
    parser.add_argument("--peers", default=",".join(peers.PEERS), help="comma list beside edgeq; '' for none")
    parser.add_argument("--calibrators", default=",".join(peers.CALIBRATORS))
    parser.add_argument("--samples", default="128,512", help="comma list; the marginal cost is between first and last")
    parser.add_argument("--num-threads", type=int, default=2)
    parser.add_argument("--limit", type=float, default=900, help="seconds after which a peer's run is given up")
    parser.add_argument("--json", type=Path, help="also write every measurement there")
    parser.add_argument("--forward", nargs=3, metavar=("MODEL", "DATA", "SAMPLES"), help=argparse.SUPPRESS)
    parser.add_argument("--streams", type=int, default=1, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.forward:
        model, data, samples = args.forward
        print(json.dumps(bare(Path(model), Path(data), int(samples), args.num_threads, args.streams)))
        return 0
    counts = sorted(int(n) for n in args.samples.split(","))
    tools = [*filter(None, args.peers.split(",")), "edgeq"]
    found: list[Cell] = []
    for cell in cells(args.rows.split(","), tools, args.calibrators.split(","), counts, args.num_threads, args.limit):
        found.append(cell)
        print(json.dumps(asdict(cell)), file=sys.stderr, flush=True)
    Console(width=180).print(table(found, counts, args.num_threads))
    if args.json:
        args.json.write_text(json.dumps([asdict(cell) for cell in found], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
