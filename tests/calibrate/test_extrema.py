import itertools
from fractions import Fraction

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


EDGES = st.sampled_from([0.0, -0.0, 8191.9995, -8191.9995, FAR, -FAR, 16384.0, -16384.0, 64999.0, 65000.0, -65504.0])
EDGES |= st.sampled_from([2.0**-149, -(2.0**-149), 512.0, -512.0, 1.0, np.nan, np.inf, -np.inf, 2.0**127, -3.4e38])


def listed(batches):
    """What the docstrings say of an accumulator, over plain lists of numbers."""
    values = [float(v) for b in batches for v in np.ravel(b)]
    finite = [[float(v) for v in np.ravel(b) if np.isfinite(v)] for b in batches]
    near = [[v for v in b if abs(v) < 2**13] for b in finite]
    far = [[[] for _ in range(115)] for _ in range(2)]
    for v in itertools.chain(*finite):
        if abs(v) >= 2**13:
            far[v > 0][int(np.log2(abs(v))) - 13].append(abs(v))
    sums = [sum(Fraction(f(b)) for b in part if b) * 2**149 for part in (finite, near) for f in (min, max)]
    every = list(itertools.chain(*near))
    counts = [len(values), sum(map(np.isnan, values)), values.count(-np.inf), values.count(np.inf)]
    return {
        "counts": [*counts, sum(map(bool, finite)), sum(map(bool, near))],
        "near": [min(every, default=np.inf), max(every, default=-np.inf)],
        "sums": sums,
        "far_count": [[len(o) for o in side] for side in far],
        "far_least": [[min(o, default=np.inf) for o in side] for side in far],
        "far_greatest": [[max(o, default=0) for o in side] for side in far],
    }


@settings(max_examples=150, deadline=None)
@given(st.lists(hnp.arrays(np.float32, st.integers(1, 6), elements=ANY | EDGES), min_size=1, max_size=4))
def test_everything_kept_is_what_the_text_says(batches):
    found, want = of(*batches).state(), listed(batches)
    assert found["counts"][1:].tolist() == want["counts"]
    assert found["near"].tolist() == want["near"]
    assert [int(str(s), 16) for s in found["sums"]] == want["sums"]
    for key in ("far_count", "far_least", "far_greatest"):
        np.testing.assert_array_equal(found[key], want[key], err_msg=key)


@settings(max_examples=150, deadline=None)
@given(st.lists(hnp.arrays(np.float32, st.integers(1, 6), elements=ANY | EDGES), min_size=1, max_size=4))
def test_means_are_those_of_the_batches_extrema(batches):
    finite = [[v for v in b if np.isfinite(v)] for b in batches]
    for near in (False, True):
        held = [[v for v in b if abs(v) < FAR or not near] for b in finite]
        held = [b for b in held if b]
        if held:
            want = [sum(Fraction(float(f(b))) for b in held) / len(held) for f in (min, max)]
            got = of(*batches).mean(near=near)
            assert (got.lo, got.hi) == tuple(map(float, want))


@settings(max_examples=400, deadline=None)
@given(
    st.lists(
        st.sampled_from([0.0, 1.0, -1.0, 511.0, 512.0, -512.0, 513.0, 8191.0])
        | st.sampled_from([8192.0, 8208.0, -8192.0, -8191.0 * 16, -8192.0 * 16, 64999.0, 65000.0, -65504.0])
        | st.sampled_from([65504.0, 1e6, -1e6, 16e6, -16e6, 15.9e6, -15.9e6, -3.4e38, 3.4e38, np.nan, -np.inf]),
        min_size=1,
        max_size=6,
    )
)
def test_masks_are_what_lies_beyond_a_gap(values):
    """The rule of `trim_masks` over the sorted values themselves, one after the other."""
    x = np.array(values, np.float32)
    finite = sorted((float(v) for v in x if np.isfinite(v)), key=abs)
    if not finite:
        return
    cut, reach = len(finite), max((abs(v) for v in finite if abs(v) < 2**13), default=0.0)
    for i, v in enumerate(finite):
        if reach and abs(v) >= 2**13:
            if abs(v) >= 16 * reach:
                cut = i if not any(0 < w < 65000 for w in finite[i:]) else cut
                break
            reach = abs(v)
    kept = finite[:cut]
    assert trim_masks(of(x)) == (Range(min(kept), max(kept)), len(finite) - cut)


@pytest.mark.parametrize("axis", [0, 1, -1, -2])
def test_extrema_of_channels_are_of_finite_values_along_any_axis(axis):
    x = RNG.normal(size=(3, 4)).astype(np.float32)
    x[1, 2], x[0, 1], x[2, 0] = np.nan, np.inf, -np.inf
    y = RNG.normal(size=x.shape).astype(np.float32)
    e = of(x, y, axis=axis)
    real = np.where(np.isfinite(x), x, np.nan)
    other = 1 - axis % 2
    np.testing.assert_array_equal(e.channel_lo, np.minimum(np.nanmin(real, axis=other), y.min(axis=other)))
    np.testing.assert_array_equal(e.channel_hi, np.maximum(np.nanmax(real, axis=other), y.max(axis=other)))


def test_a_merge_with_what_saw_nothing_keeps_the_channels():
    e, none = of(RNG.normal(size=(2, 3)), axis=-1), Extrema(-1)
    before = e.state()
    e.merge(none)
    none.merge(e)
    for one in (e, none):
        for key, value in before.items():
            np.testing.assert_array_equal(one.state()[key], value, err_msg=key)


def test_a_mean_is_of_all_values_unless_told():
    e = of([-1.0, 1e4], [-2e4, 3.0])
    assert e.mean() == Range((-1.0 - 2e4) / 2, (1e4 + 3.0) / 2)
    assert e.mean(near=True) == Range((-1.0 + 3.0) / 2, (-1.0 + 3.0) / 2)
