"""Corrections of a layer's rounding, added to its output.

low rank:   x → MatMul (K, r) → MatMul (r, N) → Add to the layer's output
outliers:   x → Gather of r features → MatMul (r, N) → Add
"""

from __future__ import annotations

import onnx_ir as ir

from edgeq.graph.edit import make_node, nodes_named
from edgeq.passes.builder import FLOAT, Builder
from edgeq.types import Correction, Solution


def add(model: ir.Model, solution: Solution) -> ir.Model:
    """Put them behind their nodes, in place; what comes last keeps the name of the layer's output."""
    build = Builder(model)
    for node in nodes_named(model, solution.corrections):
        for correction in solution.corrections[node.name or ""]:
            _add(build, node, correction)
    return model


def _add(build: Builder, node: ir.Node, correction: Correction) -> None:
    data, out = node.inputs[0], node.outputs[0]
    assert data is not None
    assert node.graph is not None
    known = None if data.shape is None else list(data.shape)[:-1]
    inner = None if known is None else ir.Shape([*known, len(correction.right)])
    right = build.reals(f"{node.name}_right", correction.right, alone=False)
    if correction.left.ndim == 1:
        features = build.init(f"{node.name}_features", correction.left)
        narrow = build.before(node, "Gather", [data, features], "outliers", inner, {"axis": -1})
    else:
        left = build.reals(f"{node.name}_left", correction.left, alone=False)
        narrow = build.before(node, "MatMul", [data, left], "low_rank", inner)
    part = build.before(node, "MatMul", [narrow, right], "correction", out.shape)
    name, out.name = out.name or "", build.names.new(f"{out.name}_coded")
    own = build.names.new(f"{name}_corrected")  # a node may have the name of what it gives
    whole = make_node("Add", [out, part], name, FLOAT, out.shape, name=own)
    node.graph.insert_after(node, whole)
    out.replace_all_uses_with(whole.outputs[0], replace_graph_outputs=True)
    whole.replace_input_with(0, out)
