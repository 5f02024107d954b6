"""Carry a static plan and its numbers into the graph as QuantizeLinear / DequantizeLinear pairs.

Weights and biases become integer initializers behind a DequantizeLinear, activations get a Q-DQ pair behind their
producer. Each reader finds its DequantizeLinear in its own graph, since runtimes fuse within one graph only.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from edgeq.graph.edit import (
    Names,
    add_initializer,
    all_graphs,
    drop_unused_initializers,
    insert_after,
    is_constant,
    make_node,
    values_of,
)
from edgeq.numerics.affine import quantize
from edgeq.passes.split_outliers import split
from edgeq.planning.plan import INTEGER, Plan, ValuePlan
from edgeq.target import Target
from edgeq.types import PerBlock, PerChannel, QParams, QTensor, Solution

_PACKED = {"int4": ml_dtypes.int4, "uint4": ml_dtypes.uint4, "int2": ml_dtypes.int2, "uint2": ml_dtypes.uint2}


def apply(model: ir.Model, plan: Plan, solution: Solution, target: Target) -> ir.Model:
    """A static plan's numbers, in place, as the target wants them."""
    return split(insert_qdq(model, plan, solution, target.dedicated_pairs), plan.splits)


def insert_qdq(model: ir.Model, plan: Plan, solution: Solution, dedicated: bool = False) -> ir.Model:
    """Insert in place and return the model. `dedicated`: one Q-DQ pair for each reader, as TensorRT wants."""
    writer = Writer(model, solution, dedicated)
    for value in plan.values:
        writer.activation(value)
    integer = plan.decided(INTEGER)  # the others' weights are written by passes of their own
    for weight in plan.weights:
        if weight.node not in integer:
            continue
        writer.constant_input(weight.node, weight.index, solution.weights[weight.node, weight.index])
    for bias in plan.biases:
        if bias.node in solution.biases:
            writer.constant_input(bias.node, bias.index, solution.biases[bias.node])
    drop_unused_initializers(model)
    return model


def codes_tensor(tensor: QTensor, name: str) -> ir.TensorProtocol:
    """The codes as an ONNX tensor; 2- and 4-bit types are packed."""
    packed = _PACKED.get(tensor.params.spec.dtype)
    return ir.tensor(tensor.data if packed is None else tensor.data.astype(packed), name=name)


def zero_point_array(params: QParams, dtype: str) -> np.ndarray:
    return params.zero_point.astype(_PACKED.get(dtype) or np.dtype(dtype))


def granularity_attributes(params: QParams) -> dict[str, int]:
    match params.spec.granularity:
        case PerChannel(axis):
            return {"axis": axis}
        case PerBlock(axis, size):
            return {"axis": axis, "block_size": size}
    return {}


