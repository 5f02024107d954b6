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
