import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import rel_entr
from sklearn.metrics.pairwise import cosine_similarity

from edgeq.numerics import metrics
from edgeq.numerics.metrics import Drift

RNG = np.random.default_rng(0)
EDGES = st.floats(width=32)  # with NaN and infinities


def test_known_ratios():
    ref = RNG.normal(size=10_000)
    assert metrics.sqnr_db(ref, ref * 1.1) == pytest.approx(20.0)
    assert metrics.sqnr_db(ref, np.zeros_like(ref)) == pytest.approx(0.0, abs=1e-12)
    uniform = RNG.uniform(-1, 1, 200_000)
    eight_bits = np.rint(uniform * 128) / 128  # the textbook's 6.02 dB a bit
    assert metrics.sqnr_db(uniform, eight_bits) == pytest.approx(6.02 * 8, abs=0.1)


def test_the_edges_are_defined():
    zeros, ones = np.zeros(3), np.ones(3)
    assert metrics.sqnr_db(ones, ones) == np.inf
    assert metrics.sqnr_db(zeros, zeros) == np.inf
    assert metrics.sqnr_db(zeros, ones) == -np.inf
    assert metrics.sqnr_db(np.array([]), np.array([])) == np.inf
    bad = np.array([1.0, np.nan, 1.0])
    assert metrics.sqnr_db(ones, bad) == -np.inf
    assert metrics.max_abs(ones, bad) == np.inf
    assert metrics.cosine(ones, bad) == 0.0
    same = np.array([1.0, np.nan, np.inf, -np.inf])
    assert metrics.sqnr_db(same, same) == np.inf
    assert metrics.max_abs(same, -same) == np.inf
    assert metrics.cosine(zeros, zeros) == 1.0
    assert metrics.cosine(zeros, ones) == 0.0
    with pytest.raises(ValueError, match="shapes differ"):
        metrics.sqnr_db(zeros, np.zeros((3, 1)))


@given(hnp.arrays(np.float32, st.integers(0, 5), elements=EDGES), st.data())
def test_no_measure_is_ever_nan(ref, data):
    got = data.draw(hnp.arrays(np.float32, ref.shape, elements=EDGES))
    for measure in (metrics.sqnr_db, metrics.max_abs, metrics.cosine):
        assert not np.isnan(measure(ref, got))


@given(st.integers(0, 2**32))
def test_against_scipy_and_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    p, q = rng.random((2, 3, 7))
    want = rel_entr(p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)).sum(1)
    np.testing.assert_allclose(metrics.kl_divergence(p, q, axis=1), want, atol=1e-12)
    ref, got = rng.normal(size=(2, 20))
    assert metrics.cosine(ref, got) == pytest.approx(cosine_similarity([ref], [got])[0, 0])
    assert metrics.max_abs(ref, got) == np.abs(ref - got).max()


def test_kl_edges():
    assert metrics.kl_divergence([1, 0], [0, 1]) == np.inf
    assert metrics.kl_divergence([0, 0], [0, 1]) == 0
    assert metrics.kl_divergence([0, 2], [0, 7]) == 0


def boxes_and_scores():
    """A detector's (1, 4 + 80, 100) output: boxes in pixels, scores below 1, rounded to one 8-bit scale."""
    boxes, scores = RNG.uniform(0, 300, (1, 4, 100)), RNG.uniform(0, 0.5, (1, 80, 100))
    ref = np.concatenate([boxes, scores], axis=1)
    scale = 300 / 255
    return ref, np.rint(ref / scale) * scale


def test_lost_scores_are_named_though_the_whole_looks_fine():
    ref, got = boxes_and_scores()
    assert metrics.sqnr_db(ref, got) > 40
    lost = metrics.lost_slices(ref, got)
    assert [(s.axis, s.index) for s in lost] == [(1, i) for i in range(4, 84)]
    for s in lost[:3]:
        assert s.sqnr_db == pytest.approx(metrics.sqnr_db(ref[:, s.index], got[:, s.index]))


def test_nothing_is_lost_where_there_is_no_signal_or_no_loss():
    ref, _ = boxes_and_scores()
    ref[:, 10:] = 0.0
    got = ref + RNG.normal(scale=1e-9, size=ref.shape)  # noise on all-zero rows is no lost signal
    assert metrics.lost_slices(ref, got) == ()
    assert metrics.lost_slices(ref, ref) == ()
    assert metrics.lost_slices(ref, -ref) == ()  # all is lost: the whole says so


