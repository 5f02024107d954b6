"""The plan: pure data that says what every node gets, or why it stays float. Nothing is changed here.

Static placement makes integer islands. Anchors (`compute` rules) are quantized on their own account; other
operators only join them, so that no value goes float → integer → float for an elementwise operator's sake:

1. forwards, a `join` or `same` node is a candidate when everything it reads carries codes; a `bridge` passes
   codes on; an activation behind an integer node folds into that node's output range;
2. backwards, candidates whose codes no integer node reads are dropped again;
3. every value that an integer node reads, or must write, gets a QSpec. Values tied by `same` nodes share parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from edgeq.errors import TargetError
from edgeq.graph.edit import is_constant, rank, static_shape
from edgeq.recipe import Recipe
from edgeq.target import FixedOutput, Rule, Target
from edgeq.types import PerBlock, PerChannel, QSpec

INTEGER, FOLDED, BRIDGE, DYNAMIC, FLOAT = "integer", "folded", "bridge", "dynamic", "float"
WEIGHT_INDEX = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1, "LSTM": 1}
FLOAT_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
# Operators that only compute shapes or carry indices: their being float is no news to anybody.
CALIBRATED_BODIES, UNCALIBRATED_BODIES = ("If",), ("Loop", "Scan", "SequenceMap")


@dataclass(frozen=True)
class NodePlan:
    """decision: integer, folded (into its producer's output range), bridge, dynamic or float; reason: why not integer."""

    name: str
    op: str
    decision: str
    reason: str = ""


@dataclass(frozen=True)
class ValuePlan:
    """A value that becomes codes. group: values with the same group share parameters; the first named is observed.

    everyone: all readers get the rounded value, since the producing kernel is integer only then.
    """

    name: str
    spec: QSpec
    group: str
    calibrator: str
    everyone: bool
    readers: tuple[str, ...]
    fixed: FixedOutput | None = None


@dataclass(frozen=True)
class WeightPlan:
    """One constant input of one node."""

    node: str
    index: int
    value: str
    spec: QSpec
    algorithm: str


@dataclass(frozen=True)
class BiasPlan:
    """An int32 bias: scale = scale of `act` · scale of the node's weight, zero point 0."""

    node: str
    index: int
    value: str
    act: str


@dataclass(frozen=True)
class Plan:
    target: str
    method: str
    nodes: tuple[NodePlan, ...]
    values: tuple[ValuePlan, ...] = ()
    weights: tuple[WeightPlan, ...] = ()
    biases: tuple[BiasPlan, ...] = ()

    def observed(self) -> list[ValuePlan]:
        """The values whose statistics the plan needs, one a group."""
        return [v for v in self.values if v.name == v.group and v.fixed is None]

    def counts(self) -> dict[str, int]:
        out: dict[str, int] = {}
        for node in self.nodes:
            out[node.decision] = out.get(node.decision, 0) + 1
        return out


def plan(model: ir.Model, target: Target, recipe: Recipe, excluded: Mapping[str, str] | None = None) -> Plan:
    """The plan for a prepared model. `excluded`: node name → reason, nodes that must stay float.

    Raises TargetError when the target has no rule at all for the recipe's method.
    """
    if not any(rule.method == recipe.method for rule in target.rule):
        raise TargetError(target.name, f"it has no {recipe.method} quantization", _alternatives(target))
    planner = _Planner(model, target, recipe, dict(excluded or {}))
    return planner.static() if recipe.method == "static" else planner.one_by_one()


def _alternatives(target: Target) -> str:
    methods = sorted({rule.method for rule in target.rule})
    return f"choose --method {' or '.join(methods)}" if methods else "choose another target"


@dataclass
class _Planner:
    model: ir.Model
    target: Target
    recipe: Recipe
    excluded: dict[str, str]
    decision: dict[ir.Node, str] = field(default_factory=dict)
    reason: dict[ir.Node, str] = field(default_factory=dict)
    rule: dict[ir.Node, Rule] = field(default_factory=dict)
    carries: set[ir.Value] = field(default_factory=set)

    # ---- both methods

    def one_by_one(self) -> Plan:
        weights: list[WeightPlan] = []
        for node, body in _walk(self.model.graph, ""):
            why = self._refused(node) or (f"in a {body} body" if body in UNCALIBRATED_BODIES and False else "")
            rule = self.rule.get(node)
            if not why and rule is not None:
                why = self._weight_problem(node, rule)
            if why or rule is None:
                self._stay(node, why or f"{self.target.name} has no {self.recipe.method} kernel for {node.op_type}")
                continue
            self.decision[node] = DYNAMIC
            weights += self._weights(node, rule)
        return Plan(self.target.name, self.recipe.method, self._node_plans(), weights=tuple(weights))

    def _refused(self, node: ir.Node) -> str:
        """Find the node's rule, or the reason why it has none that may be used."""
        name, op = node.name or "", node.op_type
        if name in self.excluded:
            return self.excluded[name]
        if node.domain not in ("", "ai.onnx"):
            return f"operator of domain {node.domain}"
        if self.recipe.override(name, op).float:
            return "the recipe keeps it float"
        rule, refusal = self.target.find(op, self.recipe.method), self.target.refusal(op)
        if rule is None:
            return refusal or f"{self.target.name} has no {self.recipe.method} kernel for {op}"
        self.rule[node] = rule
        return ""

    def _weight_problem(self, node: ir.Node, rule: Rule) -> str:
        """Why a compute node's weight can't be quantized, or nothing."""
        data, weight = node.inputs[0], node.inputs[WEIGHT_INDEX[node.op_type]]
        if data is None or weight is None:
            return "an input is missing"
        if data.dtype != ir.DataType.FLOAT:
            return f"its input is {data.dtype.name.lower() if data.dtype else 'of unknown type'}, not float32"
        if not is_constant(weight):
            if node.op_type == "MatMul":
                return "activation × activation: the recipe's `attention` is off"
            return "its weight is not constant"
        if weight.const_value is None or weight.const_value.size == 0:
            return "its weight is empty"
        if rule.max_rank and (rank(data) or 0) > rule.max_rank:
            return f"its input has rank {rank(data)}, over the kernel's {rule.max_rank}"
        if node.op_type == "Conv" and not rule.depthwise and node.attributes.get_int("group", 1) > 1:
            return "depthwise and grouped convolutions are never made dynamic"
        if node.op_type == "MatMul" and len(weight.const_value.shape) < 2:
            return "its weight is a vector"
        if node.op_type == "Gemm" and node.attributes.get_int("transA", 0):
            return "its input is transposed"
        return ""

    def _stay(self, node: ir.Node, why: str) -> None:
        self.decision[node], self.reason[node] = FLOAT, why

    def _weights(self, node: ir.Node, rule: Rule) -> list[WeightPlan]:
        override = self.recipe.override(node.name or "", node.op_type)
        row = self.target.types[override.weight_type or rule.weight]
        algorithm = override.weight or self.recipe.weight
        indices = (1, 2) if node.op_type == "LSTM" else (WEIGHT_INDEX[node.op_type],)
        return [
            WeightPlan(node.name or "", i, value.name or "", row.spec(weight_axis(node, row.per)), algorithm)
            for i in indices
            if (value := node.inputs[i]) is not None
        ]

    def _node_plans(self) -> tuple[NodePlan, ...]:
        return tuple(
            NodePlan(node.name or "", node.op_type, self.decision[node], self.reason.get(node, ""))
            for node, _ in _walk(self.model.graph, "")
        )

    # ---- static

    def static(self) -> Plan:
        nodes = list(_walk(self.model.graph, ""))
        for node, body in nodes:
            self._forward(node, body)
        for node, _ in reversed(nodes):
            self._backward(node)
        ordered = [node for node, _ in nodes]
        weights = [w for n in ordered if self._computes(n) for w in self._weights(n, self.rule[n])]
        values = self._values(ordered)
        biases = [b for n in ordered if self._computes(n) for b in self._biases(n, {v.name for v in values})]
        return Plan(
            self.target.name, self.recipe.method, self._node_plans(), tuple(values), tuple(weights), tuple(biases)
        )

    def _computes(self, node: ir.Node) -> bool:
        return self.decision[node] == INTEGER and self.rule[node].role == "compute" and not self._both_vary(node)

    def _both_vary(self, node: ir.Node) -> bool:
        return node.op_type == "MatMul" and not is_constant(node.inputs[1])

    def _forward(self, node: ir.Node, body: str) -> None:
        if self._fold(node):
            return
        why = self._refused(node)
        if not why and body:
            why = f"in the body of a {body}: its values can't be calibrated"
        rule = self.rule.get(node)
        if why or rule is None:
            self._stay(node, why)
            return
        role = rule.role
        if role == "compute" and self._both_vary(node) and self.recipe.attention:
            role = "join"
        why = self._weight_problem(node, rule) if role == "compute" else self._join_problem(node, rule)
        if why:
            self._stay(node, why)
            return
        self.decision[node] = BRIDGE if role == "bridge" else INTEGER
        self.carries.update(v for v in node.outputs if v.dtype == ir.DataType.FLOAT)

    def _fold(self, node: ir.Node) -> bool:
        """Relu, or Clip from 0, behind an integer node whose output nobody else reads, becomes part of its range."""
        source = node.inputs[0] if node.inputs else None
        producer = source.producer() if source is not None else None
        if producer is None or source is None or self.decision.get(producer) != INTEGER or producer not in self.rule:
            return False
        rule = self.rule[producer]
        alone = len(source.uses()) == 1 and not source.is_graph_output() and producer.graph is node.graph
        spec = self.target.types[rule.act].spec(channel=False) if rule.act else None
        if not alone or node.op_type not in rule.folds or spec is None or spec.symmetric:
            return False
        if node.op_type == "Clip" and _constant_scalar(node, 1) != 0.0:
            return False
        if node.name in self.excluded or self.recipe.override(node.name or "", node.op_type).float:
            return False
        self.decision[node], self.reason[node] = FOLDED, f"is the output range of {producer.name}"
        self.carries.update(node.outputs)
        return True

    def _join_problem(self, node: ir.Node, rule: Rule) -> str:
        if rule.role == "join" and self.recipe.elementwise == "none":
            return "the recipe's `elementwise` is none"
        varying = [v for v in node.inputs if v is not None and v.dtype in FLOAT_TYPES and not is_constant(v)]
        if rule.role == "same":
            varying = varying[:1]
        if not varying:
            return "computes on constants or integers"
        if any(v.dtype != ir.DataType.FLOAT for v in varying):
            return "its input is not float32"
        if not rule.constant and any(is_constant(v) for v in node.inputs):
            return "one operand is constant"
        if rule.max_rank and any((rank(v) or 0) > rule.max_rank for v in varying):
            return f"its input has over {rule.max_rank} dimensions"
        for value in varying:
            if value not in self.carries:
                producer = value.producer()
                behind = f"node {producer.name}" if producer is not None else f"input {value.name}"
                return f"would need a float → integer step: {behind} gives float"
        return ""

    def _backward(self, node: ir.Node) -> None:
        if self.decision[node] not in (INTEGER, BRIDGE, FOLDED) or self._computes(node):
            return
        read = any(
            self.decision.get(use.node) in (INTEGER, BRIDGE) or self.decision.get(use.node) == FOLDED
            for value in node.outputs
            for use in value.uses()
        )
        if self.decision[node] == FOLDED:
            producer = node.inputs[0].producer() if node.inputs[0] is not None else None
            if read or (producer is not None and self._computes(producer)):
                return
        elif read:
            return
        self._stay(node, "no integer node reads its output")

    def _values(self, nodes: list[ir.Node]) -> list[ValuePlan]:
        readers: dict[ir.Value, list[str]] = {}
        everyone: set[ir.Value] = set()
        spec_of: dict[ir.Value, tuple[QSpec, str]] = {}
        fixed: dict[ir.Value, FixedOutput] = {}
        groups = _Groups()
        for node in nodes:
            if self.decision[node] != INTEGER:
                continue
            rule, override = self.rule[node], self.recipe.override(node.name or "", node.op_type)
            spec = self.target.types[override.act_type or rule.act].spec(channel=False)
            calibrator = override.calibrator or self.recipe.calibrator
            ins = self._activations(node, rule)
            for value in ins:
                readers.setdefault(value, []).append(node.name or "")
                spec_of.setdefault(value, (spec, calibrator))
            outs = [self._behind(v) for v in node.outputs if v.dtype == ir.DataType.FLOAT and (v.uses() or v.is_graph_output())]
            if rule.output_q == "required" or rule.role == "same" or rule.output is not None:
                for value in outs:
                    everyone.add(value)
                    readers.setdefault(value, [])
                    spec_of.setdefault(value, (spec, calibrator))
                    if rule.output is not None:
                        fixed[value] = rule.output
            if rule.role == "same":
                for value in [*ins[1:], *outs]:
                    groups.join(ins[0], value)
        by_group = {groups.root(v): f for v, f in fixed.items()}
        return [
            ValuePlan(
                value.name or "",
                spec_of[groups.root(value)][0] if groups.root(value) in spec_of else spec_of[value][0],
                groups.root(value).name or "",
                spec_of[value][1],
                value in everyone,
                tuple(dict.fromkeys(names)),
                by_group.get(groups.root(value)),
            )
            for value, names in readers.items()
        ]

    def _activations(self, node: ir.Node, rule: Rule) -> list[ir.Value]:
        """The inputs of an integer node that become codes; a constant operand of Add or Mul is one of them."""
        if self._computes(node):
            return [v for v in node.inputs[:1] if v is not None]
        data = [v for v in node.inputs if v is not None and v.dtype == ir.DataType.FLOAT]
        return data[:1] if rule.role == "same" and not node.op_type == "Concat" else data

    def _behind(self, value: ir.Value) -> ir.Value:
        """The output of the activation that folds into `value`, if one does."""
        for use in value.uses():
            if self.decision.get(use.node) == FOLDED:
                return use.node.outputs[0]
        return value

    def _biases(self, node: ir.Node, planned: set[str]) -> Iterator[BiasPlan]:
        rule = self.rule[node]
        if rule.bias != "int32" or node.op_type == "MatMul" or len(node.inputs) < 3:
            return
        bias, act = node.inputs[2], node.inputs[0]
        shape = static_shape(bias)
        if not is_constant(bias) or bias is None or act is None or act.name not in planned or shape is None:
            return
        if len(shape) == 1 or (node.op_type == "Gemm" and len(shape) == 2 and shape[0] == 1):
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


def weight_axis(node: ir.Node, per: str) -> int:
    """The axis of a weight's output channels, or for blocks the axis that is summed over."""
    weight = node.inputs[WEIGHT_INDEX[node.op_type]]
    dims = len(weight.shape) if weight is not None and weight.shape is not None else 2
    match node.op_type:
        case "Conv":
            channel, summed = 0, 1
        case "ConvTranspose":
            channel, summed = 1, 0
        case "Gemm":
            channel, summed = (0, 1) if node.attributes.get_int("transB", 0) else (1, 0)
        case "LSTM":  # (directions, 4·hidden, input)
            channel, summed = 1, 2
        case _:
            channel, summed = dims - 1, dims - 2
    return summed if per == "block" else channel


def granularity_name(spec: QSpec) -> str:
    match spec.granularity:
        case PerChannel(axis):
            return f"per channel (axis {axis})"
        case PerBlock(axis, size):
            return f"per block of {size} (axis {axis})"
    return "per tensor"


def _walk(graph: ir.Graph, body: str) -> Iterator[tuple[ir.Node, str]]:
    """Nodes with their subgraphs' nodes behind them, and the op (Loop, Scan) whose body they are in, if any."""
    for node in graph:
        yield node, body
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield from _walk(attribute.as_graph(), body or ("" if node.op_type in CALIBRATED_BODIES else node.op_type))
            elif attribute.type == ir.AttributeType.GRAPHS:
                for sub in attribute.as_graphs():
                    yield from _walk(sub, body or node.op_type)


def _constant_scalar(node: ir.Node, index: int) -> float | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    if not is_constant(value) or value is None or value.const_value is None or value.const_value.size != 1:
        return None
    return float(value.const_value.numpy().reshape(()))
