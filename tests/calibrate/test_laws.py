"""Laws of all accumulators and of what every calibrator chooses from them, in whatever parts the data comes."""

import copy

import numpy as np
import pytest

from edgeq import registry
from edgeq.calibrate.extrema import Extrema
from edgeq.calibrate.gram import Gram
from edgeq.calibrate.histogram import Histogram
from edgeq.calibrate.summary import Summary
from edgeq.types import QSpec

FEATURES = 6
ACCUMULATORS = {
    "extrema": Extrema,
    "extrema of channels": lambda: Extrema(axis=-1),
    "histogram": Histogram,
    "summary": lambda: Summary(histogram=Histogram()),
    "gram": lambda: Gram.of(FEATURES),
}
NAMES = registry.names("edgeq.calibrate", "choose")


def batches(kind="summary"):
    """At scales that grow and shrink, with masks and NaN; the Gram matrix gets small whole numbers, and is exact."""
    rng = np.random.default_rng(3)
    scales = [1] * 6 if kind == "gram" else [0.5, 4, 0, 64, 1, 1024]
    found = [(rng.integers(-99, 100, (n, FEATURES)) * s).astype(np.float32) for n, s in enumerate(scales, 1)]
    if kind != "gram":
        found[1][0, :4] = np.nan, np.inf, -1e4, np.finfo(np.float32).min
    return found


def of(make, parts):
    out = make()
    for part in parts:
        out.update(part)
    return out


def merged(first, *rest):
    out = copy.deepcopy(first)
    for one in rest:
        out.merge(one)
    return out


def same(a, b):
    assert a.state().keys() == b.state().keys()
    for key, array in a.state().items():
        np.testing.assert_array_equal(array, b.state()[key], err_msg=key)


@pytest.mark.parametrize("kind", ACCUMULATORS)
def test_merging_is_associative_commutative_and_equal_to_streaming(kind):
    make, parts = ACCUMULATORS[kind], batches(kind)
    a, b, c = (of(make, parts[i : i + 2]) for i in (0, 2, 4))
    whole = of(make, parts)
    same(merged(merged(a, b), c), whole)
    same(merged(a, merged(b, c)), whole)
    same(merged(c, a, b), whole)
    same(merged(make(), whole), whole)
    same(type(whole).from_state(whole.state()), whole)
    before = {k: v.copy() for k, v in b.state().items()}
    merged(a, b).update(parts[5])
    for key, array in b.state().items():  # what was merged in is not touched
        np.testing.assert_array_equal(array, before[key])


@pytest.mark.parametrize("kind", ["histogram", "gram"])
def test_a_stream_equals_one_shot(kind):
    parts = batches(kind)
    same(of(ACCUMULATORS[kind], parts), of(ACCUMULATORS[kind], [np.concatenate(parts)]))


@pytest.mark.parametrize("spec", [QSpec("int8"), QSpec("uint8", symmetric=False), QSpec("int4", narrow=True)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_choice_depends_on_what_was_seen_and_not_on_how(name, spec):
    make, parts, module = ACCUMULATORS["summary"], batches(), registry.load("edgeq.calibrate", name)
    whole = module.choose(of(make, parts), spec)
    assert module.choose(of(make, parts[::-1]), spec) == whole
    assert module.choose(merged(*(of(make, [p]) for p in (parts[3], *parts[:3], *parts[4:]))), spec) == whole
    assert module.choose(Summary.from_state(of(make, parts).state()), spec) == whole
    if name != "moving_average":  # which is about samples
        assert module.choose(of(make, [np.concatenate(parts)]), spec) == whole
