import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.errors import ModelError
from edgeq.files import let_go, read_ahead, spilled
from edgeq.numerics import pack
from edgeq.types import PerBlock, PerChannel, PerTensor, QSpec
from edgeq.weights import mse, rtn, tiles


@pytest.mark.parametrize(
    "granularity", [PerBlock(0, 16), PerBlock(1, 16), PerBlock(-1, 20), PerChannel(0), PerChannel(1)]
)
@pytest.mark.parametrize("tile", [1, 300, 1 << 20])
def test_tiles_give_what_the_whole_gives(granularity, tile):
    w = np.random.default_rng(0).normal(size=(70, 48)).astype(np.float32)
    for algorithm in (rtn, mse):
        spec = QSpec("uint4", symmetric=False, granularity=granularity)
        whole = algorithm.quantize(w, spec)
        codes = spilled(w.shape, np.dtype(np.uint8))
        params = tiles.in_tiles(algorithm.quantize, w, spec, codes.__setitem__, tile, algorithm is rtn)
        let_go(codes)
        np.testing.assert_array_equal(codes, whole.data)
        np.testing.assert_array_equal(params.scale, whole.params.scale)
        np.testing.assert_array_equal(params.zero_point, whole.params.zero_point)


@pytest.mark.parametrize("granularity", [PerBlock(1, 2), PerBlock(0, 3), PerChannel(1), PerChannel(-1)])
def test_tiles_of_other_ranks(granularity):
    w = np.random.default_rng(1).normal(size=(7, 6, 5)).astype(np.float32)
    spec = QSpec("int8", granularity=granularity)
    whole, codes = rtn.quantize(w, spec), np.zeros(w.shape, np.int8)
    params = tiles.in_tiles(rtn.quantize, w, spec, codes.__setitem__, 40)
    np.testing.assert_array_equal(codes, whole.data)
    np.testing.assert_array_equal(params.scale, whole.params.scale)
    np.testing.assert_array_equal(params.zero_point, whole.params.zero_point)


def test_one_group_has_no_tiles():
    assert tiles.steps((4, 4), QSpec("int8", granularity=PerTensor())) is None


@pytest.mark.parametrize("granularity", [PerBlock(0, 32), PerBlock(1, 32), PerChannel(0), PerChannel(1)])
@pytest.mark.parametrize("shape", [(4096, 16384), (16384, 4096), (1 << 20, 32), (32, 1 << 20)])
def test_a_tile_fits_a_cache(granularity, shape):
    lengths = tiles.steps(shape, QSpec("int4", granularity=granularity), 1 << 17, 256)
    assert min(lengths) >= 1
    if isinstance(granularity, PerBlock):
        assert lengths[granularity.axis] % 32 == 0
        assert np.prod(lengths) <= max(1 << 17, shape[1] if granularity.axis else 0)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_what_is_packed_in_tiles_is_what_is_packed_of_the_whole(data):
    """Bit for bit, of codes rounded by the operator's text: q = saturate(round_half_even(x / scale) + zero_point)."""
    shape = data.draw(st.tuples(st.integers(1, 90), st.integers(1, 90)))
    axis = data.draw(st.integers(0, 1))
    size = data.draw(st.sampled_from([16, 32, 64, 128, 256]))
    granularity = data.draw(st.sampled_from([PerBlock(axis, size), PerChannel(axis), PerBlock(axis - 2, size)]))
    dtype = data.draw(st.sampled_from(["int2", "uint2", "int4", "uint4", "int8", "uint8"]))
    spec = QSpec(dtype, data.draw(st.booleans()), granularity)
    w = np.random.default_rng(data.draw(st.integers(0, 99))).normal(size=shape).astype(np.float32)
    w[: data.draw(st.integers(0, 40))] *= data.draw(st.sampled_from([0, 1e-30, 1e30, -0.0]))
    q = rtn.quantize(w, spec)
    made = tiles.packed(rtn.quantize, w, spec, np.empty, data.draw(st.integers(1, 9000)), data.draw(st.booleans()))
    assert made.shape == shape
    np.testing.assert_array_equal(made.params.scale, q.params.scale)
    np.testing.assert_array_equal(made.params.zero_point, q.params.zero_point)
    features = axis if isinstance(granularity, PerBlock) else 1 - axis
    columns = (q.data if features == 0 else q.data.T).astype(int)  # (K, N)
    columns += 0 if dtype.startswith("u") else 2 ** (spec.bits - 1)
    per = 8 // spec.bits
    columns = np.pad(columns, ((0, -len(columns) % per), (0, 0)))
    want = sum(columns[i::per] << spec.bits * i for i in range(per)).T
    np.testing.assert_array_equal(made.rows, want)
    if isinstance(granularity, PerBlock):
        np.testing.assert_array_equal(pack.matmul_codes(made), pack.matmul_codes(q))
        for left, right in zip(pack.matmul_scales(made), pack.matmul_scales(q), strict=True):
            np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("granularity", [PerBlock(0, 32), PerBlock(1, 32)])
def test_threads_do_not_matter(granularity, monkeypatch):
    w = np.random.default_rng(2).normal(size=(256, 1200)).astype(np.float32)
    spec = QSpec("int4", granularity=granularity)
    made = []
    for threads in (1, 7):
        monkeypatch.setattr(os, "cpu_count", lambda threads=threads: threads)
        made.append(tiles.packed(rtn.quantize, w, spec, spilled, 5000, any_shape=True))
    assert made[0].rows.tobytes() == made[1].rows.tobytes()
    assert made[0].params.scale.tobytes() == made[1].params.scale.tobytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_errors_of_a_tile_are_raised(bad):
    w = np.ones((64, 32), np.float32)
    w[40, 3] = bad
    spec = QSpec("int4", granularity=PerBlock(0, 16))
    with pytest.raises(ModelError, match="NaN"):
        tiles.in_tiles(rtn.quantize, w, spec, np.empty(w.shape, np.int8).__setitem__, 512)
    with pytest.raises(ModelError, match="NaN"):
        tiles.packed(rtn.quantize, w, spec, np.empty, 512)


def test_what_is_read_ahead_is_the_file(tmp_path):
    w = np.arange(5000, dtype=np.float32)
    w.tofile(tmp_path / "w")
    mapped = np.memmap(tmp_path / "w", np.float32, "r")
    read_ahead(mapped)
    read_ahead(w)
    np.testing.assert_array_equal(mapped, w)
