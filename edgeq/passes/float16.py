"""Compute in float16 what the plan says, in float32 the rest; the model's inputs and outputs stay as they are.

What a half-precision node makes is of its type, and is cast once for all who need it in float32; what such a node reads
of float32 is cast once too, constants beforehand.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from edgeq.graph.edit import (
    Names,
    add_initializer,
    drop_unused_initializers,
    insert_after,
    is_constant,
    make_node,
)
from edgeq.graph.float16 import half_slots
from edgeq.planning.plan import HALVES, Plan
from edgeq.target import Target
from edgeq.types import Solution

FLOAT = ir.DataType.FLOAT


def apply(model: ir.Model, plan: Plan, solution: Solution, target: Target) -> ir.Model:
    """Rewrite in place every node that the plan gives float16, and return the model."""
    return narrow(model, plan.decided(HALVES["float16"]), ir.DataType.FLOAT16)


def narrow(model: ir.Model, planned: Collection[str], half: ir.DataType) -> ir.Model:
    """The same of the nodes of those names, in a half-precision type; numbers are rounded to nearest, ties to even."""
    opset, names = model.opset_imports[""], Names(model)
    slots = {node: half_slots(node, opset, half) for node in model.graph if node.name in planned}
    made = [node.outputs[i] for node, (_, outputs) in slots.items() for i in outputs]
    halved = set(made)
    narrowed: dict[ir.Value, ir.Value] = {}
    for node, (inputs, _) in slots.items():
        for index in inputs:
            value = node.inputs[index]
            assert value is not None
            if value in halved:
                continue
            if value not in narrowed:
                narrowed[value] = (
                    _constant(model, value, half, names) if is_constant(value) else _cast(value, half, names)
                )
            node.replace_input_with(index, narrowed[value])
    for value in made:
        readers = [u for u in value.uses() if u.node not in slots or u.idx not in slots[u.node][0]]
        value.type = ir.TensorType(half)
        if not readers and not value.is_graph_output():
            continue
        wide = _cast(value, FLOAT, names)
        for use in readers:
            use.node.replace_input_with(use.idx, wide)
        for index, output in enumerate(model.graph.outputs):
            if output is value:
                value.name, wide.name = names.new(f"{value.name}_half"), value.name
                model.graph.outputs[index] = wide
    drop_unused_initializers(model)
    return model


def _constant(model: ir.Model, value: ir.Value, half: ir.DataType, names: Names) -> ir.Value:
    assert value.const_value is not None
    return add_initializer(model.graph, names.new(f"{value.name}_half"), value.const_value.numpy().astype(half.numpy()))


def _cast(value: ir.Value, dtype: ir.DataType, names: Names) -> ir.Value:
    suffix = "wide" if dtype == FLOAT else "half"
    node = make_node("Cast", [value], names.new(f"{value.name}_{suffix}"), dtype, value.shape, {"to": int(dtype)})
    assert isinstance(value.graph, ir.Graph)
    insert_after(value, value.graph, node)
    return node.outputs[0]
