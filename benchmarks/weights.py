"""Weights below 8 bits on a language model: `python -m benchmarks.weights [--rows PATTERNS] [--jobs 2] [--json FILE]`.

tinypy is quantized by every method in several formats, edgeq's beside onnxruntime's own, each in a process of its own,
and measured in onnxruntime: bits per byte over the first windows of held-out text (lower is better; float 1.1986), the
file's bytes, the CPU seconds and peak memory of quantizing. Data is text that the model was trained on; what edgeq's
methods do by default was chosen on other windows than those reported (two constants of GPTQ's damping with these in
sight). `±` is the standard error, over the windows, of the difference to float. `KL` is the divergence from float in
bits per byte: it hangs less on which bytes came, and tells methods apart that bits per byte do not. Then, format by
format: edgeq's best beside the best of the others, the goal where there is one, and of mixed formats (`bpw`) which
uniform ones are as small and no worse. A run that was cut off goes on with the rows that `--json` has not. Goals and
peers need `--rows "* / gptq,* / ort *,* bpw / rtn"`.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import runpy
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.latency import machine
from benchmarks.measure import peak_rss, session
from sample_models import tinypy

ROOT = Path(__file__).resolve().parents[1]
HEADINGS = ("format", "method", "bits/byte", "±", "loss", "KL", "bytes", "CPU s", "peak MB")
INT4, CHANNEL, INT3, _, _, _, INT2 = EVERY = (
    "int4 block 32", "int4 per channel", "int3 block 32", "int3 block 64", "int3 block 128", "int3 per channel",
    "int2 block 32",
)  # fmt: skip
UNIFORM = {  # (bits, block); a block of 0: a scale a channel
    INT4: (4, 32), "int4 block 64": (4, 64), "int4 block 128": (4, 128), CHANNEL: (4, 0),
    INT3: (3, 32), "int3 block 64": (3, 64), "int3 block 128": (3, 128), "int3 per channel": (3, 0),
    "int2 block 16": (2, 16), INT2: (2, 32),
}  # fmt: skip
MIXED = {f"{bpw} bpw": ("--bpw", bpw) for bpw in ("4.5", "4.0", "3.5", "3.0")}  # int4 in blocks of 32 takes 4.5
OURS = {name: ("--bits", str(bits), "--block", str(block)) for name, (bits, block) in UNIFORM.items()} | MIXED
GOALS = {INT4: 1.204, CHANNEL: 1.215, "3.0 bpw": 1.25, INT2: 1.50}  # bits a byte
WITHOUT_DATA = ("rtn", "hqq")
METHODS = {
    "rtn": (*EVERY, *MIXED),  # of a mix: any algorithm
    "mse": EVERY,
    "hqq": EVERY,
    "awq": EVERY,
    "adaround": EVERY,
    "gptq --at-once": EVERY,
    "gptq": tuple(OURS),
    "nf4": (INT4,),
    "iq4_nl": (INT4,),
    "kmeans_scaled": EVERY,
}
PEERS = {
    "default": tuple(name for name, (bits, _) in UNIFORM.items() if bits != 3),
    "rtn": (INT4,),
    "hqq": (INT4, INT2),
    "k_quant": (INT4,),
    "gptq": (INT4,),
}
"""onnxruntime has no quantizer to 3 bits."""


@dataclass
class Row:
    """bits: per byte, mean of the windows. error: of the loss, the difference to float. divergence: from float, in bits
    per byte. seconds: of CPU. failed: why not.
    """

    format: str
    method: str
    bits: float | None = None
    error: float | None = None
    loss: float | None = None
    divergence: float | None = None
    size: int | None = None
    seconds: float | None = None
    peak: int | None = None
    failed: str = ""


def training_windows(count: int) -> np.ndarray:
    """int64 [count, 512] of the standard library's part of the training text, spread evenly over it."""
    files = runpy.run_path(str(tinypy.FOLDER / "make_corpus.py"))["files"]
    texts = {text: None for _, held, text in files(sysconfig.get_path("stdlib"), "/nowhere") if not held}
    usable = sorted(
        (t for t in texts if 400 <= len(t) <= 400_000 and t.isascii()), key=lambda t: hashlib.sha1(t).digest()
    )
    joined = np.frombuffer(b"\0".join(usable), np.uint8).astype(np.int64)
    starts = np.linspace(0, len(joined) - tinypy.CONTEXT, count).astype(np.int64)
    return joined[starts[:, None] + np.arange(tinypy.CONTEXT)]


