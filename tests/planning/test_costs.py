"""The expected SQNR of a rounded value, held against really rounding the samples it was estimated from."""

import numpy as np
import pytest

from edgeq.calibrate.histogram import Histogram
from edgeq.calibrate.summary import Summary
from edgeq.planning.costs import expected_sqnr
from edgeq.planning.plan import ValuePlan
from edgeq.types import QSpec


@pytest.mark.parametrize("shape", ["normal", "laplace", "half"])
def test_expected_sqnr_is_that_of_the_samples(shape):
    rng = np.random.default_rng(0)
    x = {"normal": rng.normal(size=200_000), "laplace": rng.laplace(size=200_000)}.get(shape)
    x = np.asarray(np.maximum(rng.normal(size=200_000), 0) if x is None else x, np.float32)
    summary = Summary(histogram=Histogram())
    summary.update(x)
    got = expected_sqnr(summary, ValuePlan("x", QSpec("uint8", symmetric=False), "x", "minmax", True, ()))
    lo, hi = min(float(x.min()), 0.0), float(x.max())
    step = (hi - lo) / 255
    rounded = np.clip(np.rint(x / step) + np.rint(-lo / step), 0, 255) - np.rint(-lo / step)
    want = 10 * np.log10(np.sum(x.astype(np.float64) ** 2) / np.sum((x - rounded * step) ** 2))
    assert got == pytest.approx(want, abs=1.0)


def test_without_a_histogram_nothing_is_judged():
    summary = Summary()
    summary.update(np.arange(5, dtype=np.float32))
    assert expected_sqnr(summary, ValuePlan("x", QSpec("uint8", symmetric=False), "x", "minmax", True, ())) == np.inf
