"""Which elementwise operators are worth their rounding: decided by what it would cost, from statistics alone."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from edgeq.calibrate.summary import Summary
from edgeq.numerics.affine import fake_quantize
from edgeq.numerics.metrics import ratio_db
from edgeq.planning.plan import INTEGER, Plan, ValuePlan, walk
from edgeq.planning.plateaus import chosen
from edgeq.recipe import Recipe
from edgeq.target import Target


def costly_joins(
    made: Plan, model: ir.Model, target: Target, recipe: Recipe, summaries: Mapping[str, Summary]
) -> dict[str, str]:
    """Node name → reason, for `join` nodes whose rounded output would read under `elementwise_sqnr` dB.

    SQNR = 10 log10(E[x²] / E[(x - x')²]) over the histogram of the output, with the range that would be used. An
    output without a histogram is not judged. Nothing is excluded unless the recipe's `elementwise` is `auto`.
    """
    if recipe.elementwise != "auto":
        return {}
    values = {v.name: v for v in made.values}
    decisions = {n.name: n.decision for n in made.nodes}
    costly: dict[str, str] = {}
    for node, _ in walk(model.graph):
        rule = target.find(node.op_type, recipe.method)
        if rule is None or rule.role != "join" or decisions.get(node.name or "") != INTEGER:
            continue
        for out in node.outputs:
            value = values.get(out.name or "")
            summary = summaries.get(value.group) if value is not None else None
            if value is None or summary is None:
                continue
            db = expected_sqnr(summary, value)
            if db < recipe.elementwise_sqnr:
                costly[node.name or ""] = f"rounding its output would leave {db:.1f} dB"
    return costly


def expected_sqnr(summary: Summary, value: ValuePlan) -> float:
    """dB; inf when the summary has no histogram to judge by."""
    mass = summary.mass()
    if mass is None:
        return float("inf")
    rounded = fake_quantize(mass.centers.astype(np.float32), chosen(summary, value))
    noise = (mass.centers - rounded) ** 2 @ mass.counts
    return float(ratio_db(mass.centers**2 @ mass.counts, noise))
