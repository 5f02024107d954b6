"""Rounding that looks at the data (adaround, awq) or at the errors' spread (hqq)."""

import itertools

import numpy as np
import pytest

from edgeq.numerics import affine
from edgeq.types import PerBlock, PerChannel, QSpec
from edgeq.weights import adaround, awq, hqq, mse, rtn
from tests.weights.test_gptq import data, output_error, real, stats_of


def weight(rows=24, features=48, seed=0):
    return np.random.default_rng(seed).standard_t(4, size=(rows, features)).astype(np.float32)


@pytest.mark.parametrize("granularity", [PerBlock(1, 16), PerChannel(0)], ids=str)
def test_adaround_goes_up_or_down_and_gains(granularity):
    x, w = data(48), weight()
    spec = QSpec("int4", granularity=granularity)
    q = adaround.quantize(w, spec, stats_of(x))
    step = np.abs(affine.expand(q.params.scale, w.shape, granularity))
    inside = np.abs(w / step) <= 7
    assert (np.abs(real(q) - w) / step)[inside].max() <= 1.0001
    assert output_error(w, q, x) < 0.8 * output_error(w, mse.quantize(w, spec), x)


def test_adaround_against_all_roundings():
    """Eight weights a row: all 256 ways to round them up or down are tried."""
    x, w = data(8, seed=3), weight(30, 8)
    h = x.T @ x / len(x)
    q = adaround.quantize(w, QSpec("int4", granularity=PerChannel(0)), stats_of(x), damping=1e-6)
    ratios = []
    for row in range(30):
        s = float(q.params.scale[row])
        c = np.clip(w[row] / s, -8, 7)
        ups = np.array(list(itertools.product((0, 1), repeat=8)))
        e = w[row] - s * np.clip(np.floor(c) + ups * (np.ceil(c) - np.floor(c)), -8, 7)
        errors = np.einsum("ik,kl,il->i", e, h, e)
        mine = w[row] - real(q)[row]
        ratios.append(mine @ h @ mine / errors.min())
    assert min(ratios) > 1 - 1e-4
    assert np.median(ratios) < 1.1


@pytest.mark.parametrize("granularity", [PerBlock(1, 16), PerChannel(0)], ids=str)
def test_awq_cuts_ranges_as_a_sweep_over_outputs_would(granularity):
    x, w = data(48), weight()
    spec = QSpec("int2", granularity=granularity)
    q = awq.quantize(w, spec, stats_of(x))
    errors = []
    lo, hi = affine.weight_ranges(w, granularity)
    for ratio in np.linspace(1, 0.5, 20):
        for params in (
            affine.qparams(lo * ratio, hi * ratio, spec),
            rtn.full_range_params(lo * ratio, hi * ratio, spec),
        ):
            off = w - affine.fake_quantize(w, params)
            groups = off.reshape(24, -1, 16 if isinstance(granularity, PerBlock) else 48)
            parts = x.reshape(len(x), groups.shape[1], -1)
            errors.append((np.einsum("rgk,sgk->srg", groups, parts) ** 2).mean(0))
    off = (w - real(q)).reshape(groups.shape)
    mine = (np.einsum("rgk,sgk->srg", off, parts) ** 2).mean(0)
    np.testing.assert_allclose(mine, np.min(errors, 0), rtol=1e-2)


@pytest.mark.parametrize("dtype", ["int2", "int4", "uint4", "uint2"])
def test_hqq_lowers_the_norm_it_is_of(dtype):
    w = weight(64, 128)
    spec = QSpec(dtype, not dtype.startswith("u"), PerBlock(1, 32))
    ours, theirs = (np.abs(real(a.quantize(w, spec)) - w) ** 0.7 for a in (hqq, rtn))
    assert ours.mean() < 0.97 * theirs.mean()
    for factor in (1e-5, 1e5):
        q = hqq.quantize(w * np.float32(factor), spec)
        assert (q.data == hqq.quantize(w, spec).data).mean() > 0.999
