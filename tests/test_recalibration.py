"""Recalibrated on B, an artifact is the one that quantizing on B makes; drift is told, and what can't move stays."""

import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

import edgeq
from edgeq.errors import CalibrationError, RecipeError
from edgeq.numerics.metrics import sqnr_db
from edgeq.recalibration import observe_file, recalibrate
from edgeq.recipe import Recipe
from tests.graph.written import draw, samples, save, text
from tests.search.test_recovery import answers

BODY = """a = Conv<pads=[1,1,1,1]>(x, w1, b1) r = Clip(a, low, six) c = Conv(r, w2, b2) t = Add(c, r) s = Relu(t)
p = GlobalAveragePool(s) f = Flatten(p) y = Gemm<transB=1>(f, w4, b4)"""
INITS = {
    "w1": draw(8, 4, 3, 3) / 6, "b1": draw(8), "w2": draw(8, 8, 1, 1, seed=1) / 3, "b2": draw(8, seed=2),
    "w4": draw(5, 8), "b4": draw(5), "low": np.float32(0), "six": np.float32(6),
}  # fmt: skip
RECIPE = Recipe(elementwise="all", passes=())


@pytest.fixture
def case(tmp_path):
    """The model; an artifact calibrated on weak inputs; one calibrated on the field's, and its statistics."""
    path = save(tmp_path, text(BODY), INITS)
    field = [{"x": 4 * feed["x"] + 1} for feed in samples(4, 4, 8, 8, count=16)]
    weak = [{"x": feed["x"] / 2} for feed in samples(4, 4, 8, 8, count=16)]
    old = edgeq.quantize(path, "generic", weak, tmp_path / "old", recipe=RECIPE, check=False).artifact
    new = edgeq.quantize(
        path, "generic", field, tmp_path / "new", recipe=RECIPE, check=False, save_stats=tmp_path / "field.stats"
    ).artifact
    return path, field, old, new, tmp_path / "field.stats"


def test_it_is_what_quantizing_on_the_field_makes(case, tmp_path):
    path, field, old, new, stats = case
    drifts = recalibrate(old, tmp_path / "again.onnx", stats=stats)
    got, want = (onnx.load(p) for p in (tmp_path / "again.onnx", new))
    tensors = ({t.name: numpy_helper.to_array(t) for t in m.graph.initializer} for m in (got, want))
    made, wanted = tensors
    assert made.keys() == wanted.keys()
    for name, array in wanted.items():
        if array.dtype == np.int32:  # biases come from codes, so that they may be one apart
            assert np.abs(made[name].astype(int) - array).max() <= max(2, np.abs(array).max() * 1e-5), name
        else:
            np.testing.assert_array_equal(made[name], array, err_msg=name)
    real = answers(path, field)
    before, after = (sqnr_db(real, answers(p, field)) for p in (old, tmp_path / "again.onnx"))
    assert after > before + 10
    assert abs(after - sqnr_db(real, answers(new, field))) < 0.5
    moved = {d.value: d for d in drifts}
    assert moved["x"].ratio == pytest.approx(8, rel=0.5)
    assert moved["x"].outside > 0.2
    assert moved["r"].after[1] <= 6


