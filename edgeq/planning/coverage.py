"""How much of a model a target runs on integers: nodes, multiply-accumulates, and in how many pieces."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import prod

import onnx_ir as ir

from edgeq.graph.edit import is_constant
from edgeq.planning.plan import BRIDGE, FLOAT, QUIET, Plan, walk
from edgeq.target import Target

KINDS = ("integer", "float", "refused")


@dataclass(frozen=True)
class Coverage:
    """nodes, macs: counts by kind, of `KINDS`; nodes that only move shapes or constants about are not counted.

    integer: runs on codes (in float16 where that is the method). float: could, and does not here. refused: the target
    has no kernel for its operator. islands: connected pieces of integer nodes; by a method that joins no nodes, each is
    its own. crossings: values that go from float to integer or back, graph inputs and outputs included. reasons:
    (nodes, why) of what stays float, most frequent first. problem: why the target doesn't take the model at all.
    """

    target: str
    method: str
    nodes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    macs: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    islands: int = 0
    crossings: int = 0
    reasons: tuple[tuple[int, str], ...] = ()
    problem: str = ""

    def share(self, kind: str) -> float:
        """Of all multiply-accumulates, 0 to 1; 0 where there are none."""
        return self.macs[kind] / max(sum(self.macs.values()), 1)


def coverage(model: ir.Model, plan: Plan, target: Target) -> Coverage:
    """Count what the plan makes of the prepared model that it was made for."""
    rows = {row.name: row for row in plan.nodes}
    nodes, operations = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0)
    why: Counter[str] = Counter()
    integer: list[ir.Node] = []
    for node, _ in walk(model.graph):
        row = rows[node.name or ""]
        if row.decision not in (FLOAT, BRIDGE):
            kind = "integer"
            integer.append(node)
        elif node.op_type in QUIET:
            continue
        else:
            kind = "float" if target.find(node.op_type, plan.method) else "refused"
            why[row.reason.partition(":")[0]] += 1  # what follows the colon is this node's own
        nodes[kind] += 1
        operations[kind] += macs(node)
    islands, crossings = _pieces(integer) if plan.method == "static" else (len(integer), 2 * len(integer))
    reasons = tuple((count, reason) for reason, count in why.most_common())
    return Coverage(plan.target, plan.method, nodes, operations, islands, crossings, reasons)


def integer_share(model: ir.Model) -> float:
    """Of a written artifact's multiply-accumulates, the share with codes on both sides; 0 where there are none."""
    total = integer = 0
    for node, _ in walk(model.graph):
        count, coded = multiplications(node)
        total, integer = total + count, integer + (count if coded else 0)
    return integer / max(total, 1)


def multiplications(node: ir.Node) -> tuple[int, bool]:
    """Of a written artifact's node: its multiply-accumulates, and whether both sides are codes."""
    if node.op_type in ("MatMulInteger", "ConvInteger", "DynamicQuantizeMatMul"):
        summed = dims(node.inputs[1])
        return prod(dims(node.outputs[0])) * prod(summed[1:] if "Conv" in node.op_type else summed[-2:-1]), True
    if node.op_type == "MatMulNBits":
        return prod(dims(node.outputs[0])) * node.attributes.get_int("K", 1), False
    producers = [v.producer() for v in node.inputs[:2] if v is not None]
    return macs(node), all(p is not None and p.op_type == "DequantizeLinear" for p in producers)


def macs(node: ir.Node) -> int:
    """Multiply-accumulates of a Conv, ConvTranspose, Gemm or MatMul; free dimensions count as 1, other operators 0."""
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return 0
    data, weight, out = (dims(v) for v in (*node.inputs[:2], node.outputs[0]))
    if node.op_type == "Conv":  # (out channels, in channels of a group, kernel)
        return prod(out) * prod(weight[1:])
    if node.op_type == "ConvTranspose":  # each input element meets (out channels of a group, kernel)
        return prod(data) * prod(weight[1:])
    summed = data[0 if node.attributes.get_int("transA", 0) else -1] if data else 1
    return prod(out) * summed


def dims(value: ir.Value | None) -> list[int]:
    """The shape, 1 for each free dimension; none where it is unknown."""
    shape = value.shape if value is not None else None
    return [d if isinstance(d, int) and d >= 0 else 1 for d in shape] if shape is not None else []  # some write -1


def _pieces(integer: list[ir.Node]) -> tuple[int, int]:
    """Connected pieces of these nodes, and the values that cross their border."""
    inside, piece = set(integer), {node: node for node in integer}

    def root(node: ir.Node) -> ir.Node:
        while piece[node] is not node:
            node = piece[node]
        return node

    entering: set[ir.Value] = set()
    leaving: set[ir.Value] = set()
    for node in integer:
        for value in node.inputs:
            producer = value.producer() if value is not None else None
            if producer in inside:
                piece[root(node)] = root(producer)
            elif value is not None and not is_constant(value) and value.dtype == ir.DataType.FLOAT:
                entering.add(value)
        for value in node.outputs:
            if value.is_graph_output() or any(use.node not in inside for use in value.uses()):
                leaving.add(value)
    return sum(piece[node] is node for node in integer), len(entering) + len(leaving)
