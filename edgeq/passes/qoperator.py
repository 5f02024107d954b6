"""Write operators that compute on codes as the float operators that they stand for, between Q and DQ.

    QLinearConv(x, …, w, …, y scale, y zero, bias)  →  Q(Conv(DQ(x), DQ(w), bias · scale of x · scale of w))
    ConvInteger → Cast → · (scale of x · scale of w)  →  Conv(x, DQ(w))                        also MatMulInteger
    MaxPool(codes), Reshape(codes) …  →  Q(MaxPool(DQ(codes))) …, with the scale of what they move

So each number that the form holds is in the graph still. What DynamicQuantizeLinear rounds is read as the float value,
since it has no scale to keep. Sources: the ONNX operator specification, and onnxruntime's of com.microsoft.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgeq.errors import ModelError
from edgeq.graph.edit import Names, add_initializer, constant, make_node, rank, replace, sole_consumer

CODES, FLOAT = (ir.DataType.UINT8, ir.DataType.INT8), ir.DataType.FLOAT
MOVES = (
    "MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Slice", "Split", "Gather",
    "Concat", "Expand", "Tile", "DepthToSpace", "SpaceToDepth",
)  # fmt: skip
Params = tuple[ir.Value | None, ir.Value | None]
"""The scale and the zero point of codes."""


@dataclass(frozen=True)
class Form:
    """Where an operator on codes has what.

    op: the float operator. operands: the inputs with the codes, scale and zero point of each; a scale at -1: floats.
    result: the inputs with the output's scale and zero point; None for a float output. bias: of int32, or of floats
    where the output is. before: how many inputs come first that are as the float operator has them.
    """

    op: str
    operands: tuple[tuple[int, int, int], ...]
    result: tuple[int, int] | None
    bias: int = -1
    before: int = 0


ONE, TWO = ((0, 1, 2),), ((0, 1, 2), (3, 4, 5))
FORMS = {
    "QLinearConv": Form("Conv", TWO, (6, 7), bias=8),
    "QLinearMatMul": Form("MatMul", TWO, (6, 7)),
    "QGemm": Form("Gemm", TWO, (7, 8), bias=6),
    "QLinearAdd": Form("Add", TWO, (6, 7)),
    "QLinearMul": Form("Mul", TWO, (6, 7)),
    "QLinearSigmoid": Form("Sigmoid", ONE, (3, 4)),
    "QLinearLeakyRelu": Form("LeakyRelu", ONE, (3, 4)),
    "QLinearSoftmax": Form("Softmax", ONE, (3, 4)),
    "QLinearAveragePool": Form("AveragePool", ONE, (3, 4)),
    "QLinearGlobalAveragePool": Form("GlobalAveragePool", ONE, (3, 4)),
    "QLinearConcat": Form("Concat", (), (0, 1)),  # its operands are all the others
    "QLinearWhere": Form("Where", ((1, 2, 3), (4, 5, 6)), (7, 8), before=1),
    "MatMulIntegerToFloat": Form("MatMul", ((0, 2, 4), (1, 3, 5)), None, bias=6),
    "DynamicQuantizeMatMul": Form("MatMul", ((0, -1, -1), (1, 2, 3)), None, bias=4),
}


def to_qdq(model: ir.Model) -> ir.Model:
    """Rewrite in place and return the model. Constants must be initializers.

    Raises ModelError that names a node which can't be read back: of an operator that is not known here, in another
    layout, or with int32 sums that go elsewhere than into a product with their scales.
    """
    lifter = _Lifter(model)
    for node in list(model.graph):
        if node.op_type in FORMS:
            lifter.lift(node, FORMS[node.op_type])
        elif node.op_type in ("ConvInteger", "MatMulInteger"):
            lifter.sums(node)
        elif node.op_type == "QuantizeLinear":
            lifter.known[node.outputs[0]] = (_input(node, 1), _input(node, 2))
        elif node.op_type != "DequantizeLinear":
            lifter.move(node)
    RemoveUnusedNodesPass()(model)
    return model


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if 0 <= index < len(node.inputs) else None


def _refusal(node: ir.Node, why: str) -> ModelError:
    return ModelError(f"node {node.name!r} ({node.op_type}) can't be read back: {why}")


class _Lifter:
    """known: codes → their parameters, of all nodes that are done."""

    def __init__(self, model: ir.Model) -> None:
        self.graph, self.names = model.graph, Names(model)
        self.known: dict[ir.Value, Params] = {}

    def lift(self, node: ir.Node, form: Form) -> None:
        flat = node.attributes.get_int("opset", 13) < 13 and node.attributes.get_int("axis", -1) not in (
            -1, (rank(node.inputs[0]) or 0) - 1,
        )  # fmt: skip
        if node.attributes.get_int("channels_last", 0) or flat:
            raise _refusal(node, "ONNX has no float operator of its layout")
        triples = form.operands or tuple((i, i + 1, i + 2) for i in range(2, len(node.inputs), 3))
        inputs = [*node.inputs[: form.before]]
        for position, (codes, scale, zero) in enumerate(triples):
            axis = {"Conv": 0, "Gemm": 1 - node.attributes.get_int("transB", 0)}.get(form.op, -1) if position else -1
            inputs.append(self._real(node, _input(node, codes), (_input(node, scale), _input(node, zero)), axis))
        bias = _input(node, form.bias)
        if bias is not None and form.result is not None:
            inputs.append(self._bias(node, bias, [_input(node, triple[1]) for triple in triples]))
        kept = {k: v for k, v in node.attributes.items() if k not in ("channels_last", "opset")}
        made = self._add(node, form.op, inputs, FLOAT, kept)
        if form.result is not None:
            params = _input(node, form.result[0]), _input(node, form.result[1])
            made = self._add(node, "QuantizeLinear", [made, *params], node.outputs[0].dtype)
            self.known[made] = params
        elif bias is not None:
            made = self._add(node, "Add", [made, bias], FLOAT)
        replace(node, made)

    def sums(self, node: ir.Node) -> None:
        """Sums of codes, until they are multiplied by both scales, at once or one after the other."""
        codes, weight = node.inputs[0], node.inputs[1]
        assert codes is not None
        source = codes.producer()
        running = source.outputs[1] if source is not None and source.op_type == "DynamicQuantizeLinear" else None
        last, factors = node, list[ir.Value | None]()
        while len(factors) < (1 if running is None else 2):
            reader = sole_consumer(last.outputs[0])
            if reader is None or reader.op_type not in ("Cast", "Mul"):
                break
            if reader.op_type == "Mul":
                other = reader.inputs[1 if reader.inputs[0] is last.outputs[0] else 0]
                maker = other.producer() if other is not None else None
                factors += list(maker.inputs) if maker is not None and maker.op_type == "Mul" else [other]
            last = reader
        scales = [array for factor in factors if (array := constant(factor)) is not None]
        moving = [factor for factor in factors if constant(factor) is None]
        if constant(weight) is None or len(scales) != 1 or moving != ([] if running is None else [running]):
            raise _refusal(node, "its sums go elsewhere than into a product with their scales")
        step, steps = None, scales[0].reshape(-1)
        if running is None:
            step = self.known.get(codes, (None, None))[0]
            if (own := constant(step)) is None:
                raise _refusal(node, "it reads codes of no known scale")
            steps = steps / own.reshape(-1)
        held = add_initializer(self.graph, self.names.new(f"{node.name}_steps"), steps.astype(np.float32))
        op = node.op_type.removesuffix("Integer")
        inputs = [
            self._real(node, codes, (step, _input(node, 2))),
            self._real(node, weight, (held, _input(node, 3)), 0 if op == "Conv" else -1),
        ]
        replace(last, self._add(node, op, inputs, FLOAT, dict(node.attributes.items())))

    def move(self, node: ir.Node) -> None:
        """A node that moves codes, or picks the greatest of them: all that it reads and gives has one scale."""
        read = {self.known[value] for value in node.inputs if value in self.known}
        if not read:
            return
        params = next(iter(read))
        zero = params[1]
        if node.op_type == "Cast" and zero is not None and node.attributes.get_int("to", 0) == zero.dtype:
            node.outputs[0].replace_all_uses_with(node.inputs[0])  # type: ignore[arg-type]
            return
        if node.op_type not in MOVES or len(read) > 1:
            raise _refusal(node, "it reads codes, and no float operator is known for that")
        for index, value in enumerate(node.inputs):
            if value is not None and (value in self.known or (value.dtype in CODES and constant(value) is not None)):
                node.replace_input_with(index, self._real(node, value, params))
        for out in list(node.outputs) if node.op_type == "Split" else node.outputs[:1]:
            name, dtype = out.name or "", out.dtype
            pair = make_node("QuantizeLinear", [out, *params], self.names.new(f"{name}_codes"), dtype, out.shape)
            codes = pair.outputs[0]
            out.replace_all_uses_with(codes, replace_graph_outputs=True)
            pair.replace_input_with(0, out)
            out.name, codes.name, out.type = self.names.new(f"{name}_real"), name, ir.TensorType(FLOAT)
            self.graph.insert_after(node, pair)
            self.known[codes] = params

    def _real(self, node: ir.Node, codes: ir.Value | None, params: Params, axis: int = -1) -> ir.Value | None:
        """What an operand of `node` means; floats as they are, also those that are rounded at run time."""
        source = codes.producer() if codes is not None else None
        if source is not None and source.op_type == "DynamicQuantizeLinear":
            return source.inputs[0]
        scale, zero = params
        if codes is None or scale is None:
            return codes
        both = constant(scale), constant(zero)
        if both[0] is not None and both[1] is not None and both[0].size != both[1].size:  # one zero point for all
            spread = np.broadcast_to(both[1].reshape(-1), both[0].shape)
            zero = add_initializer(self.graph, self.names.new(f"{codes.name}_zero_points"), np.array(spread))
        return self._add(node, "DequantizeLinear", [codes, scale, zero], FLOAT, {"axis": axis}, codes)

    def _bias(self, node: ir.Node, bias: ir.Value, steps: list[ir.Value | None]) -> ir.Value:
        """An int32 bias as the floats that it means, in steps of the product of the operands' scales."""
        arrays = [constant(value) for value in (bias, *steps)]
        if any(array is None for array in arrays):
            raise _refusal(node, "its bias or scales are made at run time")
        codes, x, w = (array.astype(np.float64) for array in arrays)  # type: ignore[union-attr]
        real = codes * x.reshape(-1) * w.reshape(-1) * node.attributes.get_float("alpha", 1.0)
        return add_initializer(self.graph, self.names.new(f"{bias.name}_float"), real.astype(np.float32))

    def _add(
        self, node: ir.Node, op: str, inputs: list[ir.Value | None], dtype: ir.DataType | None,
        attributes: dict[str, Any] | None = None, like: ir.Value | None = None,
    ) -> ir.Value:  # fmt: skip
        """A node before `node`, whose value has the shape of `like`, by default of its output."""
        like = like or node.outputs[0]
        made = make_node(op, inputs, self.names.new(f"{like.name}_{op.lower()}"), dtype, like.shape, attributes)
        self.graph.insert_before(node, made)
        return made.outputs[0]
