from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeq.calibrate.histogram import LIMIT, Histogram
from edgeq.calibrate.summary import Summary

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
SCALED = st.builds(lambda m, e: float(np.float32(m * 2.0**e)), st.floats(-1, 1), st.integers(-130, 120))


def of(*arrays):
    out = Histogram()
    for a in arrays:
        out.update(np.asarray(a, np.float32))
    return out


def same(a, b):
    for key, value in a.state().items():
        np.testing.assert_array_equal(value, b.state()[key], err_msg=key)


def by_fractions(bins, values):
    """The documented rule, in exact rational arithmetic, one value at a time."""
    width = Fraction(2) ** bins.exponent / LIMIT
    counts = np.zeros(2 * LIMIT - 1, np.int64)
    for v in values:
        counts[LIMIT - 1 + int(Fraction(float(v)) / width)] += 1
    return counts


@settings(max_examples=200, deadline=None)
@given(hnp.arrays(np.float32, st.integers(1, 20), elements=FINITE | SCALED))
def test_every_value_is_in_the_bin_that_the_rule_names(x):
    h = of(x)
    size = np.abs(x)
    for bins, members in ((h.near, x[size < 2**13]), (h.far, x[size >= 2**13])):
        np.testing.assert_array_equal(bins.counts, by_fractions(bins, members))
        if members.size and (reach := float(np.abs(members).max())) >= 2.0**-116:
            assert reach < 2.0**bins.exponent <= 2 * reach  # the width is as fine as the range allows


@settings(max_examples=200, deadline=None)
@given(
    st.lists(hnp.arrays(np.float32, st.integers(1, 8), elements=SCALED | st.floats(width=32)), min_size=1, max_size=8),
    st.randoms(),
)
def test_merge_is_exact_in_any_order_and_grouping(batches, random):
    whole = of(*batches)
    parts = [of(b) for b in batches]
    random.shuffle(parts)
    while len(parts) > 1:
        i = random.randrange(len(parts) - 1)
        parts[i].merge(parts.pop(i + 1))
    same(whole, parts[0])
    same(whole, of(np.concatenate(batches)))
    same(whole, Histogram.from_state(whole.state()))


def test_growth_equals_one_pass_over_everything():
    rng = np.random.default_rng(0)
    batches = [rng.normal(scale=10.0**e, size=100_003).astype(np.float32) for e in (-3, 0, -1, 2, 1)]
    same(of(*batches), of(np.concatenate(batches)))
    edges = np.arange(-LIMIT, LIMIT + 1) * of(*batches).near.width
    want = np.histogram(np.concatenate(batches).astype(np.float64), edges)[0]
    got = of(*batches).near.counts
    np.testing.assert_array_equal(got[LIMIT:], want[LIMIT + 1 :])  # numpy's bins of positive values are the same
    assert got[LIMIT - 1] == want[LIMIT - 1] + want[LIMIT]


def test_merge_leaves_the_other_alone():
    a, b = of([1.0]), of([1e-3])
    before = b.state()["near"].copy()
    a.merge(b)
    a.update(np.ones(5, np.float32))
    np.testing.assert_array_equal(b.near.counts, before)


def test_a_subsample_takes_the_width_of_the_whole():
    x = np.random.default_rng(0).normal(size=10_000).astype(np.float32)
    h = Histogram()
    h.update(x[::7], float(x.min()), float(x.max()), weight=7)
    assert h.near.exponent == of(x).near.exponent
    ends = of([x.min(), x.max()])
    members = of(x[::7], [x.min(), x.max()]).near.counts - ends.near.counts
    np.testing.assert_array_equal(h.near.counts, 7 * members + ends.near.counts)


def test_masks_leave_the_rest_sharp():
    x = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    masked = of(x, [-1e4, -3.4e38, -np.inf, np.nan])
    np.testing.assert_array_equal(masked.near.counts, of(x).near.counts)
    assert masked.far.counts.sum() == 2


def test_zeros_and_nothing():
    h = of(np.zeros(5), np.zeros((0, 3)))
    assert h.near.counts[LIMIT - 1] == 5
    h.merge(of([1.0, -1.0]))
    assert h.near.counts.sum() == 7
    same(h, of([1.0, -1.0, 0, 0, 0, 0, 0]))


@pytest.mark.parametrize("rest", [0.0, -np.inf])
def test_a_far_extreme_that_the_sample_misses_has_a_bin(rest):
    x = np.linspace(-4000, 6000, 60_000, dtype=np.float32)
    x[1] = -8444.0  # beyond 2**13 and not among the sample
    x[2] = rest
    seen = Summary(histogram=Histogram())
    seen.update(x, stride=13)
    mass = seen.mass()
    assert mass is not None
    assert len(mass.counts) == len(mass.centers) == len(mass.edges) - 1
    assert mass.edges[0] == -8444.0
    assert sum(side.sum() for side in mass.sides()) == mass.counts.sum()
    assert mass.counts[0] == (rest == 0)  # with an infinity among them, the finite end is not told


@settings(max_examples=150, deadline=None)
@given(
    hnp.arrays(np.float32, st.integers(1, 12), elements=st.floats(-3e4, 3e4, width=32) | st.just(8192.0) | SCALED),
    st.integers(1, 4),
    st.integers(1, 5),
    st.booleans(),
)
def test_a_part_counts_by_its_weight_and_the_extrema_once(x, step, weight, odd):
    """Near and far alike; the bins of each kind are those of everything that was counted."""
    if odd:
        x = np.concatenate([x, np.float32([np.nan, np.inf, -np.inf])])
    part, real = x[::step], x[np.isfinite(x)]
    lo, hi = (float(v) for v in (np.min(x), np.max(x)))
    got = Histogram()
    got.update(part, lo, hi, weight)
    once = [] if weight == 1 else [lo, hi]
    counted = np.array([*np.repeat(part, weight), *once], np.float32)
    want, size = of(counted), np.abs(counted)
    assert got.near.counts.sum() + got.far.counts.sum() == np.isfinite(counted).sum()
    assert got.far.counts.sum() == ((size >= 2**13) & np.isfinite(size)).sum()
    if not odd and np.abs(real).max() < 2**13:  # the width is then of all of x
        want.near.widen(got.near.exponent)
    same(got, want)


@pytest.mark.parametrize("reach", [100.0, 8191.0, 8192.0, 3e4])
def test_one_histogram_reaches_as_far_as_asked(reach):
    x = np.array([1.0, -5.0, 100.0, -8191.0, 9000.0, -20000.0, 8192.0], np.float32)
    h = of(x)
    before = {k: v.copy() for k, v in h.state().items()}
    bins = h.bins(reach)
    members = x if reach >= 2**13 else x[np.abs(x) < 2**13]
    assert bins.counts.sum() == len(members)
    np.testing.assert_array_equal(bins.counts, by_fractions(bins, members))
    if reach >= 2**13:
        assert bins.exponent == 15
    for key, value in h.state().items():
        np.testing.assert_array_equal(value, before[key])


@pytest.mark.parametrize("by", [0, 1, 5, 10, 11, 12, 40])
def test_pairing_bins_is_counting_anew(by):
    x = np.random.default_rng(by).uniform(-1, 1, 3000).astype(np.float32)
    h = of(x).near
    start = h.exponent
    h.widen(start + by)
    assert h.exponent == start + by
    np.testing.assert_array_equal(h.counts, by_fractions(h, x))
    h.widen(start - 3)  # never back
    assert h.exponent == start + by
