"""Conv, Gemm, MatMul and means in integers: an exact int32 accumulator, the bias, one requantization.

Weights are stored as uint8 with zero point 128 at the most: unsigned by unsigned products are summed exactly by every
kernel of onnxruntime (signed weights saturate in 16 bits on x86-64 without VNNI), and ConvInteger is fast on them alone
(64 channels, 3 x 3, 56²: 0.7 ms against 13.3). The arithmetic is that of `intops.conv`, `fully_connected`, `matmul`
and `mean`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeq.intops.fully_connected import real_multiplier
from edgeq.intops.quant import Quant, clamp_range
from edgeq.numerics.fixedpoint import multiplier
from edgeq.passes.integer_requantize import Requantize, constants
from edgeq.passes.integer_writer import Bounds, Codes, Const, Held, Input, Pending, Writer, refused


def scaled(writer: Writer, node: ir.Node, q: Any, shift: Any, bias: Any, bound: Any, out: Quant, bounds: Bounds,
           channels: int = 1) -> Requantize:  # fmt: skip
    """`constants` for arrays or numbers, each for all channels or one a channel."""

    def listed(given: Any) -> list[int]:
        return [int(v) for v in np.broadcast_to(np.asarray(given, np.int64), (channels,))]

    lo, hi = clamp_range(*bounds, out)
    return constants(
        listed(q), listed(shift), listed(bias), listed(bound), out.zero_point - out.lo, lo - out.lo, hi - out.lo,
        writer.rounding, f"{node.op_type} {node.name!r}",
    )  # fmt: skip


def farthest(codes: Codes) -> int:
    """The largest |code - zero point|."""
    return max(codes.zero, 255 - codes.zero)


def weight_of(writer: Writer, node: ir.Node, channel_axis: int) -> Const:
    """The constant weight, 8 bits, with one scale and zero point or one scale for each output channel."""
    held = writer.get(node.inputs[1], node)
    if not isinstance(held, Const) or held.scale is None or held.zero_point is None:
        raise refused(node, "its weight is not quantized", "quantize weights to 8 bits")
    if held.array.dtype not in (np.int8, np.uint8):
        raise refused(node, f"its weight is {held.array.dtype}", "quantize weights to 8 bits")
    if held.scale.size > 1 and held.axis % held.array.ndim != channel_axis % held.array.ndim:
        raise refused(node, f"its weight has scales along axis {held.axis}", "quantize per output channel")
    if np.ptp(held.zero_point) != 0:
        raise refused(node, "its weight has several zero points", "quantize weights symmetrically")
    return held


def unsigned(weight: Const) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(uint8 weight, uint8 zero point, weight - zero point as int64)."""
    assert weight.zero_point is not None
    low = np.iinfo(weight.array.dtype).min
    zero = int(weight.zero_point.ravel()[0])
    stored = (weight.array.astype(np.int64) - low).astype(np.uint8)
    return stored, np.array(zero - low, np.uint8), weight.array.astype(np.int64) - zero


def bias_codes(writer: Writer, node: ir.Node, x: Codes, weight: Const, factor: float = 1.0) -> np.ndarray:
    """int64 codes of scale s_x · s_w, one for each output channel or one for all; 0 without a bias."""
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return np.zeros((), np.int64)
    held = writer.get(node.inputs[2], node)
    if not isinstance(held, Const):
        raise refused(node, "its bias is computed at run time", "make it a constant")
    assert weight.scale is not None
    scale = (np.float32(x.quant.scale) * weight.scale.astype(np.float64)).astype(np.float32).ravel()
    real = held.real().astype(np.float64).ravel() * factor
    return np.rint(real / (scale if scale.size > 1 else scale[0])).astype(np.int64)


def layer(writer: Writer, node: ir.Node, x: Codes, weight: Const, summed: tuple[int, ...], bias: np.ndarray,
          accumulate: Callable[[], ir.Value], broadcast: Sequence[int], alpha: float = 1.0) -> Pending:  # fmt: skip
    """A linear layer that waits for its output's quantization. summed: the axes of the weight that are."""
    assert weight.scale is not None
    centred = np.abs(unsigned(weight)[2]).sum(axis=summed).ravel()
    bound = farthest(x) * centred + np.abs(bias)
    scale = weight.scale * np.float32(alpha)

    def emit(out: Quant, bounds: Bounds) -> ir.Value:
        q, shift = multiplier(real_multiplier(x.quant, scale, out))
        r = scaled(writer, node, q, shift, bias, bound, out, bounds, centred.size)
        return writer.requantize(accumulate(), r, broadcast)

    return Pending(node, emit)


WINDOW = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


def kept(node: ir.Node, names: Sequence[str]) -> dict[str, Any]:
    """Those attributes of a node, for a new one."""
    return {n: node.attributes[n].value for n in names if n in node.attributes}


def conv(writer: Writer, node: ir.Node) -> Held:
    """Conv over any number of axes, with groups: ConvInteger."""
    x, weight = writer.quantized(node.inputs[0], node), weight_of(writer, node, 0)
    stored, zero, _ = unsigned(weight)
    rank, out = weight.array.ndim, node.outputs[0]

    def accumulate() -> ir.Value:
        operands: list[Input] = [x.value, stored, np.array(x.zero, np.uint8), zero]
        return writer.op("ConvInteger", operands, np.int32, out.shape, **kept(node, WINDOW))

    bias = bias_codes(writer, node, x, weight)
    broadcast = (-1, *[1] * (rank - 2))
    return layer(writer, node, x, weight, tuple(range(1, rank)), bias, accumulate, broadcast)


