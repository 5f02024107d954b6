"""The exact Gelu as exporters write it without the operator: x (1 + erf(x / √2)) / 2, in any order of the factors.

TFLite has GELU but no error function, so that the nodes must be recognized together.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from edgeq.formats.tflite_scribe import Scribe
from edgeq.graph.edit import sole_consumer


def find(scribe: Scribe, graph: ir.Graph) -> dict[ir.Node, tuple[ir.Value, list[ir.Node]]]:
    """The last node of each Gelu -> its input x, and the other nodes, which nothing else reads."""
    found = {}
    for erf in graph:
        if erf.op_type == "Erf" and erf.domain in ("", "ai.onnx"):
            match = _match(scribe, erf)
            if match is not None:
                last, x, inner = match
                found[last] = x, inner
    return found


def _factor(scribe: Scribe, node: ir.Node | None, op: str, number: float) -> ir.Value | None:
    """The operand of a commutative `op` (or Div, from the left) whose other operand is that number."""
    if node is None or node.op_type != op or len(node.inputs) != 2:
        return None
    sides = [(node.inputs[0], node.inputs[1])]
    if op != "Div":
        sides.append((node.inputs[1], node.inputs[0]))
    for value, other in sides:
        known = scribe.const(other)
        if known is not None and known.array.size == 1 and math.isclose(known.real().item(), number, rel_tol=1e-5):
            return value
    return None


def _match(scribe: Scribe, erf: ir.Node) -> tuple[ir.Node, ir.Value, list[ir.Node]] | None:
    argument = erf.inputs[0]
    scaled = argument.producer() if argument is not None else None
    x = _factor(scribe, scaled, "Div", math.sqrt(2)) or _factor(scribe, scaled, "Mul", math.sqrt(0.5))
    gate = sole_consumer(erf.outputs[0])
    product = sole_consumer(gate.outputs[0]) if gate is not None else None
    if x is None or scaled is None or gate is None or product is None or sole_consumer(scaled.outputs[0]) is not erf:
        return None
    if _factor(scribe, gate, "Add", 1.0) is not erf.outputs[0]:
        return None
    inner = [scaled, erf, gate]
    if product.op_type != "Mul":
        return None
    other = product.inputs[0] if product.inputs[1] is gate.outputs[0] else product.inputs[1]
    half = sole_consumer(product.outputs[0])
    if other is x:  # (x gate) / 2
        halved = _factor(scribe, half, "Mul", 0.5) or _factor(scribe, half, "Div", 2.0)
        return (half, x, [*inner, product]) if halved is product.outputs[0] and half is not None else None
    first = other.producer() if other is not None else None
    if other is not None and first is not None and sole_consumer(other) is product:  # (x / 2) gate
        halves = _factor(scribe, first, "Mul", 0.5) or _factor(scribe, first, "Div", 2.0)
        return (product, x, [*inner, first]) if halves is x else None
    halved_gate = _factor(scribe, product, "Mul", 0.5) is gate.outputs[0]
    if halved_gate and half is not None and half.op_type == "Mul" and x in half.inputs:  # x (gate / 2)
        return half, x, [*inner, product]
    return None
