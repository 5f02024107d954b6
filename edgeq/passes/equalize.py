"""Cross-layer equalization: channels between two linear layers get like ranges, and the function stays the same.

For a positively homogeneous function f (Relu, LeakyRelu, pooling) and scales s > 0 a channel,

    W2 f(W1 x + b1) = (W2 S) f(S⁻¹ W1 x + S⁻¹ b1),     s_i = sqrt(r1_i r2_i) / r2_i

makes the ranges r1_i of the rows of W1 and r2_i of the columns of W2 equal, so that one scale for the whole of a weight
costs no channel its resolution. Pairs are taken in turn until nothing moves; a depthwise layer between two others,
whose channel has one range, so ends at the cube root of all three. (Nagel et al., "Data-Free Quantization Through
Weight Equalization and Bias Correction", 2019, sections 4.1 and 4.2.)

A Clip at 6 is not homogeneous. A channel that keeps to half of it on every sample may be scaled as long as it still
does, so that one that is met later has room; another keeps its scale, and without extrema all do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeq.graph.edit import Names, all_graphs, constant, sole_consumer
from edgeq.graph.folding import put

Extrema = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Value → (minimum, maximum) of each of its channels, on the data."""

ROUNDS, SETTLED = 60, 1e-3
ROOM = 0.5  # of what a Clip lets through
HOMOGENEOUS = ("Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Clip", "Flatten")


@dataclass(frozen=True)
class Pair:
    """Two linear layers and what is between them, in order."""

    first: ir.Node
    second: ir.Node
    between: tuple[ir.Node, ...]

    @property
    def value(self) -> str:
        """The value whose extrema matter: what the first layer gives."""
        return self.first.outputs[0].name or ""


def pairs(model: ir.Model) -> list[Pair]:
    """Conv and Gemm whose output reaches just one other Conv or Gemm, through homogeneous operators alone."""
    found = []
    for graph in all_graphs(model):
        for node in graph:
            if _linear(node):
                pair = _follow(node)
                if pair is not None:
                    found.append(pair)
    return found


def equalize(model: ir.Model, extrema: Extrema | None = None, by_reach: bool = False) -> ir.Model:
    """Rewrite in place and return the model.

    extrema: of the values of `pairs`; with them no activation comes to reach further than the farthest did before, and
    a Clip needs them. by_reach: r1_i is the reach of the activation in place of the weight's, which is what counts
    where the weights have a scale a channel anyway.
    """
    extrema = extrema or {}
    found = pairs(model)
    names, moved = Names(model), {pair.value: np.ones(_channels(pair)) for pair in found}
    for _ in range(ROUNDS):
        largest = 0.0
        for pair in found:
            scale = _scale(pair, extrema.get(pair.value), moved[pair.value], by_reach)
            if (scale == 1).all():
                continue
            largest = max(largest, float(np.abs(np.log(scale)).max()))
            moved[pair.value] = moved[pair.value] * scale
            _rescale(pair, scale, names)
        if largest < SETTLED:
            break
    return model


def absorb(model: ir.Model, extrema: Extrema) -> ir.Model:
    """High-bias absorption, in place: what a channel never falls below moves from its bias into the next layer's.

    W2 relu(y) + b2 = W2 relu(y - c) + (b2 + W2 c) for 0 ≤ c ≤ y; c is the least that the channel has on the data. Only
    behind a bare Relu, and into layers without padding, where it is exact.
    """
    names = Names(model)
    for pair in pairs(model):
        padded = any(pair.second.attributes.get_ints("pads", ()))
        auto = pair.second.attributes.get_string("auto_pad", "NOTSET") or "NOTSET"
        seen = extrema.get(pair.value)
        if [n.op_type for n in pair.between] != ["Relu"] or padded or auto not in ("NOTSET", "VALID") or seen is None:
            continue
        least = np.maximum(seen[0], 0.0).astype(np.float64)
        if not least.any():
            continue
        columns = _columns(pair.second)
        added = (columns.sum(3) * least.reshape(columns.shape[0], 1, -1)).sum(2).reshape(-1)
        shift_bias(pair.first, -least, names)
        shift_bias(pair.second, added, names)
    return model


def shift_bias(node: ir.Node, by: np.ndarray, names: Names) -> None:
    """Add to the float bias of a Conv or Gemm, (channels,); without one it gets one."""
    old = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    put(node, 2, np.asarray(by if old is None else old + by), names)


def _linear(node: ir.Node) -> bool:
    """Conv or Gemm with constant weight and bias."""
    if node.domain != "" or node.op_type not in ("Conv", "Gemm"):
        return False
    if node.op_type == "Gemm" and (
        node.attributes.get_float("alpha", 1.0) != 1.0
        or node.attributes.get_float("beta", 1.0) != 1.0
        or node.attributes.get_int("transA", 0) != 0
    ):
        return False
    if any(constant(value) is None for value in node.inputs[1:] if value is not None):
        return False
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    return bias is None or bias.ndim == 1