class Writer:
    """Puts Q and DQ into one model; see `insert_qdq`."""

    def __init__(self, model: ir.Model, solution: Solution, dedicated: bool = False) -> None:
        self.model, self.solution, self.dedicated = model, solution, dedicated
        self.names = Names(model)
        self.nodes = {node.name or "": node for graph in all_graphs(model) for node in graph}
        self.values: dict[str, ir.Value] = {}
        for graph in all_graphs(model):
            for value in values_of(graph):
                self.values.setdefault(value.name or "", value)
        self.params: dict[str, tuple[ir.Value, ir.Value]] = {}
        self.constants: dict[tuple[ir.Value, QTensor], tuple[ir.Value, ir.Value, ir.Value | None]] = {}

    def activation(self, plan: ValuePlan) -> None:
        value, params = self.values[plan.name], self.solution.groups[plan.group]
        if is_constant(value):
            assert value.const_value is not None
            tensor = QTensor(quantize(value.const_value.numpy(), params), params)
            for name in plan.readers:
                for index, used in enumerate(self.nodes[name].inputs):
                    if used is value:
                        self.constant_input(name, index, tensor)
            return
        scale, zero = self._group(plan.group, params)
        wanted = set(plan.readers)
        uses = [u for u in value.uses() if plan.everyone or u.node.name in wanted]
        is_output = value.is_graph_output() and plan.everyone
        home = value.graph if isinstance(value.graph, ir.Graph) else self.model.graph
        quantized = self._q(value, scale, zero, home)
        dequantized: dict[ir.Graph, ir.Value] = {}
        for use in uses:
            graph = use.node.graph
            assert isinstance(graph, ir.Graph)
            if self.dedicated and dequantized:
                quantized = self._q(value, scale, zero, home)
                dequantized = {}
            if graph not in dequantized:
                dequantized[graph] = self._dq(quantized, scale, zero, value, graph)
            use.node.replace_input_with(use.idx, dequantized[graph])
        if is_output:
            inner = dequantized.get(home) or self._dq(quantized, scale, zero, value, home)
            self._become_output(value, inner, home)

    def constant_input(self, node_name: str, index: int, tensor: QTensor) -> None:
        """Let an input of a node be DequantizeLinear of stored codes; what several nodes are given is stored once."""
        node = self.nodes[node_name]
        old = node.inputs[index]
        assert old is not None
        assert isinstance(node.graph, ir.Graph)
        params, dtype = tensor.params, tensor.params.spec.dtype
        key = (old, tensor)
        if key not in self.constants:
            base = old.name or f"{node_name}_{index}"
            main = self.model.graph
            codes = self.names.new(f"{base}_q")
            scale, zero = self.names.new(f"{base}_scale"), self.names.new(f"{base}_zero_point")
            self.constants[key] = (
                add_initializer(main, codes, codes_tensor(tensor, codes)),
                add_initializer(main, scale, params.scale),
                add_initializer(main, zero, zero_point_array(params, dtype)) if dtype != "int32" else None,
            )
        stored, scale_value, zero_value = self.constants[key]
        inputs = [stored, scale_value] + ([zero_value] if zero_value is not None else [])
        dq = make_node(
            "DequantizeLinear",
            inputs,
            self.names.new(f"{old.name}_dq"),
            ir.DataType.FLOAT,
            old.shape,
            granularity_attributes(params),
            name=self.names.new(f"{old.name}_DequantizeLinear"),
        )
        node.graph.insert_before(node, dq)
        node.replace_input_with(index, dq.outputs[0])

    def _group(self, group: str, params: QParams) -> tuple[ir.Value, ir.Value]:
        if group not in self.params:
            main = self.model.graph
            scale, zero = self.names.new(f"{group}_scale"), self.names.new(f"{group}_zero_point")
            self.params[group] = (
                add_initializer(main, scale, params.scale),
                add_initializer(main, zero, zero_point_array(params, params.spec.dtype)),
            )
        return self.params[group]

    def _q(self, value: ir.Value, scale: ir.Value, zero: ir.Value, graph: ir.Graph) -> ir.Value:
        node = make_node(
            "QuantizeLinear",
            [value, scale, zero],
            self.names.new(f"{value.name}_q"),
            zero.dtype,
            value.shape,
            name=self.names.new(f"{value.name}_QuantizeLinear"),
        )
        insert_after(value, graph, node)
        return node.outputs[0]

    def _dq(self, codes: ir.Value, scale: ir.Value, zero: ir.Value, value: ir.Value, graph: ir.Graph) -> ir.Value:
        node = make_node(
            "DequantizeLinear",
            [codes, scale, zero],
            self.names.new(f"{value.name}_dq"),
            ir.DataType.FLOAT,
            value.shape,
            name=self.names.new(f"{value.name}_DequantizeLinear"),
        )
        insert_after(codes, graph, node)
        return node.outputs[0]

    def _become_output(self, value: ir.Value, inner: ir.Value, graph: ir.Graph) -> None:
        """The dequantized value leaves the graph under the name that the value had."""
        name = value.name
        value.name = self.names.new(f"{name}_float")
        inner.name = name
        for index, output in enumerate(graph.outputs):
            if output is value:
                graph.outputs[index] = inner
