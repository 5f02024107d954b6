"""Layers whose int8 weights can saturate on a target without VNNI, by name: of a plan, and of an artifact.

onnxruntime sums a convolution over kernel positions and, within them, over a group's channels; a depthwise one has a
kernel of its own that widens before it adds, and ConvInteger, as dynamic quantization writes it, never saturates.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from edgeq.graph.edit import all_graphs, constant
from edgeq.graph.unsigned import met
from edgeq.numerics.saturation import saturating_pairs
from edgeq.planning.plan import DYNAMIC, STORED, WEIGHT_INDEX, Plan
from edgeq.registry import load


def planned(model: ir.Model, plan: Plan) -> list[str]:
    """A line a layer of the plan, from the codes that its weights round to. A weight algorithm may choose others."""
    nodes = {node.name: node for graph in all_graphs(model) for node in graph}
    stored, dynamic = plan.decided(STORED), plan.decided(DYNAMIC)
    lines: list[str] = []
    for row in plan.weights:
        node = nodes[row.node]
        if node.op_type == "Conv" and row.node in dynamic:
            continue
        array = constant(node.inputs[row.index])
        if row.spec.dtype == "int8" and array is not None and row.node not in stored:
            codes = load("edgeq.weights", "rtn", "quantize").quantize(array, row.spec, None).data
            lines += _line(node, node.op_type, codes)
    return lines


def written(model: ir.Model) -> list[str]:
    """A line a layer of a quantized model: u8 activations and constant int8 weights, as QDQ or in integer operators."""
    return [line for weight in met(model) for line in _line(weight.node, weight.op, weight.codes)]


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
