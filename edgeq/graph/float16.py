"""Widen float16 and bfloat16 arithmetic to float32, keeping the model's interface.

Integer kernels take float32 scales and the CPU computes half precision slowly; every half value becomes float32,
graph inputs are cast on entry and graph outputs on exit. Every half number is exact in float32.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeq.graph.edit import Names, all_graphs, copied, make_node, values_of

HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def widen(model: ir.Model) -> bool:
    """Widen in place. Returns whether the model held any half-precision value."""
    if not _holds_half(model):
        return False
    names = Names(model)
    main = model.graph
    for value in main.inputs:
        if value.dtype in HALF:
            uses = list(value.uses())
            cast = make_node("Cast", [value], names.new(f"{value.name}_f32"), ir.DataType.FLOAT, value.shape, {"to": 1})
            for use in uses:
                use.node.replace_input_with(use.idx, cast.outputs[0])
            first = next(iter(main), None)
            main.append(cast) if first is None else main.insert_before(first, cast)
    for index, value in enumerate(list(main.outputs)):
        if value.dtype in HALF and value.producer() is not None:
            dtype = value.dtype
            name, wide = value.name, names.new(f"{value.name}_f32")
            value.name = wide
            cast = make_node(
                "Cast", [value], name or "", dtype, value.shape, {"to": int(dtype)}, name=names.new(f"{name}_cast")
            )
            main.append(cast)
            main.outputs[index] = cast.outputs[0]
    kept = {id(v) for v in main.inputs} | {id(v) for v in main.outputs}
    for graph in all_graphs(model):
        for value in list(graph.initializers.values()):
            if value.const_value is not None and value.const_value.dtype in HALF and id(value) not in kept:
                value.const_value = _widened(value.const_value)
        for value in values_of(graph):
            if value.dtype in HALF and id(value) not in kept:
                value.type = ir.TensorType(ir.DataType.FLOAT)
        for node in graph:
            _widen_attributes(node, kept)
    return True


def _widened(tensor: ir.TensorProtocol) -> ir.LazyTensor:
    """The tensor as float32, converted only when it is read."""

    def read() -> ir.TensorProtocol:
        return ir.tensor(tensor.numpy().astype(np.float32), name=tensor.name)

    return ir.LazyTensor(read, dtype=ir.DataType.FLOAT, shape=copied(tensor.shape), name=tensor.name)


def _widen_attributes(node: ir.Node, kept: set[int]) -> None:
    if node.op_type == "Cast" and id(node.outputs[0]) not in kept and node.attributes.get_int("to", 0) in HALF:
        node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT))
    for name in ("dtype", "output_dtype"):
        if name in node.attributes and node.attributes.get_int(name, 0) in HALF:
            node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))
    for name, attribute in list(node.attributes.items()):
        if attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype in HALF:
            node.attributes[name] = ir.AttrTensor(name, ir.tensor(attribute.value.numpy().astype(np.float32)))


def _holds_half(model: ir.Model) -> bool:
    return any(value.dtype in HALF for graph in all_graphs(model) for value in values_of(graph))
