"""A recurrent model fed back against the same recurrence in numpy, in calibration and in verification."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgeq
from edgeq.calibrate.summary import Summary
from edgeq.collecting import stats
from edgeq.data import open_data
from edgeq.errors import RecipeError
from edgeq.recipe import Recipe
from edgeq.registry import load
from edgeq.runners.feedback import with_state
from edgeq.verifying import golden
from edgeq.verifying.verification import verify_files
from tests.graph.written import draw

W, U = draw(4, 8, seed=3), draw(8, 8, seed=4) * np.float32(0.3)
STATE = (("h_out", "h_in"),)


@pytest.fixture
def cell(tmp_path):
    """h' = tanh(x W + h U), y = 3 h'; the batch is free."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="in"),
        helper.make_node("MatMul", ["h_in", "u"], ["c"], name="back"),
        helper.make_node("Add", ["a", "c"], ["s"]),
        helper.make_node("Tanh", ["s"], ["h_out"]),
        helper.make_node("Mul", ["h_out", "three"], ["y"]),
    ]
    shapes = {"x": ["n", 4], "h_in": ["n", 8], "y": ["n", 8], "h_out": ["n", 8]}
    values = {k: helper.make_tensor_value_info(k, TensorProto.FLOAT, v) for k, v in shapes.items()}
    inits = [numpy_helper.from_array(a, k) for k, a in (("w", W), ("u", U), ("three", np.float32(3)))]
    graph = helper.make_graph(nodes, "g", [values["x"], values["h_in"]], [values["y"], values["h_out"]], inits)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "cell.onnx")
    return tmp_path / "cell.onnx"


def sequence(count, batch=2, starts=()):
    """Samples of x; those in `starts` carry a state of their own."""
    feeds = [{"x": draw(batch, 4, seed=i)} for i in range(count)]
    for i in starts:
        feeds[i]["h_in"] = draw(batch, 8, seed=100 + i)
    return feeds


def recurrence(feeds):
    """(state that went in, output) of each sample, in numpy."""
    h, found = np.zeros((len(feeds[0]["x"]), 8), np.float32), []
    for feed in feeds:
        h = feed.get("h_in", h)
        new = np.tanh(feed["x"] @ W + h @ U)
        found.append((h, 3 * new))
        h = new
    return found


@pytest.mark.parametrize("starts", [(), (0,), (3,), (0, 2, 5)])
def test_the_state_goes_round(cell, starts):
    feeds = sequence(7, starts=starts)
    session = with_state(load("edgeq.runners", "cpu").open_session(cell), cell, STATE, show=True)
    for got, (h, y) in zip(session.run_many(feeds), recurrence(feeds), strict=True):
        np.testing.assert_allclose(got["y"], y, atol=1e-5)
        if "h_in" in got:
            np.testing.assert_allclose(got["h_in"], h, atol=1e-5)
    session.close()


def test_calibration_and_verification_feed_it_back(cell, tmp_path):
    feeds = sequence(12, starts=(5,))
    file = tmp_path / "s.npz"
    recipe = Recipe(state=STATE, calibrator="minmax")
    result = edgeq.quantize(cell, "x86_64", feeds, tmp_path / "out", recipe=recipe, save_stats=file)
    summary: Summary = stats.load(file).summaries["h_in"]
    states = np.stack([h for h, _ in recurrence(feeds)])
    assert (summary.extrema.lo, summary.extrema.hi) == pytest.approx((states.min(), states.max()), abs=1e-5)

    session = load("edgeq.runners", "cpu").open_session(result.artifact)
    h, got = np.zeros((2, 8), np.float32), []
    for feed in feeds:  # the artifact with its own state, which drifts from the reference's
        outputs = session.run({"x": feed["x"], "h_in": feed.get("h_in", h)})
        h = outputs["h_out"]
        got.append(outputs["y"])
    want = np.stack([y for _, y in recurrence(feeds)]).astype(np.float64)
    sqnr = 10 * np.log10((want**2).sum() / ((want - np.stack(got)) ** 2).sum())
    found = {o.name: o for o in result.report.outputs}
    assert found["y"].sqnr_db == pytest.approx(sqnr, abs=0.01)
    assert 15 < sqnr < 60
    again = verify_files(cell, result.artifact, "x86_64", feeds, recipe=tmp_path / "out" / "recipe.toml", layers=True)
    assert again.outputs == result.report.outputs

    vectors = golden.load(tmp_path / "out" / "golden.npz").samples
    assert len(vectors) == 4
    for given, wanted in vectors:  # each is whole: the artifact alone repeats it
        outputs = session.run(given)
        assert all(np.array_equal(outputs[name], wanted[name]) for name in ("y", "h_out"))

    several = edgeq.quantize(cell, "x86_64", feeds, tmp_path / "two", recipe=recipe, workers=2)
    assert several.artifact.read_bytes() == result.artifact.read_bytes()


def test_a_sequence_keeps_its_order_when_cut_short(cell, tmp_path):
    feeds = sequence(9)
    recipe = Recipe(state=STATE, samples=4)
    one = edgeq.quantize(cell, "x86_64", feeds, tmp_path / "a", recipe=recipe, check=False)
    two = edgeq.quantize(cell, "x86_64", feeds[:4], tmp_path / "b", recipe=recipe, check=False)
    assert one.artifact.read_bytes() == two.artifact.read_bytes()


def test_arrays_and_tuples_without_the_state(cell):
    inputs = {"x": (None, 4), "h_in": (None, 8)}
    rows = draw(3, 4)
    for given in (
        {"x": rows}, [(row[None],) for row in rows], [(row[None], "label") for row in rows], [row[None] for row in rows]
    ):  # fmt: skip
        found = list(open_data(given, inputs, optional=["h_in"]))
        assert [set(f) for f in found] == [{"x"}] * 3
        np.testing.assert_array_equal(np.concatenate([f["x"] for f in found]), rows)


@pytest.mark.parametrize("pairs", [[("h", "h_in")], [("h_out", "h")]])
def test_names_that_are_not_there(cell, pairs):
    session = load("edgeq.runners", "cpu").open_session(cell)
    with pytest.raises(RecipeError, match=r"state: .* has no (in|out)put 'h'"):
        with_state(session, cell, pairs)
