"""What a node becomes on its own account, by a method that joins it to no neighbour: its ends stay float."""

from __future__ import annotations

import onnx_ir as ir

from edgeq.graph.folding import linear, unfolded
from edgeq.planning import forms
from edgeq.planning.eligible import STORES, Context, encoder_of, half_problem, table_problem, weight_problem
from edgeq.planning.plan import DYNAMIC, FLOAT, HALVES, PACKED, STORED, WeightPlan
from edgeq.target import Rule
from edgeq.weights import algorithm

DECISIONS = {"packed": PACKED, **dict.fromkeys(STORES, STORED)}
"""By the role of a rule; any other makes a node dynamic."""


def alone(node: ir.Node, rule: Rule, model: ir.Model, context: Context) -> tuple[str, str, list[WeightPlan]]:
    """The decision, the reason why it is no more, and the weights that go with it."""
    if why := _problem(node, rule, model):
        return FLOAT, why, []
    if rule.role == "half":
        return HALVES[rule.method], "", []
    decision = DECISIONS.get(rule.role, DYNAMIC)
    weights = context.weights(node, rule)
    why = STORES.get(rule.role, "")
    if encoder_of(weights[0].algorithm):
        shape = node.inputs[weights[0].index].const_value.shape  # type: ignore[union-attr]
        decision, why = forms.placed(node.op_type, weights[0], tuple(shape.numpy()), context.target)
    elif decision == PACKED and linear(node) and hasattr(algorithm(weights[0].algorithm), "input_scale"):
        kept = unfolded(node, model)
        why = f"{weights[0].algorithm} leaves its input as it is: {kept}" if kept else ""
    return decision, why, weights


def _problem(node: ir.Node, rule: Rule, model: ir.Model) -> str:
    """Why a node can't have what its rule offers, or nothing."""
    if rule.role == "half":
        return half_problem(node, model, rule.method)
    return table_problem(node) if node.op_type == "Gather" else weight_problem(node, rule)
