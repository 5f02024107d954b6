"""Mixed precision: which nodes are worth their multiply-accumulates in a wider type."""

from __future__ import annotations

from collections.abc import Sequence

from edgeq.report.schema import Sensitivity
from edgeq.search.knapsack import choose

NODE = 2.5e-4  # of all multiply-accumulates: what a node costs beside its own, for conversions around it
LEAST, PARTS = 1 / 512, 10_000


def mixes(rows: Sequence[Sensitivity], most: float) -> list[tuple[str, ...]]:
    """Nodes to be given a wider type, few first: for a budget of `most`, of half of it, a quarter …, each the set that
    takes the greatest sum of errors out of the model.

        argmax over sets S of Σ error_i, i ∈ S,   Σ (macs_i / macs + NODE) ≤ budget

    most: share of the multiply-accumulates. Errors are taken to add up, as independent rounding noise does.
    """
    total = max(sum(row.macs for row in rows), 1)
    sizes = [[1, 2 + int(PARTS * (row.macs / total + NODE))] for row in rows]
    found: list[tuple[str, ...]] = []
    while rows and most >= LEAST:
        picked = choose(sizes, [[row.error, 0.0] for row in rows], len(rows) + int(PARTS * most))
        names = tuple(row.name for row, wide in zip(rows, picked, strict=True) if wide)
        if names and names not in found:
            found.append(names)
        most /= 2
    return found[::-1]
