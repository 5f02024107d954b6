import itertools

import gguf
import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from sklearn.cluster import KMeans

from edgeq.errors import ModelError, RecipeError
from edgeq.numerics import affine, codebook, pack
from edgeq.types import Coded, PerBlock, PerChannel, PerTensor, QSpec, QTensor


@given(st.integers(0, 1000), st.integers(1, 20))
def test_nearest_is_the_nearest(seed, k):
    rng = np.random.default_rng(seed)
    levels, x = np.sort(rng.normal(size=k)).astype(np.float32), rng.normal(size=(3, 30)).astype(np.float32)
    want = np.abs(x[..., None].astype(float) - levels).argmin(-1)
    np.testing.assert_array_equal(codebook.nearest(x, levels), want)


def test_iq4_nl_is_ggufs_table():
    np.testing.assert_array_equal(codebook.IQ4_NL, np.array(gguf.quants.IQ4_NL.kvalues, np.float32))


@pytest.mark.parametrize(("kind", "table"), [(1, codebook.NF4), (0, codebook.FP4_BY_CODE)])
def test_tables_are_those_of_the_bnb4_kernel(kind, table):
    """The product with the identity reads a weight back. MatMulBnb4 packs the first code in the high nibble."""
    codes = np.random.default_rng(0).integers(0, 16, (16, 64)).astype(np.uint8)
    absmax = np.linspace(1, 2, 16, dtype=np.float32)
    packed = pack.pack(codes.reshape(-1, 2)[:, ::-1], 4)
    node = helper.make_node(
        "MatMulBnb4", ["x", "b", "s"], ["y"], domain="com.microsoft", K=64, N=16, block_size=64, quant_type=kind
    )
    held = [numpy_helper.from_array(packed, "b"), numpy_helper.from_array(absmax, "s")]
    info = helper.make_tensor_value_info
    graph = helper.make_graph([node], "g", [info("x", 1, (64, 64))], [info("y", 1, (64, 16))], held)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    got = ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"x": np.eye(64, dtype="f4")})[0]
    np.testing.assert_allclose(got.T, table[codes] * absmax[:, None], rtol=1e-5)


def test_fp4_codes_are_nearest():
    x = np.random.default_rng(0).uniform(-1, 1, 500)
    got = codebook.FP4_BY_CODE[codebook.fp4_codes(x)]
    np.testing.assert_allclose(np.abs(got - x), np.abs(x[:, None] - codebook.FP4_BY_CODE).min(1), atol=1e-7)


def test_powers_of_two():
    assert codebook.powers_of_two(3).tolist() == [-1, -0.5, -0.25, 0, 0.25, 0.5, 1]
    assert len(codebook.powers_of_two(4, 3.0)) == 15
    with pytest.raises(RecipeError, match="choose 2 to 8"):
        codebook.powers_of_two(9)


def loss(x, levels):
    return np.sum((x - levels[codebook.nearest(x, levels)]) ** 2)


@pytest.mark.parametrize("k", [2, 4, 16])
@pytest.mark.parametrize("seed", [0, 1])
def test_kmeans_is_as_good_as_scikit_learns(seed, k):
    x = np.random.default_rng(seed).standard_t(5, size=1500)
    theirs = KMeans(k, n_init=3, random_state=0).fit(x[:, None]).inertia_
    levels = codebook.kmeans(x, k)
    assert len(levels) == k
    assert loss(x, levels) <= theirs * 1.001
    np.testing.assert_array_equal(levels, codebook.kmeans(x[::-1], k))


