"""Weights of codebook levels: laws that all of them obey, and each one's definition written out another way."""

import gguf
import ml_dtypes
import numpy as np
import pytest
from sklearn.cluster import KMeans

from edgeq import registry
from edgeq.errors import ModelError
from edgeq.numerics import affine, codebook
from edgeq.numerics.metrics import sqnr_db
from edgeq.types import PerBlock, PerChannel, PerTensor, QSpec, Stats
from edgeq.weights import fp4, fp8_e4m3, fp8_e5m2, iq4_nl, kmeans, kmeans_groups, kmeans_scaled, log2, mse, nf4

NAMES = registry.names("edgeq.weights", "encode")
SHAPES = [
    ((24, 64), PerBlock(1, 32)),
    ((50, 24), PerBlock(0, 16)),
    ((24, 64), PerChannel(0)),
    ((8, 4, 3, 3), PerChannel(0)),
]
EACH = [(name, bits) for name in NAMES for bits in registry.load("edgeq.weights", name).BITS]


def weight(shape, seed=0):
    w = np.random.default_rng(seed).standard_t(4, size=shape).astype(np.float32)
    w[0] = 0.0
    return w


def stats(k, seed=1):
    x = np.random.default_rng(seed).normal(size=(300, k)) * np.geomspace(0.1, 3, k)
    return Stats(x.T @ x, np.abs(x).mean(0), len(x))


def encode(name, w, bits, granularity, *rest):
    return registry.load("edgeq.weights", name).encode(w, QSpec(f"uint{bits}", granularity=granularity), *rest)


@pytest.mark.parametrize(("shape", "granularity"), SHAPES, ids=str)
@pytest.mark.parametrize(("name", "bits"), EACH)
def test_laws(name, bits, shape, granularity):
    w = weight(shape)
    kept = w.copy()
    found = encode(name, w, bits, granularity)
    np.testing.assert_array_equal(w, kept)
    assert found.code == name
    assert found.data.shape == w.shape
    assert found.data.dtype == np.uint8
    assert found.data.max() < found.levels.shape[-1] <= 2**bits
    assert found.spec.bits == bits
    assert found.scale.shape == affine.params_shape(shape, found.spec.granularity)
    assert found.scale.dtype == found.levels.dtype == np.float32
    assert np.isfinite(found.scale).all()
    real = codebook.real(found)
    assert not real[0].any() or name == "kmeans_groups" or granularity.axis != 0 or isinstance(granularity, PerBlock)
    assert sqnr_db(w, real) > (3.0 if bits == 2 else 8.0)
    again = encode(name, w, bits, granularity)
    for left, right in ((found.data, again.data), (found.levels, again.levels), (found.scale, again.scale)):
        assert left.tobytes() == right.tobytes()


