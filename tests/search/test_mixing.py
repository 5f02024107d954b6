"""The sets of nodes that mixed precision tries, against all subsets there are."""

from itertools import combinations

import numpy as np
import pytest

from edgeq.report.schema import Sensitivity
from edgeq.search.mixing import NODE, mixes


def rows(count, seed):
    draw = np.random.default_rng(seed)
    return [
        Sensitivity(f"n{i}", "Conv", float(error), int(macs))
        for i, (error, macs) in enumerate(
            zip(draw.lognormal(0, 2, count), draw.integers(0, 1000, count), strict=True)
        )
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_the_most_error_within_the_budget(seed):
    found, most = rows(10, seed), 0.3
    total = sum(row.macs for row in found)
    best = max(
        sum(row.error for row in some)
        for size in range(11)
        for some in combinations(found, size)
        if sum(row.macs / total + NODE for row in some) <= most
    )
    largest = mixes(found, most)[-1]
    picked = [row for row in found if row.name in largest]
    assert sum(row.macs for row in picked) / total <= most
    assert sum(row.error for row in picked) == pytest.approx(best, rel=0.02)


def test_fewer_multiplications_first():
    found = rows(40, 1)
    macs = {row.name: row.macs for row in found}
    sums = [sum(macs[name] for name in names) for names in mixes(found, 1.0)]
    assert len(sums) > 4
    assert sums == sorted(sums)
    assert sums[-1] > 0.9 * sum(macs.values())


def test_nothing_to_give():
    assert mixes([], 1.0) == []
    assert mixes(rows(4, 0), 0.0) == []
