"""The range of least mean |quantization error|**p: above p = 2 it clips less than mse does.

The norm 2.4 is that of the scale search in the published code of BRECQ (Li et al., 2021).
"""

from __future__ import annotations

from edgeq.calibrate._search import search
from edgeq.calibrate.summary import Summary
from edgeq.errors import RecipeError
from edgeq.types import QSpec, Range

NEEDS = frozenset({"extrema", "histogram"})


def choose(summary: Summary, spec: QSpec, p: float = 2.4) -> Range:
    """argmin over ranges of E[|x - x'|**p]. Raises RecipeError unless 0.5 <= p <= 8."""
    if not 0.5 <= p <= 8:
        raise RecipeError(f"norm p = {p} of calibrator lp is not within 0.5 to 8")
    return search(summary, spec, p)
