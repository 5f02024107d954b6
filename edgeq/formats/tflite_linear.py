"""Conv, ConvTranspose, Gemm and MatMul as CONV_2D, DEPTHWISE_CONV_2D, TRANSPOSE_CONV, FULLY_CONNECTED, BATCH_MATMUL."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeq.formats.tflite_file import TfTensor
from edgeq.formats.tflite_scribe import NHWC, Const, Held, Scribe, refused
from edgeq.intops.windows import same_pads

WIDE = ("int8", "int16")


def window(node: ir.Node, size: tuple[int, int], kernel: tuple[int, int]) -> dict[str, Any]:
    """strides, dilations and explicit pads ((top, bottom), (left, right)) of a convolution or pool."""
    sh, sw = node.attributes.get_ints("strides", (1, 1))
    dh, dw = node.attributes.get_ints("dilations", (1, 1))
    strides, dilations = (sh, sw), (dh, dw)
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    if auto == "NOTSET":
        top, left, bottom, right = node.attributes.get_ints("pads", (0, 0, 0, 0))
        pads = ((top, bottom), (left, right))
    elif auto == "SAME_UPPER":
        pads = same_pads(size, kernel, strides, dilations)
    elif auto == "VALID":
        pads = ((0, 0), (0, 0))
    else:
        raise refused(node, f"auto_pad {auto} has no counterpart", "export with explicit pads")
    return {"strides": strides, "dilations": dilations, "pads": pads}


def pad_for(scribe: Scribe, x: Held, pads: Any, lowest: bool = False) -> Held:
    """x (NHWC) with an explicit border: real zero, or the lowest value where `lowest` (for a maximum)."""
    (top, bottom), (left, right) = pads
    source = x.tensor
    n, h, w, c = source.shape
    out = scribe.tensor(source.name, (n, h + top + bottom, w + left + right, c), like=source)
    amounts = scribe.store("pads", np.array([[0, 0], [top, bottom], [left, right], [0, 0]], np.int32))
    if not lowest:
        scribe.emit("PAD", [source, amounts], out)
    else:
        info: Any = np.iinfo(source.dtype) if x.quantized else np.finfo(source.dtype)
        fill = scribe.store(
            "lowest", np.array([info.min], source.dtype), scale=source.scale, zero_point=source.zero_point
        )
        scribe.emit("PADV2", [source, amounts, fill], out)
    return replace(x, tensor=out)


def windowed(scribe: Scribe, node: ir.Node, x: Held, kernel: tuple[int, int], lowest: bool = False) -> Any:
    """(x, options): SAME or VALID where the pads are TFLite's, else an explicit PAD and VALID."""
    size = (x.tensor.shape[1], x.tensor.shape[2])
    found = window(node, size, kernel)
    pads, padding = found["pads"], "VALID"
    if np.any(pads):
        if pads == same_pads(size, kernel, found["strides"], found["dilations"]):
            padding = "SAME"
        else:
            x = pad_for(scribe, x, pads, lowest)
    return x, {"padding": padding, "strideH": found["strides"][0], "strideW": found["strides"][1]}, found["dilations"]


