"""Functions of one quantized value, as tables of 256 codes.

The one rule: the function is evaluated in float64 at each dequantized code and rounded for the output. Chains of
functions, and functions of the same value combined with each other or with a constant, stay one table. Where TFLite
defines an integer kernel (RELU, LEAKY_RELU, HARD_SWISH, LOGISTIC and TANH with their fixed outputs), the table is what
that kernel gives, if it reads codes itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeq.errors import ModelError
from edgeq.intops import tables
from edgeq.intops.quant import Quant, clamp_range
from edgeq.intops.requantize import QuantizeParams, quantize
from edgeq.intops.tables import TableParams
from edgeq.numerics.fixedpoint import multiplier, requantize
from edgeq.passes.integer_writer import Bounds, Codes, Const, Held, Lookup, Pending, Writer, all_codes, refused

Real = np.ndarray
_erf = np.vectorize(math.erf, otypes=[np.float64])


def _sigmoid(v: Real) -> Real:
    return np.exp(-np.logaddexp(0, -v))


def _softplus(v: Real) -> Real:
    return np.logaddexp(0, v)


def _gelu(v: Real, node: ir.Node) -> Real:
    if node.attributes.get_string("approximate", "none") == "tanh":
        return 0.5 * v * (1 + np.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))
    return 0.5 * v * (1 + _erf(v * math.sqrt(0.5)))


def _elu(v: Real, node: ir.Node, alpha: float = 1.0, gamma: float = 1.0) -> Real:
    alpha = node.attributes.get_float("alpha", alpha)
    return node.attributes.get_float("gamma", gamma) * np.where(v > 0, v, alpha * np.expm1(np.minimum(v, 0)))


def _celu(v: Real, node: ir.Node) -> Real:
    alpha = node.attributes.get_float("alpha", 1.0)
    return np.maximum(v, 0) + np.minimum(0, alpha * np.expm1(np.minimum(v, 0) / alpha))


def _hard_sigmoid(v: Real, node: ir.Node) -> Real:
    return np.clip(node.attributes.get_float("alpha", 0.2) * v + node.attributes.get_float("beta", 0.5), 0, 1)


def _plain(function: Callable[[Real], Real]) -> Callable[[Real, ir.Node], Real]:
    return lambda v, _: function(v)


# ONNX operator -> function of float64 values and the node
FUNCTIONS: dict[str, Callable[[Real, ir.Node], Real]] = {
    "Relu": _plain(lambda v: np.maximum(v, 0)),
    "LeakyRelu": lambda v, n: np.where(v < 0, v * n.attributes.get_float("alpha", 0.01), v),
    "ThresholdedRelu": lambda v, n: np.where(v > n.attributes.get_float("alpha", 1.0), v, 0),
    "Sigmoid": _plain(_sigmoid),
    "Tanh": _plain(np.tanh),
    "HardSwish": _plain(lambda v: v * np.clip(v / 6 + 0.5, 0, 1)),
    "HardSigmoid": _hard_sigmoid,
    "Gelu": _gelu,
    "Elu": _elu,
    "Selu": partial(_elu, alpha=1.67326319217681884765625, gamma=1.05070102214813232421875),
    "Celu": _celu,
    "Softplus": _plain(_softplus),
    "Softsign": _plain(lambda v: v / (1 + np.abs(v))),
    "Mish": _plain(lambda v: v * np.tanh(_softplus(v))),
    "Erf": _plain(_erf),
    "Round": _plain(np.rint),
    **{name: _plain(getattr(np, name.lower())) for name in ("Exp", "Log", "Sqrt", "Abs", "Floor", "Ceil", "Sign",
                                                             "Sin", "Cos", "Reciprocal")},
    "Neg": _plain(np.negative),
}  # fmt: skip
BINARY: dict[str, Callable[[Real, Real], Real]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide, "Pow": np.power, "Max": np.maximum,
    "Min": np.minimum, "PRelu": lambda v, slope: np.where(v < 0, v * slope, v),
}  # fmt: skip


def reals(held: Held | None) -> Real | None:
    """The 256 float64 values of what is a function of codes."""
    match held:
        case Codes(quant=quant):
            return (np.float32(quant.scale) * quant.shifted(all_codes(quant)).astype(np.float32)).astype(np.float64)
        case Lookup(real=real):
            return real
    return None


def source(held: Held | None) -> Codes | None:
    return held if isinstance(held, Codes) else held.source if isinstance(held, Lookup) else None


def finite(node: ir.Node, real: Real) -> Real:
    if not np.isfinite(real).all():
        raise refused(node, "it is not finite for every code of its input", "keep it out of the integer graph")
    return real


def unary(writer: Writer, node: ir.Node) -> Held:
    """A function of one value. A Relu or Clip behind an operator that still waits becomes its bounds."""
    held, bounds = writer.get(node.inputs[0], node), limits(writer, node)
    if isinstance(held, Pending):
        if bounds is None or held.bounds != (None, None):
            raise refused(node, "its operand is not quantized", "put a QuantizeLinear in front of it")
        return Pending(held.node, held.emit, bounds)
    real, codes = reals(held), source(held)
    if real is None or codes is None:
        raise refused(node, "it reads a constant", "fold constants first")
    with np.errstate(all="ignore"):
        if bounds is not None:
            low, high = (-np.inf if bounds[0] is None else bounds[0]), (np.inf if bounds[1] is None else bounds[1])
            value = np.clip(real, low, high)
        else:
            value = FUNCTIONS[node.op_type](real, node)
    made = partial(kernel, writer, node, codes.quant, bounds) if isinstance(held, Codes) else None
    known = made is not None and (bounds is not None or node.op_type in KERNELS)
    return Lookup(codes, finite(node, value), made if known else None)


def limits(writer: Writer, node: ir.Node) -> Bounds | None:
    """(low, high) of a Relu or a constant Clip, None of anything else."""
    if node.op_type == "Relu":
        return 0.0, None
    if node.op_type != "Clip":
        return None
    found: list[float | None] = []
    for value in (*node.inputs[1:], None, None)[:2]:
        held = None if value is None else writer.get(value, node)
        if held is not None and (not isinstance(held, Const) or held.array.size != 1):
            raise refused(node, "its bounds are computed at run time", "make them constants")
        found.append(None if held is None else float(held.real().ravel()[0]))
    return found[0], found[1]


# With TFLite's fixed outputs: (denominator of the scale, zero point above the lowest code)
FIXED: dict[str, tuple[Callable[[np.ndarray, TableParams], np.ndarray], int, int]] = {
    "Sigmoid": (tables.logistic, 256, 0),
    "Tanh": (tables.tanh, 128, 128),
}
KERNELS = ("LeakyRelu", "HardSwish", "Gelu", "HardSigmoid", *FIXED)


def fixed_output(quant: Quant, denominator: int, above: int) -> Quant:
    return Quant(1 / denominator, quant.lo + above, quant.dtype)


def kernel(writer: Writer, node: ir.Node, x: Quant, bounds: Bounds | None, out: Quant) -> np.ndarray:
    """The codes of out for every code of x, by TFLite's arithmetic for the operator."""
    codes, rounding = all_codes(x), writer.rounding
    params = TableParams(
        x, out, node.attributes.get_float("alpha", 0.01),
        node.attributes.get_string("approximate", "none") == "tanh", rounding,
    )  # fmt: skip
    if bounds is not None:
        return clamp_table(x, out, bounds, rounding)
    if node.op_type in FIXED:
        function, denominator, above = FIXED[node.op_type]
        middle = fixed_output(x, denominator, above)
        return quantize(function(codes, TableParams(x, middle)), QuantizeParams(middle, out, rounding))
    try:
        match node.op_type:
            case "HardSigmoid":
                return hard_sigmoid_table(node, x, out, rounding)
            case "HardSwish":
                return tables.hard_swish(codes, params)
            case "Gelu":
                return tables.gelu(codes, params)
            case _:
                return tables.leaky_relu(codes, params)
    except ModelError as error:
        raise refused(node, str(error)) from None


