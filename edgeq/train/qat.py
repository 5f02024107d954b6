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
from pathlib import Path
from typing import Any

import msgspec
import onnx_ir as ir
import torch
from torch import Tensor, nn

from edgeq import target as targets
from edgeq.calibrate.histogram import Histogram
from edgeq.calibrate.summary import Summary
from edgeq.errors import CalibrationError
from edgeq.export import export
from edgeq.graph import io
from edgeq.graph.prepare import prepare
from edgeq.numerics.affine import quantize
from edgeq.passes.tables import store_tables
from edgeq.plan import Plan
from edgeq.planner import plan
from edgeq.recipe import Recipe
from edgeq.registry import load
from edgeq.solve import activation_params, bias_tensors
from edgeq.target import Target
from edgeq.train.fake import FakeBias, FakeQuantize
from edgeq.train.graph import TorchGraph
from edgeq.types import QTensor, Solution

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
    learned: bool = True,
) -> Qat:
    """A module to train. model: a torch module (exported with `example`), or an ONNX model or file.

    batches: a few of them, to start the activations' ranges from by the recipe's calibrator. target: in place of the
    recipe's, such as one of `with_bits`. learned: steps and offsets are trained (LSQ, LSQ+), or stay where they start.
    Raises ModelError for an operator that can't be trained, CalibrationError without batches.
    """
    aim = target or targets.load(recipe.target)
    prepared = prepare(_onnx(model, example), aim.opset)
    for name in aim.passes_before:
        load("edgeq.passes", name, "rewrite").rewrite(prepared)
    made = plan(prepared, aim, recipe)
    qat = Qat(prepared, made, aim)
    _weights(qat, learned)
    _activations(qat, batches, learned)
    for bias in made.biases:
        layer = next(w for w in made.weights if w.node == bias.node)
        if qat.quantizer(bias.value) is None:
            qat.quantize_weight(bias.value, FakeBias(qat.quantizer(bias.act), qat.quantizer(layer.value)))
    return qat


def with_bits(target: Target, weight: int, activation: int) -> Target:
    """A target whose linear layers have `weight`-bit weights and take `activation`-bit inputs, and nothing else.

    Types of less than 8 bits need opset 25 (2 bits) or 21 (4 bits). onnxruntime computes on none of them: the artifact
    is as small as its weights, and runs in float. A recipe's overrides may name
    the target's own types as NAME_8, such as for the first and the last layer.
    """
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
        types[name] = msgspec.structs.replace(row, dtype=f"{kind}{bits}", narrow=row.narrow and bits > 2)
        types[f"{name}_8"] = row
    opset = max(target.opset, 25 if min(weight, activation) < 4 else 21)
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


def _weights(qat: Qat, learned: bool) -> None:
    """A quantizer for each weight that the plan stores as integers, started where the recipe's algorithm puts it."""
    for weight in qat.plan.weights:
        if qat.quantizer(weight.value) is not None:
            continue
        array = qat.constant(weight.value).detach().numpy()
        quantizer = FakeQuantize(weight.spec, array.shape, learned)
        algorithm = "mse" if weight.spec.bits < 8 else weight.algorithm
        quantizer.start(load("edgeq.weights", algorithm, "quantize").quantize(array, weight.spec, None).params)
        qat.quantize_weight(weight.value, quantizer)


def _activations(qat: Qat, batches: Iterable[Batch], learned: bool) -> None:
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
            quantizer = FakeQuantize(value.spec, (), learned and value.fixed is None)
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
    """The quantized ONNX model of a trained module; `edgeq.save` writes it. The module is left as it is."""
    model = copied(qat)
    groups = {v.group: qat.quantizer(v.name).params() for v in qat.plan.values}
    weights = {}
    for weight in qat.plan.weights:
        params = qat.quantizer(weight.value).params()
        array = qat.constant(weight.value).detach().cpu().numpy()
        weights[weight.node, weight.index] = QTensor(quantize(array, params), params)
    solution = Solution(groups, weights, bias_tensors(qat.plan, _constants(model), groups, weights, {}))
    store_tables(model, qat.plan, solution)
    made: ir.Model = load("edgeq.passes", "qdq", "apply").apply(model, qat.plan, solution, qat.target)
    for name in qat.target.passes_after:
        load("edgeq.passes", name, "rewrite").rewrite(made)
    return made


def _constants(model: ir.Model) -> dict[str | None, ir.TensorProtocol | None]:
    return {name: value.const_value for name, value in model.graph.initializers.items()}


def copied(qat: TorchGraph) -> ir.Model:
    """The float ONNX model with the trained constants in it."""
    model = ir.serde.deserialize_model(ir.serde.serialize_model(qat.model))
    for name, value in model.graph.initializers.items():
        if name in qat.float_constants():
            array = qat.constant(name).detach().cpu().numpy()
            value.const_value = ir.tensor(copy.deepcopy(array), name=name)
    return model
