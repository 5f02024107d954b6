import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeq.calibrate.extrema import FAR, Extrema, trim_masks
from edgeq.errors import CalibrationError
from edgeq.types import Range

ANY = st.floats(width=32)  # with NaN, infinities, denormals and the largest values
RNG = np.random.default_rng(0)


def of(*arrays, axis=None):
    out = Extrema(axis)
    for a in arrays:
        out.update(np.asarray(a, np.float32))
    return out


def same(a, b):
    assert a.state().keys() == b.state().keys()
    for key, value in a.state().items():
        np.testing.assert_array_equal(value, b.state()[key], err_msg=key)


@given(hnp.arrays(np.float32, st.integers(1, 30), elements=ANY))
def test_counts_and_extrema_equal_numpys(x):
    e = of(x)
    real = x[np.isfinite(x)]
    assert (e.count, e.nan, e.finite) == (x.size, np.isnan(x).sum(), real.size)
    assert (e.neg_inf, e.pos_inf) == ((x == -np.inf).sum(), (x == np.inf).sum())
    assert (e.lo, e.hi) == (real.min(initial=np.inf), real.max(initial=-np.inf))
    assert e.far_count.sum() == (np.abs(real) >= FAR).sum()


@settings(deadline=None)
@given(st.lists(hnp.arrays(np.float32, (2, 3), elements=ANY), min_size=1, max_size=6), st.randoms())
def test_merge_is_exact_in_any_order_and_grouping(batches, random):
    whole = of(*batches, axis=1)
    parts = [of(b, axis=1) for b in batches]
    random.shuffle(parts)
    while len(parts) > 1:
        i = random.randrange(len(parts) - 1)
        parts[i].merge(parts.pop(i + 1))
    same(whole, parts[0])
    same(whole, Extrema.from_state(whole.state()))
    channel = np.stack(batches)
    channel = np.where(np.isfinite(channel), channel, np.nan)
    if not np.isnan(channel).all(axis=(0, 1)).any():
        np.testing.assert_array_equal(whole.channel_lo, np.nanmin(channel, axis=(0, 1)))
        np.testing.assert_array_equal(whole.channel_hi, np.nanmax(channel, axis=(0, 1)))


def test_the_state_survives_npz_without_pickle(tmp_path):
    e = of(RNG.normal(size=(3, 4)), [[-1e4, 1.0, np.nan, 2.0]], axis=-1)
    np.savez(tmp_path / "s.npz", **e.state())
    with np.load(tmp_path / "s.npz", allow_pickle=False) as loaded:
        same(e, Extrema.from_state(dict(loaded)))


def test_means_are_exact():
    e = of([-1.0, 2.0], [-3.0, 0.5], [np.nan, np.inf], [1e-30, 2e-30])
    assert e.mean() == Range(pytest.approx((-1.0 - 3.0 + 1e-30) / 3), pytest.approx(2.5 / 3))


def test_ranges_that_a_runtime_found():
    e = of([-1.0, 2.0], [0.0, 5.0])
    f = Extrema()
    f.update_range(-1.0, 2.0, 2)
    f.update_range(0.0, 5.0, 2)
    same(e, f)
    for bad in ((np.nan, np.nan), (-1e4, 0.0), (0.0, np.inf)):
        with pytest.raises(ValueError, match="values"):
            f.update_range(*bad, 2)


@pytest.mark.parametrize("mask", [-1e4, -9984.0, -65504.0, -1e9, float(np.finfo(np.float32).min)])
def test_masks_are_trimmed(mask):
    scores = RNG.normal(scale=8, size=(2, 4, 32, 32)).astype(np.float32)
    masked = np.where(np.tri(32, dtype=bool), scores, scores + np.float32(mask))
    e = of(masked)
    assert e.lo < -9000
    trimmed, count = trim_masks(e)
    kept = masked[masked > -9000]
    assert trimmed == Range(kept.min(), kept.max())
    assert count == masked.size - kept.size


def test_infinite_masks_are_no_values():
    scores = RNG.normal(size=(32, 32)).astype(np.float32)
    scores[np.triu_indices(32, 1)] = -np.inf
    real = scores[np.isfinite(scores)]
    assert trim_masks(of(scores)) == (Range(real.min(), real.max()), 0)
    assert of(scores).neg_inf == 32 * 31 // 2


def test_a_mask_beyond_wide_values_is_trimmed_alone():
    x = np.linspace(-3e4, 3e4, 1001)
    assert trim_masks(of(x, [-3.4e38])) == (Range(-3e4, 3e4), 1)


@pytest.mark.parametrize(
    "x",
    [
        np.linspace(0, 3e4, 1000),
        -np.linspace(0, 3e4, 1000),
        RNG.exponential(1e4, 5000) * RNG.choice([-1, 1], 5000),
        np.array([0.0, -1e4, 0.0]),  # the mask itself
        np.array([-1e4, -1e4]),
        np.array([1.0, 2.0, 2e4]),  # positive: an outlier, not a mask
        np.array([-600.0, 300.0, -9000.0]),  # too near
    ],
)
def test_wide_tensors_are_not(x):
    x = x.astype(np.float32)
    assert trim_masks(of(x)) == (Range(x.min(), x.max()), 0)


def test_nothing_finite_is_refused():
    with pytest.raises(CalibrationError, match="no values"):
        trim_masks(Extrema())
    with pytest.raises(CalibrationError, match="2 NaN and 1 infinite"):
        trim_masks(of([np.nan, np.nan, -np.inf]))


def test_channels_must_agree():
    with pytest.raises(CalibrationError, match="channels"):
        of(np.zeros((2, 3)), np.zeros((2, 4)), axis=1)


def test_an_empty_sample_has_no_range_and_changes_nothing():
    e = of([-1.0, 2.0])
    before = e.state()
    assert e.update(np.empty((0, 3), np.float32)) == (np.inf, -np.inf)
    for key, value in e.state().items():
        np.testing.assert_array_equal(value, before[key])


def test_means_of_what_is_near_count_each_range_once():
    e = Extrema()
    e.update_range(-1.0, 2.0, 2)
    e.update_range(-3.0, 0.5, 2)
    assert e.mean(near=True) == Range(-2.0, 1.25)
    with pytest.raises(ValueError, match="values"):
        e.update_range(-FAR, 1.0, 2)


def test_the_first_far_value_is_far_alone():
    e = of([-1.0, FAR])
    assert (e.near_lo, e.near_hi) == (-1.0, -1.0)
    assert e.far_count.sum() == 1
