"""The range of least mean squared quantization error, both ends searched for asymmetric types."""

from __future__ import annotations

from edgeq.calibrate._search import search
from edgeq.calibrate.summary import Summary
from edgeq.types import QSpec, Range

NEEDS = frozenset({"extrema", "histogram"})


def choose(summary: Summary, spec: QSpec) -> Range:
    """argmin over ranges of E[(x - x')²], clipping and rounding together."""
    return search(summary, spec, 2.0)
