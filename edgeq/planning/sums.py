"""Scales of integer additions, chosen so that no sum lies half-way between two codes.

Runtimes add codes as c = round(a·sa/sc + b·sb/sc) + z, and each has its own arithmetic (float32 with or without fused
multiply-add, or fixed point of 22 bits) and its own rule for halves; about one sum in ten thousand comes out a code
apart. With sa/sc = i/D and sb/sc = j/D for an odd D, a half would need 2(i·a + j·b) = D(2n + 1), an even number equal
to an odd one: every sum is at least 1/(2D) from a half, further than any of these arithmetics is off.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgeq.graph.edit import all_graphs
from edgeq.planning.plan import FOLDED, INTEGER, Plan
from edgeq.types import QParams

DENOMINATOR = 1023  # 1/(2D) is 4.9e-4; fixed point of 22 bits is off by at most 2.4e-4, float32 by 6e-5
LEAST = 32  # numerator: a smaller one would move a scale by more than 3 %


def tie_free(plan: Plan, model: ir.Model, groups: Mapping[str, QParams]) -> dict[str, QParams]:
    """`groups` with the scales of what 8-bit additions read made multiples of their result's scale over D.

    Scales grow, by 1/LEAST at most, so that ranges stay covered; behind a folded Clip, whose range they must not
    leave, they shrink. A group that two additions read fits the later one. Fixed scales stay.
    """
    group_of = {v.name: v.group for v in plan.values}
    decisions = {n.name: n.decision for n in plan.nodes}
    settled = {v.group for v in plan.values if v.fixed is not None or v.spec.bits != 8}
    nodes = [node for graph in all_graphs(model) for node in graph]
    clipped = {group_of.get(node.outputs[0].name or "") for node in nodes if node.op_type == "Clip"}
    found = dict(groups)
    for node in reversed(nodes):
        if node.op_type != "Add" or decisions.get(node.name or "") != INTEGER:
            continue
        folded = [u.node for u in node.outputs[0].uses() if decisions.get(u.node.name or "") == FOLDED]
        total = group_of.get((folded[0] if folded else node).outputs[0].name or "")
        if total not in found:
            continue
        for value in node.inputs:
            group = group_of.get(value.name or "") if value is not None else None
            if group in found and group != total and group not in settled:
                scale = tie_free_scale(found[group].scale, found[total].scale, up=group not in clipped)
                found[group] = replace(found[group], scale=scale)
                settled.add(group)
        settled.add(total)
    return found


def tie_free_scale(scale: np.ndarray, total: np.ndarray, up: bool = True) -> np.ndarray:
    """The multiple of `total` / D next to `scale`, above or below it; `scale` itself where that is far. float32."""
    ratio = np.float64(scale) / np.float64(total) * DENOMINATOR
    count = np.ceil(ratio * (1 - 1e-7)) if up else np.floor(ratio * (1 + 1e-7))
    return np.where(count >= LEAST, count / DENOMINATOR * np.float64(total), scale).astype(np.float32)
