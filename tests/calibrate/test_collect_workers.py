"""However many samples are in flight, the statistics are the same to the bit."""

import numpy as np
import pytest

from edgeq.calibrate.collect import collect
from edgeq.errors import CalibrationError


class Doubles:
    def run(self, feeds):
        return {"y": feeds["x"] * np.float32(2), "empty": np.zeros(0, np.float32)}


def samples(count):
    rng = np.random.default_rng(0)
    return [{"x": rng.normal(scale=i + 1, size=(3, 50_000)).astype(np.float32)} for i in range(count)]


def state(workers):
    found, count = collect(Doubles(), samples(9), {"x": "minmax", "y": "mse", "empty": "mse"}, workers=workers)
    assert count == 9
    assert sorted(found) == ["x", "y"]  # nothing ever reached `empty`
    return {f"{value}.{k}": v for value, summary in found.items() for k, v in summary.state().items()}


@pytest.mark.parametrize("workers", [2, 5])
def test_the_number_of_workers_changes_nothing(workers):
    one, many = state(1), state(workers)
    assert one.keys() == many.keys()
    for key, array in one.items():
        np.testing.assert_array_equal(array, many[key], err_msg=key)


def test_extrema_are_those_of_numpy():
    found, _ = collect(Doubles(), samples(4), {"y": "minmax"}, workers=3)
    every = np.concatenate([s["x"].reshape(-1) * np.float32(2) for s in samples(4)])
    assert (found["y"].extrema.lo, found["y"].extrema.hi) == (every.min(), every.max())


def test_a_failure_in_a_worker_is_raised():
    class Fails:
        def run(self, feeds):
            raise CalibrationError("no")

    with pytest.raises(CalibrationError, match="no"):
        collect(Fails(), samples(3), {"y": "minmax"}, workers=2)
