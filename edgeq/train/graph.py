"""A prepared ONNX graph as a torch module: the same nodes in the same order, its float constants as parameters.

Training the graph that is quantized, rather than the module it was exported from, leaves nothing to translate: what
the plan says of a value is said of the value that is trained, and BatchNorm is folded in both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from edgeq.errors import ModelError
from edgeq.train.fake import FakeQuantize
from edgeq.train.ops import OPS, Op


class TorchGraph(nn.Module):
    """Called with the graph's inputs in order, or by name; gives its output, or a tuple of them.

    values, weights: quantizers by value name, applied to an activation when it is made (or fed) and to a constant when
    it is read. Raises ModelError that names the node of an operator that can't be trained.
    """

    def __init__(self, model: ir.Model) -> None:
        super().__init__()
        self.model = model
        self.constants, self.values, self.weights = nn.ParameterDict(), nn.ModuleDict(), nn.ModuleDict()
        self._quantizers: dict[str, tuple[str, frozenset[str]]] = {}
        self._keys = {name: f"c{index}" for index, name in enumerate(model.graph.initializers)}
        for name, value in model.graph.initializers.items():
            assert value.const_value is not None
            array = torch.from_numpy(np.array(value.const_value.numpy()))
            if array.is_floating_point():
                self.constants[self._keys[name]] = nn.Parameter(array.float())
            else:
                self.register_buffer(self._keys[name], array, persistent=False)
        for node in model.graph:
            if node.op_type not in OPS or node.domain not in ("", "ai.onnx"):
                raise ModelError(
                    f"node {node.name!r} ({node.op_type}) can't be trained: no gradient form of it is here"
                )
        self._last: dict[str, int] = {}
        for index, node in enumerate(model.graph):
            self._last |= {v.name or "": index for v in node.inputs if v is not None}
        self._last |= {v.name or "": len(model.graph) for v in model.graph.outputs}
        self._observe: Mapping[str, Any] = {}
        self.kept: dict[str, Tensor] = {}
        """Values of the last call, by name, of those that are put in here before; as they are made, not quantized."""
        self.instead: dict[str, Op] = {}
        """Functions of single nodes, by name, in place of their operator's."""

    def constant(self, name: str) -> nn.Parameter:
        """A float constant by its name in the graph."""
        return self.constants[self._keys[name]]

    def float_constants(self) -> set[str]:
        """The names of the constants that are parameters."""
        return {name for name, key in self._keys.items() if key in self.constants}

    def quantize_value(self, name: str, quantizer: FakeQuantize, readers: Iterable[str] = ()) -> None:
        """readers: names of the nodes that read the rounded value; all of them, and the output, when there are none."""
        key = f"v{len(self.values)}"
        self.values[key] = quantizer
        self._quantizers[name] = (key, frozenset(readers))

    def quantize_weight(self, name: str, quantizer: nn.Module) -> None:
        self.weights[self._keys[name]] = quantizer

    def quantizer(self, name: str) -> Any:
        """The quantizer of a value or constant; None without one."""
        if name in self._quantizers:
            return self.values[self._quantizers[name][0]]
        key = self._keys.get(name, "")
        return self.weights[key] if key and key in self.weights else None

    def observe(self, accumulators: Mapping[str, Any]) -> None:
        """From now on each named value is shown, before it is quantized, to the accumulator's `update(array)`."""
        self._observe = accumulators

    def forward(self, *given: Tensor, **named: Tensor) -> Any:
        inputs = [v for v in self.model.graph.inputs if v.name not in self.model.graph.initializers]
        held = {v.name or "": t for v, t in zip(inputs, given, strict=False)} | named
        held = {name: self._seen(name, tensor) for name, tensor in held.items()}
        for index, node in enumerate(self.model.graph):
            operands = [None if v is None else self._read(v, held, node.name or "") for v in node.inputs]
            made = self.instead.get(node.name or "", OPS[node.op_type])(node, *operands)
            for out, tensor in zip(node.outputs, made if isinstance(made, tuple) else (made,), strict=False):
                held[out.name or ""] = self._seen(out.name or "", tensor)
            for value in node.inputs:
                if value is not None and self._last.get(value.name or "", -1) == index:
                    held.pop(value.name or "", None)
        outputs = tuple(held[v.name or ""] for v in self.model.graph.outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def _seen(self, name: str, tensor: Tensor) -> Tensor:
        if name in self.kept:
            self.kept[name] = tensor
        if name in self._observe and tensor.is_floating_point():
            self._observe[name].update(tensor.detach().cpu().numpy())
        key, readers = self._quantizers.get(name, ("", frozenset()))
        return self.values[key](tensor) if key and not readers else tensor

    def _read(self, value: ir.Value, held: dict[str, Tensor], reader: str) -> Tensor:
        name = value.name or ""
        if name in held:
            key, readers = self._quantizers.get(name, ("", frozenset()))
            return self.values[key](held[name]) if reader in readers else held[name]
        if name not in self._keys:
            raise ModelError(f"input {name!r} was not given")
        key = self._keys[name]
        if key not in self.constants:
            fixed: Tensor = getattr(self, key)
            return fixed
        tensor = self.constants[key]
        return self.weights[key](tensor) if key in self.weights else tensor
