"""What the recipe's `passes` ask for: the statistics that each needs, and its rewrite before or after rounding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import TopologicalSortPass

from edgeq.calibrate.gram import Gram
from edgeq.collecting.shards import chosen
from edgeq.collecting.streams import Stage, Stream
from edgeq.data import Dataset
from edgeq.errors import CalibrationError, RecipeError
from edgeq.graph import io
from edgeq.graph.edit import constant, static_shape
from edgeq.graph.folding import matrix
from edgeq.passes import equalize, smooth
from edgeq.passes.bias_correct import correct, with_biases
from edgeq.planning.plan import INTEGER, Plan
from edgeq.planning.planner import plan
from edgeq.recipe import Recipe
from edgeq.registry import load
from edgeq.target import Target
from edgeq.types import Progress, Stats
from edgeq.weights import awq

SAMPLES = 32  # enough for means and extrema of channels, of which a sample of an image has thousands of values
POSITIONS = 256  # windows of a convolution's input that a sample gives to its Gram matrix
MOST_FEATURES = 3072  # its 75 MB are held for every layer at once


def before(
    model: ir.Model, path: Path, target: Target, recipe: Recipe, data: Dataset | None, work: Path, progress: Progress
) -> Path:
    """Run the passes that come before the plan on the prepared model, in place; gives the file that now holds it.

    Raises CalibrationError without data, RecipeError for a stateful model.
    """
    if not recipe.passes:
        return path
    if recipe.state or not (recipe.method == "static" or (recipe.method, *recipe.passes) == ("weight_only", "smooth")):
        raise RecipeError("passes repair static quantization of models without state, smooth weight_only's too")
    if data is None:
        raise CalibrationError("passes need data: give --calib")
    samples = chosen(data, recipe).take(SAMPLES)
    if "equalize" in recipe.passes:
        progress("equalize", 0, None)
        _equalize(model, path, target, samples)
        path = _saved(model, work / ".equalized.onnx")
    if "smooth" in recipe.passes:
        progress("smooth", 0, None)
        _smooth(model, path if path.exists() else _saved(model, path), target, recipe, samples)
    if "bias_correct" in recipe.passes:
        with_biases(model)
    return _saved(model, work / ".recovered.onnx")


def _saved(model: ir.Model, path: Path) -> Path:
    io.save(model, path)
    return path


def _equalize(model: ir.Model, path: Path, target: Target, samples: Dataset) -> None:
    """Equalization, then absorption; what counts is the activations' reach where weights have a scale a channel."""
    rule = target.find("Conv", "static")
    by_reach = rule is not None and bool(rule.weight) and target.types[rule.weight].per == "channel"
    for absorbing in (False, True):
        names = {pair.value: 1 for pair in equalize.pairs(model)}
        seen = channels(path, names, samples)
        if absorbing:
            equalize.absorb(model, seen)
        else:
            equalize.equalize(model, seen, by_reach)
            path = _saved(model, path.with_name(".scaled.onnx"))


def _smooth(model: ir.Model, path: Path, target: Target, recipe: Recipe, samples: Dataset) -> None:
    """By the error of both roundings, or of weight-only quantization's one."""
    readers = {
        name: nodes
        for name, nodes in smooth.candidates(model).items()
        if all(target.find(node.op_type, recipe.method) for node in nodes)
    }
    seen = channels(path, dict.fromkeys(readers, -1), samples)
    stats = grams(path, {name: [(name, None)] for name in readers}, samples)
    specs = {w.node: w.spec for w in plan(model, target, recipe).weights} if recipe.method == "weight_only" else {}
    found = {}
    for name, nodes in readers.items():
        if name not in stats:
            continue
        weights = [matrix(node) for node in nodes]
        if specs:
            stored = [(constant(n.inputs[1]), specs[n.name]) for n in nodes if n.name in specs]
            error = partial(awq.scaled_error, stored, stats[name])  # type: ignore[arg-type]
        else:
            error = partial(smooth.expected_error, *seen[name], weights, stats[name])
        scale = smooth.search(*seen[name], weights, error)
        if scale is not None:
            found[name] = scale
    smooth.smooth(model, found)


def channels(path: Path, axes: Mapping[str, int], samples: Dataset) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Minimum and maximum of each channel of values of the model in `path`; axes: value → its channels' axis."""
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for outputs in _runs(path, tuple(axes), samples):
        for name, axis in axes.items():
            x = np.moveaxis(outputs[name], axis, 0)
            x = x.reshape(len(x), -1)
            lo, hi = found.get(name, (np.inf, -np.inf))
            found[name] = np.minimum(lo, x.min(1)), np.maximum(hi, x.max(1))
    if not found and axes:
        raise CalibrationError(f"{samples.name} holds no samples: give at least one")
    return found


def _runs(path: Path, taps: tuple[str, ...], samples: Dataset) -> Iterator[dict[str, np.ndarray]]:
    session = load("edgeq.runners", "cpu").open_session(path)
    inputs = set(io.input_shapes(io.load(path)))
    for feeds in samples if taps else ():
        yield {**feeds, **session.run(feeds, tuple(t for t in taps if t not in inputs))}
    session.close()


