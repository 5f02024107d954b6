import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.errors import RecipeError
from edgeq.numerics import affine
from edgeq.types import PerBlock, PerChannel, PerTensor, QSpec, Stats
from edgeq.weights import gptq, mse, rows
from edgeq.weights.descent import descend


def data(features, samples=600, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(samples, features)) @ rng.normal(size=(features, features)) * 0.3
    return x + rng.normal(size=x.shape) * rng.lognormal(sigma=0.7, size=features)


def stats_of(x):
    return Stats(x.T @ x, np.abs(x).mean(0), len(x))


def real(q):
    return affine.dequantize(q.data, q.params).astype(np.float64)


def output_error(w, q, x, channel=0):
    """From the outputs themselves: mean over the samples of the squared error."""
    error = w - real(q)
    return float(((x @ (error.T if channel == 0 else error)) ** 2).sum() / len(x))


def published(w, h, scale, qmin, qmax):
    """The recurrence as Frantar et al. print it, without lazy updates: one row, one scale a weight, H inverted anew."""
    w, codes = w.astype(np.float64).copy(), np.empty(len(w))
    for k in range(len(w)):
        inverse = np.linalg.inv(h[k:, k:])
        codes[k] = np.clip(np.rint(w[k] / scale[k]), qmin, qmax)
        w[k:] -= (w[k] - codes[k] * scale[k]) / inverse[0, 0] * inverse[:, 0]
    return codes


@pytest.mark.parametrize("block", [1, 5, 128])
def test_recurrence_is_the_published_one(block):
    x = data(24)
    w = np.random.default_rng(1).normal(size=(6, 24)).astype(np.float32)
    spec = QSpec("int4", granularity=PerBlock(1, 8))
    q = gptq.quantize(w, spec, stats_of(x), 0.01, static_groups=True, sweeps=0, block=block)
    h = x.T @ x / len(x)
    h += 0.01 * np.diagonal(h).mean() * np.eye(24)
    for row in range(6):
        scale = np.repeat(q.params.scale[row].astype(np.float64), 8)
        wanted = published(w[row], h, scale, -8, 7)
        assert (wanted == q.data[row]).mean() > 0.95  # float32 may turn a tie


@pytest.mark.parametrize(("samples", "damping"), [(24, 0.2), (96, 0.05), (1600, 0.003), (10**6, 0.003)])
def test_damping_follows_how_many_samples_there_are_for_a_feature(samples, damping):
    x = data(24)
    stats = Stats(x.T @ x * (samples / len(x)), np.abs(x).mean(0), samples)
    h = x.T @ x / len(x)
    np.testing.assert_allclose(rows.hessian(stats, 24, 24, None), h + damping * np.trace(h) / 24 * np.eye(24))


def test_few_samples_do_not_lead_astray():
    """What is lost on other samples of the same kind, in the mean over draws, is less than with little damping."""
    lost, spec = {None: 0.0, 0.003: 0.0}, QSpec("int4", granularity=PerChannel(0))
    for seed in range(8):
        everything = data(48, 4000, seed)
        w = np.random.default_rng(seed).normal(size=(24, 48)).astype(np.float32)
        for damping in lost:
            q = gptq.quantize(w, spec, stats_of(everything[:60]), damping)
            lost[damping] += output_error(w, q, everything[60:])
    assert lost[None] < 0.95 * lost[0.003]


def test_act_order_rounds_loud_features_first():
    x = data(32)
    w = np.random.default_rng(1).normal(size=(5, 32)).astype(np.float32)
    spec = QSpec("int4", granularity=PerChannel(0))
    q = gptq.quantize(w, spec, stats_of(x), act_order=True, sweeps=0)
    h = x.T @ x / len(x)
    h += 0.01 * np.diagonal(h).mean() * np.eye(32)
    order = np.argsort(-np.diagonal(h), kind="stable")
    for row in range(5):
        wanted = published(w[row][order], h[np.ix_(order, order)], np.full(32, q.params.scale[row], float), -8, 7)
        assert (wanted == q.data[row][order]).mean() > 0.95


@pytest.mark.parametrize("granularity", [PerBlock(1, 16), PerBlock(1, 20), PerChannel(0), PerTensor()], ids=str)
@pytest.mark.parametrize("dtype", ["int2", "int4", "uint4"])
def test_less_error_than_rounding(granularity, dtype):
    x = data(64)
    w = np.random.default_rng(2).standard_t(5, size=(48, 64)).astype(np.float32)
    spec = QSpec(dtype, symmetric=not dtype.startswith("u"), granularity=granularity)
    stats = stats_of(x)
    plain = output_error(w, mse.quantize(w, spec), x)
    once = output_error(w, gptq.quantize(w, spec, stats, sweeps=0), x)
    best = output_error(w, gptq.quantize(w, spec, stats), x)
    assert best < 0.95 * once
    assert once < 0.9 * plain


