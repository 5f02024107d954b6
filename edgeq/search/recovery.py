"""What the recipe's `passes` ask for: the statistics that each needs, and its rewrite before or after rounding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import tee
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgeq.calibrate.gram import Gram
from edgeq.collecting.shards import chosen
from edgeq.data import Dataset
from edgeq.errors import CalibrationError, RecipeError
from edgeq.graph import io
from edgeq.graph.edit import constant, static_shape
from edgeq.graph.folding import matrix
from edgeq.memory import give_back
from edgeq.passes import equalize, smooth
from edgeq.passes.bias_correct import correct, significant, with_biases, without_bias
from edgeq.passes.side_by_side import Pair, side_by_side
from edgeq.planning.plan import INTEGER, Plan
from edgeq.planning.planner import plan
from edgeq.processors import processors, single_products
from edgeq.recipe import Recipe
from edgeq.registry import load
from edgeq.target import Target
from edgeq.types import Progress, Stats
from edgeq.weights import awq

SAMPLES = 32  # enough for means and extrema of channels, of which a sample of an image has thousands of values
STREAMS = 4  # samples under way at once, as far as there are processors
POSITIONS = 256  # windows of a convolution's input that a sample gives to its Gram matrix
MEANS = 16  # samples of which each gives a layer's mean over positions, before and behind rounding
LAYERS = ("Conv", "ConvTranspose", "Gemm")
MOST_FEATURES = 3072  # its 75 MB are held for every layer at once


def before(
    model: ir.Model, path: Path, target: Target, recipe: Recipe, data: Dataset | None, work: Path, progress: Progress
) -> Path:
    """Run the passes that come before the plan on the prepared model, in place; gives the file that now holds it.

    Raises CalibrationError for passes without data, RecipeError for passes with a stateful model or another method;
    bias_correct, which recipes ask for by default, is left out there.
    """
    if corrects(recipe) and without_bias(model):
        path = _saved(with_biases(model), work / ".recovered.onnx")
    asked = set(recipe.passes) - {"bias_correct"}
    if not asked:
        return path
    if recipe.state or not (recipe.method == "static" or (recipe.method == "weight_only" and asked == {"smooth"})):
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
    return _saved(model, work / ".recovered.onnx")


def _saved(model: ir.Model, path: Path) -> Path:
    io.save(model, path, beside=True)
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
    seen, stats = observed(path, samples, dict.fromkeys(readers, -1), {name: [(name, None)] for name in readers})
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
    return observed(path, samples, axes, {})[0]


def grams(path: Path, wanted: Mapping[str, Sequence[tuple[str, ir.Node | None]]], samples: Dataset) -> dict[str, Stats]:
    """Key → statistics; wanted: value → (key, the convolution whose windows are meant, or None for the last axis)."""
    return observed(path, samples, {}, wanted)[1]


def observed(
    path: Path,
    samples: Dataset,
    axes: Mapping[str, int],
    wanted: Mapping[str, Sequence[tuple[str, ir.Node | None]]],
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], dict[str, Stats]]:
    """`channels` and `grams` of one walk. Raises CalibrationError when there are no samples."""
    seen: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    found: dict[str, Gram] = {}

    def widen(name: str, values: np.ndarray) -> None:
        x = np.moveaxis(values, axes[name], 0)
        x = x.reshape(len(x), -1)
        lo, hi = seen.get(name, (np.inf, -np.inf))
        seen[name] = np.minimum(lo, x.min(1)), np.maximum(hi, x.max(1))

    def add(key: str, node: ir.Node | None, values: np.ndarray) -> None:
        x = values if node is None else windows(values, node)
        if x.shape[-1] <= MOST_FEATURES:
            found.setdefault(key, Gram.of(x.shape[-1])).update(x)

    names = tuple(dict.fromkeys([*axes, *wanted]))
    with single_products(), ThreadPoolExecutor(processors()) as pool:
        for outputs in _runs(path, names, samples):
            looks = [pool.submit(widen, name, outputs[name]) for name in axes]
            looks += [pool.submit(add, *key, outputs[value]) for value, keys in wanted.items() for key in keys]
            for look in looks:
                look.result()
    if not seen and axes:
        raise CalibrationError(f"{samples.name} holds no samples: give at least one")
    keys = [key for listed in wanted.values() for key, _ in listed if key in found]  # in no order of threads
    return {name: seen[name] for name in axes if seen}, {key: found[key].result() for key in keys}


def _runs(path: Path, taps: tuple[str, ...], samples: Dataset) -> Iterator[dict[str, np.ndarray]]:
    session = load("edgeq.runners", "cpu").open_session(path, streams=min(processors(), STREAMS))
    inputs = set(io.input_shapes(io.load(path)))
    own, fed = tee(samples if taps else ())
    inner = tuple(t for t in taps if t not in inputs)
    for feeds, outputs in zip(own, session.run_many(fed, inner), strict=True):
        yield {**feeds, **outputs}
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
) -> int:
    """Run the passes that come behind the rewriting, in place. Gives how many layers had their bias corrected.

    prepared: the file of the float model. Without data nothing can be measured, and nothing is done.
    """
    if data is None or not corrects(recipe):
        return 0
    source = io.load(prepared)
    ours, theirs = ({node.name for node in model.graph} for model in (quantized, source))
    layers = [n.name for n in made.nodes if n.decision == INTEGER and n.op in LAYERS and n.name in ours & theirs]
    if not layers:
        return 0
    both = side_by_side(source, quantized, layers)
    del source
    seen = _means(both, prepared, chosen(data, recipe).take(MEANS), progress)
    shifts = {}
    for name, (real, rounded) in both.means.items():
        lost = seen[real].astype(np.float64) - seen[rounded]
        if lost.size and np.isfinite(lost).all():
            shifts[name] = significant(lost)
    correct(quantized, shifts)
    return sum(bool(by.any()) for by in shifts.values())


def _means(both: Pair, prepared: Path, samples: Dataset, progress: Progress) -> dict[str, np.ndarray]:
    """Name of a mean → its rows (samples, C), of which a sample may have none."""
    found = _rows(both.model, prepared.with_name(".both.onnx"), samples, progress)
    if found and both.later is not None:
        fed = {value.name or "": found[value.name or ""] for value in both.later.graph.inputs}
        found |= _rows(both.later, prepared.with_name(".later.onnx"), [fed], progress)
    return {name: rows.reshape(rows.shape[:2]) for name, rows in found.items()}


def _rows(
    model: ir.Model, path: Path, samples: Iterable[Mapping[str, np.ndarray]], progress: Progress
) -> dict[str, np.ndarray]:
    """The outputs of the first samples, until they have `MEANS` rows."""
    io.save(model, path, beside=True)
    give_back()
    session = load("edgeq.runners", "cpu").open_session(path, in_order=True)
    seen: dict[str, list[np.ndarray]] = {}
    done = 0
    for feeds in samples:
        progress("correct", min(done, MEANS), MEANS)
        for name, rows in session.run(feeds).items():
            seen.setdefault(name, []).append(rows)
        done += max((len(rows[-1]) for rows in seen.values()), default=1)
        if done >= MEANS:
            break
    session.close()
    return {name: np.concatenate(rows) for name, rows in seen.items()}  # copies: a view would hold the whole session


def corrects(recipe: Recipe) -> bool:
    """Whether biases are to be corrected: of static models, without a state."""
    return "bias_correct" in recipe.passes and recipe.method == "static" and not recipe.state
