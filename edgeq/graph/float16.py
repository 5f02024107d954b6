"""Half precision: widened to float32 on the way in, keeping the model's interface; and which operators have it.

Integer kernels take float32 scales and the CPU computes half precision slowly; every half value becomes float32,
graph inputs are cast on entry and graph outputs on exit. Every half number is exact in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
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


def half_slots(node: ir.Node, opset: int, dtype: ir.DataType) -> tuple[list[int], list[int]]:
    """The float32 inputs and outputs that the operator may have in a half-precision type, as its ONNX schema says.

    An output counts only with an input of its type variable. Without any output the operator has no such form.
    """
    if node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type) or _holds_graphs(node):
        return [], []
    schema = onnx.defs.get_schema(node.op_type, opset)
    kind = f"tensor({dtype.name.lower()})"
    inputs, outputs = (_slots(v, f, kind) for v, f in ((node.inputs, schema.inputs), (node.outputs, schema.outputs)))
    found = [index for index, variable in outputs.items() if variable in inputs.values()]
    return list(inputs) if found else [], found


def _slots(values: Sequence[ir.Value | None], formals: Sequence[Any], kind: str) -> dict[int, str]:
    """Index → type variable, of float32 values that may be of `kind`; the last formal parameter may be variadic."""
    found = {}
    for index, value in enumerate(values):
        formal = formals[min(index, len(formals) - 1)]
        if value is not None and value.dtype == ir.DataType.FLOAT and kind in formal.types:
            found[index] = formal.type_str
    return found


def _holds_graphs(node: ir.Node) -> bool:
    return any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())
