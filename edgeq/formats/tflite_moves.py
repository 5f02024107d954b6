"""Operators that move, pool, resize or reduce: Reshape, Transpose, Concat, Slice, Pad, Gather, pools, Resize, means.

They keep the layout of their input where they can, and its quantization always: what wants another one requantizes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeq.formats.tflite_file import DTYPES, TfTensor
from edgeq.formats.tflite_linear import windowed
from edgeq.formats.tflite_scribe import NHWC, Held, Perm, Scribe, moves_nothing, refused
from edgeq.intops.resize import onnx_nearest

LINEAR = ("Gemm", "MatMul")


def plain(rank: int) -> Perm:
    return tuple(range(rank))


def _keep(scribe: Scribe, value: ir.Value, tensor: TfTensor, perm: Perm) -> None:
    scribe.held[value] = Held(tensor, perm)


def _only_linear(scribe: Scribe, value: ir.Value) -> bool:
    """Whether all that reads a flattened value is linear layers with constant weights, QDQ pairs seen through."""
    if value.is_graph_output():
        return False
    for use in value.uses():
        if use.node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            if not _only_linear(scribe, use.node.outputs[0]):
                return False
        elif use.node.op_type not in LINEAR or use.idx != 0 or scribe.const(use.node.inputs[1]) is None:
            return False
    return True


def reshape(scribe: Scribe, node: ir.Node) -> None:
    """Reshape, Flatten, Squeeze and Unsqueeze. Flattened NHWC features that feed linear layers are not transposed
    back: the layers' weights are reordered instead."""
    x, value = scribe.get(node.inputs[0]), node.outputs[0]
    shape, rank = scribe.shape(value), len(x.perm)
    logical = scribe.shape(node.inputs[0])  # type: ignore[arg-type]
    order = None
    if not moves_nothing(logical, x.perm):
        flattens = x.perm == NHWC and shape == (logical[0], int(np.prod(logical[1:])))
        if flattens and _only_linear(scribe, value):
            order = np.arange(shape[1]).reshape(logical[1:]).transpose(1, 2, 0).ravel()
        else:
            x = scribe.relayout(x, plain(rank))
    scribe.held[value] = Held(scribe.reshape(x.tensor, shape), plain(len(shape)), order)


def transpose(scribe: Scribe, node: ir.Node) -> None:
    """Transpose: only the note of the layout changes."""
    x, value = scribe.get(node.inputs[0]), node.outputs[0]
    rank = len(x.perm)
    order = tuple(node.attributes.get_ints("perm", range(rank)[::-1]))
    _keep(scribe, value, x.tensor, tuple(order.index(axis) for axis in x.perm))


def concat(scribe: Scribe, node: ir.Node) -> None:
    got = [scribe.get(v) for v in node.inputs]
    rank = len(got[0].perm)
    perm = next((h.perm for h in got if h.perm != plain(rank)), plain(rank))
    got = [scribe.relayout(h, perm) for h in got]
    value = node.outputs[0]
    like = scribe.target(value) or got[0].tensor
    integers = all(h.quantized for h in got)
    got = [scribe.requantize(h, like) if integers else scribe.real(h) for h in got]
    axis = perm.index(node.attributes.get_int("axis", 0) % rank)
    shape = [scribe.shape(value)[a] for a in perm]
    out = scribe.tensor(str(value.name), shape, like=got[0].tensor)
    _keep(scribe, value, scribe.emit("CONCATENATION", [h.tensor for h in got], out, axis=axis), perm)


def _cut(scribe: Scribe, value: ir.Value, x: Held, begin: list[int], end: list[int], step: list[int]) -> None:
    """One slice of a stored tensor; end may be -1 below a negative step, for "through the first"."""
    shape = [len(range(*bounds)) for bounds in zip(begin, end, step, strict=True)]
    out = scribe.tensor(str(value.name), shape, like=x.tensor)
    if all(s == 1 for s in step):
        operands = [x.tensor, scribe.indices("begin", begin), scribe.indices("size", shape)]
        _keep(scribe, value, scribe.emit("SLICE", operands, out), x.perm)
        return
    mask = sum(1 << i for i, (e, s) in enumerate(zip(end, step, strict=True)) if e < 0 and s < 0)
    bounds = [scribe.indices(n, v) for n, v in (("begin", begin), ("end", end), ("strides", step))]
    _keep(scribe, value, scribe.emit("STRIDED_SLICE", [x.tensor, *bounds], out, endMask=mask), x.perm)


