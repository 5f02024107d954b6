"""The ends of an integer-only graph: which floats are left, and codes in their place with scales as metadata."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from edgeq.errors import ModelError
from edgeq.graph.edit import all_graphs, constant, drop_unused_initializers, make_node, values_of

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
KEY = "edgeq.quantization."


def floats(model: ir.Model) -> Iterator[tuple[str, str, bool]]:
    """(name, what makes it, allowed) of every tensor that is float, or of a type that nobody states.

    Allowed are the graph's ends: inputs that QuantizeLinear alone reads, outputs that DequantizeLinear makes, and the
    scales of these two.
    """
    ends = {}
    for node in model.graph:
        if node.op_type == QUANTIZE and node.inputs[0] is not None and node.inputs[0].is_graph_input():
            ends[node] = (node.inputs[0], node.inputs[1])
        if node.op_type == DEQUANTIZE and node.outputs[0].is_graph_output() and not node.outputs[0].uses():
            ends[node] = (node.outputs[0], node.inputs[1])
    allowed = {v for pair in ends.values() for v in pair}
    for graph in all_graphs(model):
        for value in values_of(graph):
            if value.dtype in FLOATS or value.dtype is None:
                maker = value.producer()
                made = "a graph input" if value.is_graph_input() else "an initializer"
                if maker is not None:
                    made = f"{maker.op_type} {maker.name!r}"
                yield value.name or "", made, value in allowed and all(use.node in ends for use in value.uses())


def strip_ends(model: ir.Model) -> ir.Model:
    """Inputs and outputs become the codes themselves; scale and zero point of each are in the model's metadata.

    The entry `edgeq.quantization.NAME` is "dtype scale zero_point": real = scale · (code - zero_point).
    """
    graph = model.graph
    for index, value in enumerate(list(graph.inputs)):
        readers = list(value.consumers())
        if value.dtype not in FLOATS or not readers:
            continue
        first = readers[0]
        same = [n for n in readers if n.op_type == QUANTIZE and n.inputs[1:] == first.inputs[1:]]
        if len(same) != len(readers):
            raise ModelError(f"input {value.name!r} is quantized in several ways; let it enter as float")
        note(model, value, first)
        codes = ir.Value(name=value.name, type=ir.TensorType(ir.DataType.UINT8), shape=value.shape)
        for node in readers:
            node.outputs[0].replace_all_uses_with(codes, replace_graph_outputs=True)
            graph.remove(node, safe=True)
        graph.inputs[index] = codes
    for index, value in enumerate(list(graph.outputs)):
        last = value.producer()
        if last is None or last.op_type != DEQUANTIZE:
            continue
        note(model, value, last)
        given = last.inputs[0]
        assert given is not None
        if given.is_graph_input() or given.is_graph_output():
            copy = make_node("Identity", [given], f"{value.name}_copy", given.dtype, given.shape)
            graph.insert_before(last, copy)
            given = copy.outputs[0]
        graph.outputs[index] = given
        graph.remove(last, safe=True)
        given.name = value.name
    drop_unused_initializers(model)
    return model


def note(model: ir.Model, value: ir.Value, node: ir.Node) -> None:
    """The entry of one input or output, from its QuantizeLinear or DequantizeLinear."""
    scale, zero = constant(node.inputs[1]), constant(node.inputs[2])
    assert scale is not None
    assert zero is not None
    model.metadata_props[f"{KEY}{value.name}"] = f"{zero.dtype.name} {float(scale)!r} {int(zero)}"


def as_codes(model: ir.Model, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Float inputs or outputs, by name, as the codes that the model takes or gives after `strip_ends`."""
    found = {}
    for name, array in arrays.items():
        found[name] = array
        if entry := model.metadata_props.get(KEY + name):
            dtype, scale, zero = entry.split()
            info = np.iinfo(dtype)
            codes = np.rint(array / np.float32(scale)) + int(zero)
            found[name] = np.clip(codes, info.min, info.max).astype(dtype)
    return found
