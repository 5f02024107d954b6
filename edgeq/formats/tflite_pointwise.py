"""Element-wise operators, activations, Softmax and LayerNormalization of ONNX as TFLite operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeq.formats.tflite_file import TfTensor
from edgeq.formats.tflite_scribe import Held, Scribe, activation, refused

# ONNX operator -> (TFLite's, whether it has an integer kernel whose output scale is free)
UNARY: dict[str, tuple[str, bool]] = {
    "Relu": ("RELU", True),
    "LeakyRelu": ("LEAKY_RELU", True),
    "HardSwish": ("HARD_SWISH", True),
    "Gelu": ("GELU", True),
    "Elu": ("ELU", False),
    "Exp": ("EXP", False),
    "Log": ("LOG", False),
    "Sqrt": ("SQRT", False),
    "Neg": ("NEG", False),
    "Abs": ("ABS", False),
    "Floor": ("FLOOR", False),
    "Ceil": ("CEIL", False),
    "Sin": ("SIN", False),
    "Cos": ("COS", False),
}
# Output quantization that the kernel fixes: (denominator of the scale, int8 zero point)
FIXED = {"Sigmoid": ("LOGISTIC", 256, -128), "Tanh": ("TANH", 128, 0)}
BINARY = {"Add": "ADD", "Sub": "SUB", "Mul": "MUL", "Div": "DIV", "Max": "MAXIMUM", "Min": "MINIMUM", "Pow": "POW"}
INTEGER_BINARY, SAME_SCALE = ("ADD", "SUB", "MUL"), ("MAXIMUM", "MINIMUM")
FUSING = ("ADD", "SUB", "MUL", "DIV")


def _new(scribe: Scribe, value: ir.Value, x: Held, like: TfTensor | None = None) -> TfTensor:
    return scribe.tensor(str(value.name), x.tensor.shape, like=like)


def unary(scribe: Scribe, node: ir.Node) -> None:
    code, integer = UNARY[node.op_type]
    x, value = scribe.get(node.inputs[0]), node.outputs[0]
    target = scribe.target(value) if integer and x.quantized and x.tensor.dtype == "int8" else None
    x = x if target is not None else scribe.real(x)
    options: dict[str, Any] = {}
    if code == "LEAKY_RELU":
        options["alpha"] = node.attributes.get_float("alpha", 0.01)
    if code == "GELU":
        options["approximate"] = node.attributes.get_string("approximate", "none") == "tanh"
    if code == "ELU" and node.attributes.get_float("alpha", 1.0) != 1.0:
        raise refused(node, "TFLite's ELU has alpha 1")
    out = scribe.emit(code, [x.tensor], _new(scribe, value, x, target), **options)
    scribe.held[value] = replace(x, tensor=out)


def gelu(scribe: Scribe, x_value: ir.Value, value: ir.Value) -> None:
    """The exact GELU of one value as another, for a Gelu that the graph spells out in several nodes."""
    x, target = scribe.get(x_value), scribe.target(value)
    if target is None or not x.quantized or x.tensor.dtype != "int8":
        x, target = scribe.real(x), None
    out = scribe.emit("GELU", [x.tensor], _new(scribe, value, x, target), approximate=False)
    scribe.held[value] = replace(x, tensor=out)


def fixed_output(scribe: Scribe, node: ir.Node) -> None:
    """Sigmoid and Tanh: the integer kernel gives 1/256 or 1/128; what follows requantizes if it wants another."""
    code, denominator, zero_point = FIXED[node.op_type]
    x, value = scribe.get(node.inputs[0]), node.outputs[0]
    like = None
    if x.quantized and x.tensor.dtype == "int8" and scribe.target(value) is not None:
        like = TfTensor("", (), "int8", None, np.array([1 / denominator], np.float32), np.array([zero_point]))
    x = x if like is not None else scribe.real(x)
    scribe.held[value] = replace(x, tensor=scribe.emit(code, [x.tensor], _new(scribe, value, x, like)))


def clip(scribe: Scribe, node: ir.Node) -> None:
    """Clip: one of TFLite's relus, or MAXIMUM and MINIMUM with constants."""
    x, value = scribe.get(node.inputs[0]), node.outputs[0]
    name = activation(scribe, node)
    target = scribe.target(value)
    if name is not None:
        quantized = x.quantized and x.tensor.dtype == "int8" and target is not None
        x = x if quantized else scribe.real(x)
        out = scribe.emit(name, [x.tensor], _new(scribe, value, x, target if quantized else None))
        scribe.held[value] = replace(x, tensor=out)
        return
    x = scribe.real(x)
    for code, index in (("MAXIMUM", 1), ("MINIMUM", 2)):
        bound = scribe.const(node.inputs[index]) if index < len(node.inputs) else None
        if bound is not None:
            limit = scribe.store("bound", bound.real().reshape(1).astype(np.float32))
            x = replace(x, tensor=scribe.emit(code, [x.tensor, limit], _new(scribe, value, x)))
    scribe.held[value] = x


