"""What a file must hold before anything else looks at it: graphs that end, and tensors with the bytes they claim.

The ONNX checker takes a serialized model and runs operators' own inference, so it is left for what edgeq writes. This
looks at the structure alone, in time linear in the file, before a claim of the file makes anybody allocate or recurse.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import onnx
import onnx_ir as ir

from edgeq.errors import ModelError
from edgeq.graph.edit import all_graphs

MOST_NODES = 1_000_000  # of all functions written out: thirty that each call the next one twice are a thousand millions
DEEPEST = 64  # calls of functions by functions; exporters make one a module, and models nest few of those
TYPED = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")


def require_graph(model: ir.Model, where: str) -> None:
    """Raises ModelError for values that nothing makes, cycles of nodes, and functions without end.

    Nodes that stand before what they read, as ONNX forbids and runtimes take, are put in order.
    """
    _require_functions(model, where)
    graphs = [*all_graphs(model), *(g for f in model.functions.values() for g in (f.graph, *f.graph.subgraphs()))]
    made = {value for graph in graphs for value in (*graph.inputs, *graph.initializers.values())}
    ordered = True
    for graph in graphs:
        made.update(value for node in graph for value in node.outputs)
    for graph in graphs:
        for node in graph:
            for value in node.inputs:
                if value is not None and value not in made:
                    raise ModelError(f"{where}: node {node.name!r} ({node.op_type}) reads {value.name!r}, {_NOBODY}")
        for value in graph.outputs:
            if value not in made:
                raise ModelError(f"{where}: has an output {value.name!r}, {_NOBODY}")
        ordered &= _ordered(graph)
    if ordered:
        return
    try:
        for graph in (model.graph, *(f.graph for f in model.functions.values())):
            graph.sort()
    except ValueError:
        raise ModelError(f"{where}: its nodes read each other's results in a circle; export it again") from None


_NOBODY = "which no node makes; export it again"


def _ordered(graph: ir.Graph) -> bool:
    """Whether each node, with all that lies inside it, stands behind the nodes of this graph that it reads."""
    passed: set[ir.Node] = set()
    for node in graph:
        inner = (n for attribute in node.attributes.values() for g in _bodies(attribute) for n in g.all_nodes())
        for one in (node, *inner):
            for value in one.inputs:
                producer = None if value is None else value.producer()
                if producer is not None and producer.graph is graph and producer not in passed:
                    return False
        passed.add(node)
    return True


def _bodies(attribute: ir.Attr) -> Iterable[ir.Graph]:
    if attribute.is_ref():
        return ()
    if attribute.type == ir.AttributeType.GRAPH:
        return (attribute.as_graph(),)
    return attribute.as_graphs() if attribute.type == ir.AttributeType.GRAPHS else ()


def _require_functions(model: ir.Model, where: str) -> None:
    """Every function's size once written out, from those that call nothing upwards: whoever is left is in a circle."""
    calls = {key: [n.op_identifier() for n in f.all_nodes()] for key, f in model.functions.items()}
    waiting = {key: {called for called in called_by if called in calls} for key, called_by in calls.items()}
    callers: dict[ir.OperatorIdentifier, list[ir.OperatorIdentifier]] = {key: [] for key in calls}
    for key, needed in waiting.items():
        for called in needed:
            callers[called].append(key)
    sizes: dict[ir.OperatorIdentifier, int] = {}
    depths: dict[ir.OperatorIdentifier, int] = {}
    ready = [key for key, needed in waiting.items() if not needed]
    while ready:
        key = ready.pop()
        sizes[key] = min(sum(sizes.get(called, 1) for called in calls[key]), MOST_NODES + 1)
        depths[key] = 1 + max((depths[called] for called in calls[key] if called in depths), default=0)
        for caller in callers[key]:
            waiting[caller].discard(key)
            if not waiting[caller]:
                ready.append(caller)
    if len(sizes) < len(calls):
        domain, name, _ = next(key for key in calls if key not in sizes)
        raise ModelError(f"{where}: function {domain}::{name} calls itself, which has no end; export it again")
    if max(depths.values(), default=0) > DEEPEST:
        raise ModelError(f"{where}: its functions call each other over {DEEPEST} levels deep; that is refused")
    if sum(sizes.get(node.op_identifier(), 1) for node in model.graph.all_nodes()) > MOST_NODES:
        raise ModelError(f"{where}: has over {MOST_NODES} nodes once its functions are written out; that is refused")


def require_tensor(tensor: ir.TensorProtocol, where: str) -> None:
    """Raises ModelError for a tensor of negative dimensions, or of another length than it claims."""
    shape = tensor.shape.numpy()
    if any(dim < 0 for dim in shape):
        raise ModelError(f"{where}: tensor {tensor.name!r} has the shape {shape}; export it again")
    if tensor.dtype == ir.DataType.STRING:
        raise ModelError(f"{where}: tensor {tensor.name!r} holds text, which has no size; cut that part off the model")
    proto = tensor.raw
    if not isinstance(proto, onnx.TensorProto):
        return
    bits = math.prod(shape) * tensor.dtype.bitwidth
    if proto.HasField("raw_data"):
        claimed, there, what = -(-bits // 8), len(proto.raw_data), "bytes"
    else:
        stored = 64 if tensor.dtype == ir.DataType.COMPLEX128 else 32 if tensor.dtype == ir.DataType.COMPLEX64 else 0
        stored = stored or max(tensor.dtype.bitwidth, 8)  # numbers below a byte are packed, two or four to an entry
        claimed, there, what = -(-bits // stored), max(len(getattr(proto, field)) for field in TYPED), "numbers"
    if claimed != there:
        raise ModelError(f"{where}: tensor {tensor.name!r} of shape {shape} has {there} {what}, not {claimed}")
