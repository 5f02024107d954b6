"""The few primitive edits that every pass uses. Each keeps names unique and types and shapes known."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeq.errors import ModelError

MS_DOMAIN = "com.microsoft"


class Names:
    """Hands out value and node names that the model does not use yet; deterministic."""

    def __init__(self, model: ir.Model) -> None:
        self._used: set[str] = set()
        self._count: dict[str, int] = {}  # where the last search for a wanted name ended
        for graph in (model.graph, *model.graph.subgraphs()):
            self._used.update(v.name for v in graph.inputs if v.name)
            self._used.update(graph.initializers)
            for node in graph:
                self._used.update([node.name or "", *(v.name or "" for v in node.outputs)])

    def new(self, wanted: str) -> str:
        name, count = wanted, self._count.get(wanted, 0)
        while name in self._used:
            count += 1
            name = f"{wanted}_{count}"
        self._used.add(name)
        self._count[wanted] = count
        return name


def nodes_named(model: ir.Model, names: Container[str | None]) -> list[ir.Node]:
    """The nodes of those names, bodies included; they may be replaced while the list is walked."""
    return [node for graph in all_graphs(model) for node in graph if node.name in names]


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The array of a value that nothing can change at run time, else None."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return value.const_value.numpy()


def is_constant(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None and not value.is_graph_input()


def copied(shape: Any) -> ir.Shape:
    """A shape of one's own; tensors and values share theirs otherwise."""
    return ir.Shape(list(shape))


def add_initializer(graph: ir.Graph, name: str, array: np.ndarray | ir.TensorProtocol) -> ir.Value:
    """A new initializer; `name` must be free (see `Names`)."""
    # `ir.tensor` looks for several protocols, attribute by attribute, which costs more than all the rest here.
    tensor = ir.Tensor(np.asarray(array), name=name) if isinstance(array, np.ndarray | np.generic) else array
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=copied(tensor.shape), const_value=tensor)
    graph.register_initializer(value)
    return value


def make_node(
    op: str,
    inputs: Sequence[ir.Value | None],
    output: str,
    dtype: ir.DataType | None,
    shape: ir.ShapeProtocol | None,
    attributes: dict[str, Any] | None = None,
    domain: str = "",
    name: str | None = None,
) -> ir.Node:
    """A node with one output whose type and shape are set; it belongs to no graph yet."""
    node = ir.node(op, inputs=inputs, attributes=attributes or {}, domain=domain, name=name or output)
    value = node.outputs[0]
    value.name = output
    value.type = ir.TensorType(dtype) if dtype is not None else None
    value.shape = copied(shape) if shape is not None else None
    return node


def insert_after(value: ir.Value, graph: ir.Graph, *new: ir.Node) -> None:
    """Put nodes directly behind the producer of `value`; at the graph's start for inputs and initializers."""
    producer = value.producer()
    if producer is not None and producer.graph is graph:
        graph.insert_after(producer, list(new))
        return
    first = next(iter(graph), None)
    if first is None:
        graph.extend(new)
    else:
        graph.insert_before(first, list(new))


def replace(node: ir.Node, value: ir.Value) -> None:
    """Let `value` take the place, and where it can the name, of the node's only output, graph outputs included.

    Plans and reports speak of values by name, so a rewrite keeps it. Raises ModelError when a graph output would
    have to be named after a value that can't change its own name.
    """
    old = node.outputs[0]
    if value.producer() is not None and not value.is_graph_output():
        name, old.name = old.name, f"{old.name}_replaced"
        value.name = name
        if value.shape is None:
            value.shape = old.shape
    elif old.is_graph_output():
        raise ModelError(f"node {node.name!r}: its output {old.name!r} can't be renamed to {value.name!r}")
    old.replace_all_uses_with(value, replace_graph_outputs=True)
    remove(node)


def remove(node: ir.Node) -> None:
    """Take a node whose outputs nobody uses out of its graph."""
    assert node.graph is not None
    node.graph.remove(node, safe=True)


def sole_consumer(value: ir.Value) -> ir.Node | None:
    """The one node that reads the value, once, when nothing else sees it."""
    if value.is_graph_output():
        return None
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 else None


def all_graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """The main graph, then every subgraph, in the order of their nodes."""
    yield model.graph
    yield from model.graph.subgraphs()


def values_of(graph: ir.Graph) -> Iterator[ir.Value]:
    """The inputs, initializers and node outputs of a graph, not those of its subgraphs."""
    yield from list(graph.inputs)
    yield from list(graph.initializers.values())
    for node in graph:
        yield from node.outputs


def drop_unused_initializers(model: ir.Model) -> bool:
    """Remove initializers that no node reads and no output names."""
    changed = False
    for graph in all_graphs(model):
        for name, value in list(graph.initializers.items()):
            if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                del graph.initializers[name]
                changed = True
    return changed


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """The shape when every dimension is a number, else None."""
    if value is None or value.shape is None:
        return None
    dims = list(value.shape)
    return tuple(int(d) for d in dims) if all(isinstance(d, int) and d >= 0 for d in dims) else None  # type: ignore[arg-type]


def rank(value: ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else len(value.shape)
