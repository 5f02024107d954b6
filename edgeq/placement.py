"""Which elementwise operators are worth their rounding: decided by what it would cost, from statistics alone."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from edgeq.calibrate.summary import Summary
from edgeq.plan import Plan
from edgeq.recipe import Recipe


def costly_joins(made: Plan, model: ir.Model, summaries: Mapping[str, Summary], recipe: Recipe) -> dict[str, str]:
    """Node name → reason, for `join` nodes whose output would lose too much."""
    return {}
