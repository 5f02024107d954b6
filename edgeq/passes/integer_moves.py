"""Operators that move, select or average codes: what reads and writes one quantization."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from edgeq.graph.edit import static_shape
from edgeq.intops.quant import Quant
from edgeq.intops.resize import ResizeParams, axis_bilinear, onnx_nearest
from edgeq.passes.integer_linear import kept
from edgeq.passes.integer_writer import Bounds, Codes, Const, Held, Input, Pending, Writer, refused

# Rounding commutes with these, and onnxruntime has them for uint8; stored codes are in the order of the values.
MOVES = (
    "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split", "Identity", "DepthToSpace",
    "SpaceToDepth", "MaxPool", "Gather", "Expand", "Tile", "ReduceMax", "ReduceMin", "Dropout",
)  # fmt: skip
ANSWERS = ("Shape", "Size", "ArgMax", "ArgMin")  # integers that the codes give as the values would


def again(writer: Writer, node: ir.Node, value: ir.Value, kind: ir.DataType | None) -> list[ir.Value]:
    """The same operator with another first input; the outputs have the old shapes."""
    new = ir.node(node.op_type, [value, *node.inputs[1:]], attributes=node.attributes, num_outputs=len(node.outputs),
                  name=writer.names.new(f"{node.name}_integer"))  # fmt: skip
    for old, fresh in zip(node.outputs, new.outputs, strict=True):
        fresh.name = writer.names.new(f"{old.name}_codes")
        fresh.type, fresh.shape = ir.TensorType(kind or old.dtype or ir.DataType.INT64), old.shape
    assert isinstance(writer.at.graph, ir.Graph)
    writer.at.graph.insert_before(writer.at, new)
    return list(new.outputs)


def move(writer: Writer, node: ir.Node) -> None:
    """Codes stay codes; what waits for a quantization waits behind the operator."""
    held = writer.get(node.inputs[0], node)
    if isinstance(held, Const):
        held = constant_codes(writer, held, node)
    if isinstance(held, Codes):
        made = again(writer, node, held.value, ir.DataType.UINT8)
        writer.held.update({v: Codes(new, held.quant) for v, new in zip(node.outputs, made, strict=True)})
        return
    if len(node.outputs) != 1:
        raise refused(node, "its operand is not quantized", "put a QuantizeLinear in front of it")

    def emit(out: Quant, bounds: Bounds) -> ir.Value:
        if bounds != (None, None):
            raise refused(node, "an activation behind it has no quantization between", "quantize its output")
        return again(writer, node, writer.codes(held, out, node).value, ir.DataType.UINT8)[0]

    writer.held[node.outputs[0]] = Pending(node, emit)


def constant_codes(writer: Writer, held: Const, node: ir.Node) -> Codes:
    """A quantized constant, an embedding for one, as codes of the graph."""
    if held.scale is None or held.zero_point is None or held.scale.size != 1 or held.array.dtype.itemsize != 1:
        raise refused(node, "its constant is not 8 bits with one scale", "quantize it per tensor")
    quant = Quant(float(held.scale.ravel()[0]), int(held.zero_point.ravel()[0]), held.array.dtype.name)
    return Codes(writer.store((held.array.astype(np.int64) - quant.lo).astype(np.uint8)), quant)


def answer(writer: Writer, node: ir.Node) -> None:
    """Shape, ArgMax and the like: of codes, with the old output's name for whoever reads it."""
    node.replace_input_with(0, writer.quantized(node.inputs[0], node).value)


def concat(writer: Writer, node: ir.Node) -> Held:
    """Concat: inputs of another quantization are requantized first."""
    parts = [writer.get(v, node) for v in node.inputs]
    parts = [constant_codes(writer, p, node) if isinstance(p, Const) else p for p in parts]
    axis = node.attributes.get_int("axis", 0)

    def join(values: list[ir.Value]) -> ir.Value:
        return writer.op("Concat", values, np.uint8, node.outputs[0].shape, axis=axis)

    def emit(out: Quant, bounds: Bounds) -> ir.Value:
        if bounds != (None, None):
            raise refused(node, "an activation behind it has no quantization between", "quantize its output")
        return join([writer.codes(p, out, node).value for p in parts])

    return Pending(node, emit)


