"""Take QuantizeLinear and DequantizeLinear out of a graph that somebody quantized, and keep what they said.

Weights become the real numbers that their codes mean, so that rounding them again with the same scale gives the same
codes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgeq.errors import ModelError
from edgeq.graph.edit import Names, add_initializer, constant, drop_unused_initializers, make_node, remove, replace
from edgeq.numerics.affine import dequantize
from edgeq.types import INT_RANGES, Granularity, PerBlock, PerChannel, PerTensor, QParams, QSpec


@dataclass(frozen=True, eq=False)
class Encodings:
    """Parameters by the name of the value that has them: activations, and constants."""

    activations: dict[str, QParams] = field(default_factory=dict)
    constants: dict[str, QParams] = field(default_factory=dict)


def strip_qdq(model: ir.Model) -> Encodings:
    """Make the graph float, in place. Raises ModelError that names a node whose codes go elsewhere than into a DQ."""
    found, names = Encodings(), Names(model)
    for node in list(model.graph):
        if node.op_type == "Transpose":
            _turn(model.graph, node, names)
    for node in list(model.graph):
        if node.op_type != "DequantizeLinear":
            continue
        codes, real = node.inputs[0], node.outputs[0]
        source = codes.producer() if codes is not None else None
        if (array := constant(codes)) is not None:
            params = _params(node, array.ndim)
            held = add_initializer(model.graph, names.new(f"{real.name}_float"), dequantize(array.astype(int), params))
            if params.spec.bits < 32:
                found.constants[held.name or ""] = params
            real.replace_all_uses_with(held, replace_graph_outputs=True)
            remove(node)
        elif source is not None and source.op_type == "QuantizeLinear" and source.inputs[0] is not None:
            plain = source.inputs[0]
            kept = found.activations.pop(plain.name or "", None)
            params = _params(node, len(plain.shape or ()))
            written = constant(source.inputs[1])
            if written is None or not np.array_equal(written.reshape(-1), params.scale.reshape(-1)):
                raise ModelError(f"node {node.name!r} (DequantizeLinear) reads codes in other steps than they have")
            if real.is_graph_output():
                replace(node, plain)  # the output keeps its name
            else:
                real.replace_all_uses_with(plain)
                remove(node)
            found.activations[plain.name or ""] = kept or params
        else:
            raise ModelError(
                f"node {node.name!r} (DequantizeLinear) reads codes that {source.op_type if source else 'an input'} "
                "gives: only Q-DQ pairs and stored weights can be taken over"
            )
    for node in list(model.graph):
        if node.op_type == "QuantizeLinear":
            if node.outputs[0].uses() or node.outputs[0].is_graph_output():
                raise ModelError(f"node {node.name!r} (QuantizeLinear): its codes go elsewhere than into a Q-DQ pair")
            remove(node)
    drop_unused_initializers(model)
    return found


def _turn(graph: ir.Graph, node: ir.Node, names: Names) -> None:
    """Let the codes of a stored matrix be transposed in place of what they mean, so that it has its scales still."""
    stored = node.inputs[0].producer() if node.inputs[0] is not None else None
    if stored is None or stored.op_type != "DequantizeLinear":
        return
    arrays = [constant(value) for value in stored.inputs]
    if arrays[0] is None or arrays[0].ndim != 2 or any(array is None for array in arrays):
        return
    held = [
        add_initializer(graph, names.new(f"{value.name}_transposed"), np.ascontiguousarray(array.T))  # type: ignore[union-attr]
        for value, array in zip(stored.inputs, arrays, strict=True)
    ]
    kept = dict(stored.attributes.items()) | {"axis": 1 - stored.attributes.get_int("axis", 1) % 2}
    out = node.outputs[0]
    turned = make_node("DequantizeLinear", held, names.new(f"{out.name}_turned"), held[1].dtype, out.shape, kept)
    graph.insert_before(node, turned)
    replace(node, turned.outputs[0])


def _params(node: ir.Node, dims: int) -> QParams:
    """What a DequantizeLinear multiplies with. Raises ModelError for a scale that isn't constant, or such a type."""
    scale, zero = constant(node.inputs[1]), constant(node.inputs[2]) if len(node.inputs) > 2 else None
    codes = node.inputs[0]
    typed = codes.dtype if codes is not None else None
    if typed is None and len(node.inputs) > 2 and node.inputs[2] is not None:  # no shape inference has run yet
        typed = node.inputs[2].dtype
    dtype = typed.name.lower() if typed is not None else "uint8"  # the operator's default
    if scale is None or (dtype not in INT_RANGES and dtype != "int32"):
        raise ModelError(f"node {node.name!r} (DequantizeLinear): codes of {dtype or 'no type'} and scales at run time")
    axis, block = node.attributes.get_int("axis", 1), node.attributes.get_int("block_size", 0)
    granularity: Granularity = PerTensor()
    if block:
        granularity = PerBlock(axis % dims, block)
    elif scale.size > 1:
        granularity = PerChannel(axis % dims)
    else:
        scale = scale.reshape(())
    zeros = np.zeros(scale.shape, np.int32) if zero is None else zero.astype(np.int32).reshape(scale.shape)
    symmetric = bool((zeros == (0 if dtype.startswith("int") else 2 ** (QSpec(dtype).bits - 1))).all())
    return QParams(scale.astype(np.float32), zeros, QSpec(dtype, symmetric, granularity))
