"""Laws that every calibrator obeys, and each one against an independent computation on the raw samples."""

import numpy as np
import pytest

from edgeq import registry
from edgeq.calibrate.extrema import Extrema
from edgeq.calibrate.histogram import Histogram
from edgeq.calibrate.summary import Summary
from edgeq.errors import CalibrationError, RecipeError
from edgeq.numerics import affine
from edgeq.types import QSpec, Range
from tests.calibrate.tensors import SPECS, TENSORS, choose, summary_of

NAMES = registry.names("edgeq.calibrate", "choose")


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("tensor", TENSORS)
@pytest.mark.parametrize("name", NAMES)
def test_laws(name, tensor, spec):
    x = np.asarray(TENSORS[tensor], np.float32)
    real = x[np.isfinite(x)]
    reach = np.abs(real).max()
    got = choose(name, summary_of(x), spec)
    assert np.isfinite([got.lo, got.hi]).all()
    assert got.lo <= got.hi
    assert max(-got.lo, got.hi) <= reach
    if name != "absmax":
        assert real.min() <= got.lo
        assert got.hi <= real.max()
    assert got == choose(name, summary_of(*np.array_split(x, 3)[::-1]), spec) or name == "moving_average"
    if real.min() == real.max():
        assert got == Range(real[0], real[0])
    params = affine.qparams(got.lo, got.hi, spec)
    assert params.scale > 0


@pytest.mark.parametrize("name", NAMES)
def test_needs_are_honest_and_told_in_a_line(name):
    module = registry.load("edgeq.calibrate", name)
    assert len(module.__doc__.split("\n\n")[0]) > 40
    assert frozenset({"extrema"}) <= module.NEEDS <= {"extrema", "histogram"}
    if "histogram" not in module.NEEDS:
        bare = summary_of(TENSORS["silu"])
        with_histogram = module.choose(bare, SPECS[1])
        bare.histogram = None
        assert module.choose(bare, SPECS[1]) == with_histogram


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mask", [-1e4, -65504.0, -3.4e38, -np.inf])
def test_masks_change_nothing(name, mask):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 64)).astype(np.float32)
    masked = np.concatenate([x, np.full((64, 64), mask, np.float32)], axis=1)
    for spec in SPECS[:2]:
        assert choose(name, summary_of(masked), spec) == choose(name, summary_of(x), spec)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_finite_is_refused(name):
    for summary in (summary_of(), summary_of([np.nan, np.inf])):
        with pytest.raises(CalibrationError, match="no finite value"):
            choose(name, summary, SPECS[0])


def test_a_saved_summary_chooses_the_same(tmp_path):
    summary = summary_of(TENSORS["silu"], [-1e4])
    np.savez(tmp_path / "s.npz", **summary.state())
    with np.load(tmp_path / "s.npz", allow_pickle=False) as loaded:
        again = Summary.from_state(dict(loaded))
    for name in NAMES:
        assert choose(name, again, SPECS[1]) == choose(name, summary, SPECS[1])
    with pytest.raises(ValueError, match="histogram"):
        again.merge(Summary())


def loss(x, lo, hi, spec, p):
    """Mean error of the raw samples themselves."""
    x = x.astype(np.float32)
    return np.mean(np.abs(x - affine.fake_quantize(x, affine.qparams(lo, hi, spec))).astype(np.float64) ** p)


@pytest.mark.parametrize("spec", [s for s in SPECS if s.bits <= 8], ids=str)
@pytest.mark.parametrize(
    "tensor", ["normal", "relu", "laplace", "outliers", "silu", "uniform above", "negative", "wide", "integers"]
)
@pytest.mark.parametrize(("name", "p"), [("mse", 2.0), ("lp", 2.4)])
def test_search_is_near_brute_force_over_the_samples(name, p, tensor, spec):
    x = np.asarray(TENSORS[tensor], np.float32)[:6000]
    if tensor == "outliers":
        x = np.concatenate([x, [60.0, -20.0]]).astype(np.float32)
    lo, hi = min(x.min(), 0), max(x.max(), 0)
    fractions = np.linspace(0.02, 1, 50)
    if spec.symmetric:
        reach = max(-lo, hi)
        grid = [(-f * reach, f * reach) for f in fractions]
    else:
        grid = [(a * lo, b * hi) for a in (fractions[::3] if lo else [0]) for b in (fractions[::3] if hi else [0])]
    best = min(loss(x, *ends, spec, p) for ends in grid)
    got = choose(name, summary_of(x), spec)
    ours, minmax = loss(x, got.lo, got.hi, spec, p), loss(x, lo, hi, spec, p)
    assert ours <= best * 1.05 + 1e-12
    assert ours <= minmax * 1.02 + 1e-12


