"""Make the plan of a prepared model. Nothing is changed; `edgeq plan` prints what this returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import onnx_ir as ir

from edgeq.errors import ModelError, RecipeError, TargetError
from edgeq.graph.edit import is_constant
from edgeq.graph.shapes import free_input
from edgeq.planning import islands, saturation
from edgeq.planning.alone import alone
from edgeq.planning.eligible import ALREADY, FLOATS, Context
from edgeq.planning.plan import (
    DYNAMIC,
    FLOAT,
    FOLDED,
    HALVES,
    INTEGER,
    PACKED,
    STORED,
    WEIGHT_INDEX,
    NodePlan,
    Plan,
    WeightPlan,
    walk,
)
from edgeq.recipe import Recipe
from edgeq.target import Method, Target


def plan(model: ir.Model, target: Target, recipe: Recipe, excluded: Mapping[str, str] | None = None) -> Plan:
    """The plan. `excluded`: node name → reason, nodes that must stay float.

    Raises TargetError when this target can't have the model by the recipe's method, RecipeError for an unknown type,
    ModelError when the model is quantized already and nothing is left to do.
    """
    check(model, target, recipe)
    for row in recipe.rule:
        if row.method is not None:
            check_method(target, row.method, recipe)
        for named in (row.act_type, row.weight_type):
            if named is not None and named not in target.types:
                raise RecipeError(f"type {named!r} is not one of {target.name}'s: choose {', '.join(target.types)}")
    context = Context(target, recipe, dict(excluded or {}))
    made = islands.place(model, context) if recipe.method == "static" else one_by_one(model, context)
    done = next((n for n in made.nodes if n.reason == ALREADY), None)
    if done is not None and not any(n.decision in (INTEGER, DYNAMIC, STORED, PACKED) for n in made.nodes):
        raise ModelError(
            f"this model {ALREADY} (node {done.name!r}, {done.op}): give the float one that it was made of"
        )
    if target.whole:
        refuse_floats(model, made)
    return replace(made, warnings=tuple(saturation.planned(model, made))) if target.saturates else made


def refuse_floats(model: ir.Model, made: Plan) -> None:
    """Raises TargetError that names the first nodes that would stay float, with the reasons."""
    decisions = {n.name: n for n in made.nodes}
    left = [
        decisions[node.name or ""]
        for node, _ in walk(model.graph)
        if decisions[node.name or ""].decision not in (INTEGER, FOLDED) and any(v.dtype in FLOATS for v in node.outputs)
    ]
    if left:
        first = "; ".join(f"{n.op} {n.name!r}: {n.reason}" for n in left[:3])
        more = f" and {len(left) - 3} more" if len(left) > 3 else ""
        raise TargetError("integers only", f"{first}{more}", "leave out --integer-only, or take them out of the model")


def check(model: ir.Model, target: Target, recipe: Recipe) -> None:
    """Raises TargetError when the target refuses the method, has no rule for it, or lacks the shapes it wants."""
    check_method(target, recipe.method)
    free = free_input(model) if target.static_shapes else None
    if free is not None:
        name, dims = free
        example = ",".join(d if d.isdigit() else "1" for d in dims)
        raise TargetError(
            target.name,
            f"it takes fixed shapes only, and input {name!r} has [{', '.join(dims)}]",
            f"give one, such as --shape {name}={example}",
        )


def check_method(target: Target, method: Method, among: Recipe | None = None) -> None:
    """Raises TargetError when the target has no such method, RecipeError for one of a rule in `among` that can't be."""
    methods = sorted({rule.method for rule in target.rule})
    if method not in methods:
        why = target.refuse_method.get(method, f"it has no {method} quantization")
        raise TargetError(target.name, why, f"choose {' or '.join(methods)}")
    if among is not None and (among.method != "static" or target.format != "onnx"):
        raise RecipeError(f"a rule's method ({method}) is for static recipes of ONNX targets: leave it out")


def one_by_one(model: ir.Model, context: Context) -> Plan:
    """Each node on its own account: nothing is calibrated, so neighbours and loop bodies don't matter."""
    nodes: list[NodePlan] = []
    weights: list[WeightPlan] = []
    for node, _ in walk(model.graph):
        rule, why = context.rule(node)
        decision = FLOAT
        if rule is not None:
            decision, why, stored = alone(node, rule, model, context)
            weights += stored
        nodes.append(NodePlan(node.name or "", node.op_type, decision, why))
    if context.recipe.method in HALVES:
        nodes = keep_wide(model, nodes)
    return Plan(context.target.name, context.recipe.method, tuple(nodes), weights=tuple(weights))


def keep_wide(model: ir.Model, rows: list[NodePlan]) -> list[NodePlan]:
    """What lies between float32 operators and a linear layer or a half-precision value stays float32 too.

    Behind them, what reads nothing else: a mean of squares may be beyond float16 where its root is not. Before them,
    what nothing else reads: it would be too late to round after it. Linear layers, which this is all for, end both.
    """
    found = {row.name: row for row in rows}

    def widen(node: ir.Node, others: list[ir.Node], why: str) -> None:
        row = found[node.name or ""]
        wide = [found[other.name or ""].decision == FLOAT for other in others]
        if row.decision in HALVES.values() and node.op_type not in WEIGHT_INDEX and wide and all(wide):
            found[row.name] = NodePlan(row.name, node.op_type, FLOAT, why)

    for node in model.graph:
        varying = [v for v in node.inputs if v is not None and v.dtype in FLOATS and not is_constant(v)]
        sources = [source for v in varying if (source := v.producer()) is not None]
        if len(sources) == len(varying):
            widen(node, sources, "it reads float32 operators alone")
    for node in reversed(model.graph):
        if not any(value.is_graph_output() for value in node.outputs):
            widen(node, [u.node for value in node.outputs for u in value.uses()], "float32 operators alone read it")
    return [found[row.name] for row in rows]
