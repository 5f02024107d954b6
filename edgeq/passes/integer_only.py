"""From a QDQ model, a graph with no float tensor between the input's QuantizeLinear and the output's DequantizeLinear.

ConvInteger and MatMulInteger sum exactly; requantization is 64-bit integer arithmetic (`integer_requantize`), functions
of one value are tables (`integer_tables`). All of it is exact, so that every runtime that implements the operators
gives the same bits, which are those of `edgeq.intops` with the same rounding. What can't be expressed is refused with
operator, node and reason.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgeq.errors import ModelError
from edgeq.graph.edit import constant, drop_unused_initializers, make_node, values_of
from edgeq.intops.quant import Quant
from edgeq.passes import integer_linear, integer_moves, integer_pointwise, integer_rows, integer_tables
from edgeq.passes.integer_ends import DEQUANTIZE, FLOATS, QUANTIZE, floats, strip_ends
from edgeq.passes.integer_writer import Codes, Const, Held, Rounding, Writer, flipped, refused

HANDLERS: dict[str, Callable[[Writer, ir.Node], Held | None]] = {
    **integer_linear.OPS,
    **integer_moves.OPS,
    **integer_pointwise.OPS,
    **integer_rows.OPS,
    **integer_tables.OPS,
}


def integer_only(model: ir.Model, rounding: Rounding = "double", integer_io: bool = False) -> ir.Model:
    """Rewrite a QDQ model in place and return it.

    rounding: of `numerics.fixedpoint`. integer_io: also let codes in and out, see `strip_ends`. Raises ModelError for
    a node that can't be computed in integers, or whose accumulators might leave int32.
    """
    nodes = list(model.graph)
    if not nodes:
        return model
    writer = Writer(model, rounding, nodes[0])
    for value in values_of(model.graph):
        array = constant(value)
        if array is not None:
            writer.held[value] = Const(array)
    for node in nodes:  # before their readers, whatever the order
        if node.op_type == DEQUANTIZE and constant(node.inputs[0]) is not None:
            dequantize(writer, node)
    for node in nodes:
        writer.at = node
        _rewrite(writer, node)
    for index, value in enumerate(list(model.graph.outputs)):
        if value.dtype in FLOATS or value in writer.held:
            _output(writer, index, value)
    RemoveUnusedNodesPass()(model)
    drop_unused_initializers(model)
    left = [row for row in floats(model) if not row[2]]
    if left:
        raise ModelError(f"value {left[0][0]!r} of {left[0][1]}: it is float and not quantized; quantize what it reads")
    return strip_ends(model) if integer_io else model


def _rewrite(writer: Writer, node: ir.Node) -> None:
    held = [v for v in node.inputs if v is not None and v in writer.held and not isinstance(writer.held[v], Const)]
    real = any(v is not None and v.dtype in FLOATS for v in (*node.inputs, *node.outputs))
    if not held and not real:
        return  # computes on integers of its own: shapes, indices
    if node.domain not in ("", "ai.onnx"):
        raise refused(node, f"operators of domain {node.domain} are not computed in integers")
    if node.op_type == QUANTIZE:
        writer.held[node.outputs[0]] = quantize(writer, node)
        return
    if node.op_type == DEQUANTIZE:
        dequantize(writer, node)
        return
    handler = HANDLERS.get(node.op_type)
    if handler is None:
        raise refused(node, "it is not computed in integers", f"these are: {', '.join(sorted(HANDLERS))}")
    made = handler(writer, node)
    if made is not None:
        writer.held[node.outputs[0]] = made


def parameters(writer: Writer, node: ir.Node) -> Quant:
    """Scale and zero point of a QuantizeLinear or DequantizeLinear of an activation."""
    scale, zero = constant(node.inputs[1]), constant(node.inputs[2]) if len(node.inputs) > 2 else np.zeros((), np.uint8)
    if scale is None or zero is None:
        raise refused(node, "its scale or zero point is computed at run time", "quantize with constant parameters")
    if scale.size != 1:
        raise refused(node, "activations have one scale each", "quantize them per tensor")
    if zero.dtype not in (np.uint8, np.int8):
        raise refused(node, f"activations have 8 bits, not {zero.dtype}", "quantize them to uint8 or int8")
    return Quant(float(scale.ravel()[0]), int(zero.ravel()[0]), zero.dtype.name)


def quantize(writer: Writer, node: ir.Node) -> Codes:
    """A graph input is really quantized, to stored codes; anything else is asked for its codes."""
    value, quant = node.inputs[0], parameters(writer, node)
    assert value is not None
    if value in writer.held:
        held = writer.held[value]
        return integer_moves.constant_codes(writer, held, node) if isinstance(held, Const) else writer.codes(
            held, quant, node)  # fmt: skip
    if not value.is_graph_input():
        raise refused(node, f"{value.name!r} is float and not quantized", "quantize what it is computed from")
    zero = np.array(quant.zero_point - quant.lo, np.uint8)
    made = writer.op(QUANTIZE, [value, np.array(quant.scale, np.float32), zero], np.uint8, value.shape)
    return Codes(made, quant)


def dequantize(writer: Writer, node: ir.Node) -> None:
    """A note: codes keep being codes, constants keep theirs."""
    source, value = node.inputs[0], node.outputs[0]
    codes = constant(source)
    if codes is None:
        held = writer.held.get(source)  # type: ignore[arg-type]
        quant = parameters(writer, node)
        if held is None and source is not None and source.is_graph_input():
            held = Codes(source if quant.dtype == "uint8" else flipped(writer, source), quant)
        if not isinstance(held, Codes):
            raise refused(node, "what it reads was not quantized", "export with QuantizeLinear in front of it")
        writer.held[value] = Codes(held.value, quant)
        return
    if node.attributes.get_int("block_size", 0):
        raise refused(node, "blocks of weights have scales of their own", "quantize per channel")
    scale = constant(node.inputs[1])
    zero = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if scale is None:
        raise refused(node, "its scale is computed at run time", "quantize with constant parameters")
    axis = node.attributes.get_int("axis", 1)
    writer.held[value] = Const(
        codes, scale.astype(np.float32), np.zeros(scale.shape, codes.dtype) if zero is None else zero, axis
    )


def _output(writer: Writer, index: int, value: ir.Value) -> None:
    """A float output is the DequantizeLinear of codes, a quantized one the codes, under the old name."""
    held, producer = writer.held.get(value), value.producer()
    if not isinstance(held, Codes):
        if producer is None:
            raise ModelError(f"output {value.name!r} is a float input or constant; take it out of the graph")
        raise refused(producer, f"output {value.name!r} is not quantized", "put Q and DQ behind it")
    graph, name, kind = writer.model.graph, value.name or "output", value.dtype
    value.name = writer.names.new(f"{name}_before")
    inputs: list[ir.Value] = [held.value]
    op_type, attributes = "Identity", {}
    if kind in FLOATS:
        scale, zero = np.array(held.quant.scale, np.float32), np.array(held.zero, np.uint8)
        inputs, op_type = [held.value, writer.store(scale), writer.store(zero)], DEQUANTIZE
    elif kind == ir.DataType.INT8:
        inputs, op_type, attributes = [flipped(writer, held.value)], "Cast", {"to": int(ir.DataType.INT8)}
    node = make_node(op_type, inputs, name, kind, value.shape, attributes, name=writer.names.new(f"{name}_{op_type}"))
    graph.append(node)
    graph.outputs[index] = node.outputs[0]
