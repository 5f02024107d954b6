"""However many samples are in flight, the statistics are the same to the bit."""

import numpy as np
import pytest

from edgeq.calibrate.collect import collect
from edgeq.calibrate.glance import FIRST
from edgeq.errors import CalibrationError


def doubles(feeds, look):
    return {"y": feeds["x"] * np.float32(2), "empty": np.zeros(0, np.float32)}


def samples(count, width=50_000):
    rng = np.random.default_rng(0)
    return [{"x": rng.normal(scale=i + 1, size=(3, width)).astype(np.float32)} for i in range(count)]


def state(given, workers):
    found, count = collect(doubles, given, {"x": "minmax", "y": "mse", "empty": "mse"}, workers=workers)
    assert count == len(given)
    assert sorted(found) == ["x", "y"]  # nothing ever reached `empty`
    return {f"{value}.{k}": v for value, summary in found.items() for k, v in summary.state().items()}


@pytest.mark.parametrize("workers", [2, 5])
@pytest.mark.parametrize("given", [samples(9), samples(FIRST + 10, 500)])
def test_the_number_of_workers_changes_nothing(given, workers):
    one, many = state(given, 1), state(given, workers)
    assert one.keys() == many.keys()
    for key, array in one.items():
        np.testing.assert_array_equal(array, many[key], err_msg=key)


def test_extrema_are_those_of_numpy():
    found, _ = collect(doubles, samples(4), {"y": "minmax"}, workers=3)
    every = np.concatenate([s["x"].reshape(-1) * np.float32(2) for s in samples(4)])
    assert (found["y"].extrema.lo, found["y"].extrema.hi) == (every.min(), every.max())


def test_a_failure_in_a_worker_is_raised():
    def fails(feeds, look):
        raise CalibrationError("no")

    with pytest.raises(CalibrationError, match="no"):
        collect(fails, samples(3), {"y": "minmax"}, workers=2)