def aligned(scribe: Scribe, values: Sequence[ir.Value | None]) -> list[Held]:
    """The operands of an element-wise operator in one layout: that of the first computed one with the full rank."""
    got = [scribe.get(v) for v in values]
    rank = max(len(h.perm) for h in got)
    full = [h for h in got if len(h.perm) == rank and h.tensor.data is None]
    perm = next((h.perm for h in full if h.perm != tuple(range(rank))), tuple(range(rank)))
    plain = perm == tuple(range(rank))
    # Without a permutation, broadcasting itself aligns shorter operands.
    return [h if plain and h.perm == tuple(range(len(h.perm))) else scribe.relayout(h, perm) for h in got]


def binary(scribe: Scribe, node: ir.Node, values: Sequence[ir.Value | None] | None = None) -> None:
    """Two operands, or more for Max and Min; a Relu behind it is fused."""
    code = BINARY[node.op_type]
    operands = aligned(scribe, values or node.inputs)
    fused, value = scribe.fuse_activation(node.outputs[0]) if code in FUSING else ("NONE", node.outputs[0])
    target = scribe.target(value)
    quantized = target is not None and all(h.quantized for h in operands) and code in INTEGER_BINARY + SAME_SCALE
    like = target if quantized else None
    if like is None:
        operands = [scribe.real(h) for h in operands]
    elif code in SAME_SCALE:
        operands = [scribe.requantize(h, like) for h in operands]
    result = operands[0]
    perm = max((h.perm for h in operands), key=len)
    for i, other in enumerate(operands[1:], 2):
        shape = np.broadcast_shapes(result.tensor.shape, other.tensor.shape)
        out = scribe.tensor(str(value.name), shape, operands[0].tensor.dtype, like)
        options: dict[str, Any] = {"fusedActivationFunction": fused} if code in FUSING and i == len(operands) else {}
        if code in ("ADD", "SUB") and out.dtype == "int16":
            options["potScaleInt16"] = False  # where scales happen to be powers of two there is other arithmetic
        result = Held(scribe.emit(code, [result.tensor, other.tensor], out, **options), perm)
    scribe.held[value] = result


def softmax(scribe: Scribe, node: ir.Node) -> None:
    """Softmax: TFLite's works on the last stored axis."""
    x, value = scribe.get(node.inputs[0]), node.outputs[0]
    rank = len(x.perm)
    axis = node.attributes.get_int("axis", -1) % rank
    if x.perm[-1] != axis:
        x = scribe.relayout(x, (*(a for a in range(rank) if a != axis), axis))
    like = None
    if x.quantized and x.tensor.dtype == "int8" and scribe.target(value) is not None:
        like = TfTensor("", (), "int8", None, np.array([1 / 256], np.float32), np.array([-128]))
    x = x if like is not None else scribe.real(x)
    out = scribe.emit("SOFTMAX", [x.tensor], _new(scribe, value, x, like), beta=1.0)
    scribe.held[value] = replace(x, tensor=out)


def hard_sigmoid(scribe: Scribe, node: ir.Node) -> None:
    """clip(a x + b, 0, 1).

    On integers a depthwise 1 x 1 convolution with weight a, bias b and the output 1/256 from code -128: saturation is
    the clip. In float relu6(6 a x + 6 b) / 6.
    """
    x, value = scribe.get(node.inputs[0]), node.outputs[0]
    slope, offset = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
    if x.quantized and x.tensor.dtype == "int8" and len(x.perm) == 4 and scribe.target(value) is not None:
        scribe.held[value] = replace(x, tensor=_hard_sigmoid_int8(scribe, value, x, slope, offset))
        return
    x = scribe.real(x)
    y = x.tensor
    for code, factor, fused in (("MUL", 6 * slope, "NONE"), ("ADD", 6 * offset, "RELU6"), ("MUL", 1 / 6, "NONE")):
        number = scribe.store("factor", np.array([factor], np.float32))
        y = scribe.emit(code, [y, number], _new(scribe, value, x), fusedActivationFunction=fused)
    scribe.held[value] = replace(x, tensor=y)


