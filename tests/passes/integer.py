"""QDQ graphs of one operator, made integer-only and run in onnxruntime on codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from edgeq.intops.quant import Quant
from edgeq.passes.integer_ends import floats
from edgeq.passes.integer_only import integer_only

Activation = tuple[Sequence[int], Quant]


class Weight:
    """A constant stored as codes behind a DequantizeLinear."""

    def __init__(self, codes: np.ndarray, scale: Any, zero_point: Any = 0, axis: int = 0) -> None:
        self.codes, self.scale, self.axis = codes, np.asarray(scale, np.float32), axis
        self.zero_point = np.broadcast_to(np.asarray(zero_point, codes.dtype), self.scale.shape)


def qdq(
    op_type: str, inputs: Sequence[str], given: Mapping[str, Activation], constants: Mapping[str, Any],
    outputs: Sequence[Quant | None], behind: Sequence[tuple[str, Sequence[Any]]] = (), opset: int = 21,
    **attributes: Any,
) -> onnx.ModelProto:  # fmt: skip
    """Inputs (codes in the end) → Q → DQ → the operator, and those `behind` it → Q → DQ → outputs y0, y1, …

    constants: arrays, or `Weight`. outputs: None for one that is no float.
    """
    nodes, stored = [], {}

    def quantization(name: str, quant: Quant) -> list[str]:
        stored[f"{name}_s"], stored[f"{name}_z"] = np.float32(quant.scale), np.array(quant.zero_point, quant.dtype)
        return [f"{name}_s", f"{name}_z"]

    for name, (_, quant) in given.items():
        scale = quantization(name, quant)
        nodes.append(helper.make_node("QuantizeLinear", [name, *scale], [f"{name}_q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", *scale], [f"{name}_dq"]))
    for name, value in constants.items():
        if isinstance(value, Weight):
            stored |= {f"{name}_q": value.codes, f"{name}_s": value.scale, f"{name}_z": value.zero_point}
            keys = [f"{name}_q", f"{name}_s", f"{name}_z"]
            nodes.append(helper.make_node("DequantizeLinear", keys, [f"{name}_dq"], axis=value.axis))
        else:
            stored[f"{name}_dq"] = np.asarray(value)
    names = [f"r{i}" for i in range(len(outputs))]
    nodes.append(helper.make_node(op_type, [f"{n}_dq" if n else "" for n in inputs], names, name="op", **attributes))
    for index, (kind, operands) in enumerate(behind):
        extra = []
        for number, value in enumerate(operands):
            extra.append(f"behind{index}_{number}")
            stored[extra[-1]] = np.asarray(value)
        nodes.append(helper.make_node(kind, [names[0], *extra], [f"b{index}"], name=f"behind{index}"))
        names[0] = f"b{index}"
    for index, (name, quant) in enumerate(zip(names, outputs, strict=True)):
        if quant is None:
            nodes.append(helper.make_node("Identity", [name], [f"y{index}"]))
            continue
        scale = quantization(f"y{index}", quant)
        nodes.append(helper.make_node("QuantizeLinear", [name, *scale], [f"{name}_q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", *scale], [f"y{index}"]))
    graph = helper.make_graph(
        nodes, "one",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, (s, _) in given.items()],
        [helper.make_tensor_value_info(f"y{i}", TensorProto.INT64 if q is None else TensorProto.FLOAT, None)
         for i, q in enumerate(outputs)],
        [numpy_helper.from_array(v, k) for k, v in stored.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def converted(model: onnx.ModelProto, rounding: str = "double", integer_io: bool = True) -> onnx.ModelProto:
    """The integer-only model, checked; a float tensor in it is an error."""
    made = integer_only(ir.serde.deserialize_model(model), rounding, integer_io)
    left = list(floats(made)) if integer_io else [row for row in floats(made) if not row[2]]
    assert left == []
    proto = ir.serde.serialize_model(made)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def outputs(
    model: onnx.ModelProto, codes: Mapping[str, np.ndarray], rounding: str = "double", optimized: bool = True
) -> list[np.ndarray]:
    """What the integer-only form gives for int8 or uint8 codes, in the codes' own type."""
    types = {n: x.dtype for n, x in codes.items()}
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(converted(model, rounding).SerializeToString(), options)
    feeds = {n: stored(x) for n, x in codes.items()}
    signed = np.dtype("int8") in types.values()
    return [own(y, signed) for y in session.run(None, feeds)]


def stored(codes: np.ndarray) -> np.ndarray:
    """Codes counted from the lowest, uint8: what goes in and comes out."""
    return (codes.astype(np.int64) - np.iinfo(codes.dtype).min).astype(np.uint8)


def own(y: np.ndarray, signed: bool) -> np.ndarray:
    return (y.astype(np.int64) - 128).astype(np.int8) if signed and y.dtype == np.uint8 else y