def _product(writer: Writer, node: ir.Node, x: Codes, weight: Const, bias: np.ndarray, alpha: float = 1.0) -> Held:
    """x (..., K) by a weight (..., K, N)."""
    stored, zero, centred = unsigned(weight)
    assert weight.scale is not None
    if weight.array.ndim > 2 and weight.scale.size > 1:
        raise refused(node, "its weight has more than two dimensions and several scales", "quantize it per tensor")

    def accumulate() -> ir.Value:
        operands: list[Input] = [x.value, stored, np.array(x.zero, np.uint8), zero]
        return writer.op("MatMulInteger", operands, np.int32, node.outputs[0].shape)

    if weight.array.ndim > 2:  # one requantization for the whole stack: its bound is the largest
        worst = int(np.abs(centred).sum(axis=-2).max())
        return _whole(writer, node, accumulate, real_multiplier(x.quant, weight.scale, Quant(1.0)), farthest(x) * worst)
    return layer(writer, node, x, weight, (0,), bias, accumulate, (-1,), alpha)


def _whole(writer: Writer, node: ir.Node, accumulate: Callable[[], ir.Value], scale: Any, bound: int) -> Pending:
    """Accumulators of one real scale, whatever their shape."""

    def emit(out: Quant, bounds: Bounds) -> ir.Value:
        q, shift = multiplier(float(np.asarray(scale).reshape(())) / out.scale)
        return writer.requantize(accumulate(), scaled(writer, node, q, shift, 0, bound, out, bounds), ())

    return Pending(node, emit)


def gemm(writer: Writer, node: ir.Node) -> Held:
    """Gemm with a constant B; alpha joins the weight's scale, beta the bias."""
    transposed = bool(node.attributes.get_int("transB", 0))
    if node.attributes.get_int("transA", 0):
        raise refused(node, "transA is not computed in integers", "transpose its input")
    alpha, beta = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
    if alpha <= 0:
        raise refused(node, f"alpha is {alpha:g}", "fold it into the weight")
    x, weight = writer.quantized(node.inputs[0], node), weight_of(writer, node, 0 if transposed else 1)
    bias = bias_codes(writer, node, x, Const(weight.array, weight.scale * np.float32(alpha)), beta)  # type: ignore[operator]
    if bias.size not in (1, weight.array.shape[0 if transposed else 1]):
        raise refused(node, "its bias is not one number for each output feature", "make it an Add")
    if transposed:
        weight = Const(np.ascontiguousarray(weight.array.T), weight.scale, weight.zero_point, 1)
    return _product(writer, node, x, weight, bias.reshape(() if bias.size == 1 else -1), alpha)


def matmul(writer: Writer, node: ir.Node) -> Held:
    """MatMul with a constant matrix on the right, or of two quantized values."""
    if isinstance(writer.get(node.inputs[1], node), Const):
        x, weight = writer.quantized(node.inputs[0], node), weight_of(writer, node, -1)
        return _product(writer, node, x, weight, np.zeros((), np.int64))
    a, b = (writer.quantized(v, node) for v in node.inputs)
    shapes = [static_dimension(v, axis) for v, axis in ((a.value, -1), (b.value, -2), *[
        (v, axis) for v, axis in zip(node.inputs, (-1, -2), strict=True)])]  # fmt: skip
    summed = next((s for s in shapes if s is not None), None)
    if summed is None:
        raise refused(node, "the length of its sums is not known", "fix the model's input dimensions first")

    def accumulate() -> ir.Value:
        operands: list[Input] = [a.value, b.value, np.array(a.zero, np.uint8), np.array(b.zero, np.uint8)]
        return writer.op("MatMulInteger", operands, np.int32, node.outputs[0].shape)

    return _whole(writer, node, accumulate, a.quant.scale * b.quant.scale, summed * farthest(a) * farthest(b))


def static_dimension(value: ir.Value | None, axis: int) -> int | None:
    if value is None or value.shape is None or len(value.shape) < 1:
        return None
    size = value.shape[axis]
    return size if isinstance(size, int) else None


def mean(writer: Writer, node: ir.Node) -> Held:
    """ReduceMean and GlobalAveragePool: `intops.mean`, the count folded into the mantissa."""
    x, value = writer.quantized(node.inputs[0], node), node.inputs[0]
    if value is None or value.shape is None:
        raise refused(node, "the shape of its input is not known", "run shape inference first")
    dims = len(value.shape)
    if node.op_type == "GlobalAveragePool":
        axes, keep = list(range(2, dims)), True
    else:
        given = list(node.attributes.get_ints("axes", ())) or writer.integers(node, 1) or list(range(dims))
        axes, keep = [a % dims for a in given], node.attributes.get_int("keepdims", 1) != 0
    sizes = [static_dimension(value, a) for a in axes]
    if None in sizes:
        raise refused(node, "it averages over dimensions of unknown size", "fix the model's input dimensions first")
    count = math.prod(s for s in sizes if s is not None)

    def emit(out: Quant, bounds: Bounds) -> ir.Value:
        q, shift = (int(v) for v in multiplier(x.quant.scale / out.scale))
        k = min(count.bit_length() - 1, 32, 31 + shift)
        r = scaled(
            writer, node, (q << k) // count, shift - k, -count * x.zero, count * farthest(x), out, bounds
        )  # fmt: skip
        total = writer.reduce("ReduceSum", writer.cast(x.value, np.int32), axes, np.int32, keep, node.outputs[0].shape)
        return writer.requantize(total, r, ())

    return Pending(node, emit)


OPS: dict[str, Callable[[Writer, ir.Node], Held]] = {
    "Conv": conv,
    "Gemm": gemm,
    "MatMul": matmul,
    "ReduceMean": mean,
    "GlobalAveragePool": mean,
}
