"""A prepared ONNX graph, float or QDQ, as a TFLite model.

    convert(model) -> TfModel      then `tflite_file.build`

Float graphs give float32 or float16 files; QDQ graphs int8 or int16x8 ones wherever operands and results are
quantized; graphs whose weights alone are quantized "hybrid" ones, which quantize activations as they come.
Images are stored NHWC, graph inputs and outputs included (the metadata entry `edgeq.layout` names them), so that a
plain CNN has no TRANSPOSE at all. What TFLite can't express is refused with operator, node and reason.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgeq.errors import TargetError
from edgeq.formats import tflite_linear, tflite_moves, tflite_pointwise
from edgeq.formats.tflite_file import TfModel, TfOp, TfSignature, TfTensor
from edgeq.formats.tflite_scribe import NHWC, SIGNED_OFFSET, Const, Held, Scribe, Weights, refused
from edgeq.graph import gelu

LAYOUT_KEY = "edgeq.layout"
IMAGE_OPS = (
    "Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "Resize", "DepthToSpace", "SpaceToDepth",
)  # fmt: skip
# Through these a value keeps its layout, so that what reads them decides.
AGNOSTIC = (
    *tflite_pointwise.UNARY, *tflite_pointwise.FIXED, *tflite_pointwise.BINARY, "Clip", "HardSigmoid", "Concat", "Pad",
    "Slice", "Split", "Identity", "Dropout", "Cast", "QuantizeLinear", "DequantizeLinear",
)  # fmt: skip


def quantize_linear(scribe: Scribe, node: ir.Node) -> None:
    """A note that its input is wanted so: nothing where it already is, else QUANTIZE."""
    x, wanted = scribe.get(node.inputs[0]), scribe.quantization(node)
    if wanted.scale is None or wanted.scale.size != 1:
        raise refused(node, "activations are quantized per tensor in TFLite", "use one scale")
    scribe.held[node.outputs[0]] = scribe.requantize(x, wanted)


def dequantize_linear(scribe: Scribe, node: ir.Node) -> None:
    """A note that a value is quantized; constants keep their codes."""
    source, value = node.inputs[0], node.outputs[0]
    codes = scribe.const(source)
    if codes is None:
        scribe.held[value] = scribe.get(source)
        return
    if node.attributes.get_int("block_size", 0):
        raise refused(node, "blocks have no counterpart", "quantize per channel")
    found = scribe.quantization(node)
    offset = SIGNED_OFFSET.get(codes.array.dtype.name, 0)
    array = codes.array
    if offset:
        array = (array.astype(np.int32) - offset).astype(found.dtype)
    axis = node.attributes.get_int("axis", 1) % max(array.ndim, 1)
    scribe.consts[value] = Const(codes.name, array, found.scale, np.asarray(found.zero_point), axis)


HANDLERS: dict[str, Callable[[Scribe, ir.Node], None]] = {
    **tflite_linear.OPS,
    **tflite_pointwise.OPS,
    **tflite_moves.OPS,
    "QuantizeLinear": quantize_linear,
    "DequantizeLinear": dequantize_linear,
}


def image_like(value: ir.Value) -> bool:
    """Whether a rank-4 value ends up in an operator of images, through operators that keep the layout."""
    seen, todo = set(), [value]
    while todo:
        for node in todo.pop().consumers():
            if node.op_type in IMAGE_OPS:
                return True
            if node.op_type in AGNOSTIC and node not in seen:
                seen.add(node)
                todo.extend(node.outputs)
    return False


def convert(
    model: ir.Model, weights: Weights = "float32", integer_io: bool = False, keep_layout: bool = False
) -> TfModel:
    """The TFLite model of a prepared ONNX model with fixed shapes.

    weights: how float constants of linear layers are stored, "float16" halves them; "hybrid" keeps int8 weights
    beside float activations as they are instead of dequantizing them. integer_io: inputs that are quantized at once
    and outputs that are dequantized last keep their integer type. keep_layout: images enter and leave as NCHW, by a
    TRANSPOSE each. Raises TargetError for what can't be expressed.
    """
    scribe, graph = Scribe(weights), model.graph
    inputs = [_input(scribe, value, integer_io, keep_layout) for value in graph.inputs]
    for node in graph:  # constants first: an operator may look at one that a later node makes
        if node.op_type == "DequantizeLinear" and scribe.const(node.inputs[0]) is not None:
            dequantize_linear(scribe, node)
    gelus = gelu.find(graph, scribe.number)
    scribe.fused |= {inner for _, nodes in gelus.values() for inner in nodes}
    for node in graph:
        if node in scribe.fused or node.op_type == "Constant":
            continue
        if node in gelus:
            tflite_pointwise.gelu(scribe, gelus[node][0], node.outputs[0])
            continue
        handler = HANDLERS.get(node.op_type)
        if handler is None or node.domain not in ("", "ai.onnx"):
            raise refused(node, "edgeq writes no TFLite operator for it", f"it writes {', '.join(sorted(HANDLERS))}")
        handler(scribe, node)
    outputs = {str(value.name): _output(scribe, value, integer_io, keep_layout) for value in graph.outputs}
    layout = {str(v.name): "NHWC" for v in graph.inputs if scribe.held[v].perm == NHWC and not keep_layout}
    layout |= {name: "NHWC" for name, held in outputs.items() if held.perm == NHWC}
    signature = TfSignature(
        "serving_default",
        {str(v.name): t.name for v, t in zip(graph.inputs, inputs, strict=True)},
        {name: held.tensor.name for name, held in outputs.items()},
    )
    metadata = {LAYOUT_KEY: json.dumps(layout, sort_keys=True).encode()} if layout else {}
    result = [held.tensor.name for held in outputs.values()]
    tensors, ops = _used(scribe, [t.name for t in inputs], result)
    return TfModel(tensors, ops, tuple(t.name for t in inputs), tuple(result), (signature,), metadata, "edgeq")


def _input(scribe: Scribe, value: ir.Value, integer_io: bool, keep_layout: bool) -> TfTensor:
    shape = scribe.shape(value)
    if value.dtype is None:
        raise TargetError(str(value.name), "the input has no type", "run shape inference first")
    dtype = value.dtype.numpy().name
    image = len(shape) == 4 and image_like(value)
    perm = NHWC if image and not keep_layout else tuple(range(len(shape)))
    target = scribe.target(value) if integer_io else None
    tensor = scribe.tensor(str(value.name), [shape[a] for a in perm], "int32" if dtype == "int64" else dtype, target)
    if target is None and tensor.dtype != dtype and dtype != "int64":
        tensor = replace(tensor, dtype=dtype)
    scribe.tensors[tensor.name] = tensor
    scribe.held[value] = Held(tensor, perm)
    if image and keep_layout:
        scribe.held[value] = scribe.relayout(scribe.held[value], NHWC)
    return tensor


def _output(scribe: Scribe, value: ir.Value, integer_io: bool, keep_layout: bool) -> Held:
    held = scribe.get(value)
    rank = len(held.perm)
    if held.perm not in (tuple(range(rank)), NHWC) or (keep_layout and rank == 4):
        held = scribe.relayout(held, tuple(range(rank)))
    return held if integer_io else scribe.real(held)


def _used(scribe: Scribe, inputs: list[str], outputs: list[str]) -> tuple[tuple[TfTensor, ...], tuple[TfOp, ...]]:
    """Only what the outputs need, in the order of its making."""
    wanted, ops = set(outputs), []
    for op in reversed(scribe.ops):
        if wanted & set(op.outputs):
            ops.append(op)
            wanted |= set(op.inputs)
    wanted |= set(inputs)
    return tuple(t for t in scribe.tensors.values() if t.name in wanted), tuple(reversed(ops))
