"""One option for each item, so that the total cost is least and the total size within a budget.

The multiple-choice knapsack problem (Kellerer, Pferschy and Pisinger, "Knapsack Problems", 2004, chapter 11), solved
exactly by dynamic programming over the size; sizes are first rounded up to units, so a solution always fits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeq.errors import RecipeError

UNITS = 20_000


def choose(sizes: Sequence[Sequence[int]], costs: Sequence[Sequence[float]], budget: int) -> list[int]:
    """The index of each item's option: argmin Σ cost, Σ size ≤ budget.

    sizes: positive integers. Exact when the budget is at most UNITS times the sizes' greatest common divisor, else as
    if each size were up to budget / UNITS larger. Raises RecipeError when even the smallest options don't fit.
    """
    least = sum(min(row) for row in sizes)
    if least > budget:
        raise RecipeError(f"a budget of {budget} is under {least}, which the smallest formats take: raise it")
    unit = int(np.gcd.reduce([size for row in sizes for size in row]))
    unit *= max(1, -(-(budget // unit) // UNITS))
    whole = [[-(-size // unit) for size in row] for row in sizes]
    room = max(budget // unit, sum(min(row) for row in whole))
    best = np.zeros(room + 1)
    taken: list[np.ndarray] = []
    for row, paid in zip(whole, costs, strict=True):
        options = np.full((len(row), room + 1), np.inf)
        for option, (size, cost) in enumerate(zip(row, paid, strict=True)):
            if size <= room:
                options[option, size:] = best[: room + 1 - size] + cost
        taken.append(options.argmin(0))
        best = options.min(0)
    chosen: list[int] = []
    for row, took in zip(reversed(whole), reversed(taken), strict=True):
        chosen.append(int(took[room]))
        room -= row[chosen[-1]]
    return chosen[::-1]
