import numpy as np
import pytest

from edgeq.errors import ModelError
from edgeq.files import let_go, spilled
from edgeq.types import PerBlock, PerChannel, QSpec
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
        made = tiles.in_tiles(lambda part, a=algorithm, s=spec: a.quantize(part, s), w, spec, codes, tile)
        let_go(codes)
        assert made.data is codes
        np.testing.assert_array_equal(made.data, whole.data)
        np.testing.assert_array_equal(made.params.scale, whole.params.scale)
        np.testing.assert_array_equal(made.params.zero_point, whole.params.zero_point)


def test_errors_of_a_tile_are_raised():
    w = np.ones((64, 32), np.float32)
    w[40, 3] = np.nan
    spec = QSpec("int4", granularity=PerBlock(0, 16))
    with pytest.raises(ModelError, match="NaN"):
        tiles.in_tiles(lambda part: rtn.quantize(part, spec), w, spec, np.empty(w.shape, np.int8), 512)
