"""Codes that see the data: the published recurrence written out with an explicit inverse, and what descent keeps."""

import numpy as np
import pytest

from edgeq import registry
from edgeq.errors import RecipeError
from edgeq.numerics import affine, codebook
from edgeq.types import PerBlock, PerChannel, QSpec, Stats
from edgeq.weights import algorithm, feedback, gptq, nf4
from edgeq.weights.rows import hessian, output_error

NAMES = registry.names("edgeq.weights", "encode")
K, N = 64, 24


def layer(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(500, K)) @ (np.eye(K) + 0.2 * rng.normal(size=(K, K))) * np.geomspace(0.3, 3, K)
    return rng.standard_t(6, size=(K, N)).astype(np.float32), Stats(x.T @ x, np.abs(x).mean(0), len(x))


def both(granularity, bits):
    """The spec of a (K, N) weight, and that of its transpose."""
    turned = {0: 1, 1: 0}
    other = (
        PerBlock(turned[granularity.axis], granularity.size)
        if isinstance(granularity, PerBlock)
        else PerChannel(turned[granularity.axis])
    )
    return QSpec(f"uint{bits}", granularity=granularity), QSpec(f"uint{bits}", granularity=other)


@pytest.mark.parametrize("granularity", [PerBlock(0, 16), PerChannel(1)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_the_output_gains_whatever_the_layout(name, granularity):
    w, stats = layer()
    module = algorithm(name)
    for bits in module.BITS[:2]:
        spec, turned = both(granularity, bits)
        start = module.encode(w, spec, stats)
        found = feedback.refine(w, spec, stats, start, module.SCALED)
        before, after = (output_error(w, codebook.real(c), spec, stats) for c in (start, found))
        assert after < 0.75 * before
        assert found.scale.shape == start.scale.shape
        np.testing.assert_array_equal(found.levels, start.levels)
        if not module.SCALED:
            np.testing.assert_array_equal(found.scale, start.scale)
        other = np.ascontiguousarray(w.T)
        again = feedback.refine(other, turned, stats, module.encode(other, turned, stats), module.SCALED)
        np.testing.assert_array_equal(again.data.T, found.data)
        np.testing.assert_allclose(codebook.real(again).T, codebook.real(found), rtol=1e-6)


def test_without_descent_it_is_the_published_recurrence():
    """One feature after another, with the inverse of the Hessian of those left computed anew each time (OBQ's form)."""
    w, stats = layer()
    spec = QSpec("uint4", granularity=PerBlock(0, 16))
    start = nf4.encode(w, spec, stats)
    found = feedback.refine(w, spec, stats, start, True, sweeps=0)
    h, left = hessian(stats, K, K, None), w.astype(np.float64)
    wanted = np.empty((K, N), int)
    for k in range(K):
        inverse = np.linalg.inv(h[k:, k:])
        scale = start.scale[k // 16].astype(np.float64)
        wanted[k] = np.abs(left[k][:, None] - scale[:, None] * start.levels).argmin(1)
        error = (left[k] - scale * start.levels[wanted[k]]) / inverse[0, 0]
        left[k:] -= inverse[:, :1] * error
    assert (found.data != wanted).mean() < 0.002  # float32 may part ties


def test_no_single_code_or_scale_is_left_to_improve():
    """At the end of the descent every change of one code raises the error, and so does every scale's."""
    w, stats = layer()
    spec = QSpec("uint4", granularity=PerBlock(0, 16))
    found = feedback.refine(w, spec, stats, nf4.encode(w, spec, stats), True, sweeps=60)
    h = hessian(stats, K, K, None)
    real = codebook.real(found).astype(np.float64)
    g = h @ (w - real)
    gain = 0.0
    for code, level in enumerate(found.levels):
        move = level * affine.expand(found.scale, w.shape, spec.granularity) - real
        change = -2 * move * g + move * move * h.diagonal()[:, None]
        gain = min(gain, change[found.data != code].min())
    total = np.einsum("kn,kn->", w - real, g)
    assert gain > -1e-4 * total / N
    for b in range(K // 16):
        part = slice(b * 16, b * 16 + 16)
        below = (real[part] * (h[part, part] @ real[part])).sum(0)
        assert ((real[part] * g[part]).sum(0) ** 2 / below).max() < 1e-3 * total / N


def test_levels_in_quantiles_beat_integers_of_as_many_bits():
    w, stats = layer()
    spec = QSpec("int4", granularity=PerBlock(0, 16))
    q = gptq.quantize(w, spec, stats)
    wide = QSpec("uint4", granularity=PerBlock(0, 16))
    found = feedback.refine(w, wide, stats, nf4.encode(w, wide, stats), True)
    errors = [
        output_error(w, real, spec, stats) for real in (codebook.real(found), affine.dequantize(q.data, q.params))
    ]
    assert errors[0] < errors[1]


def test_statistics_of_other_features_are_refused():
    w, stats = layer()
    spec = QSpec("uint4", granularity=PerChannel(0))
    with pytest.raises(RecipeError, match="do not fit"):
        feedback.refine(w, spec, stats, nf4.encode(w, spec), True)