@settings(deadline=None)
@given(st.integers(0, 1000), st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 4))
def test_streaming_equals_the_whole_and_merges(seed, batches, split):
    rng = np.random.default_rng(seed)
    ref = rng.normal(size=(sum(batches), 6)) * [1e3, 1, 1, 1, 1, 1]
    got = ref + rng.normal(size=ref.shape)
    parts = list(zip(np.split(ref, np.cumsum(batches)[:-1]), np.split(got, np.cumsum(batches)[:-1]), strict=True))
    halves = [Drift(axes=(1,)), Drift(axes=(1,))]
    for i, (r, g) in enumerate(parts):
        halves[i >= split].update(r, g)
    halves[0].merge(halves[1])
    found = halves[0].result()
    assert found.sqnr_db == pytest.approx(metrics.sqnr_db(ref, got))
    assert found.cosine == pytest.approx(metrics.cosine(ref, got))
    assert found.max_abs == metrics.max_abs(ref, got)
    assert found.count == ref.size
    whole = metrics.lost_slices(ref, got, axes=(1,))
    assert [s.index for s in found.lost] == [s.index for s in whole]
    assert [s.sqnr_db for s in found.lost] == pytest.approx([s.sqnr_db for s in whole])


def test_an_axis_of_varying_length_is_dropped():
    ref, got = boxes_and_scores()
    drift = Drift()
    drift.update(ref, got)
    drift.update(ref[..., :50], got[..., :50])
    assert set(drift.slices) == {1}
    assert len(drift.result().lost) == 80


def test_nothing_seen():
    assert Drift().result() == metrics.DriftResult(np.inf, 1.0, 0.0, 0, ())


def test_text_is_equal_or_not():
    drift = Drift()
    drift.update(np.array([["a", "b"], ["c", "d"]]), np.array([["a", "b"], ["c", "dd"]]))
    assert drift.result().sqnr_db == pytest.approx(10 * np.log10(4))
    assert metrics.sqnr_db(np.array(["a"]), np.array(["a"])) == np.inf


def test_slices_are_told_of_up_to_a_limit():
    for length in (2, metrics.MAX_SLICES, metrics.MAX_SLICES + 1):
        ref = RNG.normal(size=(length, 3))
        drift = Drift((0,))
        drift.update(ref, ref)
        assert (0 in drift.slices) == (length <= metrics.MAX_SLICES)


@pytest.mark.parametrize("size", [1e-3, 1.0])
def test_cosine_does_not_depend_on_length(size):
    assert metrics.cosine(np.array([size, 0]), np.array([size, size])) == pytest.approx(0.5**0.5)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2])
def test_energies_of_slices_are_numpys(axis):
    rng = np.random.default_rng(2)
    ref, got = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3, 4))
    signal, noise = metrics.slice_energies(ref, got, axis)
    np.testing.assert_allclose(signal, [np.sum(part**2) for part in np.moveaxis(ref, axis, 0)])
    np.testing.assert_allclose(noise, [np.sum(part**2) for part in np.moveaxis(ref - got, axis, 0)])


def test_a_slice_is_lost_down_to_a_millionth_of_the_largest():
    ref = np.ones((3, 50))
    ref[1], ref[2] = 2e-6, 0.5e-6
    got = ref * [[1.0], [0.0], [0.0]]
    assert [s.index for s in metrics.lost_slices(ref, got, (0,))] == [1]


ODD = [0.0, 1.0, -1.0, 2.5, np.nan, np.inf, -np.inf]


