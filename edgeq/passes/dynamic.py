"""Dynamic quantization: activations are quantized as they come, weights beforehand.

    x → DynamicQuantizeLinear → MatMulInteger → Cast → · (scale of x · scale of w) → + bias

in exactly the form that onnxruntime fuses into DynamicQuantizeMatMul. LSTM becomes com.microsoft
DynamicQuantizeLSTM. The bodies of loops are no obstacle, since nothing is calibrated.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeq.graph.edit import (
    MS_DOMAIN,
    Names,
    add_initializer,
    constant,
    drop_unused_initializers,
    make_node,
    nodes_named,
    replace,
)
from edgeq.numerics.affine import storage_dtype
from edgeq.planning.plan import DYNAMIC, Plan
from edgeq.target import Target
from edgeq.types import QTensor, Solution

FLOAT, INT32 = ir.DataType.FLOAT, ir.DataType.INT32


def apply(model: ir.Model, plan: Plan, solution: Solution, target: Target) -> ir.Model:
    """A dynamic plan's numbers, in place."""
    return make_dynamic(model, plan, solution)


def make_dynamic(model: ir.Model, plan: Plan, solution: Solution) -> ir.Model:
    """Rewrite in place every node that the plan makes dynamic, and return the model."""
    writer = _Writer(model, solution)
    for node in nodes_named(model, plan.decided(DYNAMIC)):
        writer.rewrite(node)
    drop_unused_initializers(model)
    return model