@pytest.mark.parametrize("tensor", ["normal", "relu", "laplace", "silu", "outliers", "uniform above", "wide"])
@pytest.mark.parametrize("percentile", [50.0, 99.0, 99.99, 100.0])
def test_percentiles_are_quantiles(tensor, percentile):
    x = np.asarray(TENSORS[tensor], np.float32)
    summary, module = summary_of(x), registry.load("edgeq.calibrate", "percentile")
    bin_width = summary.mass().width
    got = module.choose(summary, QSpec("int8"), percentile=percentile)
    want = np.quantile(np.abs(x), percentile / 100)
    gap = np.diff(np.sort(np.abs(x))[-3:]).max()  # numpy interpolates between the last samples
    assert abs(max(-got.lo, got.hi) - want) <= 2 * bin_width + gap
    got = module.choose(summary, QSpec("uint8", symmetric=False), percentile=percentile)
    tail = (1 - percentile / 100) / 2
    gaps = np.diff(np.sort(x))
    assert abs(got.lo - np.quantile(x, tail)) <= 2 * bin_width + gaps[:2].max()
    assert abs(got.hi - np.quantile(x, 1 - tail)) <= 2 * bin_width + gaps[-2:].max()
    with pytest.raises(RecipeError, match="percentile"):
        module.choose(summary, QSpec("int8"), percentile=0)


def test_moving_average_is_the_mean_of_extrema_in_any_order():
    rng = np.random.default_rng(0)
    batches = rng.normal(size=(9, 50)).astype(np.float32)
    batches[4] *= 100
    got = choose("moving_average", summary_of(*batches), SPECS[1])
    assert got.lo == pytest.approx(batches.min(1).mean(dtype=np.float64))
    assert got.hi == pytest.approx(batches.max(1).mean(dtype=np.float64))
    assert got == choose("moving_average", summary_of(*batches[::-1]), SPECS[1])


def test_a_strided_subsample_chooses_a_range_as_good():
    """One element in 7 with the exact extrema of each update: at most 1 dB is lost, one tenth of that on average."""
    rng = np.random.default_rng(0)
    normal = rng.normal(scale=2, size=300_000)
    ratios = []
    for x in (normal, rng.laplace(size=300_000), normal / (1 + np.exp(-normal)), np.maximum(normal, 0)):
        x = x.astype(np.float32)
        sub = Summary(Extrema(), Histogram())
        for part in np.split(x, 10):
            sub.update(part, stride=7)
        sub.settle()
        assert (sub.extrema.lo, sub.extrema.hi) == (x.min(), x.max())
        assert sub.histogram.near.counts.sum() == pytest.approx(x.size, rel=1e-3)
        for name, p in (("mse", 2.0), ("lp", 2.4), ("percentile", 2.0)):
            for spec in SPECS[:2]:
                whole, part = choose(name, summary_of(x), spec), choose(name, sub, spec)
                ratios.append(loss(x, part.lo, part.hi, spec, p) / loss(x, whole.lo, whole.hi, spec, p))
    assert max(ratios) <= 1.25
    assert np.mean(ratios) <= 1.03


