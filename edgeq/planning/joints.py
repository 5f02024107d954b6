"""Ranges of concatenations: what each input's own range kept is not clipped anew.

The range of least error over all channels of a Concat together clips what it takes for rare. That may be much of the
one input that reaches farthest, and layers behind it feel it more than rounding: what is clipped in many neighbouring
places does not average out. Each input's range has been weighed against that input's own values already, so the
result's is made to hold them all.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from edgeq.graph.edit import all_graphs
from edgeq.numerics.affine import qparams, reach, within
from edgeq.planning.plan import INTEGER, Plan
from edgeq.types import QParams


def wide_joints(plan: Plan, model: ir.Model, groups: Mapping[str, QParams]) -> dict[str, QParams]:
    """`groups` with the ranges of what integer Concats give widened to those of their inputs. Fixed scales stay."""
    values, integer, found = {v.name: v for v in plan.values}, plan.decided(INTEGER), dict(groups)
    for node in (node for graph in all_graphs(model) for node in graph):
        out = values.get(node.outputs[0].name or "") if node.op_type == "Concat" and node.name in integer else None
        if out is None or out.group not in found or out.fixed is not None:
            continue
        parts = [values[v.name or ""].group for v in node.inputs if v is not None and v.name in values]
        low, high = reach(found[out.group])
        ends = [reach(found[part]) for part in parts if part in found and part != out.group]
        lowest, highest = min([low, *(e[0] for e in ends)]), max([high, *(e[1] for e in ends)])
        slack = float(found[out.group].scale) / 2  # a zero point is a whole code
        if lowest < low - slack or highest > high + slack:
            found[out.group] = within(qparams(lowest, highest, out.spec), *out.bounds)
    return found
