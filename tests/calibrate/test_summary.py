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
