"""What the report keeps of the way to the artifact: the planned graph, and the ranges that calibration chose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeq.calibrate.summary import Summary
from edgeq.numerics.affine import reach
from edgeq.planning.plan import Plan, walk
from edgeq.report.schema import ActivationRange, DrawnNode, Sensitivity
from edgeq.types import QParams

BINS = 32


@dataclass(frozen=True)
class Evidence:
    """graph, ranges: see `Report`. calibration: what to say of the data. warnings: what to beware of in it.
    compiled: figures of the target's compiler. sensitivity: see `Report`.
    """

    graph: tuple[DrawnNode, ...]
    ranges: tuple[ActivationRange, ...]
    calibration: dict[str, Any]
    warnings: tuple[str, ...] = ()
    compiled: dict[str, Any] = field(default_factory=dict)
    sensitivity: tuple[Sensitivity, ...] = ()


def drawn(model: ir.Model, plan: Plan) -> tuple[DrawnNode, ...]:
    """The nodes of the main graph in order, with what the plan decided; those of bodies belong to their node."""
    decided = {node.name: node for node in plan.nodes}
    index: dict[ir.Node, int] = {}
    found: list[DrawnNode] = []
    for node, _ in walk(model.graph):
        if node.graph is not model.graph:
            continue
        reads = sorted({index[p] for v in node.inputs if v is not None and (p := v.producer()) in index})
        made = decided[node.name or ""]
        index[node] = len(found)
        found.append(DrawnNode(made.name, made.op, made.decision, made.reason, tuple(reads)))
    return tuple(found)


def ranges(plan: Plan, summaries: Mapping[str, Summary], groups: Mapping[str, QParams]) -> tuple[ActivationRange, ...]:
    """A row for each group of values that was observed and has a per-tensor scale."""
    return tuple(
        _range(value.name, summaries[value.name], groups[value.name])
        for value in plan.observed()
        if value.name in summaries and value.name in groups and groups[value.name].scale.size == 1
    )


def _range(name: str, summary: Summary, params: QParams) -> ActivationRange:
    seen = summary.bounds()
    scale, zero = float(params.scale), int(params.zero_point)
    low, high = reach(params)
    counts: tuple[int, ...] = ()
    clipped = 0.0
    mass = summary.mass()
    if mass is not None:
        width = (seen.hi - seen.lo) / BINS
        bins = np.clip((mass.centers - seen.lo) / width, 0, BINS - 1).astype(np.intp)
        counts = tuple(int(c) for c in np.bincount(bins, mass.counts, BINS))
        clipped = mass.outside(low, high, scale / 2)
    return ActivationRange(name, params.spec.dtype, scale, zero, seen.lo, seen.hi, low, high, clipped, counts)
