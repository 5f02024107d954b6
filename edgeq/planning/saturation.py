"""Layers whose int8 weights can saturate on a target without VNNI, by name: of a plan, and of an artifact.

onnxruntime sums a convolution over kernel positions and, within them, over a group's channels; a depthwise one has a
kernel of its own that widens before it adds.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from edgeq.graph.edit import all_graphs, constant
from edgeq.numerics.saturation import saturating_pairs
from edgeq.planning.plan import STORED, WEIGHT_INDEX, Plan
from edgeq.registry import load

INTEGER_FORMS = {"ConvInteger": "Conv", "MatMulInteger": "MatMul"}


def planned(model: ir.Model, plan: Plan) -> list[str]:
    """A line a layer of the plan, from the codes that its weights round to. A weight algorithm may choose others."""
    nodes = {node.name: node for graph in all_graphs(model) for node in graph}
    stored = plan.decided(STORED)
    lines: list[str] = []
    for row in plan.weights:
        node = nodes[row.node]
        array = constant(node.inputs[row.index])
        if row.spec.dtype == "int8" and array is not None and row.node not in stored:
            codes = load("edgeq.weights", "rtn", "quantize").quantize(array, row.spec, None).data
            lines += _line(node, node.op_type, codes)
    return lines


def written(model: ir.Model) -> list[str]:
    """A line a layer of a quantized model: u8 activations and constant int8 weights, as QDQ or in integer operators."""
    lines: list[str] = []
    for graph in all_graphs(model):
        for node in graph:
            op = INTEGER_FORMS.get(node.op_type, node.op_type)
            if op not in ("Conv", "Gemm", "MatMul"):
                continue
            activation, weight = (_codes(v) for v in node.inputs[:2])
            array = constant(weight)
            if array is not None and array.dtype == np.int8 and _dtype(activation) in (None, ir.DataType.UINT8):
                lines += _line(node, op, array)
    return lines


def _line(node: ir.Node, op: str, codes: np.ndarray) -> Iterator[str]:
    if op not in WEIGHT_INDEX or codes.ndim < 2:
        return
    if op == "Conv":
        if codes.shape[1] == 1:
            return
        columns = np.moveaxis(codes, 1, -1).reshape(codes.shape[0], -1).T
    else:
        turned = op == "Gemm" and bool(node.attributes.get_int("transB", 0))
        columns = codes.T if turned else np.moveaxis(codes, -2, 0).reshape(codes.shape[-2], -1)
    pairs = saturating_pairs(columns)
    if pairs.any():
        count = f"{np.count_nonzero(pairs)} of {pairs.size} output channels"
        yield f"node {node.name}: {count} have weights that can saturate without VNNI; give them 7 bits (reduce_range)"


def _codes(value: ir.Value | None) -> ir.Value | None:
    """The codes behind a DequantizeLinear; the value itself where there is none."""
    producer = value.producer() if value is not None else None
    return producer.inputs[0] if producer is not None and producer.op_type == "DequantizeLinear" else value


def _dtype(value: ir.Value | None) -> ir.DataType | None:
    """The type of codes; that of the zero point they were made with where a file says nothing of it."""
    producer = value.producer() if value is not None else None
    if producer is not None and producer.op_type == "QuantizeLinear" and len(producer.inputs) > 2:
        zero = producer.inputs[2]
        return zero.dtype if zero is not None else None
    return value.dtype if value is not None else None
