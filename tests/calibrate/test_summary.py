"""What a summary's histogram says, against sums over the values themselves."""

import numpy as np
import pytest

from edgeq.calibrate import percentile
from edgeq.calibrate.glance import Glance
from edgeq.calibrate.histogram import Histogram
from edgeq.calibrate.summary import Mass, Summary
from edgeq.types import QSpec, Range


def test_the_share_outside_is_of_both_ends():
    mass = Mass(np.array([1.0, 2, 4, 1]), np.arange(5.0), np.array([-2.0, -1, 0, 3]), 1.0)
    assert mass.outside(-1.5, 2.0, 0.0) == 2 / 8
    assert mass.outside(-1.5, 2.0, 0.5) == 1 / 8
    assert mass.outside(-1.5, 2.0, 1.0) == 0


def test_sides_hold_all_of_the_mass():
    x = np.random.default_rng(0).normal(size=5000).astype(np.float32)
    summary = Summary(histogram=Histogram())
    summary.update(x)
    mass = summary.mass()
    negative, positive = mass.sides()
    assert negative.sum() + positive.sum() == 5000
    assert negative.sum() == np.count_nonzero(x <= -mass.width)
    assert negative[0] == 0


def test_a_glance_counts_each_element_once_unless_told():
    x = np.random.default_rng(2).uniform(-1, 1, 1000).astype(np.float32)
    summary = Summary(histogram=Histogram())
    summary.add(Glance(float(x.min()), float(x.max()), x))
    assert summary.mass().counts.sum() == 1000


@pytest.mark.parametrize("flat", [Range(-1.0, 0.5), Range(-9.0, 0.5), Range(-1.0, 9.0)])
def test_what_is_flat_counts_as_the_nearest_end(flat):
    x = np.random.default_rng(1).normal(size=5000).astype(np.float32)
    summary = Summary(histogram=Histogram(), flat=flat)
    summary.update(x)
    mass = summary.mass()
    assert mass.counts.sum() == 5000
    assert abs(mass.counts[0] - np.count_nonzero(x <= mass.edges[1])) <= 2
    assert abs(mass.counts[-1] - np.count_nonzero(x >= mass.edges[-2])) <= 2


@pytest.mark.parametrize("percent", [0.5, 11.0, 60.0, 99.5])
def test_a_percentile_is_interpolated_within_its_bin(percent):
    """Mass spread evenly over few wide bins, as a quantile of a piecewise linear distribution."""
    counts, edges = np.array([10.0, 0, 30, 60]), np.array([0.0, 0.1, 0.2, 0.5, 0.7])
    want = np.interp(percent, np.cumsum([0, *counts]), edges)
    assert percentile._quantile(counts, edges[:-1], edges[1:], percent / 100) == pytest.approx(want)


def test_a_symmetric_percentile_is_of_magnitudes_in_every_bin():
    x = np.linspace(-0.02, 0.02, 4001).astype(np.float32)
    summary = Summary(histogram=Histogram())
    summary.update(x)
    for percent in (11.1, 50.03, 77.7):
        got = percentile.choose(summary, QSpec("int8"), percentile=percent)
        assert got.hi == pytest.approx(0.02 * percent / 100, abs=summary.mass().width)


@pytest.mark.parametrize(("values", "limit"), [
    ([-1.0, -0.3, 0.2, 0.9], None), ([0.1, 0.5, 0.9], None), ([-0.9, -0.2], None),
    ([-1.0, -0.3, 0.1, 0.5], Range(-0.5, 0.25)),
    ([0.0, 1.0], None), ([-1.0, 0.0], None), ([-1.0, 0.5, 2.0], Range(0.0, 9.0)),
])  # fmt: skip
def test_a_mass_is_of_bins_between_the_bounds(values, limit):
    """Edges by the rule: bin i over ±[i w, (i + 1) w), bin 0 over both sides; its center is the 0 that it holds."""
    x = np.repeat(np.array(values, np.float32), 7)
    summary = Summary(histogram=Histogram(), limit=limit)
    summary.update(x)
    mass, bounds = summary.mass(), summary.bounds()
    lo, hi = float(x.min()), float(x.max())
    lo, hi = (max(lo, limit.lo), min(hi, limit.hi)) if limit else (lo, hi)
    assert (bounds.lo, bounds.hi) == (lo, hi) == (mass.edges[0], mass.edges[-1])
    width = summary.histogram.near.width
    assert mass.width == width
    index = range(int(lo / width), int(hi / width) + 1)
    assert len(index) == len(mass.counts) == len(mass.centers) == len(mass.edges) - 1
    for place, i in enumerate(index):
        start, stop = ((i - 1) * width, i * width) if i < 0 else (i * width, (i + 1) * width) if i else (-width, width)
        start, stop = max(start, lo), min(stop, hi)
        assert (mass.edges[place], mass.edges[place + 1]) == (start, stop)
        assert mass.centers[place] == (min(max(0.0, lo), hi) if i == 0 else (start + stop) / 2)
        assert mass.counts[place] == sum(int(float(v) / width) == i for v in x)


def test_there_is_no_mass_where_nothing_can_be_chosen():
    for values in ([0.5], [0.5, 0.5], [0.0]):
        summary = Summary(histogram=Histogram())
        summary.update(np.array(values, np.float32))
        assert summary.mass() is None
    bare = Summary()
    bare.update(np.array([1.0, 2.0], np.float32))
    assert bare.mass() is None


@pytest.mark.parametrize("share", [1.0, 0.5, 1 / 16, 1 / 17])
def test_values_within_a_sixteenth_of_the_bins_are_too_coarse(share):
    """A limit may leave so few bins that a histogram says nothing: below 128 of 2048."""
    x = np.linspace(-4095 / 4096, 4095 / 4096, 5000).astype(np.float32)
    summary = Summary(histogram=Histogram(), limit=Range(-share, share))
    summary.update(x)
    assert (summary.mass() is None) == (share < 1 / 16)


@pytest.mark.parametrize("parts", [1, 7, 8, 9, 40])
@pytest.mark.parametrize("weight", [1, 3])
def test_what_waits_is_counted_once(parts, weight):
    rng = np.random.default_rng(parts)
    arrays = [rng.normal(size=20).astype(np.float32) for _ in range(parts)]
    summary, want = Summary(histogram=Histogram()), Histogram()
    for i, a in enumerate(arrays):
        summary.add(Glance(float(a.min()), float(a.max()), a, weight), 2 if i % 3 == 1 else i % 3 % 2)
        times = weight * (2 if i % 3 == 1 else 0)
        want.update(a if times else a[:0], float(a.min()), float(a.max()), times)
    summary.settle()
    for key, value in want.state().items():
        np.testing.assert_array_equal(summary.histogram.state()[key], value)
    assert summary.parts == summary.ends == []
    assert len(arrays) == summary.extrema.updates


def test_few_parts_and_extrema_wait_at_a_time():
    x = np.ones(3, np.float32)
    waiting = Summary(histogram=Histogram())
    for _ in range(500):
        waiting.add(Glance(1.0, 1.0, x), 1)
        assert len(waiting.parts) < 8
    for _ in range(500):
        waiting.add(Glance(1.0, 1.0, x), 0)
        assert len(waiting.ends) < 128


def test_summaries_merge_only_with_their_like():
    one, other = Summary(histogram=Histogram()), Summary()
    for a, b in ((one, other), (other, one)):
        with pytest.raises(ValueError, match="histogram"):
            a.merge(b)
