"""Write a Flatten, Squeeze or Unsqueeze of codes as the Reshape that it is.

onnxruntime's NNAPI provider takes all four in float, but of DequantizeLinear, one of them and QuantizeLinear only
Reshape (base_op_builder.cc, IsNodeUnitTypeSupported); the others it leaves to the CPU. Behind an operator that runs in
float there, GlobalAveragePool for one, they are float as well, and stay what they are.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeq.graph.edit import Names, add_initializer, all_graphs, make_node, replace, sole_consumer, static_shape

MOVES = ("Flatten", "Squeeze", "Unsqueeze")


def rewrite(model: ir.Model) -> ir.Model:
    """Rewrite in place and return the model, which has Q and DQ nodes. What has no fixed shape keeps its form."""
    names = Names(model)
    for graph in all_graphs(model):
        for node in list(graph):
            if node.domain == "" and node.op_type in MOVES and _between_codes(node):
                _reshape(graph, node, names)
    return model


def _between_codes(node: ir.Node) -> bool:
    source = node.inputs[0].producer() if node.inputs[0] is not None else None
    after = sole_consumer(node.outputs[0])
    if source is None or source.op_type != "DequantizeLinear" or after is None:
        return False
    return after.op_type == "QuantizeLinear"


def _reshape(graph: ir.Graph, node: ir.Node, names: Names) -> None:
    out = node.outputs[0]
    shape = static_shape(out)
    if shape is None:
        return
    wanted = add_initializer(graph, names.new(f"{out.name}_shape"), np.array(shape, np.int64))
    made = make_node("Reshape", [node.inputs[0], wanted], out.name or "", out.dtype, ir.Shape(shape), name=node.name)
    graph.insert_before(node, made)
    replace(node, made.outputs[0])
