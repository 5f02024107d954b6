"""One pass over the samples, against numpy over all of them at once."""

import numpy as np
import pytest

from edgeq.calibrate.collect import collect
from edgeq.errors import CalibrationError


class Doubler:
    """A session whose values are twice the input, and an empty one."""

    def __init__(self):
        self.runs = 0

    def run(self, feeds, look):
        self.runs += 1
        return {"doubled": feeds["x"] * 2, "renamed": feeds["x"] + 1, "nothing": feeds["x"][:0]}


def feeds(count=9, width=40):
    rng = np.random.default_rng(4)
    return [{"x": rng.normal(0, 1 + i, (1, width)).astype(np.float32)} for i in range(count)]


def test_extrema_are_those_of_all_samples():
    samples, session, steps = feeds(), Doubler(), []
    wanted = {"x": "minmax", "doubled": "mse", "plus": "minmax", "nothing": "minmax"}
    found, count = collect(session.run, iter(samples), wanted, {"plus": "renamed"}, steps.append)
    everything = np.concatenate([f["x"] for f in samples])
    assert count == session.runs == 9
    assert steps == list(range(1, 10))
    assert set(found) == {"x", "doubled", "plus"}  # no sample gave `nothing` an element
    for name, array in (("x", everything), ("doubled", everything * 2), ("plus", everything + 1)):
        assert found[name].extrema.lo == array.min()
        assert found[name].extrema.hi == array.max()
    assert found["x"].histogram is None  # minmax needs none
    assert found["doubled"].histogram is not None


def test_no_samples_are_no_summaries():
    assert collect(Doubler().run, [], {"x": "mse"}) == ({}, 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_nan_is_named_and_infinity_is_not_nan(dtype):
    samples = [{"x": f["x"].astype(dtype)} for f in feeds(4)]
    samples[1]["x"][0, :2] = np.inf, -np.inf  # their sum is NaN, yet neither is
    collect(Doubler().run, samples, {"x": "minmax"})
    samples[2]["x"][0, 7] = np.nan
    with pytest.raises(CalibrationError, match="sample 2 of the calibration data has NaN in input 'x'"):
        collect(Doubler().run, samples, {"x": "minmax"})


def test_channels_are_of_the_last_axis_and_only_where_told():
    samples = [{"x": np.random.default_rng(i).normal(size=(2, 3, 5)).astype(np.float32)} for i in range(4)]
    found, _ = collect(Doubler().run, samples, {"x": "minmax", "doubled": "mse"}, channels={"doubled"})
    every = 2 * np.concatenate([s["x"] for s in samples])
    np.testing.assert_array_equal(found["doubled"].extrema.channel_lo, every.min((0, 1)))
    np.testing.assert_array_equal(found["doubled"].extrema.channel_hi, every.max((0, 1)))
    assert found["x"].extrema.channel_lo is None


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_the_place_of_a_sample_says_how_closely_it_is_looked_at(workers):
    """Samples 0, 129 and 128 of the data: the second is not looked at, the third for its neighbours too."""
    place, looked = [0, 129, 128], []

    def run(feeds, look):
        looked.append((float(feeds["x"][0]), look))
        return {"y": feeds["x"]}

    samples = [{"x": np.full(10, v, np.float32)} for v in (1.0, 2.0, 3.0)]
    found, count = collect(run, samples, {"y": "mse"}, workers=workers, position=place.__getitem__)
    assert count == 3
    assert sorted(looked) == [(1.0, True), (2.0, False), (3.0, True)]
    counts = found["y"].histogram.near.counts
    bins = [int(v / found["y"].histogram.near.width) + 2047 for v in (1.0, 2.0, 3.0)]
    assert [int(counts[b]) for b in bins] == [10, 2, 42]  # of samples not looked at in full, both extrema once each
    assert (found["y"].extrema.lo, found["y"].extrema.hi, found["y"].extrema.count) == (1.0, 3.0, 30)


def test_samples_are_drawn_as_they_are_needed():
    """A source is no further ahead than twice the workers, and one."""
    done, ahead = [], []

    def source():
        for i in range(30):
            ahead.append(i - len(done))
            yield {"x": np.ones(4, np.float32)}

    def run(feeds, look):
        done.append(1)
        return {"y": feeds["x"]}

    collect(run, source(), {"y": "minmax"}, workers=2)
    assert len(done) == 30
    assert max(ahead) <= 2 * 2 + 1


def test_inputs_that_are_no_floats_have_no_nan():
    samples = [{"x": np.ones((1, 3), np.float32), "i": np.arange(3), "t": np.array(["a"])}]
    found, _ = collect(Doubler().run, samples, {"x": "minmax"})
    assert found["x"].extrema.hi == 1.0
