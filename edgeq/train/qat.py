"""Quantization-aware training in two calls around any training loop.

    qat = prepare_qat(model, recipe, example, batches)      # a torch module: train it as any other
    artifact = convert(qat)                                 # ONNX with the very integers and scales that were trained

The module is the ONNX graph that would be quantized (`edgeq.train.graph`), with fake quantization where the same plan
puts Q and DQ. So what trains quantized is what runs quantized.
"""

from __future__ import annotations

import copy
import inspect
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from edgeq import passes
from edgeq import target as targets
from edgeq.calibrate.histogram import Histogram
from edgeq.calibrate.summary import Summary
from edgeq.errors import CalibrationError, RecipeError
from edgeq.export import export
from edgeq.graph import io
from edgeq.graph.prepare import prepare
from edgeq.passes.few_codes import clip_codes, held
from edgeq.passes.hard_swish import HALF, HALF_SCALE, STEP
from edgeq.passes.tables import store_tables
from edgeq.planning.plan import Plan
from edgeq.planning.planner import plan
from edgeq.planning.solve import activation_params, bias_tensors
from edgeq.planning.sums import tie_free_scale
from edgeq.recipe import Recipe
from edgeq.registry import load
from edgeq.target import Target
from edgeq.train.coded import THRESHOLDS, Shared, Signs, TwoScales
from edgeq.train.fake import FakeBias, FakeQuantize, Steps, round_through
from edgeq.train.graph import TorchGraph
from edgeq.train.norm import freeze, normable, normalize
from edgeq.train.prune import Masked
from edgeq.types import PerChannel, QTensor, Solution

Batch = Tensor | Sequence[Tensor] | Mapping[str, Tensor]


class Qat(TorchGraph):
    """A TorchGraph with the plan that it was made by."""

    def __init__(self, model: ir.Model, plan: Plan, target: Target) -> None:
        super().__init__(model)
        self.plan, self.target = plan, target


def prepare_qat(
    model: nn.Module | ir.Model | str | os.PathLike[str],
    recipe: Recipe,
    example: tuple[Tensor, ...] = (),
    batches: Iterable[Batch] = (),
    *,
    target: Target | None = None,
    steps: Steps = "lsq",
    centroids: int = 0,
    two_scales: bool = False,
    batch_norm: bool = True,
) -> Qat:
    """A module to train. model: a torch module (exported with `example`), or an ONNX model or file.

    batches: a few of them, to start the activations' ranges from by the recipe's calibrator. target: in place of the
    recipe's, such as one of `with_bits`. steps: how those of activations are trained; a weight's by LSQ unless "fixed".
    centroids: share so many values in each 8-bit weight. The recipe's `weight`, or a rule's, may be ternary or binary;
    two_scales: ternary weights learn a scale for either sign (TTQ). batch_norm: normalize the outputs of convolutions
    with scales per channel by their batch until `freeze` or `convert` (see `edgeq.train.norm`).
    Raises ModelError for an operator that can't be trained, CalibrationError without batches.
    """
    aim = target or targets.load(recipe.target)
    prepared = prepare(_onnx(model, example), aim.opset)
    passes.run(prepared, aim.passes_before)
    made = plan(prepared, aim, recipe)
    qat, batches = Qat(prepared, made, aim), list(batches)
    if batch_norm and not centroids:
        _norms(qat, batches)
    _weights(qat, steps, centroids, two_scales)
    _activations(qat, batches, steps)
    for bias in made.biases:
        layer = next(w for w in made.weights if w.node == bias.node)
        if qat.quantizer(bias.value) is None:
            qat.quantize_weight(bias.value, FakeBias(qat.quantizer(bias.act), qat.quantizer(layer.value)))
    if "hard_swish" in aim.passes_after:
        gates = [node for node in prepared.graph if _becomes_integers(node, made)]
        qat.instead |= {n.name or "": partial(_rounded_gate, qat.quantizer(_input(n))) for n in gates}
    return qat


def _input(node: ir.Node) -> str:
    value = node.inputs[0]
    return (value.name or "") if value is not None else ""


