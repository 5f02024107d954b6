"""QDQ graphs of one operator, and the unit that is made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from edgeq.graph.infer import infer
from edgeq.intops.quant import Quant
from edgeq.nnapi.units import Unit, units

KINDS = {"uint8": TensorProto.UINT8, "int8": TensorProto.INT8, "float32": TensorProto.FLOAT}


class Text:
    """Collects a graph's parts."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.held: dict[str, np.ndarray] = {}
        self.inputs: dict[str, tuple[str, Sequence[int]]] = {}

    def codes(self, name: str, quant: Quant, shape: Sequence[int]) -> str:
        """An input of codes, dequantized; the name of the floats."""
        self.inputs[name] = (quant.dtype, shape)
        return self.dequantized(name, quant.scale, np.array(quant.zero_point, quant.dtype))

    def constant(self, name: str, data: np.ndarray, scale: Any, zero: Any = None, axis: int = 0) -> str:
        self.held[name] = data
        zeros = np.zeros(np.shape(scale), data.dtype) if zero is None else np.asarray(zero, data.dtype)
        return self.dequantized(name, scale, zeros, axis)

    def dequantized(self, name: str, scale: Any, zero: np.ndarray, axis: int = 0) -> str:
        self.held[f"{name}_s"], self.held[f"{name}_z"] = np.float32(scale), zero
        inputs = [name, f"{name}_s", f"{name}_z"]
        self.nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{name}_d"], axis=axis))
        return f"{name}_d"

    def end(self, op: str, inputs: Sequence[str], out: Quant, attributes: Mapping[str, Any]) -> None:
        """The operator, and its result quantized as y."""
        self.nodes.append(helper.make_node(op, inputs, ["r"], name="it", **attributes))
        self.held["y_s"], self.held["y_z"] = np.float32(out.scale), np.array(out.zero_point, out.dtype)
        self.nodes.append(helper.make_node("QuantizeLinear", ["r", "y_s", "y_z"], ["y"]))

    def proto(self) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info(n, KINDS[kind], shape) for n, (kind, shape) in self.inputs.items()],
            [helper.make_tensor_value_info("y", KINDS[self.held["y_z"].dtype.name], None)],
            [numpy_helper.from_array(np.asarray(a), n) for n, a in self.held.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)

    def graph(self) -> ir.Graph:
        model = ir.from_proto(self.proto())
        infer(model)
        return model.graph

    def unit(self) -> Unit:
        return next(unit for unit in units(self.graph()) if unit.name == "it")


def moved(
    op: str, x: Sequence[Quant], shapes: Sequence[Sequence[int]], out: Quant, more: Mapping[str, np.ndarray] = {},
    **attributes: Any,
) -> Text:  # fmt: skip
    """An operator on codes x0, x1 …, with further constant inputs; an empty array is an input left out."""
    text = Text()
    inputs = [text.codes(f"x{i}", quant, shape) for i, (quant, shape) in enumerate(zip(x, shapes, strict=True))]
    text.held.update({name: array for name, array in more.items() if array.size})
    text.end(op, [*inputs, *(name if array.size else "" for name, array in more.items())], out, attributes)
    return text


def layer(
    op: str, x: Quant, shape: Sequence[int], w: np.ndarray, scale: np.ndarray, out: Quant,
    bias: np.ndarray | None = None, zero: int = 0, axis: int = 0, bias_scale: np.ndarray | None = None,
    **attributes: Any,
) -> Text:  # fmt: skip
    """A Conv, Gemm or MatMul. bias: int32, of scale x · w unless another is given."""
    text = Text()
    inputs = [text.codes("x", x, shape), text.constant("w", w, scale, np.full(np.shape(scale), zero), axis)]
    if bias is not None:
        wanted = np.float32(x.scale) * np.float32(scale) if bias_scale is None else bias_scale
        inputs.append(text.constant("b", bias, wanted))
    text.end(op, inputs, out, attributes)
    return text
