"""A float model and its quantized form in one graph, to compare layers one by one in a single run.

    float:       x ── layer ──┬── … ── layer ──┬── …
                              │                │
    quantized:   x ── layer   └ Q, DQ … layer  └ Q, DQ … layer

Every quantized layer is given what the float model's layers before it gave, through the quantized steps in between: so
it shows its own error and that of those steps, and none that a layer before it made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir
from onnx_ir.convenience import extract, replace_all_uses_with
from onnx_ir.passes.common import RemoveUnusedNodesPass, TopologicalSortPass

from edgeq.graph.edit import (
    MS_DOMAIN,
    Names,
    add_initializer,
    all_graphs,
    drop_unused_initializers,
    is_constant,
    make_node,
    static_shape,
)

POOLED = ("Conv", "ConvTranspose")
WIDE = (ir.DataType.INT16, ir.DataType.UINT16)  # which onnxruntime's own operators take in models of any opset


@dataclass(frozen=True)
class Pair:
    """model: of both. later: of layers whose inputs' means are outputs of `model`, or None.

    means: {layer: [its float output, its quantized output]} of the one or the other, each a mean over positions:
    float32 (N, C, 1 …) or (N, C).
    """

    model: ir.Model
    later: ir.Model | None
    means: dict[str, list[str]]


def side_by_side(real: ir.Model, quantized: ir.Model, layers: Sequence[str]) -> Pair:
    """The two in one model, whose outputs are means of what these layers of both give.

    real: is emptied. layers: names of Conv, ConvTranspose and Gemm nodes of both main graphs.
    """
    made = quantized.clone()
    graph, names = made.graph, Names(made)
    _real_constants(made, names)
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
    of_means: list[ir.Node] = []
    for name in layers:
        pair = theirs[name], ours[name]
        replace_all_uses_with(pair[1].outputs[0], pair[0].outputs[0])
        alone, op = all(map(_alone, pair)), "GlobalAveragePool" if ours[name].op_type in POOLED else "Identity"
        read = [node.inputs[0] if alone else node.outputs[0] for node in pair]
        taps = [
            make_node(op, [v], names.new(f"{name}_mean"), ir.DataType.FLOAT, None, name=names.new(f"{name}_mean"))
            for v in read
        ]
        graph.extend(taps)
        graph.outputs.extend(tap.outputs[0] for tap in taps)
        if alone:
            taps = [_again(node, tap.outputs[0], names) for node, tap in zip(pair, taps, strict=True)]
            of_means += taps
        found[name] = [tap.outputs[0].name or "" for tap in taps]
    graph.extend(of_means)
    for node in graph.all_nodes():
        wide = any(v is not None and v.dtype in WIDE for v in (*node.inputs, *node.outputs))
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and wide:
            node.domain = MS_DOMAIN
            made.opset_imports[MS_DOMAIN] = 1
    later = _apart(made, of_means)
    RemoveUnusedNodesPass()(made)
    drop_unused_initializers(made)
    TopologicalSortPass()(made)
    return Pair(made, later, found)


def _alone(node: ir.Node) -> bool:
    """Does it see each position alone? Then the mean of what it gives is what it gives for the mean of its input.

    So it need not run at every position, nor be in memory with the layers that must.
    """
    if not all(value is None or is_constant(value) for value in node.inputs[1:]):
        return False
    if node.op_type == "Gemm":
        bias = static_shape(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else ()
        return not node.attributes.get_int("transA", 0) and bias is not None and len(bias) < 2
    kernel = static_shape(node.inputs[1])
    steps = [*node.attributes.get_ints("strides", []), *(kernel or (0, 0, 0))[2:]]
    return node.op_type == "Conv" and set(steps) == {1} and not any(node.attributes.get_ints("pads", []))


def _again(node: ir.Node, value: ir.Value, names: Names) -> ir.Node:
    """The same layer on another value."""
    attributes = {a.name: a.value for a in node.attributes.values()}
    made = [value, *node.inputs[1:]], names.new(f"{node.name}_of_mean")
    return make_node(node.op_type, *made, ir.DataType.FLOAT, None, attributes, name=names.new(node.name or ""))


def _apart(model: ir.Model, nodes: Sequence[ir.Node]) -> ir.Model | None:
    """These nodes in a model of their own, which are taken from the given one; their first inputs are its inputs."""
    if not nodes:
        return None
    inputs = [value.name or "" for node in nodes for value in node.inputs[:1] if value is not None]
    graph = extract(model.graph, inputs, [node.outputs[0].name or "" for node in nodes])
    model.graph.remove(nodes, safe=True)
    return ir.Model(graph, ir_version=model.ir_version)


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
