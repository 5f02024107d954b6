"""What onnxruntime's NNAPI provider takes at an Android API level, unit by unit, and why not the others.

Sources: onnxruntime, core/providers/nnapi/nnapi_builtin/builders (helper.cc, op_support_helpers.cc and the
operators' builders); Android's OperationsUtils.cpp for the conditions on scales.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeq.graph.edit import is_constant, rank, static_shape
from edgeq.nnapi.units import DQ, Operand, Q, Unit

LEVELS = range(27, 36)
LATEST = 29  # from here on: weights a channel, other scales in Concat, multipliers of 1 and more
# The first level that has the operator: on codes, and in float.
QUANTIZED = {
    "Conv": 28, "Gemm": 27, "MatMul": 27, "Add": 27, "Mul": 27, "AveragePool": 28, "Resize": 28, "Transpose": 28,
    "Reshape": 27, "Softmax": 28, "Concat": 27, Q: 29, DQ: 27,
}  # fmt: skip
FLOAT = {
    "Abs": 29, "Add": 27, "AveragePool": 28, "BatchNormalization": 27, "Cast": 29, "Clip": 27, "Concat": 27,
    "Conv": 28, "DepthToSpace": 27, "Div": 28, "Elu": 30, "Exp": 29, "Flatten": 27, "Floor": 27, "Gather": 29,
    "Gemm": 27, "GlobalAveragePool": 28, "GlobalMaxPool": 28, "Identity": 27, "LRN": 28, "Log": 29, "MatMul": 27,
    "Max": 29, "MaxPool": 28, "Min": 29, "Mul": 27, "Neg": 29, "PRelu": 29, "Pad": 29, "Pow": 29, "ReduceMean": 28,
    "Relu": 27, "Reshape": 27, "Resize": 29, "Sigmoid": 27, "Sin": 29, "Slice": 28, "Softmax": 28, "Split": 29,
    "Sqrt": 29, "Squeeze": 28, "Sub": 28, "Tanh": 27, "Transpose": 28, "Unsqueeze": 27,
}  # fmt: skip
RANK_4 = ("Conv", "AveragePool", "MaxPool", "GlobalAveragePool", "GlobalMaxPool", "Resize", "DepthToSpace")
SAME_SCALE = ("AveragePool", "Resize", "Transpose", "Reshape")  # NNAPI gives the output the input's
WEIGHTED = ("Conv", "Gemm", "MatMul")
BIAS_TOLERANCE = 1e-6


def refusal(unit: Unit, level: int) -> str:
    """Why the unit runs on the CPU at that API level, or nothing when NNAPI takes it."""
    table = QUANTIZED if unit.quantized else FLOAT
    if unit.node.domain not in ("", "ai.onnx"):
        return f"operator of domain {unit.node.domain}"
    first = table.get(unit.op)
    if first is None:
        if unit.joined and unit.op in FLOAT:
            return f"{unit.op} on codes: NNAPI has it in float alone"
        return f"the provider has no {unit.op}"
    if level < first:
        return f"{unit.op} {'on codes ' if unit.quantized else ''}needs API {first}"
    for operand in filter(None, unit.inputs):
        if not is_constant(operand.value) and static_shape(operand.value) is None:
            return f"the shape of {operand.name} isn't fixed"
        if isinstance(operand.value.const_value, ir.ExternalTensor) and unit.op != "Constant":
            return f"{operand.name} is in a file of its own"
    return _types(unit, level) or _attributes(unit, level) or (_scales(unit, level) if unit.joined else "")


def _types(unit: Unit, level: int) -> str:
    """What is asked of the operands' types and parameters (IsQuantizedIOSupported)."""
    if not unit.quantized:
        wanted = ("float", "int32", "uint8") if unit.op == "Cast" else ("float",)
        first = unit.inputs[0] if unit.inputs else None
        return f"its input is {first.dtype}" if first is not None and first.dtype not in wanted else ""
    for index, operand in enumerate((*unit.inputs, *unit.outputs)):
        if operand is None or operand.around is None:
            continue
        weight = index == 1 and unit.op in WEIGHTED
        if index == 2 and unit.op in WEIGHTED and operand not in unit.outputs:
            if operand.dtype != "int32":
                return f"its bias is {operand.dtype}, not int32"
        elif operand.dtype != "uint8" and not (weight and operand.dtype == "int8"):
            return f"{operand.name} is {operand.dtype}, not uint8"
        scale, zero = operand.scale, operand.zero_point
        if scale is None or zero is None:
            return f"the scale of {operand.name} isn't constant"
        if weight and operand.dtype == "int8" and zero.any():
            return f"its int8 weight {operand.name} has a zero point"
        if scale.size == 1 or index == 2:
            continue
        if not (weight and operand.dtype == "int8" and unit.op == "Conv"):
            return f"{operand.name} has a scale a channel, which only the int8 weights of a Conv may have"
        if level < LATEST:
            return f"{operand.name} has a scale a channel, which needs API {LATEST}"
    return ""