@pytest.mark.parametrize(("norm", "allowed"), [(0.49, False), (0.5, True), (8, True), (8.01, False)])
def test_the_norm_of_lp_is_bounded(norm, allowed):
    summary, lp = Summary(), registry.load("edgeq.calibrate", "lp")
    summary.update(np.random.default_rng(0).normal(size=1000).astype(np.float32))
    if allowed:
        assert lp.choose(summary, QSpec("int8"), p=norm).hi > 0
        return
    with pytest.raises(RecipeError, match=r"not within 0\.5 to 8"):
        lp.choose(summary, QSpec("int8"), p=norm)


def test_a_mean_of_extrema_stays_within_what_is_no_mask():
    """Only what is near counts where a mask was met, and nothing is chosen beyond a limit."""
    summary = summary_of([-1.0, 2.0, -1e4], [-3.0, 1.0], [0.5, 4.0])
    assert choose("moving_average", summary, SPECS[1]) == Range((-1 - 3 + 0.5) / 3, (2 + 1 + 4) / 3)
    for limit, want in ((Range(-0.5, 1.0), Range(-0.5, 1.0)), (Range(-9.0, 9.0), Range(-3.5 / 3, 7 / 3))):
        summary = summary_of([-1.0, 2.0], [-3.0, 1.0], [0.5, 4.0])
        summary.limit = limit
        assert choose("moving_average", summary, SPECS[1]) == want


def test_absmax_is_symmetric_but_for_a_single_value():
    assert choose("absmax", summary_of([-3.0, 1.0]), SPECS[1]) == Range(-3.0, 3.0)
    assert choose("absmax", summary_of([-1.0, 3.0]), SPECS[1]) == Range(-3.0, 3.0)
    assert choose("absmax", summary_of([-3.0]), SPECS[1]) == Range(-3.0, -3.0)
    assert choose("absmax", summary_of([2.0]), SPECS[1]) == Range(2.0, 2.0)
    assert choose("minmax", summary_of([-3.0, 1.0]), SPECS[1]) == Range(-3.0, 1.0)


@pytest.mark.parametrize("percent", [0.0, -1.0, 100.1, 100.0, 1e-9])
def test_percentiles_are_above_nothing_and_up_to_all(percent):
    summary, module = summary_of(TENSORS["silu"]), registry.load("edgeq.calibrate", "percentile")
    if 0 < percent <= 100:
        got = module.choose(summary, SPECS[1], percentile=percent)
        assert summary.extrema.lo <= got.lo <= got.hi <= summary.extrema.hi
    else:
        with pytest.raises(RecipeError, match="not above 0"):
            module.choose(summary, SPECS[1], percentile=percent)


@pytest.mark.parametrize("percent", [60.0, 99.0, 99.99])
@pytest.mark.parametrize("tensor", ["normal", "silu", "negative", "uniform above", "relu"])
def test_percentiles_cut_exactly_so_much_mass(tensor, percent):
    """With each bin's mass spread evenly over it: by the masses' own distribution function."""
    summary = summary_of(TENSORS[tensor])
    mass, module = summary.mass(), registry.load("edgeq.calibrate", "percentile")
    shares = np.concatenate([[0.0], np.cumsum(mass.counts)]) / mass.counts.sum()
    got = module.choose(summary, SPECS[1], percentile=percent)
    tail = (1 - percent / 100) / 2
    assert np.interp(got.lo, mass.edges, shares) == pytest.approx(tail, abs=1e-9)
    assert np.interp(got.hi, mass.edges, shares) == pytest.approx(1 - tail, abs=1e-9)
    reach = choose("percentile", summary, SPECS[0]) if percent == 99.99 else module.choose(summary, SPECS[0], percent)
    cut, held = max(-reach.lo, reach.hi), 0.0
    for count, start, stop in zip(mass.counts, mass.edges, mass.edges[1:], strict=False):
        far = max(-start, stop) if start < 0 < stop else max(abs(start), abs(stop))
        near = 0.0 if start < 0 < stop else min(abs(start), abs(stop))
        held += count * np.clip((cut - near) / (far - near), 0, 1)
    # Bins of both signs lie in one order and are not merged: off by no more than what one bin of each holds.
    assert held / mass.counts.sum() == pytest.approx(percent / 100, abs=2 * mass.counts.max() / mass.counts.sum())
