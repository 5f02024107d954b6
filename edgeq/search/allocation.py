"""Bits where they matter: each layer gets a format of its own, so that the model loses least within a size.

    minimise  Σ s_l · e_l(f_l)   subject to   Σ size_l(f_l) ≤ budget        (a multiple-choice knapsack)

e_l(f): the error of the layer's output, tr (W - W') H (W - W')ᵀ, with the weight rounded to format f by GPTQ. s_l: what
an error there does to the model's outputs, measured once a layer: their mean squared change when that layer alone has
its coarsest format, over e_l. (The measure-then-choose scheme of EXL2, here with end-to-end sensitivities.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import onnx_ir as ir

from edgeq.collecting.layerwise import stages, walk_layers
from edgeq.collecting.shards import chosen
from edgeq.data import Dataset
from edgeq.errors import CalibrationError, RecipeError
from edgeq.graph import io
from edgeq.numerics import affine
from edgeq.planning.plan import Plan
from edgeq.planning.planner import plan
from edgeq.recipe import Override, Recipe
from edgeq.registry import load
from edgeq.search import knapsack
from edgeq.search.sensitivity import output_change
from edgeq.target import Target
from edgeq.types import PerBlock, PerChannel, Progress, QSpec
from edgeq.weights import gptq, rows

FORMATS: tuple[tuple[Literal[2, 3, 4, 8], int], ...] = (
    (2, 128), (2, 64), (2, 32), (3, 0), (3, 128), (3, 64), (3, 32), (4, 0), (4, 128), (4, 64), (4, 32), (4, 16),
    (8, 128),
)  # fmt: skip
"""(bits, block), a block of 0 being a scale a channel, from the coarsest to the finest."""
SCALE_BITS = 16
ERROR_SAMPLES, SENSITIVITY_SAMPLES = 32, 4
"""Samples that errors and sensitivities are measured on; only their order matters here."""


NODE_BYTES, FUNCTION_BYTES = 384, 1000
"""About what a node takes in a file, names included, and the function that widens 3 bits."""


@dataclass(frozen=True)
class Measured:
    """A layer, its features and channels, and for each of FORMATS the error that the model's outputs would get."""

    node: str
    features: int
    channels: int
    errors: tuple[float, ...]

    def size(self, bits: int, block: int) -> int:
        """Of the weight, in bits, with its scales."""
        blocks = -(-self.features // block) if block else 1
        return self.channels * (self.features * bits + blocks * SCALE_BITS)


def measure(made: Plan, model: ir.Model, data: Dataset, work: Path, progress: Progress) -> list[Measured]:
    """Every layer that statistics reach, in every format."""
    inner: list[tuple[Measured, str, np.ndarray]] = []
    total = sum(len(stage.layers) for stage in stages(model, made)[0])
    for layer in walk_layers(made, model, data, work, sequential=False):
        if layer.stats is None:
            continue
        errors, coarsest = [], None
        for bits, block in FORMATS:
            spec = _spec(layer.plan.spec, bits, block)
            q = gptq.quantize(layer.weight, spec, layer.stats, sweeps=0, candidates=12)
            real = affine.dequantize(q.data, q.params)
            errors.append(rows.output_error(layer.weight, real, spec, layer.stats))
            coarsest = real if coarsest is None else coarsest
        assert coarsest is not None
        features = len(layer.stats.gram)
        found = Measured(layer.plan.node, features, coarsest.size // features, tuple(errors))
        inner.append((found, layer.plan.value, coarsest))
        progress("measure", len(inner), total)
    ends = _end_errors(model, {value: weight for _, value, weight in inner}, data, work)
    return [
        replace(m, errors=tuple(e * ends[value] / max(m.errors[0], 1e-30) for e in m.errors)) for m, value, _ in inner
    ]


def allocate(measured: Sequence[Measured], bits: float) -> tuple[Override, ...]:
    """A rule a layer, of `bits` a weight on average at most. Raises RecipeError when that is too few."""
    sizes = [[m.size(*f) for f in FORMATS] for m in measured]
    budget = int(bits * sum(m.features * m.channels for m in measured))
    chosen = knapsack.choose(sizes, [m.errors for m in measured], budget)
    return tuple(
        Override(nodes=(m.node,), bits=FORMATS[f][0], block=FORMATS[f][1])
        for m, f in zip(measured, chosen, strict=True)
    )


def allocated(
    recipe: Recipe,
    model: ir.Model,
    target: Target,
    data: Dataset | None,
    work: Path,
    bits: float | None,
    max_bytes: int | None,
    progress: Progress,
) -> Recipe:
    """The recipe with a rule for each layer, of `bits` a weight on average or for a file of about `max_bytes`.

    Raises CalibrationError without data, RecipeError for another method and for a budget that nothing fits.
    """
    if recipe.method != "weight_only" or (bits is not None and max_bytes is not None):
        raise RecipeError("--bpw or --max-bytes, one of the two, goes with --method weight_only")
    if data is None:
        raise CalibrationError("--bpw and --max-bytes weigh layers by data: give --calib")
    made = plan(model, target, recipe)
    measured = measure(made, model, chosen(data, recipe).take(ERROR_SAMPLES), work, progress)
    if max_bytes is not None:
        weights = sum(m.features * m.channels for m in measured)
        tables = [w.value for w in made.weights if w.index == 0]
        small = sum(_bytes(model, name) * 23 // 32 for name in set(tables))  # in 8 bits and a scale for every 32
        rest = io.weight_bytes(model) - 4 * weights - small + NODE_BYTES * len(made.nodes) + FUNCTION_BYTES
        bits = 8 * (max_bytes - rest) / weights
    assert bits is not None
    return msgspec.structs.replace(recipe, rule=(*recipe.rule, *allocate(measured, bits)))


def _bytes(model: ir.Model, name: str) -> int:
    tensor = model.graph.initializers[name].const_value
    return 0 if tensor is None else tensor.nbytes


def _spec(spec: QSpec, bits: int, block: int) -> QSpec:
    granularity = spec.granularity
    axis = granularity.axis if isinstance(granularity, PerBlock) else 1 - getattr(granularity, "axis", 1)
    shared = PerBlock(axis, block) if block else PerChannel(1 - axis)
    dtype = f"{'int' if spec.signed else 'uint'}{4 if bits == 3 else bits}"
    return replace(spec, dtype=dtype, granularity=shared, reduce_range=bits == 3)


def _end_errors(model: ir.Model, changed: dict[str, np.ndarray], data: Dataset, work: Path) -> dict[str, float]:
    """Mean squared change of all float outputs when one weight at a time is replaced, over the outputs' variance."""
    path = work / "sensitivity.onnx"
    open_model = model.clone()
    for name in changed:  # an initializer that is an input too may be given anew in each run
        open_model.graph.inputs.append(open_model.graph.initializers[name])
    io.save(open_model, path)
    session = load("edgeq.runners", "cpu").open_session(path, threads=1)
    found = dict.fromkeys(changed, 0.0)
    for feeds in islice(iter(data), SENSITIVITY_SAMPLES):
        wanted = session.run(feeds)
        for name, weight in changed.items():
            found[name] += output_change(wanted, session.run({**feeds, name: weight}))
    session.close()
    path.unlink()
    return found
