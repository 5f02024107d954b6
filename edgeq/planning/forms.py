"""In which form a weight of codebook levels goes into the graph: by a kernel that takes its codes, or looked up.

A target's `kernels` say which codes its runtime has an operator for. What is left, or has a shape that the operator
doesn't take, is looked up: its codes lie packed in bytes, and Gather finds each code's level.
"""

from __future__ import annotations

from collections.abc import Callable

from edgeq.planning.eligible import STORES
from edgeq.planning.plan import PACKED, STORED, WeightPlan
from edgeq.target import Target
from edgeq.types import PerBlock, PerChannel, QSpec

LOOKED_UP = "Gather"
BNB4_BLOCKS = (16, 32, 64, 128, 256)
Shape = tuple[int, ...]


def bnb4_block(op: str, shape: Shape, spec: QSpec) -> int | None:
    """MatMulBnb4's block for a weight, whose scales lie along whole rows of its features; None where it has none."""
    if op not in ("MatMul", "Gemm") or len(shape) != 2:
        return None
    match spec.granularity:
        case PerBlock(axis, size):
            return size if size in BNB4_BLOCKS and shape[axis] % size == 0 else None
        case PerChannel(axis):
            length = shape[1 - axis % 2]
            size = min(length & -length, BNB4_BLOCKS[-1])  # the greatest power of two that divides it
            return size if size in BNB4_BLOCKS else None
    return None


def _dequantizes(op: str, shape: Shape, spec: QSpec) -> bool:
    granularity = spec.granularity
    whole = not isinstance(granularity, PerBlock) or shape[granularity.axis] % granularity.size == 0
    return op != "Gather" and whole


TAKES: dict[str, Callable[[str, Shape, QSpec], bool]] = {
    "MatMulBnb4": lambda op, shape, spec: bnb4_block(op, shape, spec) is not None,
    "DequantizeLinear": _dequantizes,
}
"""Operator → does it take a weight of that shape and spec from a node of that operator?"""

REASONS = {
    "MatMulBnb4": "",
    "DequantizeLinear": "float, on weights stored as float8 (dequantized in each run)",
    LOOKED_UP: "float, on weights looked up by their codes (once, when the session opens): a smaller file, no faster",
}


def kernel(code: str, op: str, shape: Shape, spec: QSpec, target: Target) -> str:
    """The operator that takes a weight's codes, or `LOOKED_UP`."""
    wanted = target.kernels.get(code, LOOKED_UP)
    return wanted if wanted in TAKES and TAKES[wanted](op, shape, spec) else LOOKED_UP


def placed(op: str, weight: WeightPlan, shape: Shape, target: Target) -> tuple[str, str]:
    """What becomes of a node with such a weight, and why it is no more than that."""
    if op == "Gather":
        return PACKED, STORES["table"]
    found = kernel(weight.algorithm, op, shape, weight.spec, target)
    return (PACKED if found == "MatMulBnb4" else STORED), REASONS[found]
