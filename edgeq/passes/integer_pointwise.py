"""Add, Sub, Mul, Max and Min of codes, in the arithmetic of `intops.elementwise`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeq.graph.edit import static_shape
from edgeq.intops.elementwise import LEFT_SHIFT
from edgeq.intops.quant import Quant, clamp_range
from edgeq.numerics.fixedpoint import multiplier, multiply
from edgeq.passes.integer_linear import scaled
from edgeq.passes.integer_tables import combined
from edgeq.passes.integer_writer import Bounds, Codes, Const, Held, Pending, Writer, all_codes, refused

U64 = np.uint64


@dataclass(frozen=True, eq=False)
class Operand:
    """One side of a binary operator: codes of the graph, or constant ones. stored: uint8, codes from the lowest."""

    quant: Quant
    value: ir.Value | None
    stored: np.ndarray

    def table(self, writer: Writer, entries: np.ndarray) -> ir.Value | np.ndarray:
        """entries[stored code]."""
        return entries[self.stored] if self.value is None else writer.gather(entries, self.value)

    def centred(self, writer: Writer) -> ir.Value | np.ndarray:
        """code - zero point: int64 of a constant, else uint64, modulo 2^64."""
        zero = self.quant.zero_point - self.quant.lo
        if self.value is None:
            return self.stored.astype(np.int64) - zero
        wide = writer.cast(self.value, U64)
        return writer.op("Sub", [wide, np.array(zero, U64)], U64, wide.shape) if zero else wide


def operand(writer: Writer, value: ir.Value | None, node: ir.Node) -> Operand:
    held = writer.get(value, node)
    if isinstance(held, Codes):
        return Operand(held.quant, held.value, all_codes(Quant(1.0, 128, "uint8")))
    if not isinstance(held, Const) or held.scale is None or held.zero_point is None:
        what = value.name if value is not None else "an input"
        raise refused(node, f"its operand {what!r} is not quantized", "quantize it")
    if held.scale.size != 1 or held.array.dtype not in (np.int8, np.uint8):
        raise refused(node, "its constant operand is not 8 bits with one scale", "quantize it per tensor")
    quant = Quant(float(held.scale.ravel()[0]), int(held.zero_point.ravel()[0]), held.array.dtype.name)
    return Operand(quant, None, (held.array.astype(np.int64) - quant.lo).astype(np.uint8))


def _u64(values: np.ndarray) -> np.ndarray:
    """Modulo 2^64."""
    return np.array([int(v) % (1 << 64) for v in values.ravel()], U64).reshape(values.shape)


def total(writer: Writer, node: ir.Node) -> Held:
    """Add and Sub: each side's rescaled value, already times q, is a table; one sum and one requantization are left."""
    if (table := combined(writer, node)) is not None:
        return table
    sides = [operand(writer, v, node) for v in node.inputs]
    sign = -1 if node.op_type == "Sub" else 1

    def emit(out: Quant, bounds: Bounds) -> ir.Value:
        twice = 2.0 * max(s.quant.scale for s in sides)
        outer = twice / (out.scale * 2.0**LEFT_SHIFT)
        if outer >= 1.0:
            raise refused(node, f"scale {out.scale:g} is below 2^-{LEFT_SHIFT - 1} of its operands' {twice / 2:g}")
        entries = []
        for side, factor in zip(sides, (1, sign), strict=True):
            steps = side.quant.shifted(all_codes(side.quant)).astype(np.int64) << LEFT_SHIFT
            entries.append(factor * multiply(steps, *multiplier(side.quant.scale / twice), writer.rounding))
        bound = sum(int(np.abs(e).max()) for e in entries)
        q, shift = multiplier(outer)
        r = scaled(writer, node, q, shift, 0, bound, out, bounds)
        factors = [e.astype(object) * int(r.q) for e in entries]
        first, second = (
            side.table(writer, _u64(f))
            for side, f in zip(sides, (factors[0] + int(r.add), factors[1]), strict=True)
        )  # fmt: skip
        shape = node.outputs[0].shape
        return writer.requantize(None, r, (), writer.op("Add", [first, second], U64, shape), shape)

    return Pending(node, emit)


def product(writer: Writer, node: ir.Node) -> Held:
    """Mul: (x - zx)(y - zy), of which q and the smaller side make one factor."""
    if (table := combined(writer, node)) is not None:
        return table
    sides = sorted((operand(writer, v, node) for v in node.inputs), key=_size)  # the smaller one first

    def emit(out: Quant, bounds: Bounds) -> ir.Value:
        small, large = sides
        scales = [np.float32(operand(writer, v, node).quant.scale) for v in node.inputs]
        q, shift = multiplier(float(scales[0] * scales[1] / np.float32(out.scale)))
        zeros = [side.quant.zero_point - side.quant.lo for side in sides]
        bound = max(zeros[0], 255 - zeros[0]) * max(zeros[1], 255 - zeros[1])
        r = scaled(writer, node, q, shift, 0, bound, out, bounds)
        shape = node.outputs[0].shape
        factor = small.centred(writer)
        if isinstance(factor, np.ndarray):
            factor = _u64(factor.astype(object) * int(r.q))
        else:
            factor = writer.op("Mul", [factor, r.q], U64, factor.shape)
        acc = writer.op("Mul", [large.centred(writer), factor], U64, shape)
        return writer.requantize(None, r, (), writer.op("Add", [acc, r.add], U64, shape), shape)

    return Pending(node, emit)


def _size(side: Operand) -> float:
    if side.value is None:
        return 0
    shape = static_shape(side.value)
    known = [d for d in side.value.shape or () if isinstance(d, int)] if shape is None else shape
    return math.prod(known)


def extreme(writer: Writer, node: ir.Node) -> Held:
    """Max and Min: every operand in the output's quantization, then the larger or smaller code."""
    if (table := combined(writer, node)) is not None:
        return table
    for value in node.inputs:
        writer.quantized(value, node)

    def emit(out: Quant, bounds: Bounds) -> ir.Value:
        values = [writer.codes(writer.quantized(v, node), out, node).value for v in node.inputs]
        result = writer.op(node.op_type, values, np.uint8, node.outputs[0].shape)
        lo, hi = (np.array(b - out.lo, np.uint8) for b in clamp_range(*bounds, out))
        return result if (lo, hi) == (0, 255) else writer.op("Clip", [result, lo, hi], np.uint8, result.shape)

    return Pending(node, emit)


def other(writer: Writer, node: ir.Node) -> Held:
    """Div, Pow and PRelu are integer where they are functions of one quantized value."""
    if (table := combined(writer, node)) is not None:
        return table
    raise refused(node, "it is computed in integers only with one number, or of one value", "use Mul by a reciprocal")


OPS: dict[str, Callable[[Writer, ir.Node], Held]] = {
    "Add": total,
    "Sub": total,
    "Mul": product,
    **dict.fromkeys(("Max", "Min"), extreme),
    **dict.fromkeys(("Div", "Pow", "PRelu"), other),
}