def _rounded_gate(quantizer: FakeQuantize, node: ir.Node, x: Tensor) -> Tensor:
    """HardSwish as `edgeq.passes.hard_swish` writes it: its gate is rounded to steps of 1/255, its scales tie-free."""
    scale = quantizer.step().detach().cpu().numpy()
    sixth = float(tie_free_scale(scale / np.float32(6), STEP) / scale)
    half = HALF * float(HALF_SCALE)
    return x * round_through((x * sixth + half).clamp(0, 1) * 255) / 255


def _becomes_integers(node: ir.Node, plan: Plan) -> bool:
    """Is it a HardSwish that stands between uint8 codes and a Q that alone reads it?"""
    if node.op_type != "HardSwish":
        return False
    planned = {value.name: value for value in plan.values}
    before, after = (planned.get(v.name or "") for v in (node.inputs[0], node.outputs[0]) if v is not None)
    if before is None or after is None or before.spec.dtype != "uint8":
        return False
    return (before.everyone or node.name in before.readers) and (
        after.everyone or {use.node.name for use in node.outputs[0].uses()} <= set(after.readers)
    )


def with_bits(target: Target, weight: int, activation: int) -> Target:
    """A target whose linear layers have `weight`-bit weights and take `activation`-bit inputs, and nothing else.

    Types of 2 bits need opset 25, of 4 bits opset 21; onnxruntime computes on neither: the artifact is as small as its
    weights, and runs in float. Beside activations of 8 bits, or of 3 which are held in 8, weights are stored in 8 bits
    and run in integers; else those of 3 are held in 4. A recipe's overrides may name the target's own types as NAME_8,
    such as for the first and last layer. Raises RecipeError for other widths.
    """
    if not {weight, activation} <= {2, 3, 4, 8}:
        raise RecipeError(f"no types for weights of {weight} bits and activations of {activation}: choose 2, 3, 4 or 8")
    rules = tuple(
        msgspec.structs.replace(rule, output_q="optional", bias="float")
        for rule in target.rule
        if rule.role == "compute" and rule.method == "static"
    )
    weights = {rule.weight for rule in rules}
    types = dict(target.types)
    for name, row in target.types.items():
        bits = weight if name in weights else activation
        kind = "uint" if row.dtype.startswith("u") else "int"
        types[name] = msgspec.structs.replace(
            row, dtype=f"{kind}{4 if bits == 3 else bits}", narrow=row.narrow and bits > 3, reduce_range=bits == 3
        )
        types[f"{name}_8"] = row
    opset = max(target.opset, 25 if 2 in (weight, activation) else 21)
    return msgspec.structs.replace(target, types=types, rule=rules, opset=opset, cpu_kernels=False, passes_before=())


def _onnx(model: nn.Module | ir.Model | str | os.PathLike[str], example: tuple[Tensor, ...]) -> ir.Model:
    if isinstance(model, ir.Model):
        return model
    if not isinstance(model, nn.Module):
        return io.load(Path(model))
    with tempfile.TemporaryDirectory(prefix="edgeq-qat-") as folder:
        path = Path(folder) / "model.onnx"
        names = list(inspect.signature(model.forward).parameters)[: len(example)]
        export(model.eval(), example, path, dynamic={name: [0] for name in names})
        loaded = io.load(path)
        io.to_memory(loaded)
        return loaded


def _norms(qat: Qat, batches: Sequence[Batch]) -> None:
    channels = {w.node for w in qat.plan.weights if w.spec.granularity == PerChannel(0)}
    nodes = [node for node in normable(qat) if node.name in channels]
    qat.eval()
    with torch.no_grad():
        normalize(qat, nodes, (call(qat, batch) for batch in batches))


def _weights(qat: Qat, steps: Steps, centroids: int, two_scales: bool) -> None:
    """A quantizer for each weight that the plan stores as integers, started where the recipe's algorithm puts it."""
    for weight in qat.plan.weights:
        if qat.quantizer(weight.value) is not None:
            continue
        array = qat.constant(weight.value).detach().numpy()
        quantizer: FakeQuantize | Signs | TwoScales | Shared
        if weight.algorithm == "ternary" and two_scales:
            quantizer = TwoScales(weight.spec, array)
        elif weight.algorithm in THRESHOLDS:
            quantizer = Signs(weight.spec, array, THRESHOLDS[weight.algorithm])
        elif centroids and weight.spec.bits == 8:
            quantizer = Shared(weight.spec, array, centroids)
        else:
            quantizer = FakeQuantize(weight.spec, array.shape, "fixed" if steps == "fixed" else "lsq")
            algorithm = "mse" if weight.spec.bits < 8 else weight.algorithm
            quantizer.start(load("edgeq.weights", algorithm, "quantize").quantize(array, weight.spec, None).params)
        qat.quantize_weight(weight.value, quantizer)