@pytest.mark.parametrize(("name", "bits"), EACH)
def test_no_level_of_its_group_is_nearer(name, bits):
    w = weight((24, 64))
    found = encode(name, w, bits, PerBlock(1, 32))
    scale = affine.expand(found.scale, w.shape, found.spec.granularity)[..., None].astype(np.float64)
    levels = found.levels
    if levels.ndim > 1:
        levels = np.repeat(levels, 32, axis=1)
    finite = np.where(np.isfinite(levels), levels, 0)
    best = np.abs(w[..., None] - finite * scale).min(-1)
    np.testing.assert_allclose(np.abs(w - codebook.real(found)), best, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_bad_weights_are_refused(name):
    bits = registry.load("edgeq.weights", name).BITS[-1]
    for w in (np.array([[1.0, np.nan]], np.float32), np.array([[np.inf, 1.0]], np.float32), np.zeros((2, 0), "f4")):
        with pytest.raises(ModelError, match="weight"):
            encode(name, w, bits, PerChannel(0))


@pytest.mark.parametrize("name", NAMES)
def test_data_weighs_the_errors(name):
    """The output's error, to its diagonal part, is less with the inputs' mean squares known."""
    w, known, bits = weight((40, 64)), stats(64), registry.load("edgeq.weights", name).BITS[0]
    h = np.diagonal(known.gram)
    plain, weighted = (codebook.real(encode(name, w, bits, PerBlock(1, 32), *s)) for s in ((), (known,)))
    assert (h * (w - weighted) ** 2).sum() <= (h * (w - plain) ** 2).sum()


def test_nf4_is_the_published_definition():
    """bitsandbytes: absmax of a block is its scale, and the code is the nearest of the 16 quantiles."""
    from scipy.stats import norm

    offset = (1 - 1 / 32 + 1 - 1 / 30) / 2  # of QLoRA's quantiles: the mean of both halves' outermost ones
    high, low = norm.ppf(np.linspace(offset, 0.5, 9)[:-1]), -norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    table = np.sort(np.concatenate([high, low, [0.0]])) / high.max()
    w = weight((8, 128))
    found = nf4.encode(w, QSpec("uint4", granularity=PerBlock(1, 64)), candidates=0)
    blocks = w.reshape(8, 2, 64)
    absmax = np.abs(blocks).max(-1)
    np.testing.assert_array_equal(found.scale, absmax)
    np.testing.assert_allclose(found.levels, table, atol=2e-5)
    safe = np.where(absmax == 0, 1, absmax)[..., None]
    nearest = np.abs((blocks / safe)[..., None] - found.levels).argmin(-1)
    np.testing.assert_array_equal(found.data.reshape(8, 2, 64), nearest)


def test_fp4_is_bitsandbytes_definition():
    """Sign, then 0 or 1/192, 2/3 and 1, 1/3 and 1/2, 1/6 and 1/4: two exponents' worth each, over 12."""
    magnitudes = np.array([0, 0.0625, 8, 12, 4, 6, 2, 3]) / 12
    w = weight((8, 128))
    found = fp4.encode(w, QSpec("uint4", granularity=PerBlock(1, 64)), candidates=0)
    np.testing.assert_allclose(found.levels, np.concatenate([magnitudes, -magnitudes]), rtol=1e-6)
    absmax = np.abs(w.reshape(8, 2, 64)).max(-1)
    np.testing.assert_array_equal(found.scale, absmax)
    sign, code = found.data >> 3, found.data & 7
    wanted = np.where(sign, -1, 1) * magnitudes[code] * np.repeat(absmax, 64, 1)
    np.testing.assert_allclose(codebook.real(found), wanted, rtol=1e-6)


def test_iq4_nl_reads_as_ggufs():
    w = weight((8, 128))
    found = iq4_nl.encode(w, QSpec("uint4", granularity=PerBlock(1, 32)))
    codes = found.data.reshape(-1, 2, 16)
    half = found.scale.reshape(-1, 1).astype(np.float16)
    block = np.concatenate([half.view(np.uint8), codes[:, 0] | codes[:, 1] << 4], axis=1)
    read = gguf.quants.dequantize(block, gguf.GGMLQuantizationType.IQ4_NL).reshape(w.shape)
    np.testing.assert_allclose(read, codebook.real(found), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("module", "kind"), [(fp8_e4m3, ml_dtypes.float8_e4m3fn), (fp8_e5m2, ml_dtypes.float8_e5m2)], ids=str
)
def test_fp8_codes_are_the_types_bits(module, kind):
    w = weight((16, 64))
    found = module.encode(w, QSpec("uint8", granularity=PerChannel(0)), candidates=0)
    limit = float(ml_dtypes.finfo(kind).max)
    scale = (np.abs(w).max(1) / limit).astype(np.float32)
    np.testing.assert_allclose(found.scale, scale, rtol=1e-6)
    real = (w[1:] / scale[1:, None]).astype(kind)
    np.testing.assert_array_equal(found.data[1:], real.view(np.uint8))
    np.testing.assert_allclose(codebook.real(found)[1:], real.astype(np.float32) * scale[1:, None], rtol=1e-6)


def test_log2_weights_are_powers_of_two():
    for bits in log2.BITS:
        real = codebook.real(log2.encode(weight((24, 64)), QSpec(f"uint{bits}", granularity=PerBlock(1, 32))))
        mantissa, exponent = np.frexp(real)
        assert set(np.unique(np.abs(mantissa))) == {0, 0.5}
        for block, e in zip(real.reshape(-1, 32), exponent.reshape(-1, 32), strict=True):
            used = e[block != 0]
            assert used.size == 0 or np.ptp(used) <= 2 ** (bits - 1) - 2


def inertia(x, k, seed=0):
    return KMeans(min(k, len(np.unique(x))), n_init=5, random_state=seed).fit(x.reshape(-1, 1)).inertia_


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_kmeans_is_as_good_as_sklearns(bits):
    w = np.random.default_rng(0).normal(size=(12, 256)).astype(np.float32)
    spec = QSpec(f"uint{bits}", granularity=PerChannel(0))
    whole = kmeans.encode(w, spec)
    assert whole.scale.shape == ()
    assert isinstance(whole.spec.granularity, PerTensor)
    assert ((w - codebook.real(whole)) ** 2).sum() <= 1.01 * inertia(w, 2**bits)
    each = kmeans_groups.encode(w, spec)
    assert each.levels.shape == (12, 2**bits)
    assert ((w - codebook.real(each)) ** 2).sum() <= 1.25 * sum(inertia(row, 2**bits) for row in w)


def test_kmeans_keeps_the_zeros_of_a_pruned_weight():
    w = np.where(np.random.default_rng(0).random((32, 32)) < 0.4, 0, weight((32, 32), 2))
    real = codebook.real(kmeans.encode(w.astype(np.float32), QSpec("uint3", granularity=PerChannel(0))))
    assert not real[w == 0].any()


def test_fitted_levels_beat_fixed_ones_and_integers():
    w = np.random.default_rng(0).laplace(size=(64, 256)).astype(np.float32)
    granularity = PerBlock(1, 32)
    spec = QSpec("uint4", granularity=granularity)
    q = mse.quantize(w, QSpec("int4", granularity=granularity))
    errors = [((w - codebook.real(f.encode(w, spec))) ** 2).sum() for f in (kmeans_groups, kmeans_scaled, nf4)]
    assert errors == sorted(errors)
    assert errors[-1] < ((w - affine.dequantize(q.data, q.params)) ** 2).sum()


def test_searched_scales_are_never_worse_than_published_ones():
    w = weight((64, 256))
    for module, bits in ((nf4, 4), (fp4, 4), (iq4_nl, 4), (fp8_e4m3, 8), (fp8_e5m2, 8)):
        spec = QSpec(f"uint{bits}", granularity=PerBlock(1, 64))
        plain, searched = (((w - codebook.real(module.encode(w, spec, None, n))) ** 2).sum() for n in (0, 8))
        assert searched <= plain
