"""Extrema and samples that onnxruntime itself takes, against numpy on the tensors of a plain session."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from edgeq.calibrate.collect import collect
from edgeq.calibrate.glance import Glance
from edgeq.errors import CalibrationError
from edgeq.graph.observe import observable
from edgeq.runners.cpu import open_session
from edgeq.runners.glances import GlanceSession
from edgeq.types import Range
from tests.graph.written import draw, save, text

NET = """
    c = Conv <pads = [1, 1, 1, 1]> (x, w, b)  r = Relu (c)
    d = Conv <pads = [1, 1, 1, 1]> (r, v)     e = Clip (d, zero, six)
    f = Conv <pads = [1, 1, 1, 1]> (e, w2)    g = Add (f, r)
    p = GlobalAveragePool (g)  k = Shape (p)  s = Sigmoid (p)  y = Mul (g, s)
"""
WEIGHTS = {
    "w": draw(32, 4, 3, 3), "b": draw(32), "v": draw(24, 32, 3, 3), "w2": draw(32, 24, 3, 3), "zero": np.float32(0),
    "six": np.float32(6),
}  # fmt: skip
VALUES = ["x", "c", "r", "d", "e", "f", "g", "p", "s", "y"]
KEPT = ["r", "e", "g", "s", "y"]  # those that fused kernels make, so that the same kernels run in both sessions


def observed(folder, values, body=NET, weights=WEIGHTS, inputs="float[N,4,H,W] x"):
    path = save(folder, text(body, inputs), weights)
    onnx.save(onnx.shape_inference.infer_shapes(onnx.load(path)), path)
    (folder / "o").mkdir()
    return observable(path, values, folder / "o")


def plain(path):
    session = open_session(path)
    return lambda feeds, _: session.run(feeds)


def feeds(*sizes):
    return [{"x": draw(1, 4, size, size + 2)} for size in sizes]


@pytest.mark.parametrize("inputs", ["float[N,4,H,W] x", "float[N,4,40,42] x"])
def test_extrema_are_those_of_the_tensors(tmp_path, inputs):
    path, names = observed(tmp_path, KEPT, inputs=inputs)
    samples = feeds(40, 40, 8) if "H" in inputs else feeds(40, 40)
    session, bare = GlanceSession(path, list(names.values()), list(names.values())), open_session(path)
    for sample in samples:
        seen, tensors = session.run(sample), bare.run(sample)
        for value, name in names.items():
            array, one = tensors[name], seen[name]
            assert isinstance(one, Glance)
            assert one.values is None
            assert (one.lo, one.hi) == (array.min(), array.max())
            assert one.weight % 2 == 1
            assert array.size <= one.part.size * one.weight < array.size + 16 * one.weight
            assert np.isin(one.part, array).all(), value
            if one.weight == 1:  # all of it, in whatever layout
                np.testing.assert_array_equal(np.sort(one.part, axis=None), np.sort(array, axis=None))
    unseen = session.run(samples[0], look=False)
    for name, tensor in bare.run(samples[0]).items():
        assert (unseen[name].lo, unseen[name].hi, unseen[name].part.size) == (tensor.min(), tensor.max(), 0)
    assert {int(session.run(samples[0])[names[v]].weight) for v in KEPT} > {1}
    session.close()


def test_values_far_out_and_nan_are_given_whole(tmp_path):
    """From then on, and to the same statistics as without: the layout, and with it the sample, stays."""
    path, names = observed(tmp_path, ["r", "z"], NET + "z = Log (c)", inputs="float[N,4,40,40] x")
    calm = [{"x": np.abs(draw(1, 4, 40, 40))}]
    wild = [{"x": calm[0]["x"] * np.float32(1e5)}]
    states = []
    for samples in (calm + wild + calm, wild + calm + calm):
        session = GlanceSession(path, list(names.values()), list(names.values()))
        found, _ = collect(session.run, samples, {"r": "mse", "z": "mse"}, names)
        session.close()
        states.append({f"{v}.{k}": a for v, s in found.items() for k, a in s.state().items()})
    whole, _ = collect(plain(path), calm + wild + calm, {"r": "mse", "z": "mse"}, names)
    for key, array in states[0].items():
        if not key.endswith("extrema.counts"):
            np.testing.assert_array_equal(array, states[1][key], err_msg=key)
    for value in "rz":
        assert (found[value].extrema.lo, found[value].extrema.hi) == (whole[value].extrema.lo, whole[value].extrema.hi)
    assert found["r"].extrema.far_count.sum() == whole["r"].extrema.far_count.sum() > 0
    assert found["z"].extrema.nan == whole["z"].extrema.nan > 0


def test_extrema_alone_are_enough_for_calibrators_that_need_no_more(tmp_path):
    path, names = observed(tmp_path, KEPT)
    found, _ = collect(GlanceSession(path, KEPT, []).run, feeds(40, 8), dict.fromkeys(KEPT, "minmax"), names)
    whole, _ = collect(plain(path), feeds(40, 8), dict.fromkeys(KEPT, "minmax"), names)
    for value in KEPT:
        assert found[value].histogram is None
        assert found[value].bounds() == whole[value].bounds()


def test_the_number_of_threads_changes_nothing(tmp_path):
    path, names = observed(tmp_path, VALUES)
    states = []
    for threads in (1, 3):
        session = GlanceSession(path, list(names.values()), ["y"])
        found, count = collect(session.run, feeds(40, 8, 30, 40), dict.fromkeys(VALUES, "mse"), names, workers=threads)
        assert count == 4
        states.append({f"{v}.{k}": a for v, s in found.items() for k, a in s.state().items()})
    for key, array in states[0].items():
        np.testing.assert_array_equal(array, states[1][key], err_msg=key)


def test_empty_tensors_are_no_failure_and_wrong_feeds_are(tmp_path):
    body = "n = NonZero (x) f = Cast <to = 1> (n) y = Mul (f, f)"
    path, names = observed(tmp_path, ["f", "y"], body, {}, "float[N] x")
    session = GlanceSession(path, list(names.values()), [])
    samples = [{"x": np.zeros(3, np.float32)}, {"x": np.ones(3, np.float32)}]
    found, _ = collect(session.run, samples, {"y": "minmax"}, names)
    assert (found["y"].extrema.lo, found["y"].extrema.hi) == (0, 4)
    with pytest.raises(CalibrationError, match="wants float32"):
        session.run({"x": np.zeros(3)})


def test_a_branch_not_taken_has_no_statistics(tmp_path):
    body = """y = If (q) <then_branch = a () => (float[N] t) { t = Relu (x) },
                        else_branch = b () => (float[N] u) { u = Neg (x) }>"""
    path, names = observed(tmp_path, ["t", "u"], body, {}, "float[N] x, bool q")
    session = GlanceSession(path, list(names.values()), [])
    sample = {"x": np.ones(3, np.float32), "q": np.array(False)}
    found, _ = collect(session.run, [sample], {"t": "minmax", "u": "minmax"}, names)
    assert list(found) == ["u"]
    assert found["u"].bounds() == Range(-1, -1)


def test_what_cannot_be_read_back_runs_as_it_is(tmp_path, monkeypatch):
    path, names = observed(tmp_path, KEPT)
    monkeypatch.setattr(ort.SessionOptions, "optimized_model_filepath", property(fset=lambda *_: None), raising=False)
    session = GlanceSession(path, list(names.values()), [])
    plain = open_session(path)
    sample = feeds(8)[0]
    for name, array in session.run(sample).items():
        np.testing.assert_array_equal(array, plain.run(sample)[name])