def layer(
    scribe: Scribe, node: ir.Node, x: Held, weight: Const, bias: Const | None, stored: Any, channel_axis: int
) -> tuple[list[TfTensor | None], TfTensor, ir.Value, str]:
    """Operands, output tensor (without shape), output value and fused activation of a linear layer.

    stored: the function that brings the weight to TFLite's layout and says where `channel_axis` went. The layer
    runs on integers where its input is quantized, its weight is int8 with zero points 0, and its output is wanted
    quantized; on float activations and int8 weights ("hybrid") where only the weight is quantized.
    """
    fused, value = scribe.fuse_activation(node.outputs[0])
    target = scribe.target(value)
    array, axis = stored(weight.array)
    channels = array.shape[axis]
    if weight.scale is not None and weight.scale.size > 1 and weight.axis % weight.array.ndim != channel_axis:
        raise refused(node, f"its weight has scales along axis {weight.axis}", "quantize per output channel")
    name = weight.name
    symmetric = weight.scale is not None and weight.array.dtype == np.int8 and not np.any(weight.zero_point)
    bias_name = f"{node.name or value.name}/bias" if bias is None else bias.name
    out_name = str(value.name)
    if x.quantized and target is not None and x.tensor.dtype in WIDE:
        if not symmetric or weight.scale is None or x.tensor.scale is None:
            raise refused(node, "its weight is not int8 with zero point 0", "quantize weights symmetrically")
        w = scribe.store(name, array, scale=weight.scale, zero_point=weight.zero_point, axis=axis)
        scale = (x.tensor.scale.astype(np.float64) * weight.scale).astype(np.float32)
        wide = x.tensor.dtype == "int16"
        codes = np.zeros(channels) if bias is None else np.rint(bias.real().astype(np.float64) / scale)
        limit = 2**31 - 1 if not wide else 2**47
        b = scribe.store(bias_name, np.clip(codes, -limit, limit).astype(np.int64 if wide else np.int32), scale=scale)
        return [x.tensor, w, b], scribe.tensor(out_name, (), like=target), value, fused
    x = scribe.real(x)
    if symmetric and scribe.weights == "hybrid":
        w = scribe.store(name, array, scale=weight.scale, zero_point=weight.zero_point, axis=axis)
    else:
        values = stored(weight.real())[0]
        w = scribe.store(name, values.astype(np.float16 if scribe.weights == "float16" else np.float32))
        if scribe.weights == "float16":
            w = scribe.emit("DEQUANTIZE", [w], scribe.tensor(name, w.shape))
    b = scribe.store(bias_name, np.zeros(channels, np.float32) if bias is None else bias.real())
    return [x.tensor, w, b], scribe.tensor(out_name, ()), value, fused


def finish(scribe: Scribe, code: str, operands: Any, out: TfTensor, shape: Any, **options: Any) -> TfTensor:
    """Give the output tensor its shape and write the operator."""
    shaped = replace(out, shape=tuple(shape))
    scribe.tensors[out.name] = shaped
    return scribe.emit(code, operands, shaped, **options)


def weight_of(scribe: Scribe, node: ir.Node, index: int = 1) -> Const:
    weight = scribe.const(node.inputs[index])
    if weight is None:
        raise refused(node, "its weight is computed at run time", "make it an initializer")
    return weight


def optional(scribe: Scribe, node: ir.Node, index: int) -> Const | None:
    if index >= len(node.inputs) or node.inputs[index] is None:
        return None
    return weight_of(scribe, node, index)


def conv(scribe: Scribe, node: ir.Node) -> None:
    """Conv of images. Depthwise where the group count is the number of input channels."""
    weight, bias = weight_of(scribe, node), optional(scribe, node, 2)
    if weight.array.ndim != 4:
        raise refused(node, "only convolutions over two axes are written", "insert an axis of 1")
    o, cg, kh, kw = weight.array.shape
    x = scribe.get(node.inputs[0], NHWC)
    group = node.attributes.get_int("group", 1)
    depthwise = group > 1 and cg == 1

    def stored(array: np.ndarray) -> tuple[np.ndarray, int]:
        if depthwise:
            return array.reshape(1, o, kh, kw).transpose(0, 2, 3, 1), 3
        return array.transpose(0, 2, 3, 1), 0

    x, options, dilations = windowed(scribe, node, x, (kh, kw))
    operands, out, value, fused = layer(scribe, node, x, weight, bias, stored, 0)
    options |= {"dilationHFactor": dilations[0], "dilationWFactor": dilations[1], "fusedActivationFunction": fused}
    code = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"
    if depthwise:
        options["depthMultiplier"] = o // group
    logical = scribe.shape(value)
    tensor = finish(scribe, code, operands, out, [logical[a] for a in NHWC], **options)
    scribe.held[value] = Held(tensor, NHWC)


