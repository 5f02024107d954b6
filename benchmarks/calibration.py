"""What calibration costs over the bare forward pass: `python -m benchmarks.calibration [--models …] [--tools …]`.

Every run is a process of its own, on the same samples (a folder with one file each) and the same thread count. The
columns, for a model, a tool and a calibrator:

    whole    wall time of the whole quantization of N samples / wall time of N bare session.run of the float model
    marginal (t(N2) - t(N1)) / (N2 - N1) / one forward pass: what one more sample costs
    peak     peak resident memory of the process at N1 and at N2
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import measure, models, peers
from benchmarks.latency import machine
from benchmarks.peers.peer import Feeds

# Those of edgeq that have no counterpart among the peers are shown too.
EDGEQ_ONLY = ("mse",)


@dataclass(frozen=True)
class Cell:
    """One process: seconds of wall time, those of the bare forward passes, bytes at the peak, and the error or ''."""

    model: str
    tool: str
    calibrator: str
    samples: int
    seconds: float
    forward: float
    peak_rss: int
    error: str


def forward(model: Path, data: Path, samples: int, threads: int) -> measure.Cost:
    """A process that loads the float model and runs the samples through it; `output` has the seconds of the runs."""
    program = [sys.executable, "-m", "benchmarks.calibration", "--forward", str(model), str(data), str(samples)]
    program += ["--num-threads", str(threads)]
    return measure.peak_rss(program, threads=threads, extra_env={"PYTHONPATH": str(peers.ROOT)})


def bare(model: Path, data: Path, samples: int, threads: int) -> float:
    """Seconds of bare session.run over the samples, after one to warm up; reading the files is not counted."""
    session = measure.session(model, threads, spinning=True)
    total = 0.0
    for i, feed in enumerate(Feeds(data, samples)):
        if i == 0:
            session.run(None, feed)
        start = time.perf_counter()
        session.run(None, feed)
        total += time.perf_counter() - start
    return total


def edgeq_run(model: Path, data: Path, out: Path, calibrator: str, samples: int, threads: int) -> measure.Cost:
    """The command line, as a user runs it, without the verification that no peer does."""
    subset = out.with_suffix(".data")
    subset.mkdir(parents=True)
    for file in sorted(data.glob("*.npz"))[:samples]:
        (subset / file.name).symlink_to(file)
    command = [sys.executable, "-m", "edgeq", "quantize", str(model), "-t", "x86_64", "--calib", str(subset)]
    command += ["--calibrator", calibrator, "-o", str(out), "--no-verify", "--quiet"]
    try:
        return measure.peak_rss(command, threads=threads, extra_env={"PYTHONPATH": str(peers.ROOT)})
    finally:
        shutil.rmtree(subset)


def cells(
    names: list[str], tools: list[str], calibrators: list[str], counts: list[int], threads: int, limit: float
) -> Iterator[Cell]:
    for name in names:
        source = models.build(name, peers.cache() / "models")
        with tempfile.TemporaryDirectory(prefix="calibration-") as folder:
            work = Path(folder)
            data = measure.save_folder(models.feeds(name, max(counts)), work / "data")
            for samples in counts:
                ran = forward(source, data, samples, threads)
                base = float(measure.last_json(ran.output)["seconds"])
                yield Cell(name, "forward", "-", samples, ran.seconds, base, ran.peak_rss, ran.error)
                for tool in tools:
                    for calibrator in [*calibrators, *(EDGEQ_ONLY if tool == "edgeq" else ())]:
                        out = work / f"{tool}-{calibrator}-{samples}"
                        if tool == "edgeq":
                            cost = edgeq_run(source, data, out, calibrator, samples, threads)
                        else:
                            cost = peers.run(
                                tool, source, data, out.with_suffix(".onnx"), calibrator, samples, threads, limit
                            )
                        yield Cell(name, tool, calibrator, samples, cost.seconds, base, cost.peak_rss, cost.error)


def marginal(few: Cell, many: Cell) -> float:
    """The cost of one more sample, in forward passes of one sample."""
    return (many.seconds - few.seconds) / (many.samples - few.samples) / (many.forward / many.samples)


def lines(found: list[Cell], counts: list[int]) -> list[list[str]]:
    """The table's rows: model, tool, calibrator, whole at each count, marginal, peak at each count, error."""
    by_key: dict[tuple[str, str, str], dict[int, Cell]] = {}
    for cell in found:
        by_key.setdefault((cell.model, cell.tool, cell.calibrator), {})[cell.samples] = cell
    made = []
    for key, runs in by_key.items():
        good = {n: c for n, c in runs.items() if not c.error}
        whole = [f"{good[n].seconds / good[n].forward:.2f}×" if n in good else "-" for n in counts]
        few, many = good.get(counts[0]), good.get(counts[-1])
        extra = f"{marginal(few, many):.2f}×" if few and many and few is not many else "-"
        peak = [f"{good[n].peak_rss / 2**20:.0f}" if n in good else "-" for n in counts]
        error = next((c.error for c in runs.values() if c.error), "")
        made.append([*key, *whole, extra, *peak, error[:60]])
    return made


def table(found: list[Cell], counts: list[int], threads: int) -> Table:
    shown = Table(title=f"calibration over the bare forward pass, {threads} threads", caption=machine())
    headings = ["model", "tool", "calibrator", *(f"whole, {n}" for n in counts), "marginal"]
    for i, heading in enumerate([*headings, *(f"MB, {n}" for n in counts), "error"]):
        shown.add_column(heading, justify="left" if i < 3 else "right")
    for line in lines(found, counts):
        shown.add_row(*line)
    return shown


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.calibration", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--models", default=",".join(models.BUILDERS))
    parser.add_argument("--tools", default=",".join((*peers.PEERS, "edgeq")))
    parser.add_argument("--calibrators", default=",".join(peers.CALIBRATORS))
    parser.add_argument("--samples", default="128,512", help="comma list; the marginal cost is between first and last")
    parser.add_argument("--num-threads", type=int, default=2)
    parser.add_argument("--limit", type=float, default=900, help="seconds after which a peer's run is given up")
    parser.add_argument("--json", type=Path, help="also write every measurement there")
    parser.add_argument("--forward", nargs=3, metavar=("MODEL", "DATA", "SAMPLES"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.forward:
        model, data, samples = args.forward
        print(json.dumps({"seconds": bare(Path(model), Path(data), int(samples), args.num_threads)}))
        return 0
    counts = sorted(int(n) for n in args.samples.split(","))
    found: list[Cell] = []
    for cell in cells(
        args.models.split(","), args.tools.split(","), args.calibrators.split(","), counts, args.num_threads, args.limit
    ):
        found.append(cell)
        print(json.dumps(asdict(cell)), file=sys.stderr, flush=True)
    Console(width=180).print(table(found, counts, args.num_threads))
    if args.json:
        args.json.write_text(json.dumps([asdict(cell) for cell in found], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