def test_layouts_give_the_same_codes():
    x = data(64)
    w = np.random.default_rng(2).normal(size=(20, 64)).astype(np.float32)
    for rows_spec, columns_spec in ((PerBlock(1, 16), PerBlock(0, 16)), (PerChannel(0), PerChannel(1))):
        a = gptq.quantize(w, QSpec("int4", granularity=rows_spec), stats_of(x))
        b = gptq.quantize(np.ascontiguousarray(w.T), QSpec("int4", granularity=columns_spec), stats_of(x))
        np.testing.assert_array_equal(a.data, b.data.T)
        np.testing.assert_array_equal(a.params.scale, b.params.scale if b.params.scale.ndim == 1 else b.params.scale.T)


def test_descent_ends_where_no_single_code_can_improve():
    """Every code of the result is tried with every other value it may have: none lowers the error."""
    x = data(12)
    h = x.T @ x / len(x)
    w = np.random.default_rng(3).normal(size=(4, 12)).astype(np.float32)
    scale, zero = np.full((1, 4), 0.4, np.float32), np.zeros((1, 4), np.int32)
    spec = QSpec("int4", granularity=PerChannel(0))
    codes = np.ascontiguousarray(np.clip(np.rint(w.T / 0.4), -8, 7))
    descend(np.ascontiguousarray(w.T), codes, scale, zero, h, spec, 100, scales=False)

    def loss(row, c):
        e = w[row] - 0.4 * c
        return e @ h @ e

    for row in range(4):
        best = loss(row, codes[:, row])
        for k, code in itertools.product(range(12), range(-8, 8)):
            other = codes[:, row].copy()
            other[k] = code
            assert loss(row, other) > best * (1 - 1e-4)


def test_near_the_optimum_of_all_codes():
    """Six weights of two bits: all 4096 rows of codes are tried, each with its best scale."""
    x = data(6, seed=5)
    h = x.T @ x / len(x)
    every = np.array(list(itertools.product(range(-2, 2), repeat=6)), np.float64)
    energy = np.einsum("ik,kl,il->i", every, h, every)
    w = np.random.default_rng(4).normal(size=(40, 6)).astype(np.float32)
    q = gptq.quantize(w, QSpec("int2", granularity=PerChannel(0)), stats_of(x), damping=1e-6)
    ratios = []
    for row in range(40):
        fit = every @ h @ w[row]
        gain = np.divide(fit**2, energy, out=np.zeros_like(fit), where=energy > 0)
        optimum = w[row] @ h @ w[row] - gain.max()
        e = w[row] - real(q)[row]
        ratios.append((e @ h @ e) / optimum)
    assert min(ratios) > 1 - 1e-4
    assert np.median(ratios) < 1.25


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(["int2", "int4", "uint4"]), st.sampled_from([8, 16, 24]))
def test_descent_never_raises_the_error(seed, dtype, size):
    x = data(24, 100, seed)
    w = np.random.default_rng(seed).normal(size=(5, 24)).astype(np.float32)
    spec = QSpec(dtype, not dtype.startswith("u"), PerBlock(1, size))
    stats = stats_of(x)
    before, after = (gptq.quantize(w, spec, stats, sweeps=n, damping=0.01) for n in (0, 3))
    damped = np.concatenate([x, np.sqrt(0.01 * (x * x).mean() * len(x)) * np.eye(24)])  # what it minimises
    assert output_error(w, after, damped) <= output_error(w, before, damped) * (1 + 1e-4)


def test_dead_and_unfit_features():
    x = data(16)
    x[:, 3] = 0.0
    w = np.random.default_rng(0).normal(size=(4, 16)).astype(np.float32)
    spec = QSpec("int4", granularity=PerBlock(1, 16))
    assert np.isfinite(real(gptq.quantize(w, spec, stats_of(x)))).all()
    with pytest.raises(RecipeError, match="15 features"):
        gptq.quantize(w, spec, stats_of(x[:, :15]))


def test_corrected_weight_is_the_least_squares_one():
    rng = np.random.default_rng(0)
    x, behind = data(8), rng.normal(size=(600, 5))
    changed, changed_behind = x + 0.3 * rng.normal(size=x.shape), behind + 0.2 * x[:, :5]
    w = rng.normal(size=(5, 8)).astype(np.float32)
    cross, extra = (x - changed).T @ changed, (behind - changed_behind).T @ changed
    for spec, turned in (
        (QSpec("int4", granularity=PerChannel(0)), False),
        (QSpec("int4", granularity=PerChannel(1)), True),
    ):
        given_w = np.ascontiguousarray(w.T) if turned else w
        found = rows.corrected(given_w, spec, stats_of(changed), cross, extra, damping=0.0)
        wanted = np.linalg.lstsq(changed, x @ w.T + behind - changed_behind, rcond=None)[0]
        np.testing.assert_allclose(found if turned else found.T, wanted, rtol=1e-3, atol=1e-4)


def test_output_error_is_that_of_the_outputs():
    x = data(16)
    w = np.random.default_rng(0).normal(size=(4, 16)).astype(np.float32)
    spec = QSpec("int2", granularity=PerBlock(1, 16))
    q = mse.quantize(w, spec)
    assert rows.output_error(w, real(q), spec, stats_of(x)) == pytest.approx(output_error(w, q, x), rel=1e-5)