def test_kmeans_options_and_edges():
    x = np.random.default_rng(0).normal(size=1000)
    assert 0.0 in codebook.kmeans(x + 0.3, 8, keep_zero=True)
    h = np.where(x > 0, 100.0, 1.0)
    plain, weighted = codebook.kmeans(x, 4), codebook.kmeans(x, 4, h)
    assert np.sum(h * (x - weighted[codebook.nearest(x, weighted)]) ** 2) < np.sum(
        h * (x - plain[codebook.nearest(x, plain)]) ** 2
    )
    assert codebook.kmeans(np.array([3.0, 3.0, 1.0]), 16).tolist() == [1.0, 3.0]
    assert codebook.kmeans(np.array([2.0]), 4).tolist() == [2.0]
    for bad in ([], [1.0, np.nan]):
        with pytest.raises(ModelError, match="k-means"):
            codebook.kmeans(np.array(bad), 4)
    with pytest.raises(RecipeError, match="levels"):
        codebook.kmeans(x, 0)


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_powers_of_two_are_as_many_as_the_bits_hold(bits):
    levels = codebook.powers_of_two(bits, 3.0)
    exponents = range(2 ** (bits - 1) - 1)
    assert levels.tolist() == sorted([0.0, *(s * 3.0 / 2**i for i in exponents for s in (-1, 1))])
    for wrong in (1, 9):
        with pytest.raises(RecipeError, match="choose 2 to 8"):
            codebook.powers_of_two(wrong)


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(1), PerBlock(0, 4)])
@pytest.mark.parametrize("own", [False, True])
def test_coded_weights_are_levels_times_scales(granularity, own):
    """Each element by itself; `own`: every group has a row of levels."""
    rng = np.random.default_rng(5)
    spec = QSpec("uint4", symmetric=False, granularity=granularity)
    data = rng.integers(0, 16, (10, 3)).astype(np.uint8)
    parts = affine.params_shape(data.shape, granularity)
    scale = np.asarray(rng.uniform(0.5, 2, parts), np.float32)
    levels = rng.normal(size=(*(parts if own else ()), 16)).astype(np.float32)
    got = codebook.real(Coded(data, levels, scale, spec, "shared"))
    assert got.dtype == np.float32
    for i, j in np.ndindex(*data.shape):
        group = {PerTensor: (), PerChannel: (j,), PerBlock: (i // 4, j)}[type(granularity)]
        assert got[i, j] == levels[group if own else ()][data[i, j]] * scale[group]


@pytest.mark.parametrize("k", [5, 16, 40])
def test_kmeans_stops_where_nothing_is_gained(k):
    """Further iterations of scikit-learn's from our levels find no better ones; of more samples than cells."""
    x = np.random.default_rng(k).standard_t(4, 6000)
    levels = codebook.kmeans(x, k).astype(np.float64)
    ours = np.square(x - levels[codebook.nearest(x, levels)]).sum()
    further = KMeans(k, init=levels[:, None], n_init=1, max_iter=1000, tol=0).fit(x[:, None])
    assert ours <= further.inertia_ * (1 + 1e-7)


def best_loss(x, h, k):
    """The least Σ h (x - level)² of k levels: over every way to cut the sorted samples in k runs."""
    order = np.argsort(x)
    x, h = x[order], h[order]
    least = np.inf
    for cuts in itertools.combinations(range(1, len(x)), k - 1):
        runs = zip((0, *cuts), (*cuts, len(x)), strict=True)
        loss = 0.0
        for a, b in runs:
            weight = h[a:b].sum()
            mean = (h[a:b] * x[a:b]).sum() / weight if weight else 0.0
            loss += (h[a:b] * (x[a:b] - mean) ** 2).sum()
        least = min(least, loss)
    return least


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-20, 20), st.integers(0, 4)), min_size=1, max_size=9).filter(
        lambda v: any(h for _, h in v)
    ),
    st.integers(1, 6),
)
def test_kmeans_of_few_samples_is_the_optimum(rows, k):
    """Each sample is then a cell of its own, and dynamic programming finds the best runs, whatever the weights."""
    x, h = (np.array(v, np.float64) for v in zip(*rows, strict=True))
    levels = codebook.kmeans(x, k, h).astype(np.float64)
    assert 1 <= len(levels) <= k
    assert (np.diff(levels) > 0).all()
    loss = (h * np.abs(x[:, None] - levels).min(1) ** 2).sum()
    assert loss <= best_loss(x, h, min(k, len(x))) + 1e-4


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-20, 20), min_size=2, max_size=9), st.integers(2, 5))
def test_kept_zero_is_one_of_the_levels(xs, k):
    levels = codebook.kmeans(np.array(xs, np.float64), k, keep_zero=True)
    assert 0.0 in levels
    assert len(levels) <= k
    assert (np.diff(levels) > 0).all()


@pytest.mark.parametrize("count", [511, 512, 513, 3000])
def test_cells_are_single_samples_until_there_are_many(count):
    x = np.sort(np.random.default_rng(count).normal(size=count))
    cuts = codebook._cells(x, np.ones(count))
    assert (cuts[0], cuts[-1]) == (0, count)
    assert (np.diff(cuts) > 0).all()
    if count <= 512:
        assert cuts.tolist() == list(range(count + 1))
        return
    assert len(cuts) <= 513
    # The density of cells is the cube root of that of the samples: as many of them below any place.
    grid = np.linspace(-3, 3, 20_001)
    root = np.cumsum(np.exp(-grid * grid / 6))
    inner = x[cuts[1:-1] - 1]
    inner = inner[np.abs(inner) < 2]
    share = np.interp(inner, grid, root / root[-1])
    assert np.abs(np.diff(share)).max() < 0.03


def test_kmeans_takes_as_many_levels_as_a_byte_holds():
    x = np.random.default_rng(1).normal(size=4000)
    assert len(codebook.kmeans(x, 256)) == 256
    assert len(codebook.kmeans(x, 1)) == 1
    assert codebook.kmeans(x, 1)[0] == pytest.approx(x.mean())
    for wrong in (0, 257):
        with pytest.raises(RecipeError, match="levels"):
            codebook.kmeans(x, wrong)
        with pytest.raises(RecipeError, match="levels"):
            codebook.nearest(x, np.zeros(wrong, np.float32))
    levels = np.arange(256, dtype=np.float32)
    assert codebook.nearest(levels, levels).tolist() == list(range(256))
    assert codebook.nearest(np.array([0.5, 1.5, 254.5, -9, 999]), levels).tolist() == [0, 1, 254, 0, 255]
    assert codebook.nearest(np.array([3.0, -3.0]), np.float32([1.0])).tolist() == [0, 0]


def test_more_iterations_are_never_worse():
    x = np.random.default_rng(2).standard_t(3, 5000)
    losses = [loss(x, codebook.kmeans(x, 12, iterations=n)) for n in (0, 1, 2, 5, 300)]
    assert all(b <= a * (1 + 1e-6) for a, b in itertools.pairwise(losses))
    assert losses[-1] < losses[0]


def test_plain_codes_mean_what_affine_says():
    w = np.random.default_rng(6).normal(size=(4, 6)).astype(np.float32)
    params = affine.qparams(*affine.weight_ranges(w, PerChannel(0)), QSpec("int4", granularity=PerChannel(0)))
    q = QTensor(affine.quantize(w, params), params)
    np.testing.assert_array_equal(codebook.real(q), q.data * params.scale[:, None])
    assert codebook.powers_of_two(3).tolist() == codebook.powers_of_two(3, 1.0).tolist()
