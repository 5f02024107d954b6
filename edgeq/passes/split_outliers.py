"""Write the splits of a plan into a quantized graph: parts of outlying channels, as further columns of codes.

    x → QuantizeLinear ────────────────────┐
    x → Gather → Mul → Add → QuantizeLinear → Concat → DequantizeLinear → MatMul, Gemm

Scale and zero point are the same throughout. The weight's rows of the split channels become 0, since their codes in
x saturate, and are repeated behind the others for the parts, which `edgeq/planning/outliers.py` defines.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgeq.graph.edit import Names, add_initializer, constant, drop_unused_initializers, make_node, nodes_named
from edgeq.planning.plan import SplitPlan


def split(model: ir.Model, splits: Sequence[SplitPlan]) -> ir.Model:
    """Rewrite in place a graph of Q-DQ pairs, whose values have the plan's names, and return it."""
    names = Names(model)
    of_node = {node: plan for plan in splits for node in plan.readers}
    extended: dict[ir.Value, ir.Value] = {}
    for node in nodes_named(model, of_node):
        _extend_data(model, node, of_node[node.name or ""], names, extended)
        _extend_weight(model, node, of_node[node.name or ""], names)
    drop_unused_initializers(model)
    return model


def _extend_data(
    model: ir.Model, node: ir.Node, plan: SplitPlan, names: Names, extended: dict[ir.Value, ir.Value]
) -> None:
    data = node.inputs[0]
    assert data is not None
    dequantize = data.producer()
    assert dequantize is not None
    codes = dequantize.inputs[0]
    quantize = codes.producer() if codes is not None else None
    if codes in extended.values():  # a sibling reads the same DequantizeLinear
        return
    assert codes is not None
    assert quantize is not None
    if codes not in extended:
        extended[codes] = _columns(model, quantize, plan, names)
    dequantize.replace_input_with(0, extended[codes])
    data.shape = extended[codes].shape


def _columns(model: ir.Model, quantize: ir.Node, plan: SplitPlan, names: Names) -> ir.Value:
    """The codes of x with those of the parts behind them."""
    source, codes = quantize.inputs[0], quantize.outputs[0]
    assert source is not None
    scale = constant(quantize.inputs[1])
    assert scale is not None
    counts = np.array(plan.parts)
    parts = np.repeat(counts, counts)
    position = np.arange(len(parts)) - np.repeat(np.cumsum(counts) - counts, counts)
    constants = {
        "channels": np.repeat(np.array(plan.channels, np.int64), counts),
        "share": (1 / parts).astype(np.float32),
        "shift": ((2 * position - parts + 1) / (2 * parts) * scale).astype(np.float32),
    }
    base, known, dtype = source.name, source.shape, source.dtype
    picked, share, shift = (add_initializer(model.graph, names.new(f"{base}_{k}"), v) for k, v in constants.items())

    def columns(width: int) -> ir.Shape | None:
        return None if known is None else ir.Shape([*list(known)[:-1], width])

    steps: list[ir.Node] = []

    def add(op: str, inputs: list[ir.Value | None], suffix: str, kind: ir.DataType | None, **axis: int) -> ir.Value:
        steps.append(make_node(op, inputs, names.new(f"{base}_{suffix}"), kind, columns(len(parts)), axis))
        return steps[-1].outputs[0]

    far = add("Gather", [source, picked], "far", dtype, axis=-1)
    divided = add("Add", [add("Mul", [far, share], "divided", dtype), shift], "parts", dtype)
    coded = add("QuantizeLinear", [divided, *quantize.inputs[1:]], "parts_q", codes.dtype)
    whole = add("Concat", [codes, coded], "split_q", codes.dtype, axis=-1)
    whole.shape = None if known is None or not isinstance(known[-1], int) else columns(known[-1] + len(parts))
    assert isinstance(quantize.graph, ir.Graph)
    quantize.graph.insert_after(quantize, steps)
    return whole


def _extend_weight(model: ir.Model, node: ir.Node, plan: SplitPlan, names: Names) -> None:
    data = node.inputs[1]
    assert data is not None
    dequantize = data.producer()
    assert dequantize is not None
    codes = constant(dequantize.inputs[0])
    assert codes is not None
    zero = constant(dequantize.inputs[2]) if len(dequantize.inputs) > 2 else None
    axis = 1 if node.op_type == "Gemm" and bool(node.attributes.get_int("transB", 0)) else 0
    channels = np.array(plan.channels)
    rest, parts = np.array(codes), np.take(codes, np.repeat(channels, plan.parts), axis)
    nothing = np.zeros((), codes.dtype) if zero is None else zero
    if axis == 0:
        rest[channels, :] = nothing
    else:
        rest[:, channels] = nothing.reshape(-1, 1)
    base = dequantize.inputs[0].name if dequantize.inputs[0] is not None else node.name
    stored = add_initializer(model.graph, names.new(f"{base}_split"), np.concatenate([rest, parts], axis))
    assert isinstance(node.graph, ir.Graph)
    inputs = [stored, *dequantize.inputs[1:]]
    new = make_node(
        "DequantizeLinear", inputs, names.new(f"{data.name}_split"), data.dtype, stored.shape,
        {"axis": dequantize.attributes.get_int("axis", 1)},
    )  # fmt: skip
    node.graph.insert_before(node, new)
    node.replace_input_with(1, new.outputs[0])
    if not data.uses() and not data.is_graph_output():
        node.graph.remove(dequantize, safe=True)
