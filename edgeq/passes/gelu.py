"""Write the exact Gelu that an exporter spelled out (Div, Erf, Add, Mul, Mul) as the one operator that it is.

Between integers each of the five would be rounded, the one is rounded once.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgeq.graph.edit import Names, all_graphs, make_node, replace
from edgeq.graph.gelu import find

OPSET = 20  # the first with Gelu


def rewrite(model: ir.Model) -> ir.Model:
    """Rewrite in place and return the model, which stays as it is in operator sets without Gelu."""
    if model.opset_imports.get("", 1) < OPSET:
        return model
    names = Names(model)
    for graph in all_graphs(model):
        for last, (x, _) in find(graph).items():
            out = last.outputs[0]
            name = last.name or "gelu"
            one = make_node("Gelu", [x], names.new(f"{out.name}_gelu"), out.dtype, out.shape, name=names.new(name))
            graph.insert_before(last, one)
            replace(last, one.outputs[0])
    RemoveUnusedNodesPass()(model)
    return model