def test_the_artifact_itself_can_look(case, tmp_path):
    """Without statistics it runs on the field's data; what lies behind a range that cuts off is seen cut off."""
    path, field, old, _, _ = case
    recalibrate(old, tmp_path / "a.onnx", data=field, save_stats=tmp_path / "own.stats")
    real = answers(path, field)
    assert sqnr_db(real, answers(tmp_path / "a.onnx", field)) > sqnr_db(real, answers(old, field)) + 6
    recalibrate(old, tmp_path / "b.onnx", stats=tmp_path / "own.stats")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_an_observer_tells_how_far_values_went(case, tmp_path):
    """Its rows are the extrema of what the quantizers read, and the scales made of them are those of minmax."""
    path, field, old, _, _ = case
    count = observe_file(old, tmp_path / "eye.onnx")
    session = ort.InferenceSession(str(tmp_path / "eye.onnx"))
    got = [session.run(["y", "edgeq_low", "edgeq_high"], feed) for feed in field]
    np.testing.assert_array_equal(np.concatenate([row[0] for row in got]), answers(old, field))
    low, high = (np.stack([row[i] for row in got]) for i in (1, 2))
    assert low.shape == (len(field), count)
    np.testing.assert_array_equal(low[:, 0], [feed["x"].min() for feed in field])
    np.testing.assert_array_equal(high[:, 0], [feed["x"].max() for feed in field])
    np.savez(tmp_path / "seen.npz", edgeq_low=low, edgeq_high=high)
    moved = {d.value: d for d in recalibrate(old, tmp_path / "a.onnx", stats=tmp_path / "seen.npz")}
    whole = {d.value: d for d in recalibrate(old, tmp_path / "b.onnx", data=field, calibrator="minmax")}
    assert {n: d.after for n, d in moved.items()} == {n: d.after for n, d in whole.items()}
    real = answers(path, field)
    assert sqnr_db(real, answers(tmp_path / "a.onnx", field)) > sqnr_db(real, answers(old, field)) + 6
    np.savez(tmp_path / "seen.npz", edgeq_low=low[:, 1:], edgeq_high=high[:, 1:])
    with pytest.raises(CalibrationError, match="must be"):
        recalibrate(old, tmp_path / "a.onnx", stats=tmp_path / "seen.npz")
    with pytest.raises(CalibrationError, match="no Q-DQ pairs"):
        observe_file(path, tmp_path / "eye.onnx")


def test_the_same_field_moves_nothing(case, tmp_path):
    _, field, _, new, stats = case
    drifts = recalibrate(new, tmp_path / "a.onnx", stats=stats)
    assert all(d.before == d.after for d in drifts)
    np.testing.assert_array_equal(answers(tmp_path / "a.onnx", field), answers(new, field))


def test_split_channels_stay(tmp_path):
    far = np.ones(256, np.float32)
    far[7] = 7
    path = save(tmp_path, text("y = MatMul(x, w)", "float[N,256] x"), {"w": draw(256, 16)})
    feeds = [{"x": draw(32, 256, seed=i) * far} for i in range(6)]
    recipe = Recipe(outlier_sqnr=60.0)
    made = edgeq.quantize(path, "generic", feeds, tmp_path / "o", recipe=recipe, check=False)
    wide = [{"x": feed["x"] * 2} for feed in feeds]
    drifts = recalibrate(made.artifact, tmp_path / "a.onnx", data=wide)
    assert [(d.value, d.ratio, "split" in d.note) for d in drifts] == [("x", 1.0, True)]


def test_refusals(case, tmp_path):
    path, _, old, _, stats = case
    with pytest.raises(RecipeError, match="one of the two"):
        recalibrate(old, tmp_path / "a.onnx")
    with pytest.raises(CalibrationError, match="no Q-DQ pairs"):
        recalibrate(path, tmp_path / "a.onnx", stats=stats)
    other = save(tmp_path, text("z = Relu(x) y = Gemm(z, w)", "float[N,4] x"), {"w": draw(4, 3)})
    data = [{"x": draw(3, 4)}]
    made = edgeq.quantize(other, "generic", data, tmp_path / "other", check=False, save_stats=tmp_path / "other.stats")
    found = recalibrate(made.artifact, tmp_path / "a.onnx", stats=tmp_path / "other.stats")
    assert found
    (tmp_path / "none.stats").write_bytes(b"no")
    with pytest.raises(CalibrationError, match="none"):
        recalibrate(old, tmp_path / "a.onnx", stats=tmp_path / "none.stats")


def test_the_command(case, tmp_path, run):
    _, _, old, _, stats = case
    code, out, err = run("recalibrate", old, "--stats", stats, "-o", tmp_path / "a.onnx", "--json")
    assert (code, err) == (0, "")
    assert {row["value"] for row in json.loads(out)} >= {"x", "r", "s"}
    code, out, _ = run("recalibrate", old, "--stats", stats, "-o", tmp_path / "a.onnx")
    assert code == 0
    assert "ranges" in out
    code, out, _ = run("recalibrate", old, "--observe", "-o", tmp_path / "eye.onnx")
    assert code == 0
    assert "edgeq_low" in out
    assert run("recalibrate", old, "--observe", "--stats", stats, "-o", tmp_path / "eye.onnx")[0] == 2
