"""The exact Gelu as exporters write it without the operator: x (1 + erf(x / √2)) / 2, in any order of the factors."""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx_ir as ir

from edgeq.graph.edit import constant, sole_consumer

Number = Callable[[ir.Value | None], float | None]


def number(value: ir.Value | None) -> float | None:
    """The one number that a constant value is, else None."""
    array = constant(value)
    return float(array.item()) if array is not None and array.size == 1 else None


def find(graph: ir.Graph, number: Number = number) -> dict[ir.Node, tuple[ir.Value, list[ir.Node]]]:
    """The last node of each Gelu -> its input x, and the other nodes, which nothing else reads."""
    found = {}
    for erf in graph:
        if erf.op_type == "Erf" and erf.domain in ("", "ai.onnx"):
            match = _match(number, erf)
            if match is not None:
                last, x, inner = match
                found[last] = x, inner
    return found


def _factor(number: Number, node: ir.Node | None, op: str, wanted: float) -> ir.Value | None:
    """The operand of a commutative `op` (or Div, from the left) whose other operand is that number."""
    if node is None or node.op_type != op or len(node.inputs) != 2:
        return None
    sides = [(node.inputs[0], node.inputs[1])]
    if op != "Div":
        sides.append((node.inputs[1], node.inputs[0]))
    for value, other in sides:
        known = number(other)
        if known is not None and math.isclose(known, wanted, rel_tol=1e-5):
            return value
    return None


def _match(number: Number, erf: ir.Node) -> tuple[ir.Node, ir.Value, list[ir.Node]] | None:
    argument = erf.inputs[0]
    scaled = argument.producer() if argument is not None else None
    x = _factor(number, scaled, "Div", math.sqrt(2)) or _factor(number, scaled, "Mul", math.sqrt(0.5))
    gate = sole_consumer(erf.outputs[0])
    product = sole_consumer(gate.outputs[0]) if gate is not None else None
    if x is None or scaled is None or gate is None or product is None or sole_consumer(scaled.outputs[0]) is not erf:
        return None
    if _factor(number, gate, "Add", 1.0) is not erf.outputs[0]:
        return None
    inner = [scaled, erf, gate]
    if product.op_type != "Mul":
        return None
    other = product.inputs[0] if product.inputs[1] is gate.outputs[0] else product.inputs[1]
    half = sole_consumer(product.outputs[0])
    if other is x:  # (x gate) / 2
        halved = _factor(number, half, "Mul", 0.5) or _factor(number, half, "Div", 2.0)
        return (half, x, [*inner, product]) if halved is product.outputs[0] and half is not None else None
    first = other.producer() if other is not None else None
    if other is not None and first is not None and sole_consumer(other) is product:  # (x / 2) gate
        halves = _factor(number, first, "Mul", 0.5) or _factor(number, first, "Div", 2.0)
        return (product, x, [*inner, first]) if halves is x else None
    halved_gate = _factor(number, product, "Mul", 0.5) is gate.outputs[0]
    if halved_gate and half is not None and half.op_type == "Mul" and x in half.inputs:  # x (gate / 2)
        return half, x, [*inner, product]
    return None