def predictions(model: Path, indices: range, threads: int) -> np.ndarray:
    """log2 of the probability of each next byte, float32 [windows, 512, 256]."""
    running = session(model, threads, spinning=False)
    found = np.empty((len(indices), tinypy.CONTEXT, 256), np.float32)
    for place, tokens in zip(found, tinypy.windows(indices)[0], strict=True):
        place[:] = tinypy.log2_probabilities(running.run(["logits"], {"tokens": tokens[None]})[0][0])
    return found


def bits(predicted: np.ndarray, indices: range) -> np.ndarray:
    """Bits per byte of each window."""
    target = tinypy.windows(indices)[1]
    return -np.take_along_axis(predicted, target[..., None], -1)[..., 0].mean(1, np.float64)


def divergence(reference: np.ndarray, predicted: np.ndarray) -> float:
    """Of Kullback and Leibler, the mean over bytes of Σ p log2 (p / q), p the reference's."""
    return float(np.mean([(np.exp2(p) * (p - q)).sum(-1).mean() for p, q in zip(reference, predicted, strict=True)]))


def command(row: Row, model: Path, calib: Path, folder: Path) -> tuple[list[str], Path]:
    """What quantizes, and where the artifact will lie."""
    if row.method.startswith("ort "):
        name = row.method.removeprefix("ort ")
        bits, block = UNIFORM[row.format]
        out = folder / "peer.onnx"
        peer = [sys.executable, "-m", "benchmarks.peers.ort_nbits"]
        return [*peer, *map(str, (model, calib, out, name, bits, block))], out
    weight, *options = row.method.split()
    ours = [
        sys.executable,
        "-m",
        "edgeq",
        "quantize",
        str(model),
        "-t",
        "generic",
        "-o",
        str(folder / "out"),
        "--quiet",
    ]
    ours += ["--method", "weight_only", "--weight", weight, *options, *OURS[row.format], "--no-verify"]
    recipe = folder / "recipe.toml"
    recipe.write_text("samples = 0\n")  # all of them
    data = ["--calib", str(calib), "--recipe", str(recipe)]
    return [*ours, *([] if weight in WITHOUT_DATA and row.format not in MIXED else data)], folder / "out" / "model.onnx"


def measure(row: Row, model: Path, calib: Path, indices: range, reference: np.ndarray, threads: int) -> Row:
    """The row with its values, or with why there are none."""
    with tempfile.TemporaryDirectory() as folder:
        line, artifact = command(row, model, calib, Path(folder))
        cost = peak_rss(line, threads=threads, extra_env={"PYTHONPATH": str(ROOT)})
        row.seconds, row.peak = cost.cpu, cost.peak_rss
        if cost.error:
            row.failed = cost.error
            return row
        row.size = sum(p.stat().st_size for p in artifact.parent.glob(f"{artifact.name}*"))
        predicted = predictions(artifact, indices, threads)
    found = bits(predicted, indices)
    difference = found - bits(reference, indices)
    row.divergence = divergence(reference, predicted)
    row.bits, row.loss = float(found.mean()), float(difference.mean())
    row.error = float(difference.std(ddof=1) / np.sqrt(len(difference)))
    return row


def wanted(patterns: str) -> Iterator[Row]:
    """The rows whose `format / method` matches one of the patterns, format by format."""
    for name in OURS:
        methods = [m for m, formats in METHODS.items() if name in formats]
        methods += [f"ort {m}" for m, formats in PEERS.items() if name in formats]
        for method in methods:
            if any(fnmatch.fnmatch(f"{name} / {method}", pattern) for pattern in patterns.split(",")):
                yield Row(name, method)


def held(path: Path | None, settings: Mapping[str, int]) -> dict[tuple[str, str], Row]:
    """The rows of an earlier run with the same settings, by format and method."""
    content = json.loads(path.read_text()) if path is not None and path.exists() else {}
    rows = content["rows"] if content.get("settings") == settings else []
    return {(row["format"], row["method"]): Row(**row) for row in rows}