def _hard_sigmoid_int8(scribe: Scribe, value: ir.Value, x: Held, slope: float, offset: float) -> TfTensor:
    channels, none = x.tensor.shape[-1], np.zeros(1, np.int64)
    assert x.tensor.scale is not None
    w_scale = np.array([abs(slope) / 127 or 1.0], np.float32)
    w = scribe.store(
        "slope", np.full((1, 1, 1, channels), np.copysign(127, slope), np.int8), scale=w_scale, zero_point=none, axis=3
    )
    b_scale = x.tensor.scale * w_scale
    code = np.rint(offset / b_scale[0].astype(np.float64))
    b = scribe.store("offset", np.full(channels, code, np.int32), scale=b_scale, zero_point=none)
    out = _new(scribe, value, x, TfTensor("", (), "int8", None, np.array([1 / 256], np.float32), np.array([-128])))
    return scribe.emit(
        "DEPTHWISE_CONV_2D", [x.tensor, w, b], out, padding="VALID", strideH=1, strideW=1, depthMultiplier=1
    )


def layer_normalization(scribe: Scribe, node: ir.Node) -> None:
    """(x - mean) * rsqrt(mean((x - mean)²) + epsilon) * scale + bias over the last axis, in float."""
    x, value = scribe.get(node.inputs[0]), node.outputs[0]
    rank = len(x.perm)
    if node.attributes.get_int("axis", -1) % rank != rank - 1:
        raise refused(node, "only the last axis is normalized")
    x = scribe.real(scribe.relayout(x, tuple(range(rank))))
    shape, name = x.tensor.shape, str(value.name)
    reduced = (*shape[:-1], 1)
    axes = scribe.indices("axes", [rank - 1])

    def step(code: str, a: TfTensor, b: TfTensor | None, size: Any = shape, **options: Any) -> TfTensor:
        return scribe.emit(code, [a] if b is None else [a, b], scribe.tensor(name, size), **options)

    mean = step("MEAN", x.tensor, axes, reduced, keepDims=True)
    centred = step("SUB", x.tensor, mean)
    variance = step("MEAN", step("MUL", centred, centred), axes, reduced, keepDims=True)
    epsilon = scribe.store("epsilon", np.array([node.attributes.get_float("epsilon", 1e-5)], np.float32))
    y = step("MUL", centred, step("RSQRT", step("ADD", variance, epsilon, reduced), None, reduced))
    y = step("MUL", y, scribe.real(scribe.get(node.inputs[1])).tensor)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        y = step("ADD", y, scribe.real(scribe.get(node.inputs[2])).tensor)
    scribe.held[value] = Held(y, x.perm)


def power(scribe: Scribe, node: ir.Node) -> None:
    """Pow; a square becomes MUL, which every runtime has."""
    exponent = scribe.const(node.inputs[1])
    if exponent is not None and exponent.array.size == 1 and float(exponent.array.ravel()[0]) == 2.0:
        x, value = scribe.real(scribe.get(node.inputs[0])), node.outputs[0]
        scribe.held[value] = replace(x, tensor=scribe.emit("MUL", [x.tensor, x.tensor], _new(scribe, value, x)))
        return
    binary(scribe, node)


def reciprocal(scribe: Scribe, node: ir.Node) -> None:
    x, value = scribe.real(scribe.get(node.inputs[0])), node.outputs[0]
    one = scribe.store("one", np.array([1], np.float32))
    scribe.held[value] = replace(x, tensor=scribe.emit("DIV", [one, x.tensor], _new(scribe, value, x)))


def where(scribe: Scribe, node: ir.Node) -> None:
    """Where, in float, with the operands as the model has them."""
    condition, *sides = (scribe.get(v) for v in node.inputs)
    value = node.outputs[0]
    operands = [scribe.relayout(h, tuple(range(len(h.perm)))) for h in (condition, *map(scribe.real, sides))]
    out = scribe.tensor(str(value.name), scribe.shape(value), operands[1].tensor.dtype)
    scribe.emit("SELECT_V2", [h.tensor for h in operands], out)
    scribe.held[value] = Held(out, tuple(range(len(out.shape))))


OPS: dict[str, Callable[[Scribe, ir.Node], None]] = {
    **dict.fromkeys(UNARY, unary),
    **dict.fromkeys(FIXED, fixed_output),
    **dict.fromkeys(BINARY, partial(binary)),
    "Pow": power,
    "Where": where,
    "Clip": clip,
    "Softmax": softmax,
    "HardSigmoid": hard_sigmoid,
    "LayerNormalization": layer_normalization,
    "Reciprocal": reciprocal,
}
