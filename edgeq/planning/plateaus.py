"""Ranges that end where nothing reads on: behind a plateau of HardSwish, Relu, Sigmoid … all values are the same.

What is saturated there costs nothing, so a range stops at the edge, and its steps are the finer. The edge itself has to
have a code, or else one behind it: a range that ended just before would turn what lies on the plateau into values next
to it, all with the same sign.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgeq.calibrate.summary import Summary
from edgeq.graph.edit import all_graphs, constant, values_of
from edgeq.numerics.affine import qparams, reach
from edgeq.planning.plan import Plan, ValuePlan
from edgeq.registry import load
from edgeq.types import QParams, Range

SIGMOID, TANH = 6.24, 3.47
"""Where they are within 1/512 of their limits: half a step of 8 bits of sigmoid, a quarter of tanh."""

EVERYWHERE = Range(-np.inf, np.inf)


def limited(plan: Plan, model: ir.Model, summaries: Mapping[str, Summary]) -> dict[str, Summary]:
    """The summaries of values that all their readers see within limits, with these as `flat`; the others as they are.

    Values that share parameters with others are left alone: what is flat for one may not be for another.
    """
    known = {v.name: v for graph in all_graphs(model) for v in values_of(graph)}
    alone = plan.alone()
    found = dict(summaries)
    for value in plan.observed():
        summary, seen = summaries.get(value.name), known.get(value.name)
        if summary is None or seen is None or value.name not in alone or (value.everyone and seen.is_graph_output()):
            continue
        uses = [use for use in seen.uses() if value.everyone or use.node.name in value.readers]
        flat = _within(window(use.node) if use.idx == 0 else EVERYWHERE for use in uses)
        if flat != EVERYWHERE:
            summary.settle()
            found[value.name] = replace(summary, flat=flat)
    return found


def window(node: ir.Node) -> Range:
    """Where the node's result depends on its first input: it is flat, or all but flat, on either side."""
    if node.domain != "":
        return EVERYWHERE
    match node.op_type:
        case "Relu":
            return Range(0.0, np.inf)
        case "HardSwish":
            return Range(-3.0, np.inf)
        case "HardSigmoid":
            alpha, beta = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
            return Range(-beta / alpha, (1 - beta) / alpha) if alpha > 0 and 0 <= beta <= 1 else EVERYWHERE
        case "Sigmoid":
            return Range(-SIGMOID, SIGMOID)
        case "Tanh":
            return Range(-TANH, TANH)
        case "Clip":
            low, high = (constant(v) if v is not None else None for v in (*node.inputs[1:3], None, None)[:2])
            lo = -np.inf if low is None else float(low)
            hi = np.inf if high is None else float(high)
            return Range(lo, hi) if lo <= 0 <= hi else EVERYWHERE
    return EVERYWHERE


def _within(windows: Iterable[Range]) -> Range:
    """The least range that holds all of them; of none, everywhere."""
    held = list(windows)
    return Range(min(r.lo for r in held), max(r.hi for r in held)) if held else EVERYWHERE


def chosen(summary: Summary, value: ValuePlan) -> QParams:
    """The numbers for the range that the value's calibrator chooses.

    Where that ends on a plateau's edge and rounding the zero point left the edge without a code at or behind it, the
    scale grows until there is one: by less than a step over the range.
    """
    picked = load("edgeq.calibrate", value.calibrator, "choose").choose(summary, value.spec)
    found = qparams(picked.lo, picked.hi, value.spec)
    if summary.flat is None:
        return found
    grown = 1.0
    for picked_end, edge, end in zip(
        (picked.lo, picked.hi), (summary.flat.lo, summary.flat.hi), reach(found), strict=True
    ):
        if picked_end == edge and end and edge / end > grown:
            grown = edge / end
    scale = np.float32(found.scale) * np.float32(grown)
    return replace(found, scale=np.asarray(np.nextafter(scale, np.float32(np.inf)) if grown > 1 else scale))