def layer_stats(model: ir.Model, path: Path, plan: Plan, data: Dataset | None, recipe: Recipe) -> dict[str, Stats]:
    """Node → statistics of its input as the float model has it, for weight algorithms that need data.

    A convolution's input comes as windows, a row each, in the order of its weight; grouped ones are left out, as are
    inputs of more than `MOST_FEATURES`.
    """
    wanting = [w for w in plan.weights if getattr(load("edgeq.weights", w.algorithm, "quantize"), "NEEDS_DATA", False)]
    if not wanting:
        return {}
    if data is None:
        raise CalibrationError(f"{wanting[0].algorithm} weights need data: give --calib, or choose --weight mse")
    nodes = {node.name: node for node in model.graph}
    wanted: dict[str, list[tuple[str, ir.Node | None]]] = {}
    for weight in wanting:
        node = nodes.get(weight.node)
        if node is None or node.inputs[0] is None or node.inputs[0].name in model.graph.initializers:
            continue
        if node.op_type in ("MatMul", "Gemm") and len(node.inputs[1].shape) == 2:  # type: ignore[union-attr, arg-type]
            wanted.setdefault(node.inputs[0].name or "", []).append((weight.node, None))
        elif node.op_type == "Conv" and node.attributes.get_int("group", 1) == 1 and not _auto(node):
            wanted.setdefault(node.inputs[0].name or "", []).append((weight.node, node))
    return grams(path, wanted, chosen(data, recipe).take(2 * SAMPLES))


def _auto(node: ir.Node) -> bool:
    return (node.attributes.get_string("auto_pad", "NOTSET") or "NOTSET") not in ("NOTSET", "VALID")


def grams(path: Path, wanted: Mapping[str, Sequence[tuple[str, ir.Node | None]]], samples: Dataset) -> dict[str, Stats]:
    """Key → statistics; wanted: value → (key, the convolution whose windows are meant, or None for the last axis)."""
    found: dict[str, Gram] = {}
    for outputs in _runs(path, tuple(wanted), samples):
        for value, keys in wanted.items():
            for key, node in keys:
                x = outputs[value] if node is None else windows(outputs[value], node)
                if x.shape[-1] > MOST_FEATURES:
                    continue
                found.setdefault(key, Gram.of(x.shape[-1])).update(x)
    return {key: gram.result() for key, gram in found.items()}


def windows(x: np.ndarray, node: ir.Node) -> np.ndarray:
    """What a Conv's kernel meets, (windows, channels · kernel), at most `POSITIONS` evenly spread ones."""
    dims = x.ndim - 2
    kernel = (static_shape(node.inputs[1]) or ())[2:]
    strides, dilations = (list(node.attributes.get_ints(k, [1] * dims)) for k in ("strides", "dilations"))
    pads = list(node.attributes.get_ints("pads", [0] * 2 * dims))
    x = np.pad(x, [(0, 0), (0, 0), *zip(pads[:dims], pads[dims:], strict=True)])
    reach = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    view = np.lib.stride_tricks.sliding_window_view(x, reach, tuple(range(2, x.ndim)))
    view = view[(slice(None), slice(None), *(slice(None, None, s) for s in strides))]
    view = view[(..., *(slice(None, None, d) for d in dilations))]  # type: ignore[arg-type]
    places = np.moveaxis(view, 1, 1 + dims)  # (samples, positions …, channels, kernel …)
    shape = places.shape[: 1 + dims]
    count = int(np.prod(shape))
    picked = np.unravel_index(np.unique(np.linspace(0, count - 1, min(count, POSITIONS)).astype(np.int64)), shape)
    return places[picked].reshape(len(picked[0]), -1)


def after(
    quantized: ir.Model,
    prepared: Path,
    made: Plan,
    recipe: Recipe,
    data: Dataset | None,
    work: Path,
    progress: Progress,
) -> ir.Model:
    """Run the passes that come behind the rewriting, in place."""
    if "bias_correct" not in recipe.passes or data is None:
        return quantized
    integer = {n.name for n in made.nodes if n.decision == INTEGER and n.op in ("Conv", "Gemm")}
    TopologicalSortPass()(quantized)
    layers = [(i, n) for i, n in enumerate(quantized.graph, 1) if n.name in integer]
    samples = chosen(data, recipe).take(SAMPLES)
    values = {n.name: n.outputs[0].name or "" for n in io.load(prepared).graph if n.name in integer}
    real: dict[str, list[np.ndarray]] = {}
    for outputs in _runs(prepared, tuple(values.values()), samples):
        for value in values.values():
            real.setdefault(value, []).append(_means(outputs[value]))
    stream = Stream(quantized, work / ".corrected", in_memory=True)
    stream.start(samples)
    for done, (cut, node) in enumerate(layers):
        progress("correct", done, len(layers))
        name = node.outputs[0].name or ""
        stream.advance(Stage(name, cut, ()))
        lost = np.array(real[values[node.name or ""]]) - [_means(x) for x in stream.each(name)]
        by = _significant(lost)
        correct(quantized, {node.name or "": by})
        stream.change(name, lambda x, by=by: (x + by.reshape(1, -1, *[1] * (x.ndim - 2))).astype(x.dtype))  # type: ignore[misc]
    return quantized


def _means(x: np.ndarray) -> np.ndarray:
    """Of each channel of one sample, (C,)."""
    return np.moveaxis(x, 1, 0).reshape(x.shape[1], -1).mean(1, dtype=np.float64)


def _significant(lost: np.ndarray) -> np.ndarray:
    """Mean over samples, (S, C) → (C,), shrunk by what of its square is chance: few samples must do no harm."""
    mean, chance = lost.mean(0), lost.var(0) / max(len(lost) - 1, 1)
    return mean * np.maximum(0.0, 1 - chance / np.maximum(mean**2, 1e-30))
