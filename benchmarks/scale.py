"""What grows with a model's nodes and with samples: `python -m benchmarks.scale [--nodes 1000 … 50000] [--svg FILE]`.

Nodes: processor seconds to read, prepare, plan, solve, rewrite and save a chain of Conv, Clip, Conv and Add, all but
the calibration, which is the float model's run and takes as long per value however many there are.
Samples: peak memory of quantizing a small network on a folder of so many (`--samples`).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.measure import peak_rss, save_folder

NODES = (1000, 2000, 5000, 10000, 20000, 35000, 50000)
SAMPLES = (100, 1000, 10000)
CHANNELS, SIDE = 8, 4
SVG = Path(__file__).resolve().parent.parent / "docs" / "scale.svg"


def chain(path: Path, nodes: int) -> Path:
    """A model of that many nodes whose values stay within the same bounds, however long it is."""
    rng, value, made = np.random.default_rng(0), "x", []
    constants = [numpy_helper.from_array(np.float32(end), name) for name, end in (("lo", -4), ("hi", 4))]
    for i in range(nodes // 4):
        for name in (f"v{i}", f"w{i}"):
            weight = rng.normal(0, CHANNELS**-0.5, (CHANNELS, CHANNELS, 1, 1)).astype(np.float32)
            constants.append(numpy_helper.from_array(weight, name))
        made += [
            helper.make_node("Conv", [value, f"v{i}"], [f"a{i}"]),
            helper.make_node("Clip", [f"a{i}", "lo", "hi"], [f"b{i}"]),
            helper.make_node("Conv", [f"b{i}", f"w{i}"], [f"c{i}"]),
            helper.make_node("Add", [f"c{i}", f"b{i}"], [f"d{i}"]),
        ]
        value = f"d{i}"
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, CHANNELS, SIDE, SIDE]) for n in ("x", value)]
    graph = helper.make_graph(made, "chain", ends[:1], ends[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def feeds(count: int, side: int = SIDE) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.normal(size=(1, CHANNELS, side, side)).astype(np.float32)} for _ in range(count)]


def of_nodes(nodes: int) -> dict[str, float]:
    """Processor seconds of each step, all values having the same extrema."""
    from edgeq import passes, target
    from edgeq.calibrate.summary import Summary
    from edgeq.graph import io
    from edgeq.graph.prepare import prepare
    from edgeq.passes import qdq
    from edgeq.planning.planner import plan
    from edgeq.planning.solve import solve
    from edgeq.recipe import Recipe

    aim, seen, seconds = target.load("x86_64"), Summary(), {}
    seen.update(np.array([-4, 4], np.float32))

    def timed(name: str, began: float) -> float:
        seconds[name] = round(time.process_time() - began, 2)
        return time.process_time()

    with tempfile.TemporaryDirectory() as folder:
        path = chain(Path(folder) / "m.onnx", nodes)
        start = clock = time.process_time()
        model = prepare(io.load(path), aim.opset)
        passes.run(model, aim.passes_before)
        clock = timed("prepare", clock)
        made = plan(model, aim, Recipe(calibrator="minmax"))
        clock = timed("plan", clock)
        solution, _ = solve(made, model, {row.name: seen for row in made.values})
        clock = timed("solve", clock)
        rewritten = qdq.apply(model, made, solution, aim)
        passes.run(rewritten, aim.passes_after)
        clock = timed("rewrite", clock)
        io.save(rewritten, Path(folder) / "q.onnx")
        timed("save", clock)
        timed("seconds", start)
    integer = sum(node.decision in ("integer", "folded") for node in made.nodes)
    return {"nodes": nodes, "integer": integer, **seconds}


def of_samples(counts: list[int]) -> list[dict[str, float | str]]:
    """Peak memory in MB and processor seconds of whole runs of the command line."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        model = chain(Path(name) / "m.onnx", 40)
        data = save_folder(feeds(max(counts), 16), Path(name) / "data")
        model_16 = onnx.load(model)
        for value in (*model_16.graph.input, *model_16.graph.output):
            for dim in value.type.tensor_type.shape.dim[2:]:
                dim.dim_value = 16
        onnx.save(model_16, model)
        for count in counts:
            recipe = Path(name) / "recipe.toml"
            recipe.write_text(f"samples = {count}\n")
            command = [sys.executable, "-m", "edgeq", "quantize", str(model), "--calib", str(data), "--no-verify", "-q"]
            command += ["--recipe", str(recipe), "-o", str(Path(name) / "out")]
            cost = peak_rss(command, threads=1, extra_env={"PYTHONPATH": os.getcwd()})
            row = {"samples": count, "peak_mb": round(cost.peak_rss / 1e6, 1), "cpu": round(cost.cpu, 1)}
            rows.append({**row, "error": cost.error})
    return rows


