"""Which channels of a linear layer's input lie so far out that they would cost all others their resolution.

Such a channel c is split into n_c parts, each with the channel's row of the weight, so that the range need only hold
the rest, and the codes of the parts sum up to the code that x_c has at the finer step s:

    Σ_k x_k W_k = Σ_{k not split} x_k W_k + Σ_{c split} Σ_{i < n_c} part_i W_c
    part_i = x_c / n_c + s (2i - n_c + 1) / (2 n_c)          Σ_i round(part_i / s) = floor(x_c / s + 1/2)

The sum is Hermite's identity. (Outlier channel splitting, Zhao et al. 2019, "Improving Neural Network Quantization
without Retraining using Outlier Channel Splitting", section 3.3: quantization-aware splitting of a weight in two; here
of activations, in n.) `passes/split_outliers.py` writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgeq.calibrate.summary import Summary
from edgeq.graph.edit import all_graphs
from edgeq.planning.costs import expected_sqnr
from edgeq.planning.plan import INTEGER, Plan, SplitPlan, ValuePlan
from edgeq.recipe import Recipe
from edgeq.registry import load
from edgeq.target import Target
from edgeq.types import Range

SHARE = 32  # at most one more column for so many: 3 % more multiplications
WORTH = 3.0  # dB that a split must gain: half of the noise


def splittable(made: Plan, model: ir.Model, target: Target) -> list[str]:
    """Values that only linear layers on integers read, and whose rules in the target allow `split`."""
    nodes = {n.name or "": n for graph in all_graphs(model) for n in graph}
    integer = made.decided(INTEGER)
    weights = {w.node: w for w in made.weights if w.index == 1}
    alone = made.alone()
    found: list[str] = []
    for value in made.values:
        if value.everyone or value.fixed is not None or value.name not in alone or not value.readers:
            continue
        fits = (
            node.name in integer
            and (rule := target.find(node.op_type, "static")) is not None
            and rule.split
            and (weight := weights.get(node.name or "")) is not None
            and weight.spec.bits == 8
            and len(node.inputs[1].shape) == 2  # type: ignore[union-attr, arg-type]
            for node in (nodes[name] for name in value.readers)
        )
        if all(fits):
            found.append(value.name)
    return found


def split_outliers(
    made: Plan, model: ir.Model, target: Target, recipe: Recipe, summaries: Mapping[str, Summary]
) -> tuple[Plan, Mapping[str, Summary]]:
    """The plan with its splits, and the summaries with the ranges of what is split limited to the other channels.

    Judged are the values whose rounding would leave less than the recipe's `outlier_sqnr` dB (see
    `costs.expected_sqnr`), and of which the summary has the extrema of each channel.
    """
    splits: list[SplitPlan] = []
    limited, reasons = dict(summaries), dict[str, str]()
    values = {v.name: v for v in made.values}
    for name in splittable(made, model, target):
        summary, value = summaries.get(name), values[name]
        if summary is None or summary.extrema.channel_lo is None or summary.extrema.channel_hi is None:
            continue
        if expected_sqnr(summary, value) >= recipe.outlier_sqnr:
            continue
        lo, hi = summary.extrema.channel_lo, summary.extrema.channel_hi
        found = outlying(lo, hi, len(lo) // SHARE)
        if found is None:
            continue
        channels, limit = found
        limited[name] = replace(summary, limit=limit)
        parts = _parts(lo[channels], hi[channels], _chosen(limited[name], value))
        if parts.sum() > 2 * (len(lo) // SHARE):  # a calibrator that clips most of a side
            limited[name] = summary
            continue
        splits.append(SplitPlan(name, tuple(map(int, channels)), tuple(map(int, parts)), value.readers))
        why = f"{len(channels)} outlying channels of its input are split into {int(parts.sum())}"
        reasons |= dict.fromkeys(value.readers, why)
    nodes = tuple(replace(n, reason=reasons[n.name]) if n.name in reasons else n for n in made.nodes)
    return replace(made, nodes=nodes, splits=tuple(splits)), limited


def outlying(lo: np.ndarray, hi: np.ndarray, columns: int) -> tuple[np.ndarray, Range] | None:
    """(channels to split, range of all others), or None when no split is worth it.

    lo, hi: extrema of each of K channels. The farthest k are split: as many as can be in `columns` parts, for every one
    makes the range no wider.
    """
    lo, hi = np.minimum(lo, 0.0), np.maximum(hi, 0.0)
    order = np.argsort(-np.maximum(-lo, hi), kind="stable")
    best, narrowest = None, np.inf
    for k in range(1, min(columns, len(lo) - 1) + 1):
        split, rest = order[:k], order[k:]
        kept = Range(float(lo[rest].min()), float(hi[rest].max()))
        width = kept.hi - kept.lo
        if _parts(lo[split], hi[split], kept).sum() <= columns and width < narrowest:
            best, narrowest = (np.sort(split), kept), width
    if best is None or narrowest == 0 or 20 * np.log10((hi.max() - lo.min()) / narrowest) < WORTH:
        return None
    return best


def _parts(lo: np.ndarray, hi: np.ndarray, kept: Range) -> np.ndarray:
    """How many parts each channel needs for them to stay in `kept`; inf where that has no such side."""
    with np.errstate(divide="ignore", invalid="ignore"):
        sides = [np.where(far > 0, far / max(near, 0.0), 0.0) for far, near in ((hi, kept.hi), (-lo, -kept.lo))]
    return np.maximum(np.ceil(np.maximum(*sides) * (1 - 1e-6)), 1.0)


def _chosen(summary: Summary, value: ValuePlan) -> Range:
    found: Range = load("edgeq.calibrate", value.calibrator, "choose").choose(summary, value.spec)
    return found
