"""Weights of two and three values, against a search over all scales."""

import numpy as np
import pytest

from edgeq.types import PerBlock, PerChannel, QSpec
from edgeq.weights import binary, mse, ternary
from tests.weights.test_gptq import data, real, stats_of


@pytest.mark.parametrize("granularity", [PerBlock(1, 32), PerChannel(0)], ids=str)
def test_binary_is_the_optimum(granularity):
    w, x = np.random.default_rng(0).normal(size=(20, 64)).astype(np.float32), data(64)
    spec = QSpec("int2", granularity=granularity)
    for stats, h in ((None, np.ones(64)), (stats_of(x), (x**2).mean(0))):
        q = binary.quantize(w, spec, stats)
        assert set(np.unique(q.data)) == {-1, 1}
        groups = np.abs(w).reshape(20, -1, 32 if isinstance(granularity, PerBlock) else 64)
        shares = np.broadcast_to(h, w.shape).reshape(groups.shape)
        sweep = np.linspace(0, 3, 3001)[:, None, None, None]
        best = (shares * (groups - sweep) ** 2).sum(-1).min(0)
        mine = (shares * ((w - real(q)) ** 2).reshape(groups.shape)).sum(-1)
        assert (mine <= best * (1 + 1e-5)).all()


def test_ternary_is_near_the_optimum_of_its_codes():
    w = np.random.default_rng(0).normal(size=(64, 256)).astype(np.float32)
    spec = QSpec("int2", granularity=PerChannel(0), narrow=True)
    q = ternary.quantize(w, spec)
    assert set(np.unique(q.data)) == {-1, 0, 1}
    ours, best = (((real(t) - w) ** 2).sum() for t in (q, mse.quantize(w, spec)))
    assert best <= ours < 1.03 * best
    kept = np.abs(w) > 0.7 * np.abs(w).mean(1, keepdims=True)
    np.testing.assert_array_equal(q.data != 0, kept)
    np.testing.assert_allclose(q.params.scale, [np.abs(r)[k].mean() for r, k in zip(w, kept, strict=True)], rtol=1e-5)
