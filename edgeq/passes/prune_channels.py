"""Remove whole channels, so that the graph really shrinks: those of a convolution or linear layer that weigh least, in
every weight that makes or reads them.

What an Add or Mul joins, and what a depthwise convolution, activation or pool passes on, has the same channels and
loses the same ones. Channels that an output, a Concat or any operator not named here sees are kept. A channel weighs
the square sum of its weights over the mean of its layer's, summed over all weights that have it (Li et al., "Pruning
Filters for Efficient ConvNets", 2017, with the readers' weights beside the makers').
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgeq.errors import RecipeError
from edgeq.graph.edit import constant, copied, rank, static_shape
from edgeq.graph.infer import infer

PASSING = (
    *("Relu", "LeakyRelu", "Clip", "HardSwish", "HardSigmoid", "Sigmoid", "Tanh", "Elu", "Gelu", "Mish", "Softplus"),
    *("Identity", "Dropout", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"),
)
"""Operators that give each channel of their first input on, and have no weights of channels."""


@dataclass
class _Group:
    """Channels that go together. slices: (weight, axis) that have them; free: whether nothing else sees them."""

    size: int
    slices: list[tuple[ir.Value, int]] = field(default_factory=list)
    values: list[ir.Value] = field(default_factory=list)
    free: bool = True
    made: bool = False


def prune_channels(model: ir.Model, share: float, multiple: int = 8) -> dict[str, tuple[int, int]]:
    """Remove, in place, `share` of the channels of each group of a prepared model; {first value: (kept, of)}.

    multiple: kept channels are rounded up to it, since kernels work on so many at once. Raises RecipeError for a share
    outside [0, 1).
    """
    if not 0 <= share < 1:
        raise RecipeError(f"a share of {share} of all channels: choose 0 or more, and less than 1")
    found = {}
    for group in _groups(model):
        count = min(group.size, -(-round(group.size * (1 - share)) // multiple) * multiple)
        if not group.free or not group.made or count == group.size:
            continue
        kept = np.sort(np.argsort(-_weights(group), kind="stable")[:count])
        for value, axis in group.slices:
            assert value.const_value is not None
            value.const_value = ir.tensor(np.take(value.const_value.numpy(), kept, axis), name=value.name)
            value.shape = copied(value.const_value.shape)
        for value in group.values:
            dims = list(value.shape or ())
            value.shape = ir.Shape([dims[0], count, *dims[2:]])
        found[group.values[0].name or ""] = (count, group.size)
    _depthwise(model)
    infer(model)
    return found


def _weights(group: _Group) -> np.ndarray:
    total = np.zeros(group.size)
    for value, axis in group.slices:
        assert value.const_value is not None
        array = np.moveaxis(value.const_value.numpy().astype(np.float64), axis, 0).reshape(group.size, -1)
        if array.shape[1] > 1:  # biases and scales of a channel say nothing of what it is worth
            square = (array**2).sum(1)
            total += square / max(square.mean(), 1e-30)
    return total


def _depthwise(model: ir.Model) -> None:
    """The group attribute of a depthwise convolution is its number of channels."""
    for node in model.graph:
        if node.op_type == "Conv" and node.attributes.get_int("group", 1) > 1:
            weight = constant(node.inputs[1])
            if weight is not None and weight.shape[1] == 1:
                node.attributes["group"] = ir.AttrInt64("group", weight.shape[0])


def _groups(model: ir.Model) -> list[_Group]:
    found = _Channels()
    for value in model.graph.inputs:
        found.keep(value)
    for node in model.graph:
        found.visit(node)
    for value in model.graph.outputs:
        found.keep(value)
    for value in list(found.of):
        if any(use.node.graph is not model.graph for use in value.uses()):  # a branch or a loop's body reads it
            found.keep(value)
    return found.distinct()


class _Channels:
    """The group of each value whose axis 1 is channels."""

    def __init__(self) -> None:
        self.of: dict[ir.Value, _Group] = {}

    def distinct(self) -> list[_Group]:
        return list({id(group): group for group in self.of.values()}.values())

    def group(self, value: ir.Value) -> _Group:
        if value not in self.of:
            dims = list(value.shape or ())
            size = dims[1] if len(dims) > 1 and isinstance(dims[1], int) else 0
            self.of[value] = _Group(size, values=[value], free=size > 0)
        return self.of[value]

    def keep(self, value: ir.Value | None) -> None:
        if value is not None:
            self.group(value).free = False

    def join(self, a: ir.Value, b: ir.Value) -> None:
        one, other = self.group(a), self.group(b)
        if one is other:
            return
        one.free = one.free and other.free and one.size == other.size
        one.made = one.made or other.made
        one.slices += other.slices
        one.values += other.values
        for value, group in self.of.items():
            if group is other:
                self.of[value] = one

    def sliced(self, value: ir.Value, weight: ir.Value | None, axis: int) -> None:
        """`weight` has the channels of `value` along `axis`; one that others read too keeps them."""
        array = constant(weight)
        if weight is None:
            return
        if array is None or len(weight.uses()) > 1 or array.shape[axis] != self.group(value).size:
            self.keep(value)
        else:
            self.group(value).slices.append((weight, axis))

    def visit(self, node: ir.Node) -> None:
        x, y = node.inputs[0] if node.inputs else None, node.outputs[0]
        op = node.op_type
        if x is None or node.domain not in ("", "ai.onnx"):
            self._keep_all(node)
        elif op == "Conv":
            self._conv(node, x, y)
        elif op == "Gemm" and not node.attributes.get_int("transA", 0):
            outer = 0 if node.attributes.get_int("transB", 0) else 1
            self._linear(node, x, y, outer)
        elif op == "MatMul" and constant(node.inputs[1]) is not None and rank(x) == 2 and rank(node.inputs[1]) == 2:
            self._linear(node, x, y, 1)
        elif op == "BatchNormalization":
            self.join(x, y)
            for value in node.inputs[1:]:
                self.sliced(y, value, 0)
        elif op in PASSING or self._flattens(node, x, y) or self._over_space(node, x, y):
            self.join(x, y)
        elif op in ("Add", "Sub", "Mul", "Div"):
            self._joined(node, y)
        else:
            self._keep_all(node)

    def _conv(self, node: ir.Node, x: ir.Value, y: ir.Value) -> None:
        weight, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
        shape, groups = static_shape(weight), node.attributes.get_int("group", 1)
        shared = constant(weight) is None or weight is None or len(weight.uses()) > 1
        if shape is None or shared or (groups > 1 and not groups == shape[0] == self.group(x).size):
            self._keep_all(node)
            return
        if groups == 1:
            self.sliced(x, weight, 1)
            self.group(y).made = True
        else:
            self.join(x, y)
        if groups == 1 and weight is not None:  # both of its axes are channels, of two groups
            self.group(y).slices.append((weight, 0))
        else:
            self.sliced(y, weight, 0)
        self.sliced(y, bias, 0)

    def _linear(self, node: ir.Node, x: ir.Value, y: ir.Value, outer: int) -> None:
        weight = node.inputs[1]
        self.sliced(x, weight, 1 - outer)
        if rank(y) != 2 or constant(weight) is None or weight is None or len(weight.uses()) > 1:
            self._keep_all(node)
            return
        self.group(y).slices.append((weight, outer))
        self.group(y).made = True
        if len(node.inputs) > 2 and (bias := node.inputs[2]) is not None:
            self.sliced(y, bias, 0) if rank(bias) == 1 else self.keep(y)

    def _joined(self, node: ir.Node, y: ir.Value) -> None:
        """Operands of as many channels are joined; constants may be one number or one a channel."""
        size = self.group(y).size
        for value in node.inputs:
            array = constant(value)
            if value is None or (array is not None and array.size == 1):
                continue
            axis = (rank(value) or 0) - (rank(y) or 0) + 1
            if array is not None and axis >= 0 and array.size == size == array.shape[axis]:
                self.sliced(y, value, axis)
            elif array is None and axis == 1 and self.group(value).size == size:
                self.join(value, y)
            else:
                self.keep(value) if array is None else None
                self.keep(y)

    def _flattens(self, node: ir.Node, x: ir.Value, y: ir.Value) -> bool:
        """Are its channels the features, because there is one place in space?"""
        shape = list(x.shape or ())
        single = len(shape) > 2 and all(d == 1 for d in shape[2:])
        return node.op_type in ("Flatten", "Squeeze") and single and rank(y) == 2

    def _over_space(self, node: ir.Node, x: ir.Value, y: ir.Value) -> bool:
        axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        if node.op_type not in ("ReduceMean", "ReduceMax", "ReduceSum") or axes is None:
            return False
        return {int(a) % (rank(x) or 1) for a in axes.reshape(-1)} <= set(range(2, rank(x) or 2))

    def _keep_all(self, node: ir.Node) -> None:
        for value in (*node.inputs, *node.outputs):
            if value is not None and constant(value) is None:
                self.keep(value)
