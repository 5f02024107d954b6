"""Which `accuracy_level` of MatMulNBits is fast: `python -m benchmarks.nbits [--size 1024]`.

One MatMul of size x size with weights of 2, 4 and 8 bits in blocks of 32, at each level, one thread, in turns, beside
float32. `error`: relative, of the output against level 0, which uses the input as it is; level 4 rounds it to int8 in
blocks. Targets' `accuracy_level` is what this shows.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

from benchmarks.latency import machine
from benchmarks.measure import ratios, session
from edgeq.numerics import pack
from edgeq.types import PerBlock, QSpec
from edgeq.weights import rtn

LEVELS = (0, 1, 4)


def model(node: onnx.NodeProto, arrays: dict[str, np.ndarray], size: int, path: Path) -> Path:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["M", size]) for name in ("x", "y")]
    inits = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph([node], "nbits", ends[:1], ends[1:], inits)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def models(size: int, folder: Path) -> dict[str, Path]:
    """`float`, and `BITS bits, level LEVEL`."""
    w = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)
    found = {"float": model(helper.make_node("MatMul", ["x", "w"], ["y"]), {"w": w}, size, folder / "float.onnx")}
    for bits in (2, 4, 8):
        form = pack.to_matmul_nbits(rtn.quantize(w, QSpec(f"int{bits}", granularity=PerBlock(0, 32))))
        for level in LEVELS:
            node = helper.make_node(
                "MatMulNBits", ["x", "b", "s"], ["y"], domain="com.microsoft", K=size, N=size, bits=bits,
                block_size=32, accuracy_level=level,
            )  # fmt: skip
            path = folder / f"{bits}_{level}.onnx"
            found[f"{bits} bits, level {level}"] = model(node, {"b": form.b, "s": form.scales}, size, path)
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nbits", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=1024)
    args = parser.parse_args(argv)
    shown = Table(title=f"MatMul of {args.size} x {args.size}, one thread", caption=machine())
    for heading in ("weights", "rows", "ms", "over float", "error"):
        shown.add_column(heading, justify="left" if heading == "weights" else "right")
    with tempfile.TemporaryDirectory() as name:
        sessions = {k: session(path, 1, spinning=False) for k, path in models(args.size, Path(name)).items()}
        for rows in (1, 64):
            x = np.random.default_rng(1).normal(size=(rows, args.size)).astype(np.float32)
            outputs = {k: s.run(None, {"x": x})[0] for k, s in sessions.items()}
            calls = {k: (lambda s=s, x=x: s.run(None, {"x": x})) for k, s in sessions.items()}
            for k, (seconds, gain) in ratios(calls, "float", seconds=0.02).items():
                exact = outputs[k if k == "float" else f"{k[0]} bits, level 0"]
                error = np.linalg.norm(outputs[k] - exact) / np.linalg.norm(exact)
                shown.add_row(
                    k, str(rows), f"{seconds * 1e3:.3f}", f"{gain:.2f}x", f"{error:.4f}", end_section=k[-1] == "4"
                )
    Console(width=100).print(shown)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
