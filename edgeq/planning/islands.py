"""Static placement: integer islands, so that no value goes float → integer → float for an elementwise node's sake.

Anchors (`compute` rules) are quantized on their own account; other operators only join them.

1. Forwards, a `join` or `same` node is a candidate when everything it reads carries codes; a `bridge` passes
   codes on; an activation behind an integer node folds into that node's output range.
2. Backwards, candidates whose codes no integer node reads are dropped again.
3. Every value that an integer node reads, or must write, gets a QSpec. Values tied by `same` nodes share parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgeq.graph.edit import is_constant, static_shape
from edgeq.planning.alone import alone
from edgeq.planning.eligible import STORES, Context, join_problem, table_problem, weight_problem
from edgeq.planning.plan import (
    BRIDGE,
    DATA_INPUTS,
    FLOAT,
    FOLDED,
    INTEGER,
    STORED,
    BiasPlan,
    NodePlan,
    Plan,
    ValuePlan,
    WeightPlan,
    walk,
)
from edgeq.target import FixedOutput, Rule
from edgeq.types import PerBlock, QSpec


def place(model: ir.Model, context: Context) -> Plan:
    """The static plan of a prepared model."""
    return _Islands(model, context).plan(list(walk(model.graph)))


@dataclass
class _Islands:
    model: ir.Model
    context: Context
    decision: dict[ir.Node, str] = field(default_factory=dict)
    reason: dict[ir.Node, str] = field(default_factory=dict)
    rule: dict[ir.Node, Rule] = field(default_factory=dict)
    weights: dict[ir.Node, list[WeightPlan]] = field(default_factory=dict)  # of those that have another method
    carries: set[ir.Value] = field(default_factory=set)

    def plan(self, nodes: list[tuple[ir.Node, str]]) -> Plan:
        if self.context.target.whole and nodes:
            graph = nodes[0][0].graph
            self.carries.update(v for v in getattr(graph, "inputs", ()) if v.dtype == ir.DataType.FLOAT)
        for node, body in nodes:
            self._forward(node, body)
        for node, _ in reversed(nodes):
            self._backward(node)
        ordered = [node for node, _ in nodes]
        values = self._values(ordered)
        planned = {v.name for v in values}
        return Plan(
            self.context.target.name,
            self.context.recipe.method,
            tuple(NodePlan(n.name or "", n.op_type, self.decision[n], self.reason.get(n, "")) for n in ordered),
            tuple(values),
            tuple(w for n in ordered for w in self._weights(n)),
            tuple(b for n in ordered if self._weighted(n) for b in self._biases(n, planned)),
        )

    def _weights(self, node: ir.Node) -> list[WeightPlan]:
        if node in self.weights:
            return self.weights[node]
        return self.context.weights(node, self.rule[node]) if self._weighted(node) else []

    def _weighted(self, node: ir.Node) -> bool:
        if self.decision[node] == STORED:
            return node not in self.weights
        return self.decision[node] == INTEGER and self.rule[node].role == "compute" and not self._both_vary(node)

    @staticmethod
    def _both_vary(node: ir.Node) -> bool:
        return node.op_type == "MatMul" and not is_constant(node.inputs[1])

    def _stay(self, node: ir.Node, why: str) -> None:
        self.decision[node], self.reason[node] = FLOAT, why

    def _forward(self, node: ir.Node, body: str) -> None:
        apart = self.context.recipe.method_of(node.name or "", node.op_type) != "static"
        if not apart and self._fold(node):
            return
        rule, why = self.context.rule(node)
        if rule is None:
            self._stay(node, why)
            return
        if apart:
            self.decision[node], self.reason[node], self.weights[node] = alone(node, rule, self.model, self.context)
            return
        self.rule[node] = rule
        if rule.role in STORES:
            why = table_problem(node) if rule.role == "table" else weight_problem(node, rule)
            if why:
                self._stay(node, why)
            else:
                self.decision[node], self.reason[node] = STORED, STORES[rule.role]
            return
        if body:
            self._stay(node, f"in the body of a {body}: its values can't be calibrated")
            return
        if rule.role == "compute" and self._both_vary(node):
            why = "activation × activation: the recipe's `attention` is off"
            if self.context.recipe.attention:
                why = join_problem(node, rule, self.context.recipe, self.carries)
        elif rule.role == "compute":
            why = weight_problem(node, rule)
        else:
            why = join_problem(node, rule, self.context.recipe, self.carries)
        if why:
            self._stay(node, why)
            return
        self.decision[node] = INTEGER
        if rule.role == "bridge":
            self.decision[node], self.reason[node] = BRIDGE, "no integer kernel: float between integers"
        self.carries.update(v for v in node.outputs if v.dtype == ir.DataType.FLOAT)

    def _fold(self, node: ir.Node) -> bool:
        """An activation behind an integer node whose output nobody else reads becomes part of that node's kernel.

        A folded one (Relu, or a Clip around 0) is part of the output's range, a fused one the kernel applies itself.
        """
        source = node.inputs[0] if node.inputs else None
        producer = source.producer() if source is not None else None
        if producer is None or source is None or self.decision.get(producer) != INTEGER:
            return False
        rule = self.rule[producer]
        alone = len(source.uses()) == 1 and not source.is_graph_output() and producer.graph is node.graph
        folds = node.op_type in rule.folds and not self.context.target.types[rule.act].symmetric
        fuses = node.op_type in rule.fuses
        if not alone or not (folds or fuses):
            return False
        if not fuses and node.op_type == "Clip" and _clip_bounds(node) is None:
            return False
        if node.name in self.context.excluded or self.context.recipe.override(node.name or "", node.op_type).float:
            return False
        self.decision[node], self.reason[node] = FOLDED, f"is the output range of {producer.name}"
        self.carries.update(node.outputs)
        return True

    def _backward(self, node: ir.Node) -> None:
        decision = self.decision[node]
        if decision not in (INTEGER, BRIDGE, FOLDED) or self._weighted(node) or self.context.target.whole:
            return
        used = (INTEGER, BRIDGE, FOLDED)
        if any(self.decision.get(use.node) in used for value in node.outputs for use in value.uses()):
            return
        source = node.inputs[0]
        producer = source.producer() if source is not None else None
        if decision == FOLDED and producer is not None and self._weighted(producer):
            return
        self._stay(node, "no integer node reads its output")

    def _values(self, nodes: list[ir.Node]) -> list[ValuePlan]:
        readers: dict[ir.Value, list[str]] = {}
        specs: dict[ir.Value, tuple[QSpec, str]] = {}
        writers: dict[ir.Value, str] = {}
        fixed: dict[ir.Value, FixedOutput] = {}
        bounds: dict[ir.Value, tuple[float, float]] = {}
        groups = _Groups()
        for node in nodes:
            if self.decision[node] != INTEGER:
                continue
            rule, override = self.rule[node], self.context.recipe.override(node.name or "", node.op_type)
            spec = self.context.target.types[override.act_type or rule.act].spec(channel=False)
            chosen = (spec, override.calibrator or self.context.recipe.calibrator)
            ins = self._activations(node, rule)
            for value in ins:
                readers.setdefault(value, []).append(node.name or "")
                specs.setdefault(value, chosen)
            if rule.output_q == "optional" and rule.role != "same" and rule.output is None:
                continue
            outs = [self._behind(v) for v in node.outputs if v.dtype == ir.DataType.FLOAT]
            for value in outs:
                writers[value] = node.name or ""
                readers.setdefault(value, [])
                specs.setdefault(value, chosen)
                if rule.output is not None and rule.output.dtype in ("", spec.dtype):
                    fixed[value] = rule.output
                clip = value.producer() if value not in node.outputs else None
                if clip is not None and clip.op_type == "Clip" and (limits := _clip_bounds(clip)) is not None:
                    bounds[value] = limits
            if rule.role == "same":
                for value in [*ins[1:], *outs]:
                    groups.join(ins[0], value)
        fixed_groups = {groups.root(value): output for value, output in fixed.items()}
        # Where the answer itself becomes codes, a range that cuts peaks off would let the best classes draw.
        whole, usual = self.context.target.whole, self.context.recipe.calibrator
        answers = {groups.root(value) for value in specs if whole and value.is_graph_output()}
        return [
            ValuePlan(
                value.name or "",
                specs[groups.root(value)][0],
                groups.root(value).name or "",
                "minmax" if groups.root(value) in answers and specs[value][1] == usual else specs[value][1],
                value in writers,
                tuple(dict.fromkeys(names)),
                fixed_groups.get(groups.root(value)),
                writers.get(value, ""),
                bounds.get(groups.root(value), (-np.inf, np.inf)),
            )
            for value, names in readers.items()
        ]

    def _activations(self, node: ir.Node, rule: Rule) -> list[ir.Value]:
        """The inputs of an integer node that become codes; a constant operand of Add or Mul is one of them."""
        data = self.rule[node].data or DATA_INPUTS.get(node.op_type, len(node.inputs))
        count = 1 if self._weighted(node) else data
        return [v for v in node.inputs[:count] if v is not None and v.dtype == ir.DataType.FLOAT]

    def _behind(self, value: ir.Value) -> ir.Value:
        """The output of the activation that folds into `value`, if one does."""
        for use in value.uses():
            if self.decision.get(use.node) == FOLDED:
                return use.node.outputs[0]
        return value

    def _biases(self, node: ir.Node, planned: set[str]) -> Iterator[BiasPlan]:
        if (
            self.rule[node].bias != "int32"
            or node.op_type not in ("Conv", "ConvTranspose", "Gemm")
            or len(node.inputs) < 3
        ):
            return
        bias, act = node.inputs[2], node.inputs[0]
        shape = static_shape(bias)
        if any(isinstance(w.spec.granularity, PerBlock) for w in self.context.weights(node, self.rule[node])):
            return  # an output's products have several scales then, so its bias is of none
        if bias is None or act is None or not is_constant(bias) or act.name not in planned:
            return
        if shape is not None and len(shape) == 1:
            yield BiasPlan(node.name or "", 2, bias.name or "", act.name or "")


class _Groups:
    """Union-find over values; the first value that joined a group is its root."""

    def __init__(self) -> None:
        self._parent: dict[ir.Value, ir.Value] = {}

    def root(self, value: ir.Value) -> ir.Value:
        while (parent := self._parent.get(value, value)) is not value:
            value = parent
        return value

    def join(self, first: ir.Value, second: ir.Value) -> None:
        a, b = self.root(first), self.root(second)
        if a is not b:
            self._parent[b] = a


def _clip_bounds(node: ir.Node) -> tuple[float, float] | None:
    """What a Clip leaves through, if that is constant and holds 0: codes always reach 0, so else they reach too far."""
    found = [-np.inf, np.inf]
    for index, value in enumerate(node.inputs[1:3]):
        if value is not None:
            if not is_constant(value) or value.const_value is None or value.const_value.size != 1:
                return None
            found[index] = float(value.const_value.numpy().reshape(()))
    return (found[0], found[1]) if found[0] <= 0 <= found[1] else None
