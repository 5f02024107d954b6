"""Store as integers what no integer kernel takes: the tables of Gather (embeddings), the weights of recurrent layers.

    table[ids] = (codes[ids] - 0) · scale[ids]        codes int8 (rows, features), scale float32 (rows, 1)

Only the rows that are looked up are ever dequantized. Weights get a DequantizeLinear.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeq.graph.edit import Names, add_initializer, all_graphs, drop_unused_initializers, make_node, replace
from edgeq.passes.qdq import Writer
from edgeq.planning.plan import STORED, Plan
from edgeq.types import Solution


def store_tables(model: ir.Model, plan: Plan, solution: Solution) -> ir.Model:
    """Rewrite in place every node whose table or weights the plan stores, and return the model."""
    planned = plan.decided(STORED)
    stored: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
    weights = Writer(model, solution)
    for weight in plan.weights:
        held = (weight.node, weight.index) in solution.weights
        if held and weight.node in planned and weights.nodes[weight.node].op_type != "Gather":
            weights.constant_input(weight.node, weight.index, solution.weights[weight.node, weight.index])
    for graph in all_graphs(model):
        for node in list(graph):
            if node.name in planned and node.op_type == "Gather":
                _store(model, graph, node, solution, weights.names, stored)
    drop_unused_initializers(model)
    return model


def _store(
    model: ir.Model, graph: ir.Graph, node: ir.Node, solution: Solution, names: Names,
    stored: dict[ir.Value, tuple[ir.Value, ir.Value]],
) -> None:  # fmt: skip
    table, ids, out = node.inputs[0], node.inputs[1], node.outputs[0]
    assert table is not None
    if table not in stored:
        tensor = solution.weights[node.name or "", 0]
        scale = tensor.params.scale.reshape(-1, 1).astype(np.float32)
        stored[table] = (
            add_initializer(model.graph, names.new(f"{table.name}_q"), tensor.data),
            add_initializer(model.graph, names.new(f"{table.name}_scale"), scale),
        )
    codes, scale_value = stored[table]
    column = None if out.shape is None else ir.Shape([*list(out.shape)[:-1], 1])
    base = out.name or "rows"

    def add(
        op: str,
        inputs: list[ir.Value | None],
        suffix: str,
        dtype: ir.DataType | None,
        shape: ir.Shape | None,
        **attributes: int,
    ) -> ir.Value:
        new = make_node(op, inputs, names.new(f"{base}_{suffix}"), dtype, shape, attributes)
        graph.insert_before(node, new)
        return new.outputs[0]

    rows = add("Gather", [codes, ids], "codes", codes.dtype, out.shape, axis=0)
    real = add("Cast", [rows], "real", ir.DataType.FLOAT, out.shape, to=int(ir.DataType.FLOAT))
    scales = add("Gather", [scale_value, ids], "scales", ir.DataType.FLOAT, column, axis=0)
    replace(node, add("Mul", [real, scales], "rows", ir.DataType.FLOAT, out.shape))
