"""The plan: pure, printable data that says what every node gets, or why it stays float."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeq.target import FixedOutput, Method
from edgeq.types import QSpec
from edgeq.weights import Setting

INTEGER, FOLDED, BRIDGE, DYNAMIC, STORED = "integer", "folded", "bridge", "dynamic", "stored"
HALF, BFLOAT16, PACKED, FLOAT = "half", "bfloat16", "packed", "float"
HALVES: dict[Method, str] = {"float16": HALF, "bfloat16": BFLOAT16}
"""Method → the decision of nodes that it computes in half precision."""
WEIGHT_INDEX = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1, "LSTM": 1, "GRU": 1, "RNN": 1, "Gather": 0}
RECURRENT = ("LSTM", "GRU", "RNN")  # these have two weights, at 1 and 2
# Nodes that compute shapes, move data or hold no arithmetic: their being float is expected and costs nothing.
QUIET = ("Shape", "Constant", "Cast", "Identity", "Gather", "ConstantOfShape", "Range", "If", "Loop", "Scan")
DATA_INPUTS = {"Resize": 1, "Clip": 1}  # how many leading inputs are activations, where not all float ones are


@dataclass(frozen=True)
class NodePlan:
    """decision: what the node becomes; reason: why it is no more than that.

    integer: an integer kernel. folded: part of its producer's output range. bridge: float between integers.
    dynamic: integers with scales found at run time. stored: its weight alone is integer. half: float16. bfloat16:
    that. packed: a float kernel on packed codes. float: none of these.
    """

    name: str
    op: str
    decision: str
    reason: str = ""


@dataclass(frozen=True)
class ValuePlan:
    """A value that becomes codes. group: values with the same group share parameters; the first named is observed.

    everyone: all readers get the rounded value, since the producing kernel, node `writer`, is integer only then.
    bounds: no code may mean a number outside, since only then does a folded Clip change nothing.
    """

    name: str
    spec: QSpec
    group: str
    calibrator: str
    everyone: bool
    readers: tuple[str, ...]
    fixed: FixedOutput | None = None
    writer: str = ""
    bounds: tuple[float, float] = (-np.inf, np.inf)


@dataclass(frozen=True)
class WeightPlan:
    """One constant input of one node.

    outliers: the share of its features that are kept real. low_rank: of what is added to the node's output to make up
    for its rounding (see `edgeq/weights/correction.py`). settings: of the algorithm.
    """

    node: str
    index: int
    value: str
    spec: QSpec
    algorithm: str
    outliers: float = 0.0
    low_rank: int = 0
    settings: tuple[tuple[str, Setting], ...] = ()


@dataclass(frozen=True)
class BiasPlan:
    """An int32 bias: scale = scale of `act` · scale of the node's weight, zero point 0."""

    node: str
    index: int
    value: str
    act: str


@dataclass(frozen=True)
class SplitPlan:
    """Channels of a value that linear layers read in several parts each; see `edgeq/planning/outliers.py`."""

    value: str
    channels: tuple[int, ...]
    parts: tuple[int, ...]
    readers: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """warnings: what can be foreseen to go wrong on the target, a line a layer."""

    target: str
    method: Method
    nodes: tuple[NodePlan, ...]
    values: tuple[ValuePlan, ...] = ()
    weights: tuple[WeightPlan, ...] = ()
    biases: tuple[BiasPlan, ...] = ()
    warnings: tuple[str, ...] = ()
    splits: tuple[SplitPlan, ...] = ()

    def observed(self) -> list[ValuePlan]:
        """The values whose statistics the plan needs, one a group."""
        return [v for v in self.values if v.name == v.group and v.fixed is None]

    def alone(self) -> set[str]:
        """The values that share their parameters with no other."""
        sizes = Counter(value.group for value in self.values)
        return {value.name for value in self.values if sizes[value.group] == 1}

    def decided(self, decision: str) -> set[str]:
        """The names of the nodes that become that."""
        return {n.name for n in self.nodes if n.decision == decision}

    def counts(self) -> dict[str, int]:
        out: dict[str, int] = {}
        for node in self.nodes:
            out[node.decision] = out.get(node.decision, 0) + 1
        return out


def walk(graph: ir.Graph, body: str = "") -> Iterator[tuple[ir.Node, str]]:
    """Nodes, each followed by its subgraphs' nodes, with the op (Loop, Scan …) in whose body they are.

    The bodies of If are not counted as such: they run at most once a sample and can be calibrated.
    """
    for node in graph:
        yield node, body
        inside = body or ("" if node.op_type == "If" else node.op_type)
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield from walk(attribute.as_graph(), inside)
            elif attribute.type == ir.AttributeType.GRAPHS:
                for sub in attribute.as_graphs():
                    yield from walk(sub, inside)


def weight_axis(node: ir.Node, per: str) -> int:
    """The axis of a weight's output channels (of a table's rows), or for blocks the axis that is summed over."""
    weight = node.inputs[WEIGHT_INDEX[node.op_type]]
    dims = len(weight.shape) if weight is not None and weight.shape is not None else 2
    match node.op_type:
        case "Conv":
            channel, summed = 0, 1
        case "ConvTranspose":
            channel, summed = 1, 0
        case "Gemm":
            channel, summed = (0, 1) if node.attributes.get_int("transB", 0) else (1, 0)
        case "LSTM" | "GRU" | "RNN":  # (directions, gates·hidden, input)
            channel, summed = 1, 2
        case "Gather":  # (rows, features)
            channel, summed = 0, 1
        case _:
            channel, summed = dims - 1, dims - 2
    return summed if per == "block" else channel
