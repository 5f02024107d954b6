"""From statistics and weights to numbers: one QParams a group, one QTensor a weight and bias. No graph is changed.

A node whose numbers can't be found is not an error of the run: it is named, with the reason, and stays float.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgeq.calibrate.summary import Summary
from edgeq.errors import CalibrationError, ModelError
from edgeq.graph import io
from edgeq.graph.edit import all_graphs
from edgeq.numerics.affine import (
    MIN_SCALE,
    bias_params,
    least_weight_scale,
    qparams,
    quantize,
    quantize_bias,
    reach,
    within,
)
from edgeq.planning.joints import wide_joints
from edgeq.planning.plan import Plan, ValuePlan, WeightPlan
from edgeq.planning.plateaus import chosen
from edgeq.planning.sums import tie_free
from edgeq.registry import load
from edgeq.types import QParams, QTensor, Solution, Stats


def solve(
    plan: Plan,
    model: ir.Model,
    summaries: Mapping[str, Summary],
    stats: Mapping[str, Stats] | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> tuple[Solution, dict[str, str]]:
    """The numbers for a plan, and {node: reason} for nodes that have to stay float after all."""
    failed: dict[str, str] = {}
    constants = {v.name: v.const_value for g in all_graphs(model) for v in g.initializers.values()}
    groups = tie_free(plan, model, wide_joints(plan, model, _groups(plan, constants, summaries, failed)))
    weights: dict[tuple[str, int], QTensor] = {}
    cache: dict[tuple[str, object, str], QTensor] = {}
    for index, weight in enumerate(plan.weights):
        key = (weight.value, weight.spec, weight.algorithm)
        try:
            if key not in cache or stats:
                cache[key] = _weight(weight, constants, (stats or {}).get(weight.node))
            weights[weight.node, weight.index] = cache[key]
        except ModelError as error:
            failed[weight.node] = str(error)
        progress(index + 1)
    biases = bias_tensors(plan, constants, groups, weights, failed)
    return Solution(groups, weights, biases), failed


def _groups(
    plan: Plan,
    constants: Mapping[str | None, ir.TensorProtocol | None],
    summaries: Mapping[str, Summary],
    failed: dict[str, str],
) -> dict[str, QParams]:
    groups: dict[str, QParams] = {}
    involved: dict[str, list[str]] = {}
    for value in plan.values:
        involved.setdefault(value.group, []).extend([*value.readers, *filter(None, [value.writer])])
    for value in plan.values:
        if value.group in groups or value.name != value.group:
            continue
        try:
            groups[value.group] = activation_params(value, constants.get(value.name), summaries.get(value.name))
        except CalibrationError as error:
            for node in involved[value.group]:
                failed[node] = f"{value.name}: {error}"
    return groups


def activation_params(value: ValuePlan, constant: ir.TensorProtocol | None, summary: Summary | None) -> QParams:
    """The numbers of one group of values. Raises CalibrationError when there is nothing to find them from."""
    if value.fixed is not None:
        return QParams(
            np.asarray(value.fixed.scale, np.float32), np.asarray(value.fixed.zero_point, np.int32), value.spec
        )
    if constant is not None:
        array = constant.numpy()
        if array.size == 0:
            raise CalibrationError("an empty constant")
        return _bounded(qparams(float(array.min()), float(array.max()), value.spec), value)
    if summary is None:
        raise CalibrationError("no calibration sample reached it")
    return _bounded(chosen(summary, value), value)


def _bounded(params: QParams, value: ValuePlan) -> QParams:
    found = within(params, *value.bounds)
    if found.scale <= MIN_SCALE:
        raise CalibrationError("its range of {:.3g} to {:.3g} is too small for a step".format(*reach(params)))
    return found


def _weight(plan: WeightPlan, constants: Mapping[str | None, ir.TensorProtocol | None], stats: Stats | None) -> QTensor:
    tensor = constants[plan.value]
    assert tensor is not None
    array = io.mapped(tensor)
    peak = max(-float(array.min()), float(array.max()), 0.0) if array.size else 0.0
    if 0 < peak < MIN_SCALE * plan.spec.qmax:
        raise ModelError(f"its weight, up to {peak:.3g}, is too small for a step")
    solve: Callable[..., QTensor] = load("edgeq.weights", plan.algorithm, "quantize").quantize
    return solve(array, plan.spec, stats, **dict(plan.settings))


def bias_tensors(
    plan: Plan,
    constants: Mapping[str | None, ir.TensorProtocol | None],
    groups: Mapping[str, QParams],
    weights: dict[tuple[str, int], QTensor],
    failed: dict[str, str],
) -> dict[str, QTensor]:
    """int32 biases. A weight scale too small for its bias is raised (and that weight rounded anew) in `weights`."""
    group_of = {value.name: value.group for value in plan.values}
    source = {(w.node, w.index): w.value for w in plan.weights}
    biases: dict[str, QTensor] = {}
    for bias in plan.biases:
        key = (bias.node, 1)
        tensor = constants[bias.value]
        if key not in weights or group_of.get(bias.act) not in groups or tensor is None:
            continue
        act_scale = groups[group_of[bias.act]].scale
        array = tensor.numpy().reshape(-1)
        if not np.isfinite(array).all():
            failed[bias.node] = "its bias holds NaN or infinity"
            continue
        params = bias_params(act_scale, weights[key].params.scale)
        codes, overflow = quantize_bias(array, params)
        if overflow.any():
            weights[key] = _raise_scale(weights[key], constants[source[key]], least_weight_scale(array, act_scale))
            params = bias_params(act_scale, weights[key].params.scale)
            codes, overflow = quantize_bias(array, params)
        biases[bias.node] = QTensor(codes, params)
    return biases


def _raise_scale(weight: QTensor, source: ir.TensorProtocol | None, least: np.ndarray) -> QTensor:
    assert source is not None
    old = weight.params
    wanted = least if old.scale.ndim else least.max()
    params = replace(old, scale=np.maximum(old.scale, wanted).astype(np.float32))
    return QTensor(quantize(io.mapped(source), params), params)
