"""A float model and its quantized form in one graph, to compare layers one by one in a single run.

    float:       x ── layer ──┬── … ── layer ──┬── …
                              │                │
    quantized:   x ── layer   └ Q, DQ … layer  └ Q, DQ … layer

Every quantized layer is given what the float model's layers before it gave, through the quantized steps in between: so
it shows its own error and that of those steps, and none that a layer before it made.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import onnx_ir as ir
from onnx_ir.convenience import replace_all_uses_with
from onnx_ir.passes.common import RemoveUnusedNodesPass, TopologicalSortPass

from edgeq.graph.edit import (
    MS_DOMAIN,
    Names,
    add_initializer,
    all_graphs,
    drop_unused_initializers,
    is_constant,
    make_node,
)

POOLED = ("Conv", "ConvTranspose")
WIDE = (ir.DataType.INT16, ir.DataType.UINT16)  # which onnxruntime's own operators take in models of any opset


def side_by_side(real: ir.Model, quantized: ir.Model, layers: Sequence[str]) -> tuple[ir.Model, dict[str, list[str]]]:
    """The two in one model, whose outputs are means of what these layers of both give.

    real: is emptied. layers: names of Conv, ConvTranspose and Gemm nodes of both main graphs. Gives the model too, and
    {layer: [its float output, its quantized output]}, each output a mean over positions: float32 (N, C, 1 …) or (N, C).
    """
    made = quantized.clone()
    graph, names = made.graph, Names(made)
    theirs = {node.name or "": node for node in real.graph}
    inputs = {value.name: value for value in graph.inputs}
    real.graph.outputs.clear()
    graph.outputs.clear()
    for value in list(real.graph.inputs):
        replace_all_uses_with(value, inputs[value.name])
        real.graph.initializers.pop(value.name or "", None)  # its default, which ours has too
    real.graph.inputs.clear()
    _move(real, graph, names)
    ours = {node.name or "": node for node in graph}
    found: dict[str, list[str]] = {}
    for name in layers:
        pair = theirs[name].outputs[0], ours[name].outputs[0]
        replace_all_uses_with(pair[1], pair[0])
        op = "GlobalAveragePool" if ours[name].op_type in POOLED else "Identity"
        taps = [
            make_node(op, [v], names.new(f"{v.name}_mean"), ir.DataType.FLOAT, None, name=names.new(f"{name}_mean"))
            for v in pair
        ]
        graph.extend(taps)
        graph.outputs.extend(tap.outputs[0] for tap in taps)
        found[name] = [tap.outputs[0].name or "" for tap in taps]
    for node in graph.all_nodes():
        wide = any(v is not None and v.dtype in WIDE for v in (*node.inputs, *node.outputs))
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and wide:
            node.domain = MS_DOMAIN
            made.opset_imports[MS_DOMAIN] = 1
    _real_constants(made, names)
    RemoveUnusedNodesPass()(made)
    drop_unused_initializers(made)
    TopologicalSortPass()(made)
    return made, found


def _move(source: ir.Model, into: ir.Graph, names: Names) -> None:
    """All nodes and initializers of the main graph, under names that are free there."""
    for graph in all_graphs(source):
        home = into if graph is source.graph else graph
        held = list(graph.initializers.values())
        graph.initializers.clear()
        for value in held:
            value.name = names.new(value.name or "")
            home.register_initializer(value)
        inner = [] if graph is source.graph else list(graph.inputs)
        for node in graph:
            node.name = names.new(node.name or "")
            inner += [value for value in node.outputs if value.name]
        for value in inner:
            value.name = names.new(value.name or "")
    nodes = list(source.graph)
    source.graph.remove(nodes)
    into.extend(nodes)


def _real_constants(model: ir.Model, names: Names) -> None:
    """Weights as they are after rounding, not as codes: they would be multiplied out in each run, and held until then.

    Each is made when it is written.
    """
    for node in list(model.graph):
        held = [None if v is None else v.const_value for v in node.inputs]
        if (
            node.op_type != "DequantizeLinear"
            or "block_size" in node.attributes
            or not all(map(is_constant, node.inputs))
        ):
            continue
        codes, scale, zero = (*held, None)[:3]
        assert codes is not None
        assert scale is not None
        make = partial(_dequantized, codes, scale, zero, node.attributes.get_int("axis", 1))
        lazy = ir.LazyTensor(make, dtype=ir.DataType.FLOAT, shape=codes.shape)  # type: ignore[arg-type]
        lazy.name = names.new(f"{codes.name}_real")
        replace_all_uses_with(node.outputs[0], add_initializer(model.graph, lazy.name, lazy))


def _dequantized(
    codes: ir.TensorProtocol, scale: ir.TensorProtocol, zero: ir.TensorProtocol | None, axis: int
) -> ir.TensorProtocol:
    """(codes - zero) · scale, of float8 too and in float32 throughout: `dequantize_along` is for integers."""
    x = codes.numpy().astype(np.float32)
    shape = [-1 if i == axis % x.ndim else 1 for i in range(x.ndim)] if scale.size > 1 else [1] * x.ndim
    if zero is not None:
        x -= zero.numpy().astype(np.float32).reshape(shape)
    x *= scale.numpy().reshape(shape)
    return ir.tensor(x)
