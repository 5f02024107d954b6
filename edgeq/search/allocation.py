"""Bits where they matter: each layer gets a format of its own, so that the model loses least within a size.

    minimise  Σ s_l · e_l(f_l)   subject to   Σ size_l(f_l) ≤ budget        (a multiple-choice knapsack)

A format is bits, block and algorithm: what the recipe's `weight` makes and what GPTQ does; where it asks for none in
particular, also codes of levels that the target multiplies from as they are. e_l(f): the error of the layer's output,
tr (W - W') H (W - W')ᵀ, with the weight in format f. s_l: what an error there does to the model's outputs, measured
once a layer: their mean squared change when that layer alone has its smallest format, over e_l. (The
measure-then-choose scheme of EXL2, here with end-to-end sensitivities.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir

from edgeq.collecting.layerwise import stages, walk_layers
from edgeq.collecting.shards import chosen
from edgeq.data import Dataset
from edgeq.errors import CalibrationError, RecipeError
from edgeq.graph import io
from edgeq.numerics import codebook
from edgeq.numerics.pack import holds_three_bits
from edgeq.planning.plan import PACKED, STORED, Plan, WeightPlan
from edgeq.planning.planner import plan
from edgeq.recipe import Bits, Override, Recipe
from edgeq.registry import load
from edgeq.search import knapsack
from edgeq.search.sensitivity import output_change
from edgeq.target import Target
from edgeq.types import Coded, PerBlock, Progress, QSpec, QTensor, Stats
from edgeq.weights import algorithm, rows
from edgeq.weights.feedback import refine

INTEGERS = (
    (2, 128), (2, 64), (2, 32), (3, 0), (3, 128), (3, 64), (3, 32), (4, 0), (4, 128), (4, 64), (4, 32), (4, 16),
    (8, 128),
)  # fmt: skip
"""(bits, block), a block of 0 being a scale a channel."""
BLOCKS = (128, 64, 32)  # of codes of levels
FURTHER = "gptq"  # tried beside the recipe's own algorithm
QUICK = {"gptq": {"sweeps": 0, "candidates": 12}}
"""Settings that find a layer's error, or what is near it, in less time than its codes."""
SCALE_BITS = 16
ERROR_SAMPLES, SENSITIVITY_SAMPLES = 32, 4
"""Samples that errors and sensitivities are measured on; only their order matters here."""


NODE_BYTES, FUNCTION_BYTES = 384, 1000
"""About what a node takes in a file, names included, and the function that widens 3 bits."""


@dataclass(frozen=True)
class Option:
    """A format of a layer, its size in bits, scales and levels included, and the error of the model's outputs."""

    plan: WeightPlan
    size: int
    error: float

    @property
    def rule(self) -> Override:
        spec = self.plan.spec
        block = spec.granularity.size if isinstance(spec.granularity, PerBlock) else 0
        return Override(nodes=(self.plan.node,), weight=self.plan.algorithm, bits=_bits(spec), block=block)


@dataclass(frozen=True)
class Measured:
    """A layer: how many weights it has, and what it could become."""

    weights: int
    options: tuple[Option, ...]


def formats(model: ir.Model, target: Target, recipe: Recipe) -> dict[str, list[WeightPlan]]:
    """What each packed matrix could become, as plans of the whole model have it: rules of the recipe hold."""
    wanted: list[tuple[str, int, int]] = []
    codes = target.kernels if recipe.weight == Recipe().weight else ()
    for name in dict.fromkeys((recipe.weight, FURTHER, *codes)):
        module = algorithm(name)
        if hasattr(module, "encode"):
            blocks = BLOCKS if module.BLOCK else (0,)
            wanted += [(name, bits, block) for bits in module.BITS for block in blocks]
        else:
            wanted += [(name, bits, block) for bits, block in INTEGERS]
    found: dict[str, list[WeightPlan]] = {}
    for name, bits, block in wanted:
        try:
            settings = recipe.weight_settings if name == recipe.weight else {}
            changes = {"weight": name, "weight_settings": settings, "bits": bits, "block": block}
            made = plan(model, target, msgspec.structs.replace(recipe, **changes))
        except RecipeError:
            if name == recipe.weight:
                raise
            continue  # a rule's bits are none that these codes have
        kept = {n.name for n in made.nodes if n.decision == PACKED or (n.decision == STORED and name == recipe.weight)}
        for layer in made.weights:
            if layer.node in kept and layer not in found.setdefault(layer.node, []):
                found[layer.node].append(layer)
    return found