def _attributes(unit: Unit, level: int) -> str:
    """What is asked of shapes and attributes (IsOpSupportedImpl of each builder)."""
    node, first = unit.node, unit.inputs[0].value if unit.inputs and unit.inputs[0] is not None else None
    dims, get = rank(first) or 0, node.attributes.get_int
    if unit.op in RANK_4 and dims != 4:
        return f"its input has rank {dims}, not 4"
    if unit.op in ("Gemm", "MatMul") and dims != 2:
        return f"its input has rank {dims}, not 2"
    if dims > 4 and unit.op not in (Q, DQ):
        return f"its input has rank {dims}, over 4"
    constants = {"Conv": (1, 2), "MatMul": (1,), "Reshape": (1,), "Resize": (2, 3)}.get(unit.op, ())
    if unit.op == "Gemm":
        constants = (1, 2)
        if get("transA", 0) or any(node.attributes.get_float(name, 1.0) != 1 for name in ("alpha", "beta")):
            return "its transA, alpha or beta isn't the default"
    for index in constants:
        operand = unit.inputs[index] if index < len(unit.inputs) else None
        if operand is not None and not is_constant(operand.value):
            return f"{operand.name} isn't constant"
    if unit.op == "Conv":
        weight = unit.inputs[1].value if unit.inputs[1] is not None else None
        dilated = set(node.attributes.get_ints("dilations", ())) - {1}
        if dilated and get("group", 1) != 1 and weight is not None and weight.shape and weight.shape[1] != 1:
            return "a Conv in groups can't be dilated"
        if dilated and level < LATEST:
            return f"a dilated Conv needs API {LATEST}"
    unusual = get("count_include_pad", 0) or get("ceil_mode", 0) or set(node.attributes.get_ints("dilations", ())) - {1}
    if unit.op in ("AveragePool", "MaxPool") and unusual:
        return "its count_include_pad, ceil_mode or dilations isn't the default"
    if unit.op == "Softmax":
        if dims not in (2, 4):
            return f"its input has rank {dims}, not 2 or 4"
        if level < LATEST and get("axis", -1) % dims != 1:
            return f"an axis other than 1 needs API {LATEST}"
    return _resize(unit, level) if unit.op == "Resize" else ""


def _resize(unit: Unit, level: int) -> str:
    get = unit.node.attributes.get_string
    mode, position = get("mode", "nearest"), get("coordinate_transformation_mode", "half_pixel")
    if mode == "nearest":
        if position != "asymmetric" or get("nearest_mode", "round_prefer_floor") != "floor":
            return "nearest is taken with asymmetric positions, rounded down"
    elif mode != "linear":
        return f"mode {mode} isn't taken"
    elif position not in ("half_pixel", "align_corners", "asymmetric"):
        return f"positions {position} aren't taken"
    elif position != "asymmetric" and level < 30:
        return f"positions {position} need API 30"
    before, after = static_shape(unit.inputs[0].value if unit.inputs[0] else None), static_shape(unit.node.outputs[0])
    if before is None or after is None or before[:2] != after[:2]:
        return "it changes more than height and width, or by nobody knows how much"
    return ""


def same(left: Operand, right: Operand) -> bool:
    """One scale and one zero point."""
    return bool(np.all(left.scale == right.scale)) and bool(np.all(left.zero_point == right.zero_point))


def product(x: Operand, w: Operand) -> np.ndarray:
    """scale of x · scale of w in float32, as NNAPI multiplies them; shape of w's scale."""
    assert x.scale is not None
    assert w.scale is not None
    return np.asarray(x.scale.reshape(()) * w.scale, np.float32)


def _scales(unit: Unit, level: int) -> str:
    """What is asked of scales, all of which are known."""
    first, out = unit.inputs[0], unit.outputs[0]
    assert first is not None
    assert out.scale is not None
    if unit.op in SAME_SCALE and not same(first, out):
        return "its output has another scale or zero point than its input"
    if unit.op == "Concat" and level < LATEST and not all(same(x, out) for x in unit.inputs if x is not None):
        return f"inputs of other scales need API {LATEST}"
    if unit.op == "Softmax" and not (out.scale == 1 / 256 and not np.any(out.zero_point)):
        return "its output must have scale 1/256 and zero point 0"
    if unit.op not in WEIGHTED or unit.inputs[1] is None:
        return ""
    wanted = product(first, unit.inputs[1]).astype(np.float64)
    if level < LATEST and (wanted >= out.scale).any():
        return f"input scale · weight scale is not below the output scale, which needs API {LATEST}"
    bias = unit.inputs[2] if len(unit.inputs) > 2 else None
    if bias is not None and bias.scale is not None:
        given = bias.scale.astype(np.float64)
        if (np.abs(wanted - given) > BIAS_TOLERANCE * np.minimum(wanted, given)).any():
            return "its bias scale is not input scale · weight scale"
    return ""