def clamp_table(x: Quant, out: Quant, bounds: Bounds, rounding: Any) -> np.ndarray:
    """RELU's arithmetic with any bounds: one requantization by float32(s_x) / float32(s_y), then the clamp."""
    q, shift = multiplier(float(np.float32(x.scale) / np.float32(out.scale)))
    lo, hi = clamp_range(*bounds, out)
    return requantize(x.shifted(all_codes(x)), q, shift, out.zero_point, lo, hi, rounding, dtype=out.dtype)


def hard_sigmoid_table(node: ir.Node, x: Quant, out: Quant, rounding: Any) -> np.ndarray:
    """HardSigmoid as a 1 x 1 convolution gives it: weight 127 with scale alpha / 127, an int32 bias, output 1/256."""
    alpha, beta = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
    middle = fixed_output(x, 256, 0)
    w_scale = np.float32(abs(alpha) / 127 or 1.0)
    bias = np.rint(beta / np.float64(np.float32(x.scale) * w_scale))
    acc = x.shifted(all_codes(x)).astype(np.int64) * int(np.copysign(127, alpha)) + int(bias)
    q, shift = multiplier(x.scale * np.float64(w_scale) / middle.scale)
    y = requantize(acc, q, shift, middle.zero_point, middle.lo, middle.hi, rounding, dtype=middle.dtype)
    return quantize(y, QuantizeParams(middle, out, rounding))


def combined(writer: Writer, node: ir.Node) -> Lookup | None:
    """A binary operator of two functions of the same codes, or of one and a float number, as one table; else None.

    None too where both operands are quantized and the operator has integer arithmetic of its own.
    """
    sides = [writer.get(v, node) for v in node.inputs]
    first = next((s for s in map(source, sides) if s is not None), None)
    if first is None or len(sides) != 2:
        return None
    if node.op_type in ("Add", "Sub", "Mul") and all(quantized(s) for s in sides):
        return None
    values = [_operand(side, first) for side in sides]
    if values[0] is None or values[1] is None:
        return None
    with np.errstate(all="ignore"):
        real = BINARY[node.op_type](values[0], values[1])
    return Lookup(first, finite(node, real))


def quantized(held: Held) -> bool:
    return isinstance(held, Codes) or (isinstance(held, Const) and held.scale is not None)


def _operand(held: Held, codes: Codes) -> Real | None:
    if isinstance(held, Const) and held.array.size == 1:
        return held.real().astype(np.float64).ravel()
    return reals(held) if source(held) is codes else None


OPS: dict[str, Callable[[Writer, ir.Node], Held]] = dict.fromkeys((*FUNCTIONS, "Clip"), unary)