def measure(
    made: Plan,
    could: Mapping[str, Sequence[WeightPlan]],
    model: ir.Model,
    data: Dataset,
    work: Path,
    progress: Progress,
) -> list[Measured]:
    """Every layer that statistics reach, in every format that it could have."""
    inner: list[tuple[Measured, str, np.ndarray]] = []
    total = sum(len(stage.layers) for stage in stages(model, made)[0])
    for layer in walk_layers(made, model, data, work, sequential=False):
        if layer.stats is None or layer.plan.node not in could:
            continue
        options, smallest = [], None
        for wanted in could[layer.plan.node]:
            found = _quick(wanted, layer.weight, layer.stats)
            real = codebook.real(found)
            option = Option(wanted, _size(found), rows.output_error(layer.weight, real, wanted.spec, layer.stats))
            if smallest is None or option.size < min(o.size for o in options):
                smallest = real
            options.append(option)
        assert smallest is not None
        inner.append((Measured(layer.weight.size, tuple(options)), layer.plan.value, smallest))
        progress("measure", len(inner), total)
    ends = _end_errors(model, {value: weight for _, value, weight in inner}, data, work)
    return [_weighed(m, ends[value]) for m, value, _ in inner]


def _weighed(measured: Measured, end: float) -> Measured:
    """With errors of the model's outputs, of which the smallest option's is `end`, in the place of the layer's."""
    times = end / max(min(measured.options, key=lambda o: o.size).error, 1e-30)
    return replace(measured, options=tuple(replace(o, error=o.error * times) for o in measured.options))


def _quick(wanted: WeightPlan, weight: np.ndarray, stats: Stats) -> QTensor | Coded:
    module = algorithm(wanted.algorithm)
    if hasattr(module, "encode"):
        first: Coded = module.encode(weight, wanted.spec, stats, **dict(wanted.settings))
        return refine(weight, wanted.spec, stats, first, module.SCALED, sweeps=0)
    settings = {**dict(wanted.settings), **QUICK.get(wanted.algorithm, {})}
    made: QTensor = module.quantize(weight, wanted.spec, stats, **settings)
    return made


def _bits(spec: QSpec) -> Bits:
    return 3 if holds_three_bits(spec) else spec.bits  # type: ignore[return-value]


def _size(found: QTensor | Coded) -> int:
    """In bits."""
    if isinstance(found, Coded):
        return found.data.size * found.spec.bits + SCALE_BITS * (found.scale.size + found.levels.size)
    return found.data.size * _bits(found.params.spec) + SCALE_BITS * found.params.scale.size


def allocate(measured: Sequence[Measured], bits: float) -> tuple[Override, ...]:
    """A rule a layer, of `bits` a weight on average at most. Raises RecipeError when that is too few."""
    budget = int(bits * sum(m.weights for m in measured))
    options = [m.options for m in measured]
    chosen = knapsack.choose(
        [[o.size for o in row] for row in options], [[o.error for o in row] for row in options], budget
    )
    return tuple(row[index].rule for row, index in zip(options, chosen, strict=True))


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
    could = formats(model, target, recipe)
    measured = measure(made, could, model, chosen(data, recipe).take(ERROR_SAMPLES), work, progress)
    if max_bytes is not None:
        weights = sum(m.weights for m in measured)
        tables = [w.value for w in made.weights if w.index == 0]
        small = sum(_bytes(model, name) * 23 // 32 for name in set(tables))  # in 8 bits and a scale for every 32
        rest = io.weight_bytes(model) - 4 * weights - small + NODE_BYTES * len(made.nodes) + FUNCTION_BYTES
        bits = 8 * (max_bytes - rest) / weights
    assert bits is not None
    return msgspec.structs.replace(recipe, rule=(*recipe.rule, *allocate(measured, bits)))


def _bytes(model: ir.Model, name: str) -> int:
    tensor = model.graph.initializers[name].const_value
    return 0 if tensor is None else tensor.nbytes


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