def _follow(node: ir.Node) -> Pair | None:
    between: list[ir.Node] = []
    value = node.outputs[0]
    while (reader := sole_consumer(value)) is not None and reader.graph is node.graph:
        if _linear(reader):
            fits = reader.inputs[0] is value and _channels_in(reader) == _rows(node).shape[0]
            return Pair(node, reader, tuple(between)) if fits else None
        if reader.op_type not in HOMOGENEOUS or reader.domain != "" or len(reader.outputs) != 1:
            return None
        if reader.op_type == "Flatten" and not _flat(value, reader):
            return None
        if reader.op_type == "Clip" and _top(reader) is None:
            return None
        between.append(reader)
        value = reader.outputs[0]
    return None


def _flat(value: ir.Value, node: ir.Node) -> bool:
    """Does Flatten only drop axes of length 1 behind the channels?"""
    dims = list(value.shape) if value.shape is not None else [0]
    return node.attributes.get_int("axis", 1) == 1 and len(dims) > 1 and all(d == 1 for d in dims[2:])


def _top(node: ir.Node) -> float | None:
    """The upper bound of a Clip whose lower one is 0."""
    bounds = [constant(v) for v in node.inputs[1:3]]
    if len(bounds) < 2 or any(b is None or b.size != 1 for b in bounds) or float(bounds[0].reshape(())) != 0:  # type: ignore[union-attr]
        return None
    return float(bounds[1].reshape(()))  # type: ignore[union-attr]


def _rows(node: ir.Node) -> np.ndarray:
    """The weight as (output channels, rest)."""
    weight = constant(node.inputs[1])
    assert weight is not None
    if node.op_type == "Gemm" and not node.attributes.get_int("transB", 0):
        return weight.T
    return weight.reshape(len(weight), -1)


def _columns(node: ir.Node) -> np.ndarray:
    """The weight as (groups, outputs of a group, inputs of a group, kernel), float64."""
    groups = node.attributes.get_int("group", 1) if node.op_type == "Conv" else 1
    weight = constant(node.inputs[1])
    assert weight is not None
    inputs = weight.shape[1] if node.op_type == "Conv" else _rows(node).shape[1]
    return np.ascontiguousarray(_rows(node), np.float64).reshape(groups, -1, inputs, _rows(node).shape[1] // inputs)


def _channels_in(node: ir.Node) -> int:
    groups, _, inputs, _ = _columns(node).shape
    return int(groups * inputs)


def _channels(pair: Pair) -> int:
    return int(_rows(pair.first).shape[0])


def _scale(pair: Pair, seen: tuple[np.ndarray, np.ndarray] | None, moved: np.ndarray, by_reach: bool) -> np.ndarray:
    """s of each channel, 1 where it may not move. moved: the product of all s so far."""
    tops = [top for node in pair.between if node.op_type == "Clip" and (top := _top(node)) is not None]
    first = np.abs(_rows(pair.first)).max(1).astype(np.float64)
    second = np.abs(_columns(pair.second)).max((1, 3)).reshape(-1)
    if seen is None:
        if tops or by_reach:
            return np.ones(len(first))
        least = np.zeros(len(first))
    else:
        one_sided = any(node.op_type in ("Relu", "Clip") for node in pair.between)
        lo, hi = (np.asarray(side, np.float64) / moved for side in seen)
        reach = np.maximum(hi, 0.0) if one_sided else np.maximum(hi, -lo)
        reach = np.minimum(reach, min(tops, default=np.inf))
        first = reach if by_reach else first
        least = reach / max(float(np.max(reach * moved)), 1e-30)  # no further than the farthest was at first
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.sqrt(first / second)
    scale = np.where((first > 0) & (second > 0), np.maximum(scale, least), 1.0)
    if tops:
        assert seen is not None
        used = np.asarray(seen[1], np.float64) / moved / (ROOM * min(tops))
        scale = np.where(used < 1, np.maximum(scale, used), 1.0)
    return scale


def _rescale(pair: Pair, scale: np.ndarray, names: Names) -> None:
    first, second = constant(pair.first.inputs[1]), constant(pair.second.inputs[1])
    assert first is not None
    assert second is not None
    plain = pair.first.op_type == "Gemm" and not pair.first.attributes.get_int("transB", 0)
    put(pair.first, 1, first / (scale if plain else scale.reshape(-1, *[1] * (first.ndim - 1))), names)
    if len(pair.first.inputs) > 2 and pair.first.inputs[2] is not None:
        bias = constant(pair.first.inputs[2])
        assert bias is not None
        put(pair.first, 2, np.broadcast_to(bias, scale.shape) / scale, names)
    columns = _columns(pair.second)
    scaled = (columns * scale.reshape(columns.shape[0], 1, -1, 1)).reshape(_rows(pair.second).shape)
    plain = pair.second.op_type == "Gemm" and not pair.second.attributes.get_int("transB", 0)
    put(pair.second, 1, scaled.T if plain else scaled.reshape(second.shape), names)
