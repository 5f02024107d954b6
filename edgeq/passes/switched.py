"""A float model whose nodes can be rounded one at a time, by an input: no rebuild for each of them.

x → QuantizeLinear → DequantizeLinear → Where(switches[i]) → node i        and the same for its weight and output
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeq.graph.edit import Names, add_initializer, make_node
from edgeq.numerics.affine import dequantize
from edgeq.passes.qdq import zero_point_array
from edgeq.planning.plan import INTEGER, PACKED, Plan
from edgeq.types import QParams, Solution

INPUT = "edgeq_switches"


def switched(model: ir.Model, plan: Plan, solution: Solution) -> tuple[ir.Model, list[str]]:
    """A copy with the further input `INPUT`, bool (n,), and the n nodes that its elements switch.

    A node that is on reads rounded activations and a rounded weight, and gives what it must write rounded; biases stay.
    One that computes in float on packed weights has those rounded alone. Nodes without an effect of their own (those
    that only move codes) have no switch. Channels that a plan splits are
    not rounded: their step is a fraction of the others'.
    """
    made = model.clone()
    there = {n.name or "": n for n in made.graph}
    rounding = {w.node for w in plan.weights} | {v.writer for v in plan.values}
    switches = [
        n.name for n in plan.nodes if n.decision in (INTEGER, PACKED) and n.name in there and n.name in rounding
    ]
    writer = _Writer(made, {name: there[name] for name in switches}, solution)
    known = [v for n in made.graph for v in n.outputs] + [*made.graph.inputs, *made.graph.initializers.values()]
    values = {v.name: v for v in known}
    split = {s.value: s.channels for s in plan.splits}
    for row in plan.values:
        value, params = values.get(row.name), solution.groups.get(row.group)
        if value is None or params is None:
            continue
        reads = [
            (there[n], i) for n in row.readers if n in writer.nodes for i, v in enumerate(there[n].inputs) if v is value
        ]
        if row.writer in writer.nodes and value.producer() is not None:
            writer.output(value, params, row.writer)
        for node, index in reads:
            writer.input(node, index, params, split.get(row.name, ()))
    for weight in plan.weights:
        if weight.node in writer.nodes:
            tensor = solution.weights[weight.node, weight.index]
            writer.weight(there[weight.node], weight.index, dequantize(tensor.data, tensor.params))
    return made, switches


class _Writer:
    def __init__(self, model: ir.Model, nodes: dict[str, ir.Node], solution: Solution) -> None:
        self.graph, self.names, self.nodes = model.graph, Names(model), nodes
        given = ir.Value(name=INPUT, type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([len(nodes)]))
        self.graph.inputs.append(given)
        self.on: dict[str, ir.Value] = {}
        first = next(iter(self.graph))
        for index, name in enumerate(nodes):
            place = add_initializer(self.graph, self.names.new(f"{name}_place"), np.array(index, np.int64))
            pick = make_node("Gather", [given, place], self.names.new(f"{name}_on"), ir.DataType.BOOL, ir.Shape([]))
            self.graph.insert_before(first, pick)
            self.on[name] = pick.outputs[0]

    def input(self, node: ir.Node, index: int, params: QParams, exact: tuple[int, ...]) -> None:
        value = node.inputs[index]
        assert value is not None
        steps = self._rounded(value, params, self.on[node.name or ""])
        if exact:
            mask = np.zeros(int(value.shape[-1]), np.bool_)  # type: ignore[index, arg-type]
            mask[list(exact)] = True
            kept = add_initializer(self.graph, self.names.new(f"{value.name}_exact"), mask)
            name = self.names.new(f"{value.name}_mixed")
            steps.append(make_node("Where", [kept, value, steps[-1].outputs[0]], name, value.dtype, value.shape))
        self.graph.insert_before(node, steps)
        node.replace_input_with(index, steps[-1].outputs[0])

    def output(self, value: ir.Value, params: QParams, name: str) -> None:
        """Let all that read the value, and the graph's outputs, have it rounded."""
        uses, producer = list(value.uses()), value.producer()
        assert producer is not None
        steps = self._rounded(value, params, self.on[name])
        self.graph.insert_after(producer, steps)
        last = steps[-1].outputs[0]
        for use in uses:
            use.node.replace_input_with(use.idx, last)
        if value.is_graph_output():
            value.name, last.name = self.names.new(f"{value.name}_float"), value.name
            for index, output in enumerate(self.graph.outputs):
                if output is value:
                    self.graph.outputs[index] = last

    def weight(self, node: ir.Node, index: int, real: np.ndarray) -> None:
        value = node.inputs[index]
        assert value is not None
        stored = add_initializer(self.graph, self.names.new(f"{value.name}_real"), real.astype(np.float32))
        name = self.names.new(f"{value.name}_chosen")
        step = make_node("Where", [self.on[node.name or ""], stored, value], name, value.dtype, value.shape)
        self.graph.insert_before(node, step)
        node.replace_input_with(index, step.outputs[0])

    def _rounded(self, value: ir.Value, params: QParams, on: ir.Value) -> list[ir.Node]:
        base = value.name or ""
        scale = add_initializer(self.graph, self.names.new(f"{base}_step"), params.scale)
        codes = zero_point_array(params, params.spec.dtype)
        zero = add_initializer(self.graph, self.names.new(f"{base}_zero"), codes)
        q = make_node("QuantizeLinear", [value, scale, zero], self.names.new(f"{base}_codes"), zero.dtype, value.shape)
        dq = make_node(
            "DequantizeLinear", [q.outputs[0], scale, zero], self.names.new(f"{base}_real"), value.dtype, value.shape
        )
        chosen = make_node("Where", [on, dq.outputs[0], value], self.names.new(f"{base}_now"), value.dtype, value.shape)
        return [q, dq, chosen]
