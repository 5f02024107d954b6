"""What passes that store weights as codes have in common: initializers, reals in half precision, nodes of floats."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeq.graph.edit import MS_DOMAIN, Names, add_initializer, all_graphs, make_node

FLOAT = ir.DataType.FLOAT
SMALLEST_HALF = 2.0**-14


class Builder:
    """Adds to one model; names are free ones, made of what is asked for."""

    def __init__(self, model: ir.Model) -> None:
        self.model, self.names = model, Names(model)
        self.last: ir.Node | None = None  # of those that `first` adds
        self.shared = {v.name for g in all_graphs(model) for v in g.initializers.values() if len(v.uses()) > 1}

    def key(self, source: ir.Value, *arrays: np.ndarray) -> tuple[str, bytes]:
        """The same for nodes whose weights became the same, though each was solved for itself."""
        digest = hashlib.sha256()
        for array in arrays if source.name in self.shared else ():
            digest.update(np.ascontiguousarray(array).data)
        return source.name or "", digest.digest()

    def init(self, name: str, array: np.ndarray) -> ir.Value:
        return add_initializer(self.model.graph, self.names.new(name), np.ascontiguousarray(array))

    def reals(self, name: str, array: np.ndarray, alone: bool = True) -> ir.Value:
        """An initializer of reals, in half precision where all are 0 or normal numbers in it, behind a Cast.

        alone: each counts by itself, as a scale does; else it is beside the greatest of its row, which must be one.
        """
        size = np.abs(array) if alone else np.abs(array).max(-1)
        if not size.all():
            size = size[size != 0]
        if size.size and (size.min() < SMALLEST_HALF or size.max() >= np.finfo(np.float16).max):
            return self.init(name, np.asarray(array, np.float32))
        small = self.init(f"{name}_half", array.astype(np.float16))
        return self.first("Cast", [small], name, FLOAT, small.shape, {"to": int(FLOAT)})

    def first(
        self, op: str, inputs: list[ir.Value | None], name: str, dtype: ir.DataType, shape: Any,
        attributes: dict[str, Any] | None = None,
    ) -> ir.Value:  # fmt: skip
        """A node of constants, before all others of the main graph but those that came by here; bodies see it too."""
        new = make_node(op, inputs, self.names.new(name), dtype, shape, attributes)
        graph = self.model.graph
        if self.last is None:
            graph.insert_before(next(iter(graph)), new)
        else:
            graph.insert_after(self.last, new)
        self.last = new
        return new.outputs[0]

    def before(
        self, node: ir.Node, op: str, inputs: list[ir.Value | None], suffix: str, shape: ir.ShapeProtocol | None,
        attributes: dict[str, Any] | None = None, domain: str = "", dtype: ir.DataType = FLOAT,
    ) -> ir.Value:  # fmt: skip
        """A node before another one, named after what that gives."""
        if domain:
            self.model.opset_imports[domain] = 1
        name = self.names.new(f"{node.outputs[0].name}_{suffix}")
        new = make_node(op, inputs, name, dtype, shape, attributes, domain)
        assert node.graph is not None
        node.graph.insert_before(node, new)
        return new.outputs[0]

    def product(self, node: ir.Node, op: str, inputs: list[ir.Value | None], attributes: dict[str, Any]) -> ir.Value:
        """A kernel in the place of a MatMul or Gemm, with a Gemm's bias added (prepared ones have no alpha or beta)."""
        found = self.before(
            node, op, inputs, "product", node.outputs[0].shape, attributes, MS_DOMAIN if attributes else ""
        )
        bias = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
        return found if bias is None else self.before(node, "Add", [found, bias], "biased", node.outputs[0].shape)
