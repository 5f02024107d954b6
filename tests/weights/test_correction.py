"""Corrections against the same optimum found another way: by samples and least squares, by the SVD of a square root."""

import numpy as np
import pytest

from edgeq.types import PerBlock, PerChannel, QSpec, Stats
from edgeq.weights import correction
from edgeq.weights.rows import hessian

K, N = 48, 32


def layer(axis, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(400, K)) @ (np.eye(K) + 0.3 * rng.normal(size=(K, K))) * np.geomspace(0.2, 2, K)
    w = rng.normal(size=(K, N)).astype(np.float32)
    real = (np.round(w * 2) / 2).astype(np.float32)
    turned = (lambda m: m) if axis == 0 else (lambda m: np.ascontiguousarray(m.T))
    return x, turned(w), turned(real), Stats(x.T @ x, np.abs(x).mean(0), len(x)), turned


NOTHING = np.empty(0, np.int64)
SPECS = [(0, QSpec("int4", granularity=PerBlock(0, 16))), (1, QSpec("int4", granularity=PerBlock(1, 16))),
         (0, QSpec("int4", granularity=PerChannel(1))), (1, QSpec("int4", granularity=PerChannel(0)))]  # fmt: skip


def root(h):
    values, vectors = np.linalg.eigh(h)
    return vectors * np.sqrt(values) @ vectors.T


@pytest.mark.parametrize(("axis", "spec"), SPECS, ids=str)
@pytest.mark.parametrize("data", [True, False])
@pytest.mark.parametrize("rank", [1, 6, 100])
def test_low_rank_is_the_truncated_svd_in_the_inputs_metric(axis, spec, data, rank):
    _, w, real, stats, turned = layer(axis)
    (found,), whole = correction.corrections(w, real, spec, stats if data else None, NOTHING, rank)
    rank = min(rank, K, N)
    assert found.left.shape == (K, rank)
    assert found.right.shape == (rank, N)
    h = hessian(stats, K, K, correction.DAMPING) if data else np.eye(K)
    lacking = turned(w).astype(float) - turned(real)
    wanted = (np.linalg.svd(root(h) @ lacking, compute_uv=False)[rank:] ** 2).sum()
    left = lacking - found.left.astype(float) @ found.right
    np.testing.assert_allclose(np.trace(left.T @ h @ left), wanted, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(turned(whole), turned(real) + found.left @ found.right, atol=1e-5)


@pytest.mark.parametrize(("axis", "spec"), SPECS, ids=str)
def test_outliers_are_fitted_by_least_squares(axis, spec):
    x, w, real, stats, turned = layer(axis)
    features = np.array([3, 17, 40])
    (found,), whole = correction.corrections(w, real, spec, stats, features, 0)
    np.testing.assert_array_equal(found.left, features)
    damping = np.sqrt(correction.DAMPING * (x * x).mean(0).mean() * len(x))
    seen = np.concatenate([x, damping * np.eye(K)])
    wanted = np.linalg.lstsq(seen[:, features], seen @ (turned(w).astype(float) - turned(real)), rcond=None)[0]
    np.testing.assert_allclose(found.right, wanted, rtol=1e-3, atol=1e-4)
    expected = turned(real).copy()
    expected[features] += found.right
    np.testing.assert_allclose(turned(whole), expected, atol=1e-5)


@pytest.mark.parametrize(("axis", "spec"), SPECS, ids=str)
def test_without_data_outlying_weights_are_exact(axis, spec):
    _, w, real, _, turned = layer(axis)
    features = np.array([1, 2])
    (_, low), whole = correction.corrections(w, real, spec, None, features, 2)
    assert low.left.shape == (K, 2)
    np.testing.assert_allclose(turned(whole)[features], turned(w)[features], atol=1e-5)


@pytest.mark.parametrize(("axis", "spec"), SPECS, ids=str)
def test_the_loud_features_are_the_outliers(axis, spec):
    x, w, _, _, turned = layer(axis)
    x[:, [5, 30]] *= 50
    features = correction.outlying(w, spec, Stats(x.T @ x, np.abs(x).mean(0), len(x)), 2 / K)
    np.testing.assert_array_equal(features, [5, 30])
    kept = turned(correction.without(w, spec, features))
    assert not kept[features].any()
    np.testing.assert_array_equal(np.delete(kept, features, 0), np.delete(turned(w), features, 0))
    assert correction.outlying(w, spec, None, 0.0).size == 0