class _Writer:
    def __init__(self, model: ir.Model, solution: Solution) -> None:
        self.model, self.solution, self.names = model, solution, Names(model)
        self.quantized: dict[tuple[ir.Value, ir.Graph], tuple[ir.Value, ir.Value, ir.Value]] = {}
        self.stored: dict[tuple[QTensor, bool], tuple[ir.Value, ir.Value, ir.Value]] = {}

    def rewrite(self, node: ir.Node) -> None:
        {"MatMul": self._matmul, "Gemm": self._matmul, "Conv": self._conv, "LSTM": self._lstm}[node.op_type](node)

    def _matmul(self, node: ir.Node) -> None:
        tensor = self.solution.weights[node.name or "", 1]
        transpose = node.op_type == "Gemm" and bool(node.attributes.get_int("transB", 0))
        data, scale, zero = self._activation(node)
        weight, weight_scale, weight_zero = self._weight(node, 1, tensor, transpose)
        out = node.outputs[0]
        product = self._add(node, "MatMulInteger", [data, weight, zero, weight_zero], INT32, out.shape)
        real = self._scaled(node, product, scale, weight_scale)
        bias = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
        replace(node, self._add(node, "Add", [real, bias], FLOAT, out.shape) if bias is not None else real)

    def _conv(self, node: ir.Node) -> None:
        tensor = self.solution.weights[node.name or "", 1]
        data, scale, zero = self._activation(node)
        weight, weight_scale, weight_zero = self._weight(node, 1, tensor, transpose=False)
        out = node.outputs[0]
        kept = dict(node.attributes.items())
        product = self._add(node, "ConvInteger", [data, weight, zero, weight_zero], INT32, out.shape, kept)
        real = self._scaled(node, product, scale, weight_scale)
        bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        if bias is not None:
            dims = tensor.data.ndim - 2
            spread = add_initializer(
                self.model.graph,
                self.names.new(f"{node.name}_bias"),
                bias.reshape(-1, *([1] * dims)).astype(np.float32),
            )
            real = self._add(node, "Add", [real, spread], FLOAT, out.shape)
        replace(node, real)

    def _lstm(self, node: ir.Node) -> None:
        new: list[ir.Value | None] = list(node.inputs) + [None] * (8 - len(node.inputs))
        extra: list[ir.Value] = []
        for index in (1, 2):
            tensor = self.solution.weights[node.name or "", index]
            source = node.inputs[index]
            assert source is not None
            directions = tensor.data.shape[0]
            codes = np.ascontiguousarray(tensor.data.transpose(0, 2, 1))  # (directions, input, 4·hidden)
            scale = np.broadcast_to(tensor.params.scale, (directions, codes.shape[2])).astype(np.float32)
            zero = np.broadcast_to(tensor.params.zero_point, scale.shape).astype(codes.dtype)
            new[index] = self._init(f"{source.name}_q", codes)
            extra += [self._init(f"{source.name}_scale", scale), self._init(f"{source.name}_zero_point", zero)]
        attributes = {k: v for k, v in node.attributes.items() if k not in ("layout",)}
        assert node.graph is not None
        lstm = ir.node(
            "DynamicQuantizeLSTM",
            inputs=[*new, *extra],
            attributes=attributes,
            domain=MS_DOMAIN,
            num_outputs=len(node.outputs),
            name=self.names.new(f"{node.name}_quantized"),
        )
        self.model.opset_imports[MS_DOMAIN] = 1
        node.graph.insert_before(node, lstm)
        for old, fresh in zip(node.outputs, lstm.outputs, strict=True):
            name, type_, shape = old.name, old.type, old.shape
            old.name = None
            old.replace_all_uses_with(fresh, replace_graph_outputs=True)
            fresh.name, fresh.type, fresh.shape = name, type_, shape
        node.graph.remove(node, safe=True)

    def _activation(self, node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value]:
        """(codes, scale, zero point) of the node's input, shared by its readers in the same graph."""
        value, graph = node.inputs[0], node.graph
        assert value is not None
        assert isinstance(graph, ir.Graph)
        key = (value, graph)
        if key not in self.quantized:
            dql = ir.node(
                "DynamicQuantizeLinear", inputs=[value], num_outputs=3, name=self.names.new(f"{value.name}_dynamic")
            )
            for out, suffix, dtype, shape in zip(
                dql.outputs,
                ("q", "scale", "zero_point"),
                (ir.DataType.UINT8, FLOAT, ir.DataType.UINT8),
                (value.shape, ir.Shape([]), ir.Shape([])),
                strict=True,
            ):
                out.name, out.type, out.shape = self.names.new(f"{value.name}_{suffix}"), ir.TensorType(dtype), shape
            graph.insert_before(node, dql)
            self.quantized[key] = (dql.outputs[0], dql.outputs[1], dql.outputs[2])
        return self.quantized[key]

    def _weight(
        self, node: ir.Node, index: int, tensor: QTensor, transpose: bool
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        source = node.inputs[index]
        assert source is not None
        key = (tensor, transpose)
        if key not in self.stored:
            codes = np.ascontiguousarray(tensor.data.T) if transpose else tensor.data
            zero = tensor.params.zero_point.astype(storage_dtype(tensor.params.spec.dtype))
            self.stored[key] = (
                self._init(f"{source.name}_q", codes),
                self._init(f"{source.name}_scale", tensor.params.scale),
                self._init(f"{source.name}_zero_point", zero),
            )
        return self.stored[key]

    def _scaled(self, node: ir.Node, product: ir.Value, scale: ir.Value, weight_scale: ir.Value) -> ir.Value:
        real = self._add(node, "Cast", [product], FLOAT, product.shape, {"to": int(FLOAT)})
        both = self._add(node, "Mul", [scale, weight_scale], FLOAT, weight_scale.shape)
        return self._add(node, "Mul", [real, both], FLOAT, product.shape)

    def _add(self, node, op, inputs, dtype, shape, attributes=None) -> ir.Value:  # type: ignore[no-untyped-def]
        new = make_node(op, inputs, self.names.new(f"{node.outputs[0].name}_{op}"), dtype, shape, attributes)
        node.graph.insert_before(node, new)
        return new.outputs[0]

    def _init(self, name: str, array: np.ndarray) -> ir.Value:
        return add_initializer(self.model.graph, self.names.new(name), array)
