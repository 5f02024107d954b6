"""Softmax and LayerNormalization: integer arithmetic on rows, of which some is done once a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeq.errors import ModelError
from edgeq.intops.layer_norm import FRACTION, SHIFT, LayerNormParams, constants, reciprocal_root_table
from edgeq.intops.quant import Quant, clamp_range
from edgeq.intops.softmax import exp_table
from edgeq.numerics.fixedpoint import rounding_divide_by_pot
from edgeq.passes.integer_linear import static_dimension
from edgeq.passes.integer_tables import fixed_output
from edgeq.passes.integer_writer import Bounds, Codes, Const, Held, Input, Pending, Writer, flipped, refused

U64 = np.uint64


@dataclass(frozen=True)
class Row:
    """int64 arithmetic on what there is one of for each row: few elements, so that Div may do the shifts."""

    writer: Writer
    shape: ir.Shape

    def op(self, op_type: str, inputs: Sequence[Input], **attributes: Any) -> ir.Value:
        return self.writer.op(op_type, inputs, np.int64, self.shape, **attributes)

    def shift(self, x: ir.Value, bits: int) -> ir.Value:
        """x >> bits, towards minus infinity, for |x| < 2^62."""
        up = self.op("Add", [x, np.array(1 << 62)])
        return self.op("Sub", [self.op("Div", [up, np.array(1 << bits)]), np.array(1 << (62 - bits))])

    def srdhm(self, a: ir.Value, b: ir.Value | np.ndarray) -> ir.Value:
        """`fixedpoint.srdhm`: no product of two smallest numbers occurs, so that nothing saturates."""
        return self.shift(self.op("Add", [self.op("Mul", [a, b]), np.array(1 << 30)]), 31)

    def saturate(self, x: ir.Value) -> ir.Value:
        return self.op("Clip", [x, np.array(-(2**31)), np.array(2**31 - 1)])

    def count(self, x: ir.Value, bounds: np.ndarray) -> ir.Value:
        """How many of the ascending bounds are not above x, counted along a new last axis."""
        w = self.writer
        column = w.op("Unsqueeze", [x, np.array([-1])], np.int64)
        above = w.op("GreaterOrEqual", [column, bounds], np.bool_)
        ones = w.op("Cast", [above], np.int64, to=int(ir.DataType.INT64))
        return w.reduce("ReduceSum", ones, [-1], np.int64, False, self.shape)


def reciprocal(row: Row, total: ir.Value) -> tuple[ir.Value, ir.Value]:
    """`softmax.reciprocal`, and the shift bits + 23 that follows it."""
    one = 1 << 29
    powers = np.array([1 << b for b in range(32)])
    leading = row.op("Sub", [np.array(32), row.count(total, powers)])
    normal = row.op("Mul", [total, row.op("Gather", [powers, leading])])
    half = row.op("Div", [normal, np.array(2)])
    x = row.op("Add", [row.srdhm(half, np.array(round(-32 / 17 * one))), np.array(round(48 / 17 * one))])
    for _ in range(3):
        rest = row.op("Sub", [np.array(one), row.srdhm(half, x)])
        step = row.saturate(row.op("Mul", [row.srdhm(x, rest), np.array(4)]))
        x = row.op("Add", [x, step])
    return row.saturate(row.op("Mul", [x, np.array(2)])), row.op("Sub", [np.array(12 + 23), leading])


def softmax(writer: Writer, node: ir.Node) -> Held:
    """Softmax over one axis by the reference kernel: tables of exp, a reciprocal by Newton steps for each row.

    The output is 1/256 from the lowest code. Rows of 4096 or more overflow the sum's 32 bits and are refused.
    """
    x = writer.quantized(node.inputs[0], node)
    if x.value.shape is None:
        raise refused(node, "the shape of its input is not known", "run shape inference first")
    axis = node.attributes.get_int("axis", -1) % len(x.value.shape)
    length = static_dimension(x.value, axis)
    if length is None or length >= 4096:
        raise refused(node, f"its rows have {length or 'an unknown number of'} entries", "4095 at most are summed")
    shape = x.value.shape
    one = ir.Shape([1 if i == axis else d for i, d in enumerate(shape)])
    exp = exp_table(x.quant.scale)
    largest = writer.reduce("ReduceMax", x.value, [axis], np.uint8, shape=one)
    difference = writer.op("Sub", [largest, x.value], np.uint8, shape)
    numerator = writer.gather(exp.astype(U64), difference)
    parts = writer.gather(rounding_divide_by_pot(exp, 12).astype(np.int32), difference)
    row = Row(writer, one)
    sums = row.op("Cast", [writer.reduce("ReduceSum", parts, [axis], np.int32, shape=one)], to=int(ir.DataType.INT64))
    scale, power = reciprocal(row, sums)
    # (s·n + 2^30) >> 31, then half up by 2^-(bits + 23): nothing here is negative
    y = writer.op("Mul", [numerator, writer.cast(scale, U64)], U64, shape)
    y = writer.op("Add", [y, np.array(1 << 30, U64)], U64, shape)
    y = writer.op("BitShift", [y, np.array(31, U64)], U64, shape, direction="RIGHT")
    half = row.op("Gather", [np.array([1 << max(e - 1, 0) for e in range(64)], np.int64), power])
    y = writer.op("Add", [y, writer.cast(half, U64)], U64, shape)
    y = writer.op("BitShift", [y, writer.cast(power, U64)], U64, shape, direction="RIGHT")
    y = writer.op("Clip", [y, np.array(0, U64), np.array(255, U64)], U64, shape)
    return Codes(writer.cast(y, np.uint8), fixed_output(x.quant, 256, 0))


def layer_normalization(writer: Writer, node: ir.Node) -> Held:
    """LayerNormalization over the last axis, as `intops.layer_norm` computes it."""
    x = writer.quantized(node.inputs[0], node)
    dims = 0 if x.value.shape is None else len(x.value.shape)
    length = static_dimension(x.value, -1)
    last = dims and node.attributes.get_int("axis", -1) % dims == dims - 1
    if not last or length is None or any(v.uses() for v in node.outputs[1:]):
        raise refused(node, "it is normalized over the last axis alone, of known length", "transpose its input")
    given = [writer.get(v, node) for v in node.inputs[1:] if v is not None]
    if not all(isinstance(g, Const) for g in given):
        raise refused(node, "its scale or bias is computed at run time", "make them constants")
    gamma, *rest = (np.broadcast_to(g.real(), (length,)) for g in given if isinstance(g, Const))
    beta = rest[0] if rest else np.zeros(length)
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    shape = x.value.shape
    assert shape is not None
    row = Row(writer, ir.Shape([*list(shape)[:-1], 1]))

    def emit(out: Quant, bounds: Bounds) -> ir.Value:
        try:
            k = constants(LayerNormParams(x.quant, gamma, beta, out, epsilon))
        except ModelError as error:
            raise refused(node, str(error)) from None
        c, n = writer.cast(x.value, np.int64), np.array(length)
        total = writer.reduce("ReduceSum", c, [-1], np.int64, shape=row.shape)
        squares = writer.reduce("ReduceSum", writer.op("Mul", [c, c], np.int64, shape), [-1], np.int64, shape=row.shape)
        spread = row.op("Sub", [row.op("Mul", [squares, n]), row.op("Mul", [total, total])])
        r, half = reciprocal_root(row, row.op("Add", [spread, np.array(k.epsilon)]))
        shift = row.op("Add", [half, np.array(29 - FRACTION)])
        # n = floor((D r + 2^(shift - 1)) / 2^shift), 2^62 above while it is shifted
        tie = row.op("Add", [row.op("Gather", [np.array([1 << max(e - 1, 0) for e in range(62)]), shift]),
                             np.array(1 << 62)])  # fmt: skip
        above = row.op("Gather", [np.array([1 << (62 - e) for e in range(62)]), shift])
        d = writer.op("Sub", [writer.op("Mul", [c, n], np.int64, shape), total], np.int64, shape)
        d = writer.op("Add", [writer.op("Mul", [d, r], np.int64, shape), tie], np.int64, shape)
        d = writer.op("BitShift", [writer.cast(d, U64), writer.cast(shift, U64)], U64, shape, direction="RIGHT")
        normal = writer.op("Sub", [writer.cast(d, np.int64), above], np.int64, shape)
        # y, 2^62 above while it is shifted; b holds the zero point
        y = writer.op("Mul", [normal, k.q], np.int64, shape)
        y = writer.op("Add", [y, k.b + (1 << (SHIFT - 1)) + (1 << 62)], np.int64, shape)
        y = writer.op("BitShift", [writer.cast(y, U64), np.array(SHIFT, U64)], U64, shape, direction="RIGHT")
        lo, hi = clamp_range(*bounds, out)
        base = 1 << (62 - SHIFT)
        y = writer.op("Clip", [y, np.array(base + lo, U64), np.array(base + hi, U64)], U64, shape)
        stored = writer.cast(y, np.uint8)
        return stored if out.lo == 0 else flipped(writer, stored)

    return Pending(node, emit)


def reciprocal_root(row: Row, w: ir.Value) -> tuple[ir.Value, ir.Value]:
    """`layer_norm.reciprocal_root` of 0 < w < 2^62."""
    half = row.count(w, 4 ** np.arange(31))
    up = row.op("Gather", [np.array([1 << max(30 - 2 * h, 0) for h in range(32)]), half])
    down = row.op("Gather", [np.array([1 << max(2 * h - 30, 0) for h in range(32)]), half])
    a = row.op("Div", [row.op("Mul", [w, up]), down])
    index = row.op("Sub", [row.op("Div", [a, np.array(1 << 22)]), np.array(64)])
    r = row.op("Gather", [reciprocal_root_table(), index])
    for _ in range(2):  # nothing here is negative, so that Div rounds down
        square = row.op("Div", [row.op("Mul", [r, r]), np.array(1 << 29)])
        product = row.op("Div", [row.op("Mul", [a, square]), np.array(1 << 30)])
        rest = row.op("Sub", [np.array(3 << 29), product])
        r = row.op("Div", [row.op("Mul", [r, rest]), np.array(1 << 30)])
    return r, half


OPS: dict[str, Callable[[Writer, ir.Node], Held]] = {
    "Softmax": softmax,
    "LayerNormalization": layer_normalization,
}