def by_hand(ref, got):
    """Σ r², Σ e², Σ r e and max |e| by the module's rules, one element after the other."""
    rr = ee = re = largest = 0.0
    for r, g in zip(np.ravel(ref).tolist(), np.ravel(got).tolist(), strict=True):
        same = r == g or (np.isnan(r) and np.isnan(g))
        finite = np.isfinite(r) and np.isfinite(g)
        error = 0.0 if same else g - r if finite else np.inf
        r = r if np.isfinite(r) else 0.0
        rr, ee, largest = rr + r * r, ee + error * error, max(largest, abs(error))
        re += r * error if np.isfinite(error) else 0.0
    return rr, ee, re, largest


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.sampled_from(ODD), min_size=6, max_size=6), min_size=2, max_size=4), st.booleans())
def test_measures_are_their_formulas_on_any_mixture(rows, halves):
    """Of streamed arrays, the last of them the other one's negative or a half, so that all signs of cosines come."""
    parts = [np.array(r).reshape(2, 3) for r in rows]
    ref, got = parts, [*parts[1:], parts[0] * (0.5 if halves else -1.0)]
    drift = Drift()
    for r, g in zip(ref, got, strict=True):
        drift.update(r, g)
    rr, ee, re, largest = by_hand(np.stack(ref), np.stack(got))
    found = drift.result()
    db = np.inf if ee == 0 else -np.inf if rr == 0 or np.isinf(ee) else 10 * np.log10(rr / ee)
    length = rr + 2 * re + ee
    cosine = 1.0 if ee == 0 else 0.0 if np.isinf(ee) or rr == 0 or length <= 0 else (rr + re) / (rr * length) ** 0.5
    assert found.sqnr_db == pytest.approx(db)
    assert found.cosine == pytest.approx(cosine)
    assert found.max_abs == largest
    assert found.count == 6 * len(rows)
    whole = np.stack(ref), np.stack(got)
    assert metrics.sqnr_db(*whole) == pytest.approx(db)
    assert metrics.cosine(*whole) == pytest.approx(cosine)
    assert metrics.max_abs(*whole) == largest


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_divergence_of_weights_along_any_axis(axis):
    """Weights that do not sum to 1, zeros on either side, and a row of nothing."""
    p = np.array([[0.0, 3, 1, 4], [0, 0, 0, 0], [2, 2, 0, 0], [1, 0, 0, 1]])
    q = np.array([[5.0, 1, 1, 1], [1, 1, 1, 1], [1, 3, 0, 0], [0, 0, 0, 0]]) + (axis == 0)
    rows = [(p.ravel(), q.ravel())] if axis is None else list(zip(*((p.T, q.T) if axis == 0 else (p, q)), strict=True))
    want = [rel_entr(a / (a.sum() or 1), b / (b.sum() or 1)).sum() for a, b in rows]
    np.testing.assert_allclose(metrics.kl_divergence(p, q, axis=axis), want[0] if axis is None else want, atol=1e-12)


@pytest.mark.parametrize(("noise", "lost"), [(0.4999, False), (0.503, True), (1.0, True), (0.0, False)])
def test_a_slice_is_lost_below_three_decibels(noise, lost):
    """Half of the energy is 3.01 dB, and 3 dB are 50.1 % of it; the whole is fine in either case."""
    ref = np.ones((2, 100))
    ref[0] *= 1000
    got = ref.copy()
    got[1] += noise**0.5
    db = -10 * np.log10(noise) if noise else np.inf
    found = metrics.lost_slices(ref, got, (0,))
    assert [(s.axis, s.index) for s in found] == ([(0, 1)] if lost else [])
    assert all(s.sqnr_db == pytest.approx(db) for s in found)


@pytest.mark.parametrize(("axes", "kept"), [
    (None, {0, 1, 2}), ((0,), {0}), ((-1,), {2}), ((-3, 1), {0, 1}), ((3,), set()), ((-4,), set()), ((0, 7), {0}),
])  # fmt: skip
def test_axes_that_are_not_there_are_passed_over(axes, kept):
    ref = RNG.normal(size=(2, 3, 4))
    drift = Drift(axes)
    drift.update(ref, ref + 1)
    assert set(drift.slices) == kept
    for axis, (signal, noise) in drift.slices.items():
        others = tuple({0, 1, 2} - {axis})
        np.testing.assert_allclose(signal, (ref**2).sum(others))
        np.testing.assert_allclose(noise, np.full(ref.shape[axis], ref.size / ref.shape[axis]))


def test_an_axis_of_one_has_no_slices_and_a_merge_with_nothing_keeps_all():
    ref = RNG.normal(size=(1, 2))
    drift, none = Drift(), Drift()
    drift.update(ref, -ref)
    assert set(drift.slices) == {1}
    kept = drift.result(), {a: [v.tolist() for v in s] for a, s in drift.slices.items()}
    drift.merge(none)
    none.merge(drift)
    for one in (drift, none):
        assert one.updates == 1
        assert (one.result(), {a: [v.tolist() for v in s] for a, s in one.slices.items()}) == kept


def test_text_has_one_error_for_each_that_differs():
    ref, got = np.array(["a", "b", "c"]), np.array(["a", "x", "y"])
    assert metrics.max_abs(ref, got) == 1
    assert metrics.sqnr_db(ref, got) == pytest.approx(10 * np.log10(3 / 2))
    signal, noise = metrics.slice_energies(ref, got, 0)
    assert (signal.tolist(), noise.tolist()) == ([1, 1, 1], [0, 1, 1])


@pytest.mark.parametrize(("length", "told"), [(1, False), (2, True), (4096, True), (4097, False)])
def test_slices_are_of_axes_of_2_to_4096(length, told):
    ref = np.ones((length, 1, 2))
    ref[0] = 1e-3
    got = ref.copy()
    got[0] = 0
    assert bool(metrics.lost_slices(ref, got)) == told
