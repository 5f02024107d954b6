"""Did onnxruntime make integer kernels of it? The planned coverage, held against the graph that it really runs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from edgeq.graph import io
from edgeq.graph.edit import all_graphs
from edgeq.planning.eligible import attribute_of
from edgeq.planning.plan import DATA_INPUTS
from edgeq.runners import cpu
from edgeq.target import Target

FLOAT_FORMS = {
    "Conv": {"Conv", "FusedConv", "NhwcFusedConv"},
    "Gemm": {"Gemm", "FusedGemm", "MatMul", "FusedMatMul"},
    "MatMul": {"MatMul", "FusedMatMul", "Gemm", "FusedGemm"},
}
ALL_FLOAT_FORMS = set().union(*FLOAT_FORMS.values())


@dataclass(frozen=True)
class Placement:
    """kernels: op type → count in the graph that onnxruntime runs. float: nodes meant as integer that are not."""

    kernels: dict[str, int]
    float: tuple[str, ...]


def placement(model: Path, target: Target, optimized: ir.Model | None = None) -> Placement:
    """Optimize the artifact as a session would, and name each quantized node that is still a float kernel.

    optimized: the graph that another onnxruntime made of it; by default this machine's.
    """
    optimized = optimized or cpu.optimized(model, config=dict(target.session_config))
    kernels: Counter[str] = Counter()
    by_name: dict[str, str] = {}
    for graph in all_graphs(optimized):
        for node in graph:
            kernels[node.op_type] += 1
            # Operators that only move codes keep their name: they are float when their input was dequantized.
            moves = bool(node.inputs) and node.inputs[0] is not None and _op(node.inputs[0]) != "DequantizeLinear"
            kind = f"{node.op_type} of codes" if moves and node.op_type not in ALL_FLOAT_FORMS else node.op_type
            by_name[node.name or ""] = kind
            for output in node.outputs:
                by_name.setdefault(f"output {output.name}", kind)
            # A node that took others in (MatMul and Add became a Gemm) has neither name; it still reads the weight.
            if node.op_type in ALL_FLOAT_FORMS and len(node.inputs) > 1 and node.inputs[1] is not None:
                by_name.setdefault(f"weight {node.inputs[1].name}", kind)
    wrong = []
    for node in quantized_nodes(io.load(model), target):
        forms = FLOAT_FORMS.get(node.op_type, {node.op_type})
        names = [node.name or "", f"output {node.outputs[0].name}"]
        names += [f"weight {node.inputs[1].name}"] if len(node.inputs) > 1 and node.inputs[1] is not None else []
        seen = next((by_name[name] for name in names if name in by_name), "")
        if seen in forms:
            wrong.append(node.name or "")
    return Placement(dict(sorted(kernels.items())), tuple(wrong))


def quantized_nodes(model: ir.Model, target: Target) -> list[ir.Node]:
    """Nodes that stand between DequantizeLinear and QuantizeLinear and that the target has an integer kernel for."""
    found = []
    for graph in all_graphs(model):
        for node in graph:
            rule = target.find(node.op_type, "static")
            if rule is None or rule.role == "bridge" or node.domain != "" or not node.inputs:
                continue
            if any(attribute_of(node, name) != wanted for name, wanted in rule.only.items()):
                continue
            # A file without value_info leaves types unknown; those count as float.
            reads = [
                v
                for v in node.inputs[: DATA_INPUTS.get(node.op_type)]
                if v is not None and v.dtype in (None, ir.DataType.FLOAT)
            ]
            if not reads or any(_op(v) != "DequantizeLinear" for v in reads[: 2 if rule.role == "compute" else None]):
                continue
            ends = [u.node.op_type for v in node.outputs for u in v.uses()]
            codes = bool(ends) and all(e in ("QuantizeLinear", *rule.folds) for e in ends)
            if rule.role == "compute" or codes:
                found.append(node)
    return found


def _op(value: ir.Value) -> str:
    producer = value.producer()
    return producer.op_type if producer is not None else ""
