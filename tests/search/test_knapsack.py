import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.errors import RecipeError
from edgeq.search import knapsack


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 4), st.sampled_from([1, 7, 64]))
def test_is_the_optimum_of_all_choices(seed, items, options, unit):
    rng = np.random.default_rng(seed)
    sizes = (rng.integers(1, 40, (items, options)) * unit).tolist()
    costs = rng.exponential(size=(items, options)).tolist()
    least, most = (sum(f(row) for row in sizes) for f in (min, max))
    budget = int(rng.integers(least, most + 2))
    chosen = knapsack.choose(sizes, costs, budget)
    assert sum(row[c] for row, c in zip(sizes, chosen, strict=True)) <= budget

    def cost(pick):
        return sum(row[c] for row, c in zip(costs, pick, strict=True))

    fits = [
        cost(pick)
        for pick in itertools.product(range(options), repeat=items)
        if sum(row[c] for row, c in zip(sizes, pick, strict=True)) <= budget
    ]
    assert cost(chosen) == pytest.approx(min(fits))


def test_large_budgets_are_near_the_optimum():
    """Against the bound by Lagrange multipliers, which no choice can undercut."""
    rng = np.random.default_rng(0)
    sizes = [[int(b * n) for b in (2.125, 2.5, 3.0, 4.125, 4.5, 8.125)] for n in rng.integers(10**6, 10**8, 120)]
    costs = [[w * 4.0**-b for b in (2, 2.3, 2.6, 4, 4.2, 8)] for w in rng.lognormal(sigma=2, size=120)]
    budget = int(sum(row[0] for row in sizes) * 1.4)
    chosen = knapsack.choose(sizes, costs, budget)
    assert sum(row[c] for row, c in zip(sizes, chosen, strict=True)) <= budget
    bound = max(
        sum(min(c + t * s for s, c in zip(*rows, strict=True)) for rows in zip(sizes, costs, strict=True)) - t * budget
        for t in np.geomspace(1e-14, 1e-6, 400)
    )
    assert sum(row[c] for row, c in zip(costs, chosen, strict=True)) < bound * 1.02


def test_a_budget_that_nothing_fits_is_refused():
    with pytest.raises(RecipeError, match="budget of 5 is under 6"):
        knapsack.choose([[2, 3], [4, 9]], [[1, 0], [1, 0]], 5)
