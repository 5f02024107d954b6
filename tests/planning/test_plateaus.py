"""Ranges that end on plateaus: where operators really are flat, what that wins, and that the edge has a code."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

import edgeq
from edgeq.calibrate.histogram import Histogram
from edgeq.calibrate.summary import Summary
from edgeq.numerics.affine import reach
from edgeq.numerics.metrics import sqnr_db
from edgeq.planning import plateaus
from edgeq.planning.plan import ValuePlan
from edgeq.recipe import Recipe
from edgeq.types import QSpec, Range
from tests.graph.written import draw, samples, save, text

OPS = {
    "Relu(x)": 0.0,
    "HardSwish(x)": 0.0,
    "HardSigmoid(x)": 0.0,
    "HardSigmoid<alpha=0.5, beta=0.25>(x)": 0.0,
    "Sigmoid(x)": 1 / 510,
    "Tanh(x)": 1 / 500,
    "Clip(x, lo, hi)": 0.0,
    "Clip(x, lo)": 0.0,
    "Clip(x, , hi)": 0.0,
}
ENDS = {"lo": np.float32(-1), "hi": np.float32(6)}


def reader(tmp_path, op):
    inits = {name: value for name, value in ENDS.items() if name in op}
    return save(tmp_path, text(f"y = {op}", "float[N] x"), inits)


@pytest.mark.parametrize("op", OPS)
def test_outside_the_window_nothing_changes_and_inside_it_does(tmp_path, op):
    path = reader(tmp_path, op)
    window = plateaus.window(next(iter(ir.load(path).graph)))
    run = ReferenceEvaluator(str(path))
    assert (window.lo, window.hi) != (-np.inf, np.inf)
    for edge, outwards in ((window.lo, -1), (window.hi, 1)):
        if np.isfinite(edge):
            beyond = edge + outwards * np.array([0, 0.5, 5, 100], np.float32)
            got = run.run(None, {"x": beyond.astype(np.float32)})[0]
            assert np.abs(got - got[0]).max() <= OPS[op] + 1e-6
            inside = np.array([edge, edge - outwards * 1.0], np.float32)
            assert abs(np.diff(run.run(None, {"x": inside})[0])[0]) > 1e-3


def test_other_operators_have_none():
    for op in ("Gelu", "Exp", "Add", "LeakyRelu", "Softmax"):
        assert plateaus.window(ir.node(op, [ir.val("x")])) == plateaus.EVERYWHERE


BODY = "a = Conv<pads=[1,1,1,1]>(x, w, b) h = HardSwish(a)"


def quantized(tmp_path, body, inits, output="y", data=None):
    tmp_path.mkdir(exist_ok=True)
    path = save(tmp_path, text(body, "float[N,4,8,8] x", f"float[N,c,h,w] {output}"), inits)
    data = data or samples(2, 4, 8, 8, count=16)
    return path, edgeq.quantize(path, "generic", data, tmp_path / "out", recipe=Recipe(calibrator="minmax"))


def low_end(made, name="a"):
    return next((r.low, r.scale) for r in made.report.ranges if r.name == name)


WEIGHTS = {"w": 2 * draw(6, 4, 3, 3), "b": draw(6) - 30, "v": draw(5, 6, 1, 1, seed=1)}
INNER = {k: WEIGHTS[k] for k in "wb"}


def test_a_range_ends_where_hard_swish_is_flat(tmp_path, monkeypatch):
    body = f"{BODY} y = Identity(h)"
    path, made = quantized(tmp_path, body, INNER)
    low, scale = low_end(made)
    assert -3 - scale <= low <= -3
    held_out = samples(3, 4, 8, 8)
    run = {}
    monkeypatch.setattr(plateaus, "limited", lambda plan, model, summaries: summaries)
    _, whole = quantized(tmp_path / "whole", body, INNER)
    assert low_end(whole)[0] < -20
    for name, file in (("float", path), ("limited", made.artifact), ("whole", whole.artifact)):
        session = ort.InferenceSession(str(file))
        run[name] = np.concatenate([session.run(["y"], feeds)[0] for feeds in held_out])
    assert sqnr_db(run["float"], run["limited"]) > sqnr_db(run["float"], run["whole"]) + 2


@pytest.mark.parametrize(
    "rest", ["t = Mul(a, h) y = Conv(t, v)", "c = Concat<axis=1>(a, a, h) y = Conv(c, u)"], ids=["product", "concat"]
)
def test_a_range_stays_whole_where_another_reads_all_of_it(tmp_path, rest):
    inits = WEIGHTS | {"u": draw(5, 18, 1, 1, seed=1)}
    used = {k: v for k, v in inits.items() if k in ("w", "b") or f", {k})" in rest}
    _, made = quantized(tmp_path, f"{BODY} {rest}", used)
    assert low_end(made, next(r.name for r in made.report.ranges if r.name in ("a", "c")))[0] < -20


@given(
    low=st.floats(0.0625, 50, width=32), high=st.floats(0, 200), far=st.floats(0, 100),
    dtype=st.sampled_from(["uint8", "int8", "int16"]), symmetric=st.booleans(),
)  # fmt: skip
def test_a_code_lies_at_the_edge_or_behind_it(low, high, far, dtype, symmetric):
    summary = Summary(flat=Range(-low, np.inf))
    summary.update(np.array([-low - far, high], np.float32))
    spec = QSpec(dtype, symmetric=symmetric)
    found = plateaus.chosen(summary, ValuePlan("x", spec, "x", "minmax", True, ()))
    below, above = reach(found)
    step = float(found.scale)
    assert below <= -low * (1 - 1e-6) or low <= step / 2  # so near 0 that 0 is as good
    assert symmetric or below > -low - 1.01 * step
    assert above >= high - step
    assert step <= (low + max(high, low if symmetric else 0)) / (254 if dtype != "int16" else 65534) * 2.02


def test_what_lies_on_the_plateau_counts_at_its_edge():
    x = np.random.default_rng(0).normal(0, 4, 50_000).astype(np.float32)
    summary = Summary(histogram=Histogram(), flat=Range(-3.0, 5.0))
    summary.update(x)
    assert summary.bounds() == Range(-3.0, 5.0)
    mass = summary.mass()
    assert mass.counts.sum() == x.size
    assert mass.counts[0] == pytest.approx((x < -3).sum(), abs=int((np.abs(x + 3) < mass.width).sum()))
    assert mass.counts[-1] == pytest.approx((x > 5).sum(), abs=int((np.abs(x - 5) < mass.width).sum()))
    assert (mass.edges[0], mass.edges[-1]) == (-3.0, 5.0)


def test_nothing_but_the_plateau_is_one_value():
    summary = Summary(histogram=Histogram(), flat=Range(-3.0, np.inf))
    summary.update(np.linspace(-9, -4, 50, dtype=np.float32))
    assert summary.bounds() == Range(-3.0, -3.0)
    assert summary.mass() is None