def drawn(rows: list[dict[str, float]]) -> str:
    """The seconds over the nodes, and the straight line through 0 that is nearest to them."""
    wide, high, left, low = 560, 300, 56, 40
    x, y = (np.array([row[key] for row in rows], dtype=float) for key in ("nodes", "seconds"))
    most = (x.max(), 10 * np.ceil(max(y.max(), 20) / 10))
    slope = float(x @ y / (x @ x))

    def at(nodes: float, seconds: float) -> tuple[int, int]:
        across, up = nodes / most[0] * (wide - left - 24), seconds / most[1] * (high - low - 24)
        return round(left + across), round(high - low - up)

    def text(place: tuple[int, int], words: str, anchor: str = "middle") -> str:
        return f'<text x="{place[0]}" y="{place[1]}" text-anchor="{anchor}">{words}</text>'

    (ox, oy), (ex, ey), (lx, ly) = at(0, 0), (at(most[0], 0)[0], at(0, most[1])[1]), at(x.max(), slope * x.max())
    parts = [f'<path d="M{ox},{ey}V{oy}H{ex}" stroke="#888" fill="none"/>',
             f'<path d="M{ox},{oy}L{lx},{ly}" stroke="#bbb" stroke-dasharray="4 3"/>']  # fmt: skip
    for nodes in range(0, int(most[0]) + 1, 10000):
        parts.append(text((at(nodes, 0)[0], oy + 16), f"{nodes // 1000}k"))
    for seconds in np.linspace(0, most[1], 6):
        parts.append(text((ox - 6, at(0, seconds)[1] + 4), f"{seconds:g}", "end"))
    points = [at(*row) for row in zip(x, y, strict=True)]
    parts.append(f'<polyline points="{" ".join(f"{a},{b}" for a, b in points)}" stroke="#06c" fill="none"/>')
    parts += [f'<circle cx="{a}" cy="{b}" r="3" fill="#06c"/>' for a, b in points]
    parts += [text(((ox + ex) // 2, high - 6), "nodes of the float model"),
              text((ox, 14), "processor seconds: read, prepare, plan, rewrite, save", "start"),
              text((lx - 8, max(ly - 10, 36)), f"{slope * 1000:.2f} s for 1000 nodes", "end")]  # fmt: skip
    style = 'font-family="sans-serif" font-size="12" fill="#444"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" {style}>'
    return "\n".join([head, f'<rect width="{wide}" height="{high}" fill="#fff"/>', *parts, "</svg>", ""])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", type=int, nargs="*", default=NODES)
    parser.add_argument("--samples", type=int, nargs="*", default=SAMPLES)
    parser.add_argument("--svg", type=Path, help="where the plot is drawn", default=SVG)
    args = parser.parse_args(argv)
    gc.set_threshold(10_000, 10, 10)  # as the command line does
    rows = []
    for nodes in args.nodes:
        rows.append(of_nodes(nodes))
        print(json.dumps(rows[-1]), flush=True)
    if len(rows) > 1:
        args.svg.write_text(drawn(rows))
    for row in of_samples(list(args.samples)) if args.samples else []:
        print(json.dumps(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
