"""Bias correction: the mean error that rounding leaves in a layer's output goes into its bias.

    analytic    Δb = -(Ŵ - W) E[x]
    empirical   Δb = E[y] - E[ŷ],  with the layers before corrected already

Recipes do the second, in one run of both models (`side_by_side`).

(Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019, section 4.2; Nagel et
al., "A White Paper on Neural Network Quantization", 2021, section 3.3.)
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from edgeq.graph.edit import Names, add_initializer, constant, is_constant, static_shape
from edgeq.graph.folding import put
from edgeq.numerics.affine import storage_dtype
from edgeq.passes.equalize import shift_bias
from edgeq.planning.plan import weight_axis


def without_bias(model: ir.Model) -> list[ir.Node]:
    """Every Conv and Gemm of the main graph that has a constant weight and no bias."""
    return [
        node
        for node in model.graph
        if node.op_type in ("Conv", "Gemm")
        and node.domain == ""
        and is_constant(node.inputs[1])
        and (len(node.inputs) < 3 or node.inputs[2] is None)
    ]


def with_biases(model: ir.Model) -> ir.Model:
    """Give every Conv and Gemm of the main graph a bias, in place, so that there is something to correct."""
    names = Names(model)
    for node in without_bias(model):
        shape = static_shape(node.inputs[1]) or ()
        put(node, 2, np.zeros(shape[weight_axis(node, "channel")]), names)
    return model


def analytic(node: ir.Node, real: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Δb of a Conv or Gemm of the float model, float64 (channels,).

    real: the rounded weight, dequantized, in the layout of the node's. mean: E[x] of each input channel, (inputs,);
    padding is taken to have the same mean.
    """
    weight = constant(node.inputs[1])
    assert weight is not None
    error = real.astype(np.float64) - weight
    if node.op_type != "Conv":
        return -((error if node.attributes.get_int("transB", 0) else error.T) @ mean)
    groups = node.attributes.get_int("group", 1)
    error = error.reshape(groups, len(weight) // groups, weight.shape[1], -1).sum(3)
    return -np.einsum("goi,gi->go", error, np.asarray(mean).reshape(groups, -1)).reshape(-1)


def correct(model: ir.Model, shifts: Mapping[str, np.ndarray]) -> ir.Model:
    """Add Δb to the biases of these nodes of the main graph, in place; nodes without one are left as they are.

    An int32 bias behind DequantizeLinear moves by whole codes, a float one exactly.
    """
    names = Names(model)
    for node in model.graph:
        by = shifts.get(node.name or "")
        bias = node.inputs[2] if by is not None and len(node.inputs) > 2 else None
        if bias is None or by is None:
            continue
        if constant(bias) is not None:
            shift_bias(node, by, names)
            continue
        producer = bias.producer()
        codes, scale = (constant(v) for v in producer.inputs[:2]) if producer is not None else (None, None)
        if producer is None or producer.op_type != "DequantizeLinear" or codes is None or scale is None:
            continue
        moved = codes.astype(np.int64) + np.rint(by / scale).astype(np.int64)
        limits = np.iinfo(storage_dtype("int32"))
        _store(producer, np.clip(moved, limits.min, limits.max).astype(codes.dtype), names)
    return model


def significant(lost: np.ndarray) -> np.ndarray:
    """The mean over samples, (S, C) → (C,), shrunk by what of it may be chance: few samples must do no harm.

    m · max(0, 1 - v / m²), with the mean m and its variance v, that of the samples over S - 1; 0 for one sample alone.
    """
    if len(lost) < 2:
        return np.zeros(lost.shape[1])
    mean, chance = lost.mean(0), lost.var(0) / (len(lost) - 1)
    return np.asarray(mean * np.maximum(0.0, 1 - chance / np.maximum(mean**2, 1e-30)))


def _store(node: ir.Node, codes: np.ndarray, names: Names) -> None:
    """Put other codes behind a DequantizeLinear."""
    old = node.inputs[0]
    assert old is not None
    if len(old.uses()) == 1:
        old.const_value = ir.tensor(codes, name=old.name)
    else:
        assert isinstance(node.graph, ir.Graph)
        node.replace_input_with(0, add_initializer(node.graph, names.new(f"{old.name}_own"), codes))
