"""A model that another tool quantized, for a target: its scales are taken over, and what can't be kept is named."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import TopologicalSortPass

from edgeq import passes
from edgeq import target as targets
from edgeq.calibrate.summary import Summary
from edgeq.collecting.observation import Ways, gather
from edgeq.data import open_data
from edgeq.errors import ModelError, TargetError
from edgeq.formats import encodings as aimet
from edgeq.graph import io
from edgeq.graph.prepare import plain, prepare
from edgeq.numerics.affine import dequantize, middle, params_shape, quantize
from edgeq.passes.qoperator import to_qdq
from edgeq.passes.strip_qdq import Encodings, strip_qdq
from edgeq.passes.tables import store_tables
from edgeq.planning.plan import Plan
from edgeq.planning.planner import plan
from edgeq.planning.solve import activation_params, bias_tensors
from edgeq.recipe import Recipe
from edgeq.registry import load
from edgeq.request import with_padding
from edgeq.target import Target
from edgeq.types import INT_RANGES, PerChannel, PerTensor, QParams, QSpec, QTensor, Solution, silent


@dataclass(frozen=True)
class Retargeted:
    """kept: how many scales are the other tool's. measured: on calibration data, since the tool has none of them.

    lost: node or weight → why its scales could not be kept.
    """

    plan: Plan
    kept: int
    measured: int
    lost: dict[str, str]


def retarget(
    model: str | os.PathLike[str],
    target: str,
    output: str | os.PathLike[str],
    *,
    encodings: str | os.PathLike[str] | None = None,
    calib: Any = None,
    method: Literal["static", "weight_only"] = "static",
) -> Retargeted:
    """Write the model of Q-DQ pairs or of QOperators, or the float one with AIMET's `encodings`, for a target.

    Codes of uint8 and int8 are moved into each other exactly. Where a value has no scale that the target can have, it
    is measured on `calib` (see `edgeq.data.open_data`); without that its nodes stay float. method: weight_only keeps
    weights of 2, 4 or 8 bits in the blocks that they have, and no scales of activations. Raises ModelError for a
    model without any scales, or with a node that can't be read back, TargetError for a target that takes no ONNX
    files.
    """
    aim, recipe = targets.load(target), Recipe(target=target, method=method)
    if aim.format != "onnx":
        raise TargetError(aim.name, f"its artifacts are .{aim.format} files", "choose one that takes ONNX")
    source = io.load(model)
    io.to_memory(source)
    said = strip_qdq(to_qdq(plain(source)))
    if encodings is not None:
        beside = aimet.read(encodings)
        said = Encodings(said.activations | beside.activations, said.constants | beside.constants)
    if not said.activations and not said.constants:
        raise ModelError(f"{model}: has no Q-DQ pairs, nor operators on codes; quantize it, or give --encodings")
    prepared = prepare(source, aim.opset)
    passes.run(prepared, aim.passes_before)
    excluded: dict[str, str] = {}
    summaries = {} if calib is None or method != "static" else _measured(prepared, aim, recipe, calib)
    while True:
        made = plan(prepared, aim, recipe, excluded)
        groups, measured, missing = _groups(made, said, summaries)
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
        params = said.constants.get(row.value)
        if params is not None and method == "static":
            params = moved(params, row.spec, array.shape)
        tensor = QTensor(quantize(array, params), params) if params is not None else None
        if tensor is None or not np.allclose(dequantize(tensor.data, tensor.params), array, rtol=1e-5, atol=1e-8):
            if row.value in said.constants:
                lost[row.value] = f"{aim.name} has its weights as {row.spec.dtype} of another form: rounded anew"
            tensor = load("edgeq.weights", "rtn", "quantize").quantize(array, row.spec, None)
        weights[row.node, row.index] = tensor
    solution = Solution(groups, weights, bias_tensors(made, constants, groups, weights, {}))
    store_tables(prepared, made, solution)
    written = load("edgeq.passes", {"static": "qdq"}.get(method, method), "apply").apply(prepared, made, solution, aim)
    passes.run(written, aim.passes_after)
    TopologicalSortPass()(written)
    io.check(written, str(model))
    io.save(written, Path(output))
    own = {row.value for row in made.weights if row.value in said.constants and row.value not in lost}
    return Retargeted(made, len(groups) - measured + len(own), measured, lost)


def _measured(prepared: ir.Model, aim: Target, recipe: Recipe, calib: Any) -> dict[str, Summary]:
    """What the float graph's values are on samples."""
    with tempfile.TemporaryDirectory(prefix="edgeq-") as name:
        path = Path(name) / "float.onnx"
        io.save(prepared, path)
        recipe, data = with_padding(recipe, open_data(calib, io.input_shapes(prepared)), prepared)
        made = plan(prepared, aim, recipe)
        return gather(made, prepared, path, aim, recipe, data, Path(name), Ways(), silent).summaries


def _groups(
    made: Plan, said: Encodings, summaries: Mapping[str, Summary]
) -> tuple[dict[str, QParams], int, dict[str, str]]:
    """The parameters of each group, how many are measured, and {node: reason} for those of groups that have none."""
    groups: dict[str, QParams] = {}
    scales = said.constants | said.activations
    measured = 0
    missing: dict[str, str] = {}
    for value in sorted(made.values, key=lambda v: v.name != v.group):  # the first of a group speaks for it
        if value.group in groups:
            continue
        if value.fixed is not None:
            groups[value.group] = activation_params(value, None, None)
            continue
        has = (scales[v.name] for v in made.values if v.group == value.group and v.name in scales)
        params = next((moved(theirs, value.spec, ()) for theirs in has), None)
        if params is not None:
            groups[value.group] = params
            continue
        if value.group in summaries:
            groups[value.group] = activation_params(value, None, summaries[value.group])
            measured += 1
            continue
        for member in made.values:
            if member.group == value.group:
                why = f"{value.name}: the model says no scale of it that {made.target} can have"
                missing |= {node: why for node in (*member.readers, member.writer) if node}
    return groups, measured, missing


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
    whole = replace(spec, narrow=False)  # other tools use the lowest code, and kernels take it
    return QParams(np.broadcast_to(params.scale, wanted).astype(np.float32), zero, whole)
