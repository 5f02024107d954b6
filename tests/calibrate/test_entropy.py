"""Thresholds by divergence: against the published loop, onnxruntime's, and every threshold tried."""

import numpy as np
import pytest
import scipy.special
from onnxruntime.quantization.calibrate import HistogramCollector

from edgeq.calibrate import entropy
from edgeq.calibrate.summary import Mass
from edgeq.types import QSpec, Range
from tests.calibrate.tensors import SPECS, TENSORS, choose, summary_of


def plain_kl(counts, start, stop, levels):
    """The talk's pseudo-code with loops and SciPy, Q left as it is."""
    p = counts[start:stop].astype(float)
    inside = p.copy()
    p[0] += counts[:start].sum()
    p[-1] += counts[stop:].sum()
    q = np.zeros_like(p)
    for level in range(levels):
        a, b = level * len(p) // levels, (level + 1) * len(p) // levels
        filled = p[a:b] > 0
        if filled.any():
            q[a:b][filled] = max(inside[a:b].sum(), 1e-4) / filled.sum()
    return scipy.special.kl_div(p / counts.sum(), q / counts.sum()).sum()


@pytest.mark.parametrize("levels", [8, 16, 128])
def test_divergences_equal_the_published_loop(levels):
    rng = np.random.default_rng(0)
    counts = np.histogram(rng.standard_t(2, 3000), 600, (-6, 6))[0]
    starts = rng.integers(0, 200, 40)
    stops = rng.integers(400, 601, 40)
    starts[0], stops[0] = 0, 600
    got = entropy.divergences(counts.astype(float), starts, stops, levels)
    want = [plain_kl(counts, a, b, levels) for a, b in zip(starts, stops, strict=True)]
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert np.ptp(want) > 1e-3


def test_zeros_do_not_rule_the_shape():
    mass = Mass(np.array([5.0, 7, 100, 3, 4]), np.arange(6.0), np.array([-2.5, -1.5, 0, 1.5, 2.5]), 1.0)
    below, above = entropy._halves(mass)
    assert (below.tolist(), above.tolist()) == ([7, 7, 5], [3, 3, 4])


@pytest.mark.parametrize(("spec", "levels"), [
    (QSpec("int4"), 8), (QSpec("uint4"), 8),
    (QSpec("int4", symmetric=False), 16), (QSpec("uint4", symmetric=False), 16),
])  # fmt: skip
@pytest.mark.parametrize(
    "tensor", ["normal", "laplace", "relu", "silu", "outliers", "negative", "uniform above", "wide", "integers", "two"]
)
def test_entropy_tries_every_threshold(tensor, spec, levels):
    """The rules of the module's text, one candidate after the other."""
    summary = summary_of(TENSORS[tensor])
    mass, sides = summary.mass(), []
    for counts in mass.sides():
        counts = list(counts[: np.flatnonzero(counts).max(initial=-1) + 1])
        if counts:
            counts[0] = counts[1] if len(counts) > 1 else 0
        sides.append(counts)
    if spec.symmetric:
        longest = max(map(len, sides))
        both = [sum(part[i] for part in sides if i < len(part)) for i in range(longest)]
        sides = [[], both]
    width = mass.width
    while sum(map(len, sides)) > 2 * levels:
        sides, width = [[sum(part[i : i + 2]) for i in range(0, len(part), 2)] for part in sides], 2 * width
    below, counts = len(sides[0]), np.array(sides[0][::-1] + sides[1])
    costs = {}
    for reach in range(1, max(map(len, sides)) + 1):
        start, stop = max(below - reach, 0), min(below + reach, len(counts))
        if stop - start >= levels:
            costs[reach * width] = plain_kl(counts, start, stop, levels)
    threshold, bounds = min(costs, key=costs.get), summary.bounds()
    assert choose("entropy", summary, spec) == Range(max(bounds.lo, -threshold), min(bounds.hi, threshold))


@pytest.mark.parametrize("tensor", ["laplace", "outliers", "normal", "silu"])
def test_divergences_are_least_about_where_onnxruntimes_are(tensor):
    """On one histogram of 2001 bins for 128 levels; onnxruntime merges by whole bins, and so differs a little."""
    x = np.asarray(TENSORS[tensor], np.float32)
    reach = np.abs(x).max()
    counts, edges = np.histogram(x, 2001, (-reach, reach))
    theirs = HistogramCollector("entropy", True, 2001, 128, 99.99, None)
    _, hi = theirs.get_entropy_threshold((counts, edges, x.min(), x.max(), reach), 128)[:2]
    half = np.arange(64, 1001)
    got = entropy.divergences(counts.astype(float), 1000 - half, 1001 + half, 128)
    assert edges[1001 + half[got.argmin()]] == pytest.approx(float(hi), rel=0.2)
    assert float(hi) < 0.95 * reach or tensor == "normal"


@pytest.mark.parametrize("spec", [SPECS[0], SPECS[1]], ids=str)
def test_entropy_clips_outliers_and_never_more_than_half(spec):
    got = choose("entropy", summary_of(TENSORS["outliers"]), spec)
    assert 29 < got.hi < 50  # 60 is the outlier
    far = np.random.default_rng(0).uniform(0.41, 0.6, 2000)  # windows that leave a single bin of these cost most
    assert choose("entropy", summary_of(far), spec).hi > 0.55


def test_entropy_keeps_the_full_range_of_types_with_more_levels_than_bins():
    x = np.random.default_rng(9).normal(size=4000).astype(np.float32)
    for spec in (QSpec("int16"), QSpec("uint16", symmetric=False)):
        assert choose("entropy", summary_of(x), spec) == Range(float(x.min()), float(x.max()))


@pytest.mark.parametrize(
    "counts", [[1.0, 0, 3, 2, 0, 0, 5, 4, 1], [0, 0, 1, 1, 1, 1, 1, 0, 0], [9.0, 1, 1, 1, 1, 1, 1, 1, 9]]
)
@pytest.mark.parametrize("levels", [2, 3, 4])
def test_divergences_of_every_window_of_a_few_bins(counts, levels):
    """Empty levels, empty outermost bins with tails and without, levels of unequal bins; off by no more than the 1e-4
    elements that either outermost level is taken to hold."""
    counts = np.array(counts, np.float64)
    windows = [(a, b) for a in range(9) for b in range(a + levels, 10) if counts[a:b].any()]
    got = entropy.divergences(counts, *np.array(windows).T, levels)
    np.testing.assert_allclose(
        got, [plain_kl(counts, a, b, levels) for a, b in windows], atol=1e-4 / counts.sum() * 2.01
    )


@pytest.mark.parametrize("length", [0, 1, 2, 5, 8])
def test_paired_counts_are_those_of_bins_twice_as_wide(length):
    counts = np.arange(1.0, length + 1)
    want = [sum(counts[i : i + 2]) for i in range(0, length, 2)]
    assert entropy._paired(counts).tolist() == want
    assert entropy._longer(counts, length + 3).tolist() == [*counts, 0, 0, 0]
