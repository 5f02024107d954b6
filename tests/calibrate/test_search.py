"""The search of `mse` and `lp`, part by part, against sums over single bins and levels written out."""

import itertools

import numpy as np
import pytest

from edgeq import registry
from edgeq.calibrate import _search
from edgeq.calibrate.histogram import Histogram
from edgeq.calibrate.summary import Mass, Summary
from edgeq.types import QSpec

SIGNED, UNSIGNED = QSpec("int4"), QSpec("uint4", symmetric=False)
RNG = np.random.default_rng(11)
TENSORS = {
    "normal": RNG.normal(size=4000),
    "relu": np.maximum(RNG.normal(size=4000), 0),
    "laplace": RNG.laplace(size=4000) + 0.3,
    "outliers": np.concatenate([RNG.normal(size=4000), [40.0, -9.0]]),
    "lumps": RNG.choice([-1.0, -0.3, 0.2, 0.9], 500),
    "negative": -RNG.exponential(size=3000),
}


def mass_of(x):
    summary = Summary(histogram=Histogram())
    summary.update(np.asarray(x, np.float32))
    return summary, summary.mass()


@pytest.mark.parametrize("p", [1.0, 2.0, 2.4])
@pytest.mark.parametrize("bins", [1, 2, 7, 191, 192, 193, 700])
def test_what_a_side_clips_and_holds(bins, p):
    """An end t clips what lies in bins from t on, half a bin beyond it and more, and holds the rest but bin 0."""
    counts = np.zeros(2048)
    counts[:bins] = np.random.default_rng(bins).integers(0, 9, bins)
    counts[bins - 1] = 3
    ends, clipped, held = _search._side(counts, p)
    assert (ends[0], ends[-1]) == (0, bins)
    assert len(ends) == min(bins, 192) + 1  # every bin is an end, up to a limit
    assert 0 < np.diff(ends).min() <= np.diff(ends).max() <= -(-bins // 192)
    for t, cost, inside in zip(ends.astype(int), clipped, held, strict=True):
        assert cost == pytest.approx(sum(counts[i] * (i + 0.5 - t) ** p for i in range(t, bins)))
        assert inside == counts[1:t].sum()


def test_a_side_without_mass_has_its_end_at_zero():
    assert [part.tolist() for part in _search._side(np.zeros(2048), 2.0)] == [[0.0], [0.0], [0.0]]


@pytest.mark.parametrize("p", [0.5, 1.0, 2.0, 2.4])
@pytest.mark.parametrize("spec", [SIGNED, UNSIGNED, QSpec("int4", narrow=True), QSpec("uint4")], ids=str)
def test_the_loss_is_that_of_the_nearest_level(spec, p):
    """Every center against every level of the range, one by one."""
    mass = Mass(np.array([3.0, 0, 5, 2, 9]), np.linspace(-1, 1.5, 6), np.array([-0.75, -0.25, 0, 0.6, 1.25]), 0.5)
    low, high = np.array([-1.0, -0.5, -0.3]), np.array([1.5, 0.5, 0.9])
    got = _search._loss(mass, low, high, spec, p)
    for a, b, loss in zip(low, high, got, strict=True):
        if spec.symmetric:
            zero = 0 if spec.signed else 8
            scale = np.float32(max(-a, b) / (spec.qmax - zero))
        else:
            scale = np.float32((b - a) / (spec.qmax - spec.qmin))
            zero = round(spec.qmin - a / float(scale))
        levels = [(q - zero) * float(scale) for q in range(spec.qmin, spec.qmax + 1)]
        want = sum(n * min(abs(x - v) for v in levels) ** p for n, x in zip(mass.counts, mass.centers, strict=True))
        assert loss == pytest.approx(want)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("best", [(10, 10), (18, 18)])
def test_the_shortlist_holds_the_best_some_in_proportion_and_the_whole(symmetric, best):
    """From 0.15 to 1.6 times both ends of the very best, as far as there are ends."""
    rng = np.random.default_rng(2)
    lows, highs = (25, 25) if symmetric else (20, 27)
    pairs = [(i, i) for i in range(25)] if symmetric else list(itertools.product(range(20), range(27)))
    rated = rng.uniform(1, 2, len(pairs))
    top = pairs.index(best)
    rated[top], rated[0] = 0.5, np.inf
    got = set(_search._shortlist(rated, np.array(pairs), lows, highs, symmetric).tolist())
    assert set(np.argsort(rated)[:16].tolist()) <= got
    assert len(pairs) - 1 in got
    assert 0 not in got
    for factor in np.linspace(0.15, 1.6, 30):  # both ends alike
        assert (
            pairs.index(tuple(min(round(i * factor), n - 1) for i, n in zip(best, (lows, highs), strict=True))) in got
        )
    assert len(got) <= 16 + 30 + 1


@pytest.mark.parametrize("spec", [SIGNED, UNSIGNED, QSpec("int8"), QSpec("uint8", symmetric=False)], ids=str)
@pytest.mark.parametrize("tensor", TENSORS)
@pytest.mark.parametrize(("name", "p"), [("mse", 2.0), ("lp", 2.4)])
def test_the_choice_is_the_best_of_the_shortlist(name, p, tensor, spec):
    """The closed form of the module's text over all pairs of ends, then the quantized centers of those listed."""
    summary, mass = mass_of(TENSORS[tensor])
    bounds, sides = summary.bounds(), mass.sides()
    if spec.symmetric:
        highs, clip, inside = _search._side(sides[0] + sides[1], p)
        lows, pairs, steps = highs, [(i, i) for i in range(len(highs))], spec.qmax
        cost, kept = clip, inside
        step = highs / steps
    else:
        (lows, clip_low, in_low), (highs, clip_high, in_high) = (_search._side(side, p) for side in sides)
        pairs = list(itertools.product(range(len(lows)), range(len(highs))))
        cost, kept = (np.array([a[i] + b[j] for i, j in pairs]) for a, b in ((clip_low, clip_high), (in_low, in_high)))
        step = np.array([lows[i] + highs[j] for i, j in pairs]) / (2**spec.bits - 1)
    rated = np.full(len(pairs), np.inf)
    some = step > 0
    rated[some] = cost[some] + kept[some] * (step[some] / 2) ** p / (p + 1)
    rates = {}
    for i in _search._shortlist(rated, np.array(pairs), len(lows), len(highs), spec.symmetric):
        lo = max(-lows[pairs[i][0]] * mass.width, bounds.lo)
        hi = max(min(highs[pairs[i][1]] * mass.width, bounds.hi), lo)
        exact = _search._loss(mass, np.array([lo]), np.array([hi]), spec, p)[0]
        rates[lo, hi] = rated[i] * mass.width**p if step[i] < 2 else exact
    got = registry.load("edgeq.calibrate", name).choose(summary, spec)
    assert rates[got.lo, got.hi] == pytest.approx(min(rates.values()))


@pytest.mark.parametrize("spec", [SIGNED, UNSIGNED, QSpec("int2")], ids=str)
@pytest.mark.parametrize("tensor", ["normal", "relu", "laplace", "negative"])
def test_no_range_on_a_fine_grid_is_better_by_two_hundredths(tensor, spec):
    """Of the masses themselves, so that neither bins nor samples are in between."""
    summary, mass = mass_of(TENSORS[tensor])
    bounds = summary.bounds()
    got = registry.load("edgeq.calibrate", "mse").choose(summary, spec)
    fine = np.linspace(0.01, 1, 100)
    if spec.symmetric:
        reach = max(-bounds.lo, bounds.hi)
        low, high = np.maximum(-fine * reach, bounds.lo), np.minimum(fine * reach, bounds.hi)
    else:
        low, high = (v.reshape(-1) for v in np.meshgrid(min(bounds.lo, 0) * fine, max(bounds.hi, 0) * fine))
    least = min(
        _search._loss(mass, a, b, spec, 2.0).min()
        for a, b in zip(np.array_split(low, 20), np.array_split(high, 20), strict=True)
    )
    assert _search._loss(mass, np.array([got.lo]), np.array([got.hi]), spec, 2.0)[0] <= 1.02 * least
