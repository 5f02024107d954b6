"""Compute in bfloat16 what the plan says: the range of float32, with the 8 leading bits of its numbers."""

from __future__ import annotations

import onnx_ir as ir

from edgeq.passes.float16 import narrow
from edgeq.planning.plan import HALVES, Plan
from edgeq.target import Target
from edgeq.types import Solution


def apply(model: ir.Model, plan: Plan, solution: Solution, target: Target) -> ir.Model:
    """Rewrite in place every node that the plan gives bfloat16, and return the model."""
    return narrow(model, plan.decided(HALVES["bfloat16"]), ir.DataType.BFLOAT16)