def slice_(scribe: Scribe, node: ir.Node) -> None:
    x, value = scribe.get(node.inputs[0]), node.outputs[0]
    rank = len(x.perm)
    starts, ends = scribe.ints(node, 1), scribe.ints(node, 2)
    assert starts is not None
    assert ends is not None
    axes = scribe.ints(node, 3) or list(range(len(starts)))
    steps = scribe.ints(node, 4) or [1] * len(starts)
    begin, end, step = [0] * rank, list(x.tensor.shape), [1] * rank
    for start, stop, axis, stride in zip(starts, ends, axes, steps, strict=True):
        at = x.perm.index(axis % rank)
        begin[at], end[at], step[at] = slice(start, stop, stride).indices(x.tensor.shape[at])
    _cut(scribe, value, x, begin, end, step)


def split(scribe: Scribe, node: ir.Node) -> None:
    x = scribe.get(node.inputs[0])
    at = x.perm.index(node.attributes.get_int("axis", 0) % len(x.perm))
    position = 0
    for value in node.outputs:
        size = scribe.shape(value)[x.perm[at]]
        begin, end = [0] * len(x.perm), list(x.tensor.shape)
        begin[at], end[at] = position, position + size
        position += size
        _cut(scribe, value, x, begin, end, [1] * len(x.perm))


def pad(scribe: Scribe, node: ir.Node) -> None:
    x, value = scribe.get(node.inputs[0]), node.outputs[0]
    rank, mode = len(x.perm), node.attributes.get_string("mode", "constant")
    amounts = scribe.ints(node, 1)
    if amounts is None or len(amounts) != 2 * rank or min(amounts) < 0:
        raise refused(node, "its pads are negative or not of every axis")
    pairs = np.array([[amounts[axis], amounts[axis + rank]] for axis in x.perm], np.int32)
    out = scribe.tensor(str(value.name), np.add(x.tensor.shape, pairs.sum(1)).tolist(), like=x.tensor)
    operands = [x.tensor, scribe.store("pads", pairs)]
    fill = scribe.const(node.inputs[2]) if len(node.inputs) > 2 else None
    number = 0.0 if fill is None else float(fill.real().ravel()[0])
    if mode == "reflect":
        scribe.emit("MIRROR_PAD", operands, out, mode="REFLECT")
    elif mode == "constant" and number == 0.0:
        scribe.emit("PAD", operands, out)
    elif mode == "constant" and not x.quantized:
        scribe.emit("PADV2", [*operands, scribe.store("fill", np.array([number], x.tensor.dtype))], out)
    else:
        raise refused(node, f"padding with mode {mode} and {number:g} has no counterpart here")
    _keep(scribe, value, out, x.perm)


def gather(scribe: Scribe, node: ir.Node) -> None:
    x, index, value = scribe.get(node.inputs[0]), scribe.get(node.inputs[1]), node.outputs[0]
    x, index = (scribe.relayout(h, plain(len(h.perm))) for h in (x, index))
    out = scribe.tensor(str(value.name), scribe.shape(value), like=x.tensor)
    axis = node.attributes.get_int("axis", 0) % len(x.perm)
    _keep(scribe, value, scribe.emit("GATHER", [x.tensor, index.tensor], out, axis=axis), plain(len(out.shape)))