def verdicts(found: Sequence[Row]) -> Iterator[str]:
    """A line a format: edgeq's best, the best of the others, the goal, and what is as small as a mix and no worse."""
    for name in OURS:
        rows = sorted((r for r in found if r.format == name and r.bits is not None), key=lambda r: r.bits or 0)
        ours, theirs = ([r for r in rows if r.method.startswith("ort ") is peer] for peer in (False, True))
        if not ours:
            continue
        line = [f"{name}: {ours[0].method} {ours[0].bits:.4f}"]
        line += [
            f"{r.method} {r.bits:.4f} ({'behind' if (ours[0].bits or 0) < (r.bits or 0) else 'AHEAD'})"
            for r in theirs[:1]
        ]
        if name in GOALS:
            line.append(f"goal {GOALS[name]} ({'met' if (ours[0].bits or 9) <= GOALS[name] else 'MISSED'})")
            line += [f"in no more bytes: {r.format} {r.method} {r.bits:.4f}" for r in smaller(ours[0], found)[:1]]
        if name in MIXED:
            line.append(f"as small and no worse: {', '.join(beaten(ours[0], found)) or 'no uniform format'}")
        yield ", ".join(line)


def smaller(row: Row, found: Sequence[Row]) -> list[Row]:
    """edgeq's mixes that are better than a row and no larger, the best first."""
    mixes = [r for r in found if r.format in MIXED and r.bits and row.bits and r.bits < row.bits]
    return sorted((r for r in mixes if (r.size or 0) <= (row.size or 0)), key=lambda r: r.bits or 0)


def beaten(row: Row, found: Sequence[Row]) -> list[str]:
    """The uniform formats that are as small as a mixed one's file, and no worse."""
    return [
        f"{r.format} / {r.method}"
        for r in found
        if r.format in UNIFORM and r.bits and row.bits and r.bits <= row.bits and (r.size or 0) <= (row.size or 0)
    ]


def cells(row: Row) -> list[str]:
    if row.failed:
        return [row.format, row.method, "failed", *["-"] * 6]
    numbers = (row.bits, row.error, row.loss, row.divergence, row.size, row.seconds, row.peak)
    if any(n is None for n in numbers):
        return [row.format, row.method, *["-"] * 7]
    return [
        row.format, row.method, f"{row.bits:.4f}", f"{row.error:.4f}", f"{row.loss:+.4f}", f"{row.divergence:.4f}",
        f"{row.size:,}", f"{row.seconds:.0f}", f"{(row.peak or 0) / 1e6:.0f}",
    ]  # fmt: skip


def table(found: Sequence[Row]) -> Table:
    shown = Table(title="tinypy, weight-only, onnxruntime CPU", caption=machine())
    for heading in HEADINGS:
        shown.add_column(heading, justify="left" if heading in HEADINGS[:2] else "right")
    for index, row in enumerate(found):
        shown.add_row(*cells(row), end_section=index + 1 == len(found) or found[index + 1].format != row.format)
    return shown


def main(argv: list[str] | None = None) -> int:
    """Print the table. Returns 1 when edgeq failed in a row: a peer's failure is a result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.weights", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", default="*", help="patterns over `format / method`, with commas between")
    parser.add_argument("--windows", type=int, default=100, help="how many of the held-out text are reported")
    parser.add_argument("--skip", type=int, default=0, help="the first window; 100 leaves out those that are reported")
    parser.add_argument("--calib", type=int, default=128, help="training windows that calibrate")
    parser.add_argument("--jobs", type=int, default=1, help="rows at a time, each on one core")
    parser.add_argument("--json", type=Path, help="write every number there, after each row; go on from there")
    args = parser.parse_args(argv)
    indices = range(args.skip, args.skip + args.windows)
    settings = {"windows": args.windows, "skip": args.skip, "calib": args.calib}
    console, lock, known = Console(stderr=True), Lock(), held(args.json, settings)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.jobs) as pool:
        model, calib = tinypy.build(Path(folder) / "tinypy.onnx"), Path(folder) / "calib.npz"
        np.savez(calib, tokens=training_windows(args.calib))
        reference = predictions(model, indices, 1)

        def one(row: Row) -> Row:
            key = row.format, row.method
            if key not in known:
                made = measure(row, model, calib, indices, reference, 1)
                with lock:
                    known[key] = made
                    console.print(" ".join(cells(made)), made.failed, style="dim", highlight=False)
                    if args.json:
                        rows = [asdict(r) for r in known.values()]
                        args.json.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")
            return known[key]

        found = [Row("float32", "", bits(reference, indices).mean(), 0.0, 0.0, 0.0, model.stat().st_size, 0.0, 0)]
        found += pool.map(one, wanted(args.rows))
    Console(width=130).print(table(found))
    for line in verdicts(found):
        print(line)
    return int(any(row.failed and not row.method.startswith("ort") for row in found))


if __name__ == "__main__":
    sys.exit(main())