def pad(writer: Writer, node: ir.Node) -> Held:
    """Pad of codes: a constant border holds the code of its number, real zero by default."""
    x = writer.quantized(node.inputs[0], node)
    inputs: list[ir.Value | np.ndarray | None] = [x.value, node.inputs[1]]
    if node.attributes.get_string("mode", "constant") == "constant":
        fill = writer.get(node.inputs[2], node) if len(node.inputs) > 2 and node.inputs[2] is not None else None
        if fill is not None and not isinstance(fill, Const):
            raise refused(node, "its border is computed at run time", "make it a constant")
        number = 0.0 if fill is None else float(fill.real().ravel()[0])
        inputs.append(np.array(np.clip(np.rint(number / x.quant.scale) + x.zero, 0, 255), np.uint8))
    elif len(node.inputs) > 3:
        inputs.append(None)
    inputs += node.inputs[3:]
    value = writer.op("Pad", inputs, np.uint8, node.outputs[0].shape, **kept(node, ("mode",)))
    return Codes(value, x.quant)


def halve_ties(writer: Writer, total: ir.Value, count: np.ndarray, signed: bool) -> ir.Value:
    """total / count as stored codes, rounded half away from zero of the codes' own type, for int32 totals.

    Of uint8 codes ties go up. Below zero, that is below 128 · count, those of int8 codes go down.
    """
    up = writer.op("Add", [total, count // 2], np.int32, total.shape)
    if signed and (count % 2 == 0).any():
        below = writer.op("Less", [total, 128 * count], np.bool_, total.shape)
        down = writer.cast(below, np.int32)
        if not (count % 2 == 0).all():
            down = writer.op("Mul", [down, (1 - count % 2).astype(np.int32)], np.int32, total.shape)
        up = writer.op("Sub", [up, down], np.int32, total.shape)
    return writer.cast(writer.op("Div", [up, count], np.int32, total.shape), np.uint8)


def window_counts(axes: list[tuple[int, int, int, int, int]]) -> np.ndarray:
    """How many elements of the image lie under each window; axes: (size, kernel, stride, pad before, pad after)."""
    count = np.ones((), np.int32)
    for size, kernel, stride, before, after in axes:
        first = np.arange((size + before + after - kernel) // stride + 1) * stride - before
        along = np.minimum(first + kernel, size) - np.maximum(first, 0)
        count = count[..., None] * np.maximum(along, 0).astype(np.int32)
    return count


def average_pool(writer: Writer, node: ir.Node) -> Held:
    """AveragePool: sums by a depthwise ConvInteger of ones, then an integer division."""
    x, out = writer.quantized(node.inputs[0], node), node.outputs[0].shape
    shape = static_shape(ir.Value(shape=ir.Shape(list(x.value.shape)[1:]))) if x.value.shape is not None else None
    if shape is None or out is None:
        raise refused(node, "the size of its image is not known", "fix the model's input dimensions first")
    channels, *size = shape
    kernel = tuple(node.attributes.get_ints("kernel_shape"))
    pads = tuple(node.attributes.get_ints("pads", (0,) * (2 * len(kernel))))
    strides = tuple(node.attributes.get_ints("strides", (1,) * len(kernel)))
    dilated = any(d != 1 for d in node.attributes.get_ints("dilations", (1,)))
    if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET" or dilated:
        raise refused(node, "auto_pad and dilations are not averaged in integers", "export with explicit pads")
    axes = list(zip(size, kernel, strides, pads, pads[len(kernel) :], strict=False))
    if [(n + a + b - k) // s + 1 for n, k, s, a, b in axes] != list(out)[2:]:
        raise refused(node, "its last window reaches beyond the image", "export without ceil_mode")
    counted = node.attributes.get_int("count_include_pad", 0)
    border = x.zero if counted else 0  # a counted border is real zero, another one adds nothing
    count = window_counts(axes) if any(pads) and not counted else np.array(math.prod(kernel), np.int32)
    if (count == 0).any():
        raise refused(node, "a window lies in the padding altogether", "pad less")
    ones = np.ones((channels, 1, *kernel), np.uint8)
    operands: list[Input] = [x.value, ones, np.array(border, np.uint8)]
    total = writer.op(
        "ConvInteger", operands, np.int32, out, group=channels, pads=list(pads), strides=list(strides)
    )  # fmt: skip
    if border:  # ConvInteger has taken the zero point off each code
        total = writer.op("Add", [total, np.array(border * math.prod(kernel), np.int32)], np.int32, out)
    return Codes(halve_ties(writer, total, count, x.quant.dtype == "int8"), x.quant)


def resize(writer: Writer, node: ir.Node) -> Held:
    """Resize: nearest gathers codes at positions that are computed here, linear works in TFLite's Q10."""
    out, before = static_shape(node.outputs[0]), static_shape(node.inputs[0])
    where = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    if out is None or before is None:
        raise refused(node, "its sizes are not known", "fix the model's input dimensions first")
    if where == "pytorch_half_pixel" and min(b for a, b in zip(before, out, strict=True) if a != b) > 1:
        where = "half_pixel"
    if where not in ("half_pixel", "align_corners", "asymmetric") or "axes" in node.attributes:
        raise refused(node, f"{where} is not computed in integers", "use half_pixel, align_corners or asymmetric")
    x, mode = writer.quantized(node.inputs[0], node), node.attributes.get_string("mode", "nearest")
    if mode == "nearest":
        scales = writer.held.get(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
        given = scales.real().ravel() if isinstance(scales, Const) and scales.array.size else np.divide(out, before)
        value = x.value
        for axis, (old, new) in enumerate(zip(before, out, strict=True)):
            if old != new:
                index = nearest(node, old, new, float(given[axis]), where)
                value = writer.op("Gather", [value, index], np.uint8, axis=axis)
        value.shape = ir.Shape(out)
        return Codes(value, x.quant)
    if mode != "linear" or "antialias" in node.attributes or len(out) != 4 or out[:2] != before[:2]:
        raise refused(node, f"this {mode} is not computed in integers", "use linear over height and width")
    params = ResizeParams((out[2], out[3]), where == "align_corners", where == "half_pixel")
    value = writer.cast(x.value, np.int32)
    for axis in (2, 3):
        lower, upper, weight = axis_bilinear(before[axis], out[axis], params)
        column = weight.astype(np.int32).reshape([-1 if a == axis else 1 for a in range(4)])
        sides = []
        for index, factor in ((lower, 1024 - column), (upper, column)):
            taken = writer.op("Gather", [value, index], np.int32, axis=axis)
            sides.append(writer.op("Mul", [taken, factor], np.int32))
        value = writer.op("Add", sides, np.int32)
    value.shape = ir.Shape(out)
    count = np.array(1 << 20, np.int32)
    return Codes(halve_ties(writer, value, count, x.quant.dtype == "int8"), x.quant)


def nearest(node: ir.Node, old: int, new: int, scale: float, where: str) -> np.ndarray:
    """The source position of each output along one axis, as ONNX's Resize defines it."""
    i = np.arange(new, dtype=np.float64)
    position = {
        "half_pixel": (i + 0.5) / scale - 0.5,
        "align_corners": i * ((old - 1) / max(new - 1, 1)),
        "asymmetric": i / scale,
    }[where]
    mode = node.attributes.get_string("nearest_mode", "round_prefer_floor")
    return onnx_nearest(position, mode, old).astype(np.int64)


OPS: dict[str, Callable[[Writer, ir.Node], Held | None]] = {
    **dict.fromkeys(MOVES, move),
    **dict.fromkeys(ANSWERS, answer),
    "Concat": concat,
    "Pad": pad,
    "AveragePool": average_pool,
    "Resize": resize,
}
