import numpy as np
import pytest

from edgeq.calibrate.gram import Gram
from edgeq.errors import CalibrationError


def test_sums_and_merge():
    x = np.random.default_rng(0).normal(size=(5000, 12)).astype(np.float32)
    whole, left, right = Gram.of(12), Gram.of(12), Gram.of(12)
    whole.update(x.reshape(50, 100, 12))
    left.update(x[:3100])
    right.update(x[3100:])
    left.merge(right)
    for gram in (whole, left, Gram.from_state(whole.state())):
        stats = gram.result()
        assert stats.count == 5000
        np.testing.assert_allclose(stats.gram, np.einsum("ni,nj->ij", x, x, dtype=np.float64), rtol=1e-5, atol=1e-3)
        np.testing.assert_allclose(stats.mean_abs, np.abs(x.astype(np.float64)).mean(0), rtol=1e-6)
    assert stats.gram.dtype == stats.mean_abs.dtype == np.float64


def test_bad_input_is_refused():
    gram = Gram.of(3)
    with pytest.raises(CalibrationError, match="no rows"):
        gram.result()
    with pytest.raises(CalibrationError, match="4 features"):
        gram.update(np.zeros((2, 4)))
    with pytest.raises(CalibrationError, match="NaN"):
        gram.update(np.array([[0.0, np.nan, 0.0]]))


@pytest.mark.parametrize("rows", [1, 1023, 1024, 1025, 2500])
def test_small_whole_numbers_are_summed_exactly_whatever_the_blocks(rows):
    x = np.random.default_rng(rows).integers(-9, 10, (rows, 5))
    gram = Gram.of(5)
    gram.update(x)
    gram.update(x[:1].reshape(1, 1, 5))
    whole = np.concatenate([x, x[:1]])
    stats = gram.result()
    np.testing.assert_array_equal(stats.gram, whole.T @ whole)
    np.testing.assert_array_equal(stats.mean_abs, np.abs(whole).sum(0) / (rows + 1))
    assert stats.count == rows + 1
