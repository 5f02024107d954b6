"""Extrema and a sample of a tensor, and how good a range the sample still chooses."""

import numpy as np
import pytest

from edgeq import registry
from edgeq.calibrate.glance import EVERY, FIRST, GROUP, SAMPLE, Glance, glance, share, stride
from edgeq.calibrate.histogram import Histogram
from edgeq.calibrate.summary import Summary
from edgeq.numerics import affine
from edgeq.types import QSpec


def summary(*seen):
    out = Summary(histogram=Histogram())
    for one in seen:
        out.add(one)
    return out


@pytest.mark.parametrize("size", [1, SAMPLE, 2 * SAMPLE - 1, 2 * SAMPLE, 10**6, 123_456_789])
def test_the_sample_keeps_near_its_budget(size):
    step = stride(size)
    assert step % 2 == 1
    assert size // step <= 2 * SAMPLE
    assert size // step >= min(size, SAMPLE // 2)


def test_samples_behind_the_first_are_looked_at_for_their_neighbours_too():
    assert [share(i) for i in range(FIRST)] == [1] * FIRST
    for count in (FIRST + EVERY, FIRST + 25 * EVERY):
        assert sum(share(i) for i in range(count)) == count


@pytest.mark.parametrize("x", [[0.5, -3.0], [0.5, -9000.0], [-np.inf, 2.0]])
def test_what_is_not_looked_at_still_has_its_extrema_counted(x):
    """A range may not be clipped to less than what the closely seen samples hold, as if nothing lay beyond them."""
    looked, unseen = summary(glance(np.ones(4, np.float32))), summary(glance(np.ones(4, np.float32)))
    looked.histogram.update(np.array(x, np.float32))
    unseen.add(glance(np.array([*x, *[0.25] * 40], np.float32)), 0)
    unseen.settle(), looked.settle()
    for bins in ("near", "far"):
        mine, whole = getattr(unseen.histogram, bins), getattr(looked.histogram, bins)
        np.testing.assert_array_equal(mine.counts, whole.counts)
        assert mine.exponent == whole.exponent
    finite = [v for v in x if np.isfinite(v)]
    assert unseen.extrema.lo == min(0.25, *finite)
    assert unseen.extrema.hi == max(1.0, *finite)


@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 48, 40, 40), (1, 7, 12_345)])
def test_a_glance_has_the_extrema_of_all_and_runs_of_neighbours(shape):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    seen = glance(x)
    assert (seen.lo, seen.hi) == (x.min(), x.max())
    assert seen.near
    rows = x.reshape(-1, GROUP if x.size % GROUP == 0 else 1)
    np.testing.assert_array_equal(seen.part, rows[:: stride(x.size)])
    assert summary(seen).extrema.count == x.size


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, -1e4, 8192.0])
def test_what_is_not_near_needs_its_values(odd):
    x = np.array([1.0, odd, -2.0], np.float32)
    seen = glance(x)
    assert not seen.near
    found, whole = summary(seen).state(), Summary(histogram=Histogram())
    whole.update(x)
    for key, array in whole.state().items():
        np.testing.assert_array_equal(found[key], array, err_msg=key)
    with pytest.raises(ValueError, match="give `update` the values"):
        summary(Glance(seen.lo, seen.hi, seen.part))


def loss(x, chosen, spec, p):
    error = x - affine.fake_quantize(x, affine.qparams(chosen.lo, chosen.hi, spec))
    return np.mean(np.abs(error).astype(np.float64) ** p)


@pytest.mark.parametrize(("name", "p"), [("mse", 2.0), ("lp", 2.4), ("entropy", 2.0)])
def test_the_sample_chooses_a_range_as_good_as_all_of_it(name, p):
    """64 tensors of neighbours that are much alike: at most 1 dB is lost, 0.4 on average."""
    rng, ratios = np.random.default_rng(1), []
    module = registry.load("edgeq.calibrate", name)
    for act in (lambda v: v, lambda v: np.maximum(v, 0), lambda v: v / (1 + np.exp(-v)), lambda v: v**3):
        smooth = [np.repeat(rng.normal(scale=2, size=(32, 32, 16)), 4, axis=2) for _ in range(64)]
        arrays = [act(s + 0.1 * rng.normal(size=s.shape)).astype(np.float32) for s in smooth]
        seen = [glance(a) for a in arrays]
        assert all(s.weight > 1 for s in seen)
        part, whole = summary(*seen), summary(*(glance(a, 1, 1) for a in arrays))
        assert (part.extrema.lo, part.extrema.hi) == (whole.extrema.lo, whole.extrema.hi)
        everything = np.stack(arrays)
        for spec in (QSpec("int8"), QSpec("uint8", symmetric=False)):
            losses = [loss(everything, module.choose(s, spec), spec, p) for s in (part, whole)]
            ratios.append(losses[0] / losses[1])
    assert max(ratios) <= 1.26
    assert np.mean(ratios) <= 1.1


@pytest.mark.parametrize("size", [15, 16, 17, 32, 4095, 4096, 4097, 8191, 8192, 16384, 100_000])
def test_every_how_many_runs_are_taken(size):
    """The least odd number that keeps the sample within twice the budget, or one more step of two."""
    step = stride(size)
    assert step == 1 + 2 * (size // 4096)
    assert len(glance(np.zeros(size, np.float32)).part.reshape(-1)) <= 2 * SAMPLE + GROUP
    assert glance(np.zeros(size, np.float32)).weight == step


def test_the_budget_is_the_texts():
    """From the first sample on: all of 128, then every fourth, in place of its neighbours too."""
    assert [i for i in range(200) if share(i) == 1] == list(range(128))
    assert [i for i in range(128, 200) if share(i)] == list(range(128, 200, 4))
    assert {share(i) for i in range(128, 200)} == {0, 4}


@pytest.mark.parametrize(("group", "step"), [(1, 1), (1, 3), (4, 1), (4, 2), (8, 5)])
def test_runs_and_steps_as_told(group, step):
    x = np.arange(240, dtype=np.float32).reshape(10, 24)
    seen = glance(x, group, step)
    want = [v for v in range(240) if v // group % step == 0]
    assert seen.part.reshape(-1).tolist() == want
    assert (seen.weight, seen.lo, seen.hi) == (step, 0.0, 239.0)
    assert not np.shares_memory(seen.part, x)
    assert seen.values is x


@pytest.mark.parametrize("ends", [(-8191.9, 8191.9), (-8192.0, 0.0), (0.0, 8192.0), (np.nan, np.nan), (1.0, 1.0)])
def test_near_is_within_the_bound_and_without_nan(ends):
    near = Glance(*map(float, ends), np.zeros(0, np.float32)).near
    assert near == (all(abs(v) < 2**13 for v in ends))


def test_a_run_of_neighbours_is_a_line_of_the_cache():
    """64 bytes of float32, where the size allows it; else elements are taken one by one."""
    for size, group in ((16 * 17, 16), (16 * 5, 16), (17 * 15, 1), (8, 1)):
        part = glance(np.arange(size, dtype=np.float32)).part
        assert part.shape[1] == group
        assert part.nbytes // len(part) in (64, 4)
