"""A model that another tool quantized, for a target: its scales are taken over, and what can't be kept is named."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import TopologicalSortPass

from edgeq import target as targets
from edgeq.errors import ModelError, TargetError
from edgeq.formats import encodings as aimet
from edgeq.graph import io
from edgeq.graph.prepare import prepare
from edgeq.numerics.affine import dequantize, middle, params_shape, quantize
from edgeq.passes import qdq
from edgeq.passes.strip_qdq import Encodings, strip_qdq
from edgeq.passes.tables import store_tables
from edgeq.plan import Plan
from edgeq.planner import plan
from edgeq.recipe import Recipe
from edgeq.registry import load
from edgeq.solve import bias_tensors
from edgeq.types import INT_RANGES, PerChannel, PerTensor, QParams, QSpec, QTensor, Solution


@dataclass(frozen=True)
class Retargeted:
    """kept: how many scales are the other tool's. lost: value or weight → why its own could not be kept."""

    plan: Plan
    kept: int
    lost: dict[str, str]


def retarget(
    model: str | os.PathLike[str],
    target: str,
    output: str | os.PathLike[str],
    *,
    encodings: str | os.PathLike[str] | None = None,
) -> Retargeted:
    """Write the model of Q-DQ pairs, or the float one with AIMET's `encodings` file, for a target to `output`.

    Codes of uint8 and int8 are moved into each other exactly. A node of which a value has no scale that the target can
    have stays float. Raises ModelError for a model without any scales, or one that is quantized in another form,
    TargetError for a target that takes no ONNX files.
    """
    aim, recipe = targets.load(target), Recipe(target=target)
    if aim.format != "onnx":
        raise TargetError(aim.name, f"its artifacts are .{aim.format} files", "choose one that takes ONNX")
    source = io.load(model)
    io.to_memory(source)
    said = strip_qdq(source)
    if encodings is not None:
        beside = aimet.read(encodings)
        said = Encodings(said.activations | beside.activations, said.constants | beside.constants)
    if not said.activations and not said.constants:
        raise ModelError(f"{model}: has no Q-DQ pairs; quantize it, or give --encodings")
    prepared = prepare(source, aim.opset)
    for name in aim.passes_before:
        load("edgeq.passes", name, "rewrite").rewrite(prepared)
    excluded: dict[str, str] = {}
    while True:
        made = plan(prepared, aim, recipe, excluded)
        groups, missing = _groups(made, said)
        if not missing:
            break
        excluded |= missing
    constants: dict[str | None, ir.TensorProtocol | None] = {
        name: value.const_value for name, value in prepared.graph.initializers.items()
    }
    lost = dict(excluded)
    weights: dict[tuple[str, int], QTensor] = {}
    for row in made.weights:
        array = constants[row.value].numpy()  # type: ignore[union-attr]
        params = moved(said.constants[row.value], row.spec, array.shape) if row.value in said.constants else None
        tensor = QTensor(quantize(array, params), params) if params is not None else None
        if tensor is None or not np.allclose(dequantize(tensor.data, tensor.params), array, rtol=1e-5, atol=1e-8):
            if row.value in said.constants:
                lost[row.value] = f"{aim.name} has its weights as {row.spec.dtype} of another form: rounded anew"
            tensor = load("edgeq.weights", "rtn", "quantize").quantize(array, row.spec, None)
        weights[row.node, row.index] = tensor
    solution = Solution(groups, weights, bias_tensors(made, constants, groups, weights, {}))
    store_tables(prepared, made, solution)
    written = qdq.apply(prepared, made, solution, aim)
    for name in aim.passes_after:
        load("edgeq.passes", name, "rewrite").rewrite(written)
    TopologicalSortPass()(written)
    io.check(written, str(model))
    io.save(written, Path(output))
    return Retargeted(made, len(groups) + sum(row.value not in lost for row in made.weights), lost)


def _groups(made: Plan, said: Encodings) -> tuple[dict[str, QParams], dict[str, str]]:
    """The parameters of each group, and {node: reason} for those of groups that have none."""
    groups: dict[str, QParams] = {}
    missing: dict[str, str] = {}
    for value in sorted(made.values, key=lambda v: v.name != v.group):  # the first of a group speaks for it
        if value.group in groups:
            continue
        if value.fixed is not None:
            fixed = np.asarray(value.fixed.scale, np.float32), np.asarray(value.fixed.zero_point, np.int32)
            groups[value.group] = QParams(*fixed, value.spec)
            continue
        has = (v for v in made.values if v.group == value.group and v.name in said.activations)
        params = next((moved(said.activations[v.name], value.spec, ()) for v in has), None)
        if params is not None:
            groups[value.group] = params
            continue
        for member in made.values:
            if member.group == value.group:
                why = f"{value.name}: the model says no scale of it that {made.target} can have"
                missing |= {node: why for node in (*member.readers, member.writer) if node}
    return groups, missing


def moved(params: QParams, spec: QSpec, shape: tuple[int, ...]) -> QParams | None:
    """The same steps as parameters of `spec`, for a tensor of `shape`; None where its form has no such.

    Types of as many bits differ by a shift of all codes; one scale for all may stand for each channel's.
    """
    if params.spec.bits != spec.bits:
        return None
    wanted = params_shape(shape, spec.granularity)
    same = params.spec.granularity == spec.granularity
    alike = isinstance(spec.granularity, PerTensor | PerChannel) and params.scale.size == 1
    if not (same or alike):
        return None
    shift = INT_RANGES[spec.dtype][0] - INT_RANGES[params.spec.dtype][0]
    zero = np.broadcast_to(params.zero_point + shift, wanted).astype(np.int32)
    if spec.symmetric and (zero != middle(spec)).any():
        return None
    return replace(params, scale=np.broadcast_to(params.scale, wanted).astype(np.float32), zero_point=zero, spec=spec)