def _activations(qat: Qat, batches: Iterable[Batch], steps: Steps) -> None:
    constants = set(qat.model.graph.initializers)
    shown = {v.name: Summary(histogram=Histogram()) for v in qat.plan.observed() if v.name not in constants}
    qat.observe(shown)
    with torch.no_grad():
        seen = sum(call(qat.eval(), batch) is not None for batch in batches)
    qat.observe({})
    if shown and not seen:
        raise CalibrationError("quantization-aware training starts from a few batches: give prepare_qat some")
    groups: dict[str, FakeQuantize] = {}
    for value in sorted(qat.plan.values, key=lambda v: v.name != v.group):  # the first of a group is the one observed
        if value.group not in groups:
            held = qat.model.graph.initializers.get(value.name)
            started = activation_params(value, None if held is None else held.const_value, shown.get(value.name))
            quantizer = FakeQuantize(value.spec, (), steps if value.fixed is None else "fixed")
            quantizer.start(started, value.bounds)
            groups[value.group] = quantizer
        if value.name in constants:
            qat.quantize_weight(value.name, groups[value.group])
        else:
            qat.quantize_value(value.name, groups[value.group], () if value.everyone else value.readers)


def call(module: nn.Module, batch: Batch) -> Any:
    """The module on a batch, however its inputs come."""
    if isinstance(batch, Mapping):
        return module(**batch)
    return module(*batch) if isinstance(batch, (list, tuple)) else module(batch)


def convert(qat: Qat) -> ir.Model:
    """The quantized ONNX model of a trained module, whose BatchNorm is frozen; `edgeq.save` writes it."""
    freeze(qat)
    model = copied(qat)
    groups = {v.group: qat.quantizer(v.name).params() for v in qat.plan.values}
    stored = {group: held(params) for group, params in groups.items()}
    wide = {reader for v in qat.plan.values if stored[v.group].spec.bits == 8 for reader in v.readers}
    weights: dict[tuple[str, int], QTensor] = {}
    for weight in qat.plan.weights:
        tensor = qat.quantizer(weight.value).tensor(qat.constant(weight.value))
        weights[weight.node, weight.index] = _widened(tensor) if weight.node in wide else tensor
    solution = Solution(stored, weights, bias_tensors(qat.plan, _constants(model), groups, weights, {}))
    store_tables(model, qat.plan, solution)
    made: ir.Model = load("edgeq.passes", "qdq", "apply").apply(model, qat.plan, solution, qat.target)
    clip_codes(made, {v.name: groups[v.group] for v in qat.plan.values})
    passes.run(made, qat.target.passes_after)
    return made


def _widened(tensor: QTensor) -> QTensor:
    """Codes below 8 bits in an 8-bit type: beside 8-bit activations integer kernels take them, and only so."""
    spec = tensor.params.spec
    held = replace(spec, dtype="int8" if spec.signed else "uint8")
    return QTensor(tensor.data, replace(tensor.params, spec=held)) if spec.bits < 8 else tensor


def _constants(model: ir.Model) -> dict[str | None, ir.TensorProtocol | None]:
    return {name: value.const_value for name, value in model.graph.initializers.items()}


def copied(qat: TorchGraph) -> ir.Model:
    """The float ONNX model with the trained constants in it."""
    model = ir.serde.deserialize_model(ir.serde.serialize_model(qat.model))
    for name, value in model.graph.initializers.items():
        if name in qat.float_constants():
            array = qat.constant(name).detach()
            if isinstance(held := qat.quantizer(name), Masked):
                array = array * held.mask
            value.const_value = ir.tensor(copy.deepcopy(array.cpu().numpy()), name=name)
    return model
