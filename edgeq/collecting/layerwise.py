"""Weights solved layer by layer, in the order in which data meets them.

Layers that read one value form a stage. The graph is cut at these values, and the samples walk from cut to cut, in
files: each node runs once, and no more than one layer's statistics are in memory. Two streams walk side by side:

    x   as the float model computes it
    x'  as the layers quantized so far leave it (when `sequential`, else x' = x)

A layer is rounded for its real input x', and aims at what the float layer makes of x (`rows.corrected`).
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgeq.calibrate.gram import Gram
from edgeq.collecting.streams import Stage, Stream
from edgeq.data import Dataset
from edgeq.data.arrays import read_npz
from edgeq.errors import CalibrationError, ModelError
from edgeq.files import let_go, read_ahead, replacing, spilled
from edgeq.graph import io
from edgeq.graph.edit import add_initializer, is_constant, rank, sole_consumer
from edgeq.numerics import affine, codebook, pack
from edgeq.planning.plan import PACKED, Plan, WeightPlan
from edgeq.registry import load
from edgeq.types import Coded, PerTensor, Progress, QParams, QTensor, Solution, Stats
from edgeq.weights import algorithm, correction, rows, tiles
from edgeq.weights.feedback import refine

MANY = 1 << 24
"""Weights of a layer whose codes wait on disk until they are written."""


@dataclass(frozen=True, eq=False)
class Layer:
    """What is known of one layer when its turn comes. weight: what to round. stats: None where no data reaches it.
    packs: may its codes be packed as they are found? Then MatMulNBits gets them, and nobody asks for them before.
    """

    plan: WeightPlan
    weight: np.ndarray
    stats: Stats | None
    packs: bool = False


def stages(model: ir.Model, plan: Plan) -> tuple[list[Stage], list[WeightPlan]]:
    """Stages in the order of the graph, and the layers that no statistics serve (tables, convolutions, loop bodies)."""
    nodes = {n.name: n for n in model.graph}
    place = {v: i for i, node in enumerate(model.graph, 1) for v in node.outputs}
    found: dict[ir.Value, list[WeightPlan]] = {}
    rest: list[WeightPlan] = []
    for layer in plan.weights:
        node = nodes.get(layer.node)
        flat = node is not None and node.op_type in ("MatMul", "Gemm") and rank(node.inputs[layer.index]) == 2
        flat &= not isinstance(layer.spec.granularity, PerTensor)  # which doesn't say where its features lie
        data = node.inputs[0] if node is not None and flat else None
        if data is None or is_constant(data):
            rest.append(layer)
        else:
            found.setdefault(data, []).append(layer)
    listed = [Stage(v.name or "", place.get(v, 0), tuple(layers)) for v, layers in found.items()]
    return sorted(listed, key=lambda stage: stage.cut), rest


def solve_layers(
    plan: Plan,
    model: ir.Model,
    data: Dataset | None,
    work: Path,
    sequential: bool,
    keep: Path | None,
    progress: Progress,
    device: str = "cpu",
) -> tuple[Solution, dict[str, str]]:
    """The weights of a plan, and {node: reason} for those that have to stay float.

    data: None for algorithms that need none. keep: a folder of finished layers: one whose weight, statistics and
    recipe are the same is not solved again. device: cuda solves GPTQ's layers there, where torch's form of it has one
    for them. Raises CalibrationError for an algorithm that needs data and has none.
    """
    solution = Solution({}, {}, {})
    failed: dict[str, str] = {}
    for name in sorted({layer.algorithm for layer in plan.weights}):
        if data is None and getattr(algorithm(name), "NEEDS_DATA", False):
            raise CalibrationError(f"{name} weights need data: give --calib, or choose --weight hqq or mse")
    total, done = len(plan.weights), 0
    walk = walk_layers(plan, model, data, work, sequential)
    layer = next(walk, None)
    while layer is not None:
        solved, real = None, None
        try:
            solved, real = _solve(layer, solution, keep, work, device)
        except ModelError as error:
            failed[layer.plan.node] = str(error)
        done += 1
        progress("solve", done, total)
        layer = None  # lets the mapped weight go
        follows = sequential and data is not None and solved is not None
        layer = _send(walk, (codebook.real(solved) if real is None else real) if follows and solved else None)
    return solution, failed


def _solve(
    layer: Layer, solution: Solution, keep: Path | None, work: Path, device: str
) -> tuple[QTensor | Coded | None, np.ndarray | None]:
    """Put what is found into the solution. Gives the layer's codes, and the weight that corrections make of them.

    Nobody asks for codes that were packed.
    """
    plan, key = layer.plan, (layer.plan.node, layer.plan.index)
    features = np.empty(0, np.int64)
    shown = layer
    if plan.outliers:
        features = correction.outlying(layer.weight, plan.spec, layer.stats, plan.outliers)
        shown = replace(layer, weight=correction.without(layer.weight, plan.spec, features))
    if layer.packs and keep is None:
        found = algorithm(plan.algorithm)
        quantize = partial(found.quantize, **dict(plan.settings))
        read_ahead(layer.weight)
        rows = partial(spilled, folder=work)
        any_shape = hasattr(found, "ANY_SHAPE")
        solution.packed[key] = tiles.packed(quantize, layer.weight, plan.spec, rows, any_shape=any_shape)
        let_go(solution.packed[key].rows)
        return None, None
    solved = _kept(shown, keep, work, device)
    if isinstance(solved, Coded):
        solution.codes[key] = solved
    else:
        solution.weights[key] = solved
    if not features.size and not plan.low_rank:
        return solved, None
    solution.corrections[plan.node], real = correction.corrections(
        layer.weight, codebook.real(solved), plan.spec, layer.stats, features, plan.low_rank
    )
    return solved, real


def _send(walk, real: np.ndarray | None) -> Layer | None:  # type: ignore[no-untyped-def]
    try:
        return walk.send(real)
    except StopIteration:
        return None


def walk_layers(plan: Plan, model: ir.Model, data: Dataset | None, work: Path, sequential: bool):  # type: ignore[no-untyped-def]
    """A generator of `Layer`s; send it what each one's weight became, float32, or None to leave it as it was.

    work: a folder for the samples and cut models while it runs.
    """
    listed, rest = stages(model, plan)
    packed = plan.decided(PACKED)
    constants = {v.name: v for v in model.graph.initializers.values()}
    with tempfile.TemporaryDirectory(dir=work, prefix="layers-") as folder:
        changed = model.clone()
        streams = [Stream(model, Path(folder) / "float")]
        if sequential:
            streams.append(Stream(changed, Path(folder) / "quantized"))
        for layer in rest:
            value = constants.get(layer.value)
            tensor = value.const_value if value is not None else _inner(model, layer.value)
            assert tensor is not None
            real = yield Layer(layer, io.mapped(tensor), None)
            _put(changed, layer, real)
        for stream in streams:
            stream.start(data or ())
        for stage in listed:
            if data is None:
                for layer in stage.layers:
                    weight = io.mapped(constants[layer.value].const_value)  # type: ignore[arg-type]
                    yield Layer(layer, weight, None, layer.node in packed and _packs(layer, weight))
                continue
            for stream in streams:
                stream.advance(stage)
            stats, cross = _statistics(streams, stage.value)
            for layer in stage.layers:
                aim = constants[layer.value].const_value.numpy()  # type: ignore[union-attr]
                if cross is not None:
                    aim = rows.corrected(aim, layer.spec, stats, cross, _behind(model, layer, streams, stage.value))
                real = yield Layer(layer, aim, stats)
                _put(changed, layer, real)


def _packs(layer: WeightPlan, weight: np.ndarray) -> bool:
    """Can the codes of a matrix go to MatMulNBits as they are found?"""
    whole = not layer.outliers and not layer.low_rank and not hasattr(algorithm(layer.algorithm), "encode")
    return whole and weight.size >= MANY and pack.packs(layer.spec)


def _inner(model: ir.Model, name: str) -> ir.TensorProtocol:
    return next(g.initializers[name].const_value for g in model.graph.subgraphs() if name in g.initializers)  # type: ignore[return-value]


def _put(model: ir.Model, layer: WeightPlan, real: np.ndarray | None) -> None:
    """Give one node of the main graph a weight of its own."""
    node = next((n for n in model.graph if n.name == layer.node), None)
    if real is not None and node is not None:
        name = f"{layer.node}/{layer.index}/quantized"
        node.replace_input_with(layer.index, add_initializer(model.graph, name, real))


def _statistics(streams: list[Stream], name: str) -> tuple[Stats, np.ndarray | None]:
    """Of x', and the sum of (x - x') x'ᵀ, None where x' is x."""
    gram: Gram | None = None
    cross: np.ndarray | None = None
    for values in zip(*(stream.each(name) for stream in streams), strict=True):
        x = values[-1].reshape(-1, values[-1].shape[-1])
        if gram is None:
            gram = Gram.of(x.shape[-1])
            cross = np.zeros_like(gram.gram) if len(streams) > 1 else None
        gram.update(x)
        if cross is not None:
            cross += (values[0].reshape(x.shape) - x).T @ x
    if gram is None:
        raise ModelError(f"value {name!r}: no sample reached it; give calibration data")
    return gram.result(), cross


def _behind(model: ir.Model, layer: WeightPlan, streams: list[Stream], name: str) -> np.ndarray | None:
    """The sum of (r - r') x'ᵀ for the r that the layer's output is added to, where it is known by then."""
    node = next(n for n in model.graph if n.name == layer.node)
    add = sole_consumer(node.outputs[0])
    if add is None or add.op_type != "Add":
        return None
    other = next(v for v in add.inputs if v is not node.outputs[0])
    if other is None or other.name not in streams[0].live:
        return None
    total: np.ndarray | float = 0.0
    real, rounded = streams
    for r, changed, x in zip(real.each(other.name), rounded.each(other.name), rounded.each(name), strict=True):
        total = total + (r - changed).reshape(-1, r.shape[-1]).T @ x.reshape(-1, x.shape[-1])
    return np.asarray(total, np.float64)


def _kept(layer: Layer, keep: Path | None, work: Path, device: str) -> QTensor | Coded:
    """Solve the layer, or take it from the folder of finished ones."""
    plan = layer.plan
    if keep is None:
        return _solved(layer, work, device)
    digest = hashlib.sha256(f"{plan.spec} {plan.algorithm} {plan.settings} {device} {layer.weight.shape}".encode())
    for array in (layer.weight, *((layer.stats.gram,) if layer.stats else ())):
        digest.update(np.ascontiguousarray(array).data)
    path = keep / f"{digest.hexdigest()}.npz"
    if path.exists():
        try:
            return _of_arrays(read_npz(path), plan)
        except (CalibrationError, KeyError):  # damaged: it is made anew
            path.unlink()
    solved = _solved(layer, work, device)
    keep.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file, open(file, "wb") as stream:
        np.savez(stream, **_arrays(solved))  # type: ignore[arg-type]
    return solved


def _arrays(solved: QTensor | Coded) -> dict[str, np.ndarray]:
    if isinstance(solved, Coded):
        return {"data": solved.data, "scale": solved.scale, "levels": solved.levels}
    return {"data": solved.data, "scale": solved.params.scale, "zero_point": solved.params.zero_point}


def _of_arrays(held: Mapping[str, np.ndarray], plan: WeightPlan) -> QTensor | Coded:
    if "levels" not in held:
        return QTensor(held["data"], QParams(held["scale"], held["zero_point"], plan.spec))
    spec = plan.spec if held["scale"].ndim else replace(plan.spec, granularity=PerTensor())
    return Coded(held["data"], held["levels"], held["scale"], spec, plan.algorithm)


def _solved(layer: Layer, work: Path, device: str) -> QTensor | Coded:
    """The layer's codes, on disk where they are many integers."""
    plan, weight = layer.plan, layer.weight
    found = algorithm(plan.algorithm)
    if hasattr(found, "encode"):
        encoded: Coded = found.encode(np.asarray(weight), plan.spec, layer.stats, **dict(plan.settings))
        if layer.stats is None:
            return encoded
        return refine(np.asarray(weight), plan.spec, layer.stats, encoded, found.SCALED)
    solve = partial(found.quantize, **dict(plan.settings))
    if device == "cuda" and plan.algorithm == "gptq" and layer.stats is not None and not plan.settings:
        on_gpu = load("edgeq.train", "gptq_cuda", "quantize")
        solve = on_gpu.quantize if on_gpu.takes(plan.spec) else solve
    if weight.size < MANY:
        return solve(np.asarray(weight), plan.spec, layer.stats)
    codes = spilled(weight.shape, affine.storage_dtype(plan.spec.dtype), work)
    if layer.stats is None and tiles.steps(weight.shape, plan.spec) is not None:
        params = tiles.in_tiles(solve, weight, plan.spec, codes.__setitem__)
    else:
        solved = solve(weight, plan.spec, layer.stats)
        codes[...], params = solved.data, solved.params
    let_go(codes)
    return QTensor(codes, params)
