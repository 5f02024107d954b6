"""A float model larger than memory to int4: `python -m benchmarks.large [--gigabytes 12] [--weight rtn]`.

The model is a chain of MatMuls of 4096 by 16384 and back, whose weights are external data. Its file is written sparse
where `--sparse` is given (all weights are 0 then), else filled with random numbers. Printed: seconds and peak memory
of quantizing, and how the rate compares with reading and writing the same bytes plainly, both from and to the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from benchmarks.measure import peak_rss

WIDE, NARROW = 16384, 4096
BYTES = 4 * WIDE * NARROW
CHUNK = 1 << 24


def build(folder: Path, gigabytes: float, sparse: bool) -> Path:
    """The model's file, its weights beside it."""
    layers = max(2, round(gigabytes * 1e9 / BYTES))
    nodes, weights, value = [], [], "x"
    for i in range(layers):
        shape = [NARROW, WIDE] if i % 2 == 0 else [WIDE, NARROW]
        weight = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
        for key, entry in (("location", "large.data"), ("offset", str(i * BYTES)), ("length", str(BYTES))):
            weight.external_data.add(key=key, value=entry)
        weights.append(weight)
        nodes.append(helper.make_node("MatMul", [value, f"w{i}"], [f"y{i}"], name=f"matmul_{i}"))
        value = f"y{i}"
    last = WIDE if layers % 2 else NARROW
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", NARROW])],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, ["N", last])],
        weights,
    )
    with open(folder / "large.data", "wb") as data:
        if sparse:
            data.truncate(layers * BYTES)
        else:
            block = np.random.default_rng(0).normal(size=CHUNK // 4).astype(np.float32).tobytes()
            for _ in range(layers * BYTES // CHUNK):
                data.write(block)
    path = folder / "large.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()
    )
    onnx.load(path, load_external_data=False)
    return path


def cold(path: Path) -> None:
    """Write a file out, and have the system forget its pages: what is read next comes from the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def plain(source: Path, target: Path, share: float) -> float:
    """Seconds to read a file from the disk and write `share` of its bytes to it."""
    cold(source)
    began = time.perf_counter()
    with open(source, "rb") as left, open(target, "wb") as right:
        while chunk := left.read(CHUNK):
            right.write(chunk[: int(len(chunk) * share)])
    cold(target)
    seconds = time.perf_counter() - began
    target.unlink()
    return seconds


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=12.0)
    parser.add_argument("--weight", default="rtn")
    parser.add_argument("--sparse", action="store_true")
    parser.add_argument("--folder", type=Path, help="where there is room for twice the model")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        model = build(folder, args.gigabytes, args.sparse)
        size = (folder / "large.data").stat().st_size
        reading = plain(folder / "large.data", folder / "copy", 4.5 / 32)
        command = [sys.executable, "-m", "edgeq", "quantize", str(model), "-t", "generic", "-o", str(folder / "out")]
        command += ["--method", "weight_only", "--weight", args.weight, "--no-verify", "--quiet"]
        cold(folder / "large.data")
        began = time.perf_counter()
        cost = peak_rss(command, threads=1, extra_env={"PYTHONPATH": os.getcwd()})
        written = list((folder / "out").glob("model.onnx*"))
        for path in written:
            cold(path)
        seconds = time.perf_counter() - began
        made = sum(path.stat().st_size for path in written)
    row = {
        "bytes": size, "artifact": made, "seconds": round(seconds, 1), "plain_seconds": round(reading, 1),
        "rate": round(reading / seconds, 3), "peak_mb": cost.peak_rss // 10**6, "error": cost.error,
    }  # fmt: skip
    print(json.dumps(row))
    return int(bool(cost.error))


if __name__ == "__main__":
    sys.exit(main())
