"""bfloat16 without a kernel that has it: each value computed in float32, and rounded to nearest, ties to even."""

from __future__ import annotations

import onnx_ir as ir

from edgeq.graph.edit import Names, insert_after, make_node
from edgeq.graph.float16 import widen
from edgeq.graph.infer import infer

FLOAT, BFLOAT16 = ir.DataType.FLOAT, ir.DataType.BFLOAT16


def rounded(model: ir.Model) -> bool:
    """Rewrite in place. Returns whether the model computed anything in bfloat16.

    What a GPU's kernel gives differs in its sums, which it adds up in another order, and rounds once as this does.
    """
    if not any(node.op_type == "Cast" and node.attributes.get_int("to", 0) == BFLOAT16 for node in model.graph):
        return False  # artifacts have float32 inputs, which are cast
    infer(model)
    held = [value for node in model.graph for value in node.outputs if value.dtype == BFLOAT16]
    if not held:
        return False
    widen(model)
    names = Names(model)
    for value in held:
        uses = list(value.uses())
        down = make_node("Cast", [value], names.new(f"{value.name}_bf16"), BFLOAT16, value.shape, {"to": int(BFLOAT16)})
        up = make_node("Cast", [down.outputs[0]], names.new(f"{value.name}_up"), FLOAT, value.shape, {"to": int(FLOAT)})
        insert_after(value, model.graph, down, up)
        for use in uses:
            use.node.replace_input_with(use.idx, up.outputs[0])
    return True