def pool(scribe: Scribe, node: ir.Node) -> None:
    """MaxPool and AveragePool over two axes."""
    x, value = scribe.get(node.inputs[0], NHWC), node.outputs[0]
    kernel = tuple(node.attributes.get_ints("kernel_shape", ()))
    average = node.op_type == "AveragePool"
    if len(kernel) != 2 or len(node.outputs) > 1:
        raise refused(node, "only pools over two axes without indices are written")
    counted = bool(node.attributes.get_int("count_include_pad", 0))
    before = x
    x, options, dilations = windowed(scribe, node, x, (kernel[0], kernel[1]), lowest=not average)
    padded = x is not before
    if average and ((padded and not counted) or (counted and options["padding"] == "SAME")):
        raise refused(node, "its padding is counted where TFLite's is not, or the other way round", "pad before it")
    shape = [scribe.shape(value)[a] for a in NHWC]
    spans = (options["strideH"], options["strideW"])
    size = [(n - k) // s + 1 for n, k, s in zip(x.tensor.shape[1:3], kernel, spans, strict=True)]
    if dilations != (1, 1) or (options["padding"] == "VALID" and size != shape[1:3]):
        raise refused(node, "ceil_mode or dilations that TFLite pools do not have")
    out = scribe.tensor(str(value.name), shape, like=x.tensor)
    code = "AVERAGE_POOL_2D" if average else "MAX_POOL_2D"
    options |= {"filterHeight": kernel[0], "filterWidth": kernel[1], "fusedActivationFunction": "NONE"}
    _keep(scribe, value, scribe.emit(code, [x.tensor], out, **options), NHWC)


REDUCTIONS = {"ReduceMean": "MEAN", "GlobalAveragePool": "MEAN", "ReduceSum": "SUM", "ReduceMax": "REDUCE_MAX",
              "ReduceMin": "REDUCE_MIN"}  # fmt: skip


def reduce(scribe: Scribe, node: ir.Node) -> None:
    """Reductions and the global average pool, over any axes. Only MEAN has an integer kernel to rely on."""
    x, value = scribe.get(node.inputs[0]), node.outputs[0]
    rank = len(x.perm)
    keep = True
    if node.op_type == "GlobalAveragePool":
        axes = list(range(2, rank))
    else:
        axes = list(node.attributes.get_ints("axes", ())) or scribe.ints(node, 1) or list(range(rank))
        keep = node.attributes.get_int("keepdims", 1) != 0
    axes = [a % rank for a in axes]
    code = REDUCTIONS[node.op_type]
    target = scribe.target(value) if x.quantized and code == "MEAN" else None
    x = x if target is not None else scribe.real(x)
    stored = sorted(x.perm.index(a) for a in axes)
    left = [a for a in x.perm if a not in axes]
    perm = x.perm if keep else tuple(sorted(left).index(a) for a in left)
    shape = [1 if i in stored else n for i, n in enumerate(x.tensor.shape) if keep or i not in stored]
    out = scribe.tensor(str(value.name), shape, x.tensor.dtype, target)
    scribe.emit(code, [x.tensor, scribe.indices("axes", stored)], out, keepDims=keep)
    _keep(scribe, value, out, perm)


def _nearest(n: int, out: int, mode: str, rounding: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Source positions: of ONNX, and of TFLite without and with half pixel centers."""
    i, ratio = np.arange(out), n / out
    position = {
        "asymmetric": i * ratio,
        "half_pixel": (i + 0.5) * ratio - 0.5,
        "pytorch_half_pixel": (i + 0.5) * ratio - 0.5 if out > 1 else i * 0.0,
        "align_corners": i * ((n - 1) / max(out - 1, 1)),
    }[mode]
    onnx = onnx_nearest(position, rounding, n)
    return onnx, np.minimum(np.floor(i * ratio), n - 1), np.minimum(np.floor((i + 0.5) * ratio), n - 1)


def resize(scribe: Scribe, node: ir.Node) -> None:
    """Resize of images, nearest or linear, where TFLite takes the same pixels."""
    x, value = scribe.get(node.inputs[0], NHWC), node.outputs[0]
    n, c, *size = scribe.shape(value)
    source = x.tensor.shape[1:3]
    mode = node.attributes.get_string("mode", "nearest")
    where = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    if (n, c) != (x.tensor.shape[0], x.tensor.shape[3]) or len(size) != 2 or mode not in ("nearest", "linear"):
        raise refused(node, f"mode {mode} over these axes has no counterpart", "resize height and width only")
    out = scribe.tensor(str(value.name), (n, *size, c), like=x.tensor)
    operands = [x.tensor, scribe.indices("size", size)]
    if mode == "linear":
        flags = {"half_pixel": "halfPixelCenters", "align_corners": "alignCorners", "asymmetric": ""}
        if where == "pytorch_half_pixel" and min(size) > 1:
            where = "half_pixel"
        if where not in flags or node.attributes.get_int("antialias", 0) != 0:
            raise refused(node, f"{where} has no counterpart", "use half_pixel")
        options: dict[str, Any] = {flags[where]: True} if flags[where] else {}
        scribe.emit("RESIZE_BILINEAR", operands, out, **options)
    else:
        rounding = node.attributes.get_string("nearest_mode", "round_prefer_floor")
        if where not in ("asymmetric", "half_pixel", "pytorch_half_pixel", "align_corners"):
            raise refused(node, f"{where} has no counterpart", "use half_pixel or asymmetric")
        axes = [_nearest(a, b, where, rounding) for a, b in zip(source, size, strict=True)]
        if all(np.array_equal(onnx, legacy) for onnx, legacy, _ in axes):
            scribe.emit("RESIZE_NEAREST_NEIGHBOR", operands, out)
        elif all(np.array_equal(onnx, half) for onnx, _, half in axes):
            scribe.emit("RESIZE_NEAREST_NEIGHBOR", operands, out, halfPixelCenters=True)
        else:
            raise refused(node, f"{where} with {rounding} takes other pixels than TFLite", "use asymmetric and floor")
    _keep(scribe, value, out, NHWC)


def space(scribe: Scribe, node: ir.Node) -> None:
    """DepthToSpace (DCR) and SpaceToDepth."""
    x, value = scribe.get(node.inputs[0], NHWC), node.outputs[0]
    if node.attributes.get_string("mode", "DCR") != "DCR":
        raise refused(node, "only the mode DCR has a counterpart")
    out = scribe.tensor(str(value.name), [scribe.shape(value)[a] for a in NHWC], like=x.tensor)
    code = "DEPTH_TO_SPACE" if node.op_type == "DepthToSpace" else "SPACE_TO_DEPTH"
    _keep(scribe, value, scribe.emit(code, [x.tensor], out, blockSize=node.attributes.get_int("blocksize", 2)), NHWC)


def cast(scribe: Scribe, node: ir.Node) -> None:
    x, value = scribe.real(scribe.get(node.inputs[0])), node.outputs[0]
    dtype = value.dtype.numpy().name if value.dtype is not None else "float32"
    dtype = "int32" if dtype == "int64" else dtype
    if dtype not in DTYPES:
        raise refused(node, f"TFLite has no {dtype}")
    out = replace(scribe.tensor(str(value.name), x.tensor.shape), dtype=dtype)
    scribe.tensors[out.name] = out
    options: dict[str, Any] = {"inDataType": DTYPES[x.tensor.dtype], "outDataType": DTYPES[dtype]}
    scribe.held[value] = replace(x, tensor=scribe.emit("CAST", [x.tensor], out, **options))


def same(scribe: Scribe, node: ir.Node) -> None:
    """Identity and Dropout."""
    scribe.held[node.outputs[0]] = scribe.get(node.inputs[0])


OPS: dict[str, Callable[[Scribe, ir.Node], None]] = {
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), reshape),
    "Transpose": transpose,
    "Concat": concat,
    "Slice": slice_,
    "Split": split,
    "Pad": pad,
    "Gather": gather,
    **dict.fromkeys(("MaxPool", "AveragePool"), pool),
    **dict.fromkeys(REDUCTIONS, reduce),
    "Resize": resize,
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), space),
    "Cast": cast,
    **dict.fromkeys(("Identity", "Dropout"), same),
}
