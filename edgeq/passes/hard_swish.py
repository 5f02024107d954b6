"""Write a HardSwish between integers as an Add and a Mul of integers.

    x · clip(x / 6 + 1/2, 0, 1)   =   Mul(x, Add(x / 6, 1/2) rounded to steps of 1/255)

The codes of x at a sixth of their scale are x / 6, and the saturation of uint8 is the clip. onnxruntime fuses this into
QLinearAdd and QLinearMul; its HardSwish is two float kernels, between a DequantizeLinear and a QuantizeLinear. The
scales of the sum are tie-free (`edgeq.planning.sums`), so that every machine rounds it alike. 1/2 is code 128 of a
small scale, because onnxruntime on Arm gives both scales of a sum the fixed point that the greater one needs.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeq.graph.edit import Names, add_initializer, all_graphs, constant, make_node, remove, sole_consumer
from edgeq.planning.sums import tie_free_scale

STEP = np.asarray(1 / 255, np.float32)
HALF = 128
HALF_SCALE = tie_free_scale(np.asarray(0.5 / HALF, np.float32), STEP, up=False)


def rewrite(model: ir.Model) -> ir.Model:
    """Rewrite in place each HardSwish from uint8 codes of one scale to codes, and return the model."""
    names, shared = Names(model), dict[str, ir.Value]()
    for graph in all_graphs(model):
        for node in list(graph):
            if node.op_type == "HardSwish" and node.domain == "" and _between_integers(node):
                _write(model, graph, node, names, shared)
    return model


def _between_integers(node: ir.Node) -> bool:
    reader = sole_consumer(node.outputs[0])
    source = node.inputs[0].producer() if node.inputs[0] is not None else None
    if reader is None or reader.op_type != "QuantizeLinear" or source is None or source.op_type != "DequantizeLinear":
        return False
    codes, scale = source.inputs[0], constant(source.inputs[1])
    typed = codes is not None and codes.dtype == ir.DataType.UINT8
    return typed and scale is not None and scale.size == 1 and len(source.inputs) == 3


def _write(model: ir.Model, graph: ir.Graph, node: ir.Node, names: Names, shared: dict[str, ir.Value]) -> None:
    x = node.inputs[0]
    source = x.producer() if x is not None else None
    assert x is not None
    assert source is not None
    scale, base = constant(source.inputs[1]), x.name
    assert scale is not None
    if not shared:
        ends = {"half": np.asarray(HALF, np.uint8), "zero": np.asarray(0, np.uint8), "scale": HALF_SCALE, "step": STEP}
        for name, array in ends.items():
            shared[name] = add_initializer(model.graph, names.new(f"gate_{name}"), array)
    half, zero, half_scale, step = (shared[name] for name in ("half", "zero", "scale", "step"))

    def add(op: str, inputs: list[ir.Value | None], suffix: str, kind: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
        new = make_node(
            op, inputs, names.new(f"{base}_{suffix}"), kind, x.shape if inputs[0] is not half else ir.Shape([])
        )
        graph.insert_before(node, new)
        return new.outputs[0]

    less = add_initializer(model.graph, names.new(f"{base}_sixth"), tie_free_scale(scale / np.float32(6), STEP))
    sixth = add("DequantizeLinear", [source.inputs[0], less, source.inputs[2]], "by_6")
    offset = f"offset {id(graph)}"
    if offset not in shared:
        shared[offset] = add("DequantizeLinear", [half, half_scale, zero], "offset")
    total = add("Add", [sixth, shared[offset]], "sum")
    codes = add("QuantizeLinear", [total, step, zero], "gate_q", ir.DataType.UINT8)
    product = add("Mul", [x, add("DequantizeLinear", [codes, step, zero], "gate")], "gated")
    out = node.outputs[0]
    out.replace_all_uses_with(product)
    kept = out.name
    remove(node)
    product.name = kept
