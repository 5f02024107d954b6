"""Fold affine steps into the linear layer beside them, exactly (up to float32 rounding).

After a linear layer, y = a·(W x + b) + c with constants a, c per output channel (BatchNormalization in inference
form, Mul, Div, Add, Sub) becomes (a W) x + (a b + c). Before one, W (s·x) with a scalar s becomes (s W) x.
Source of the BatchNormalization form: ONNX operator specification, BatchNormalization-15, training_mode = 0.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeq.graph.edit import Names, add_initializer, all_graphs, constant, remove, sole_consumer

_GELU = ("Mul", "Add", "Erf", "Tanh")
# op -> (index of the weight, axis of its output channels, index of the bias or None)
LINEAR = {"Conv": (1, 0, 2), "ConvTranspose": (1, 1, 2), "Gemm": (1, 0, 2), "MatMul": (1, -1, None)}


def fold_affine(model: ir.Model) -> bool:
    """Fold until nothing changes. Returns whether anything did."""
    names, changed = Names(model), False
    for graph in all_graphs(model):
        for node in list(graph):
            if node.graph is None or node.domain != "":
                continue
            while node.op_type in LINEAR and _fold_next(node, names):
                changed = True
            if node.op_type in LINEAR and _fold_previous(node, names):
                changed = True
    return changed


def _fold_next(node: ir.Node, names: Names) -> bool:
    weight_index, axis, bias_index = LINEAR[node.op_type]
    weight = constant(node.inputs[weight_index])
    follower = sole_consumer(node.outputs[0])
    if weight is None or follower is None or follower.graph is not node.graph or not _plain(node):
        return False
    groups = node.attributes.get_int("group", 1) if node.op_type == "ConvTranspose" else 1
    if node.op_type == "Gemm":
        axis = 0 if node.attributes.get_int("transB", 0) else 1
    channels = weight.shape[axis] * groups
    step = _affine(follower, node.outputs[0], channels, channel_axis=1 if "Conv" in node.op_type else -1)
    if step is None:
        return False
    scale, shift = step
    bias = _bias(node, bias_index, channels)
    if bias is None or (bias_index is None and shift.any()):
        return False
    if (scale != 1).any():
        if groups > 1:  # ConvTranspose weight: (C_in, C_out / groups, …)
            per_input = scale.reshape(groups, -1).repeat(weight.shape[0] // groups, axis=0)
            factor = per_input.reshape(weight.shape[0], -1, *([1] * (weight.ndim - 2)))
        else:
            factor = scale.reshape([-1 if i == axis % weight.ndim else 1 for i in range(weight.ndim)])
        _set_input(node, weight_index, (weight * factor).astype(weight.dtype), names)
    if bias_index is not None and (bias.any() or shift.any()):
        _set_input(node, bias_index, (bias * scale + shift).astype(weight.dtype), names)
    _take_over(node, follower)
    return True


def _fold_previous(node: ir.Node, names: Names) -> bool:
    weight_index = LINEAR[node.op_type][0]
    source, weight = node.inputs[0], constant(node.inputs[weight_index])
    before = source.producer() if source is not None else None
    if weight is None or before is None or source is None or not _plain(node) or before.graph is not node.graph:
        return False
    if sole_consumer(source) is not node or before.op_type not in ("Mul", "Div") or _ends_gelu(before):
        return False
    data, step = _operand(before)
    if data is None or step is None or step.size != 1 or data.dtype != source.dtype:
        return False
    factor = float(step.reshape(())) if before.op_type == "Mul" else 1.0 / float(step.reshape(()))
    if not np.isfinite(factor) or factor == 0 or step.ndim > max(len(data.shape or ()), 1):
        return False
    _set_input(node, weight_index, (weight * np.float32(factor)).astype(weight.dtype), names)
    node.replace_input_with(0, data)
    remove(before)
    return True


def _ends_gelu(node: ir.Node, depth: int = 3) -> bool:
    """Is this the scalar that ends a GELU written out? Runtimes fuse that only while it is whole."""
    if node.op_type in ("Erf", "Tanh"):
        return True
    before = [v.producer() for v in node.inputs if v is not None]
    return depth > 0 and any(_ends_gelu(n, depth - 1) for n in before if n is not None and n.op_type in _GELU)


def _affine(node: ir.Node, source: ir.Value, channels: int, channel_axis: int) -> tuple[np.ndarray, np.ndarray] | None:
    """(scale, shift), each (channels,) float64, when the node is y = scale · source + shift per channel."""
    one, zero = np.ones(channels), np.zeros(channels)
    if node.op_type == "BatchNormalization" and channel_axis == 1 and node.inputs[0] is source:
        values = [constant(v) for v in node.inputs[1:5]]
        if any(v is None for v in values) or node.attributes.get_int("training_mode", 0) == 1 or _extra_outputs(node):
            return None
        gamma, beta, mean, var = (np.asarray(v, np.float64) for v in values)
        scale = gamma / np.sqrt(var + node.attributes.get_float("epsilon", 1e-5))
        return scale, beta - mean * scale
    if node.op_type not in ("Mul", "Div", "Add", "Sub") or len(node.inputs) != 2:
        return None
    data, operand = _operand(node)
    if data is not source or operand is None:
        return None
    spread = _per_channel(operand, channels, channel_axis, len(source.shape) if source.shape is not None else None)
    if spread is None:
        return None
    match node.op_type:
        case "Mul":
            return spread, zero
        case "Div":
            return (1.0 / spread, zero) if spread.all() else None
        case "Add":
            return one, spread
    return (one, -spread) if node.inputs[0] is source else (-one, spread)


def _operand(node: ir.Node) -> tuple[ir.Value | None, np.ndarray | None]:
    """(variable input, constant operand) of a commutative node, or of x - c, c - x and x / c."""
    left, right = constant(node.inputs[0]), constant(node.inputs[1])
    if right is not None and left is None:
        return node.inputs[0], right
    if left is not None and right is None and node.op_type != "Div":
        return node.inputs[1], left
    return None, None


def _per_channel(operand: np.ndarray, channels: int, axis: int, rank: int | None) -> np.ndarray | None:
    """The operand spread to (channels,) when it varies along the channel axis alone."""
    if operand.size == 1 and operand.ndim <= (rank or 1):
        return np.full(channels, float(operand.reshape(())))
    if operand.size != channels or rank is None or operand.ndim > rank:
        return None
    position = (axis % rank) - (rank - operand.ndim)  # broadcasting aligns shapes at the right
    if position < 0 or operand.shape[position] != channels:
        return None
    return operand.reshape(-1).astype(np.float64)


def _plain(node: ir.Node) -> bool:
    return node.op_type != "Gemm" or (
        node.attributes.get_float("alpha", 1.0) == 1.0
        and node.attributes.get_float("beta", 1.0) == 1.0
        and not node.attributes.get_int("transA", 0)
    )


def _bias(node: ir.Node, index: int | None, channels: int) -> np.ndarray | None:
    """The bias as (channels,) float64, zeros when there is none, None when it is not a constant vector."""
    if index is None or len(node.inputs) <= index or node.inputs[index] is None:
        return np.zeros(channels)
    bias = constant(node.inputs[index])
    if bias is None or bias.size not in (1, channels) or (bias.ndim > 1 and bias.shape[-1] != bias.size):
        return None
    return np.broadcast_to(bias.reshape(-1), (channels,)).astype(np.float64)


def _extra_outputs(node: ir.Node) -> bool:
    return any(v.uses() or v.is_graph_output() for v in node.outputs[1:])


def _set_input(node: ir.Node, index: int, array: np.ndarray, names: Names) -> None:
    old = node.inputs[index] if index < len(node.inputs) else None
    assert node.graph is not None
    base = old.name if old is not None and old.name else f"{node.name}_bias"
    value = add_initializer(_owner(node), names.new(f"{base}_folded"), array)
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)
    if old is not None and not old.uses() and not old.is_graph_output() and old.graph is not None and old.name:
        old.graph.initializers.pop(old.name, None)


def _owner(node: ir.Node) -> ir.Graph:
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    return graph


def _take_over(node: ir.Node, follower: ir.Node) -> None:
    """Let the node's output stand for the follower's, under the follower's name."""
    old, new = follower.outputs[0], node.outputs[0]
    name, type_, shape = old.name, old.type, old.shape
    old.name = None
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    remove(follower)
    new.name, new.type, new.shape = name, type_, shape
