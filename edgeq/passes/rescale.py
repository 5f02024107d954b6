"""New activation scales for a graph of Q-DQ pairs: the pairs, the int32 biases behind them, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from edgeq.graph.edit import Names, add_initializer, all_graphs, constant
from edgeq.numerics.affine import bias_params, quantize_bias, within
from edgeq.passes.qdq import zero_point_array
from edgeq.planning.joints import wide_joints
from edgeq.planning.plan import FOLDED, INTEGER, NodePlan, Plan, ValuePlan
from edgeq.planning.sums import tie_free
from edgeq.types import QParams, QSpec

SUFFIX = "_scale"


@dataclass(frozen=True, eq=False)
class Group:
    """A scale that activations share. value: what it was named after, and observed. bounds: what codes may mean."""

    value: str
    params: QParams
    scale: ir.Value
    zero: ir.Value
    quantizers: tuple[ir.Node, ...]
    bounds: tuple[float, float]
    split: bool


def groups(model: ir.Model) -> dict[str, Group]:
    """The per-tensor activation scales of an artifact that edgeq wrote, by the name of what was observed.

    split: outlying channels are coded in parts of this scale's size, so that it can't change on its own.
    """
    found: dict[ir.Value, list[ir.Node]] = {}
    for graph in all_graphs(model):
        for node in graph:
            scale = node.inputs[1] if node.op_type == "QuantizeLinear" else None
            if scale is not None and len(node.inputs) > 2 and (constant(scale) is not None):
                found.setdefault(scale, []).append(node)
    pairs = {scale: (nodes, nodes[0].inputs[2], constant(nodes[0].inputs[2])) for scale, nodes in found.items()}
    codes = [zero for _, _, zero in pairs.values() if zero is not None]
    symmetric = bool(codes) and all(zero.dtype.kind == "i" and not zero.any() for zero in codes)
    made = {}
    for scale, (nodes, zero, point) in pairs.items():
        array = constant(scale)
        if array is None or point is None or zero is None or array.size != 1 or not (scale.name or "").endswith(SUFFIX):
            continue
        spec = QSpec(point.dtype.name, symmetric=symmetric)
        value = (scale.name or "").removesuffix(SUFFIX)
        params = QParams(array.reshape(()), point.astype(np.int32).reshape(()), spec)
        split = any((n.inputs[0].name or "").endswith("_parts") for n in nodes if n.inputs[0] is not None)
        made[value] = Group(value, params, scale, zero, tuple(nodes), _bounds(nodes), split)
    return made


def _bounds(nodes: list[ir.Node]) -> tuple[float, float]:
    """Of a Clip directly before: codes beyond it would take its work over wrongly."""
    for node in nodes:
        source = node.inputs[0]
        clip = source.producer() if source is not None else None
        if clip is not None and clip.op_type == "Clip":
            ends = [constant(v) for v in clip.inputs[1:3]]
            lo, hi = (-np.inf if not ends or ends[0] is None else float(ends[0].reshape(()))), np.inf
            if len(ends) > 1 and ends[1] is not None:
                hi = float(ends[1].reshape(()))
            if lo <= 0 <= hi:
                return lo, hi
    return -np.inf, np.inf


def rescale(model: ir.Model, fresh: Mapping[str, QParams]) -> dict[str, QParams]:
    """Give groups other parameters, in place; gives those that they really got.

    Bounds of Clips, scales of sums and ranges of joints are kept to as when the artifact was made. Biases mean what
    they meant, in codes of the new product of scales.
    """
    held = groups(model)
    wanted = {name: within(params, *held[name].bounds) for name, params in fresh.items()}
    made = _plan(model, held)
    settled = tie_free(made, model, wide_joints(made, model, {n: wanted.get(n, g.params) for n, g in held.items()}))
    biases = _biases(model)
    for name, group in held.items():
        params = settled[name]
        group.scale.const_value = ir.tensor(params.scale.reshape(constant(group.scale).shape), name=group.scale.name)  # type: ignore[union-attr]
        point = zero_point_array(params, params.spec.dtype).reshape(constant(group.zero).shape)  # type: ignore[union-attr]
        group.zero.const_value = ir.tensor(point, name=group.zero.name)
    names = Names(model)
    for node, real in biases:
        _rebias(node, real, names, model.graph)
    return settled


def _plan(model: ir.Model, held: Mapping[str, Group]) -> Plan:
    """As much of a plan as `wide_joints` and `tie_free` read."""
    of_scale = {group.scale: group for group in held.values()}
    nodes, values = [], []
    for graph in all_graphs(model):
        for node in graph:
            group = of_scale.get(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] is not None else None
            if group is not None and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                value = node.inputs[0] if node.op_type == "QuantizeLinear" else node.outputs[0]
                assert value is not None
                values.append(ValuePlan(value.name or "", group.params.spec, group.value, "", False, ()))
            elif node.op_type in ("Add", "Concat") and all(_coded(v) for v in node.inputs):
                nodes.append(NodePlan(node.name or "", node.op_type, INTEGER))
                readers = [use.node for use in node.outputs[0].uses()]
                if len(readers) == 1 and readers[0].op_type in ("Relu", "Clip"):
                    nodes.append(NodePlan(readers[0].name or "", readers[0].op_type, FOLDED))
    return Plan("", "static", tuple(nodes), tuple(values))


def _coded(value: ir.Value | None) -> bool:
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type == "DequantizeLinear"


def _biases(model: ir.Model) -> list[tuple[ir.Node, np.ndarray]]:
    """(layer, what its int32 bias means)."""
    found = []
    for graph in all_graphs(model):
        for node in graph:
            bias = node.inputs[2] if node.op_type in ("Conv", "Gemm") and len(node.inputs) > 2 else None
            dequantize = bias.producer() if bias is not None else None
            if dequantize is None or dequantize.op_type != "DequantizeLinear" or not _coded(node.inputs[0]):
                continue
            codes, scale = constant(dequantize.inputs[0]), constant(dequantize.inputs[1])
            if codes is not None and scale is not None and codes.dtype == np.int32:
                found.append((node, codes.astype(np.float64) * scale))
    return found


def _rebias(node: ir.Node, real: np.ndarray, names: Names, home: ir.Graph) -> None:
    data, weight, bias = (v.producer() for v in node.inputs[:3] if v is not None)
    assert data is not None
    assert weight is not None
    assert bias is not None
    act, factor, old_scale = (constant(producer.inputs[1]) for producer in (data, weight, bias))
    assert act is not None
    assert factor is not None
    assert old_scale is not None
    params = bias_params(act.reshape(()), factor)
    params = replace(params, scale=np.broadcast_to(params.scale, old_scale.shape))
    codes, _ = quantize_bias(real, params)
    for index, array in ((0, codes), (1, np.ascontiguousarray(params.scale, np.float32))):
        old = bias.inputs[index]
        assert old is not None
        if len(old.uses()) == 1:
            old.const_value = ir.tensor(array, name=old.name)
        else:
            bias.replace_input_with(index, add_initializer(home, names.new(f"{old.name}_own"), array))