def conv_transpose(scribe: Scribe, node: ir.Node) -> None:
    """ConvTranspose: SAME or VALID where its pads are TFLite's, else VALID and a SLICE."""
    weight, bias = weight_of(scribe, node), optional(scribe, node, 2)
    if weight.array.ndim != 4 or node.attributes.get_int("group", 1) != 1:
        raise refused(node, "only ungrouped transposed convolutions over two axes are written")
    _, o, kh, kw = weight.array.shape
    x = scribe.get(node.inputs[0], NHWC)
    found = window(node, (1, 1), (kh, kw))
    if found["dilations"] != (1, 1):
        raise refused(node, "TRANSPOSE_CONV has no dilation")
    operands, out, value, fused = layer(
        scribe, node, x, weight, bias, lambda array: (array.transpose(1, 2, 3, 0), 0), 1
    )
    n, _, oh, ow = scribe.shape(value)
    (sh, sw), ((top, _), (left, _)) = found["strides"], found["pads"]
    h, w = x.tensor.shape[1:3]
    full = ((h - 1) * sh + kh, (w - 1) * sw + kw)
    options = {"strideH": sh, "strideW": sw, "fusedActivationFunction": fused}
    same = (oh, ow) == (h * sh, w * sw) and found["pads"] == same_pads((oh, ow), (kh, kw), (sh, sw))
    direct = same or ((oh, ow) == full and not np.any(found["pads"]))
    size = (oh, ow) if direct else full
    if not direct and (top + oh > full[0] or left + ow > full[1]):
        raise refused(node, "its output padding reaches beyond what the kernel covers")
    operands = [scribe.indices("size", (n, *size, o)), operands[1], operands[0], operands[2]]
    options["padding"] = "SAME" if same else "VALID"
    tensor = finish(scribe, "TRANSPOSE_CONV", operands, out, (n, *size, o), **options)
    if not direct:
        begin, extent = scribe.indices("begin", (0, top, left, 0)), scribe.indices("size", (n, oh, ow, o))
        tensor = scribe.emit("SLICE", [tensor, begin, extent], scribe.tensor(tensor.name, (n, oh, ow, o), like=tensor))
    scribe.held[value] = Held(tensor, NHWC)


def _fully_connected(scribe: Scribe, node: ir.Node, weight: Const, bias: Const | None, transposed: bool) -> None:
    x = scribe.get(node.inputs[0])
    x = x if x.order is not None else scribe.relayout(x, tuple(range(len(x.perm))))

    def stored(array: np.ndarray) -> tuple[np.ndarray, int]:
        rows = array if transposed else array.T
        return (rows if x.order is None else rows[:, x.order]), 0

    operands, out, value, fused = layer(scribe, node, x, weight, bias, stored, 0 if transposed else 1)
    shape = scribe.shape(value)
    tensor = finish(
        scribe, "FULLY_CONNECTED", operands, out, shape, fusedActivationFunction=fused, keepNumDims=len(shape) > 2
    )
    scribe.held[value] = Held(tensor, tuple(range(len(shape))))


def gemm(scribe: Scribe, node: ir.Node) -> None:
    """Gemm with a constant B: FULLY_CONNECTED, alpha and beta folded into the constants."""
    weight, bias = weight_of(scribe, node), optional(scribe, node, 2)
    if node.attributes.get_int("transA", 0):
        raise refused(node, "transA has no counterpart", "transpose its input")
    alpha, beta = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
    transposed = bool(node.attributes.get_int("transB", 0))
    if alpha != 1.0:
        scaled = (
            {"array": weight.array * np.float32(alpha)} if weight.scale is None else {"scale": weight.scale * alpha}
        )
        weight = replace(weight, **scaled)
    if bias is not None:
        values = bias.real() if beta == 1.0 else bias.real() * np.float32(beta)
        n = weight.array.shape[0 if transposed else 1]
        bias = Const(bias.name, np.broadcast_to(values.reshape(-1), (n,)).astype(np.float32))
    _fully_connected(scribe, node, weight, bias, transposed)


def matmul(scribe: Scribe, node: ir.Node) -> None:
    """MatMul: FULLY_CONNECTED with a constant matrix on the right, else BATCH_MATMUL."""
    weight = scribe.const(node.inputs[1])
    if weight is not None and weight.array.ndim == 2:
        _fully_connected(scribe, node, weight, None, False)
        return
    a, b = (scribe.get(v) for v in node.inputs)
    a, b = (scribe.relayout(v, tuple(range(len(v.perm)))) for v in (a, b))
    value = node.outputs[0]
    target = scribe.target(value)
    if not (a.quantized and b.quantized and target is not None):
        a, b, target = scribe.real(a), scribe.real(b), None
    shape = scribe.shape(value)
    out = scribe.tensor(str(value.name), shape, like=target)
    scribe.emit("BATCH_MATMUL", [a.tensor, b.tensor], out)
    scribe.held[value] = Held(out, tuple(range(len(shape))))


OPS = {"Conv": conv, "ConvTranspose": conv_transpose, "Gemm": gemm, "MatMul": matmul}
