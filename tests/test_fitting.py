"""Budgets of bytes and energy: what tuning gives up for them, and that the artifact keeps to them."""

import numpy as np
import onnxruntime as ort
import pytest

from edgeq import tune
from edgeq.numerics.metrics import sqnr_db
from edgeq.report.schema import load
from edgeq.runners import cpu
from edgeq.search.goal import Goal
from tests.graph.written import draw, samples, save, text

BODY = "a = MatMul(x, w) b = Relu(a) c = MatMul(b, v) d = Relu(c) y = MatMul(d, u)"
WEIGHTS = {"w": draw(128, 256, seed=1), "v": draw(256, 256, seed=2), "u": draw(256, 64, seed=3)}
COUNT = sum(array.size for array in WEIGHTS.values())


@pytest.fixture
def case(tmp_path):
    path = save(tmp_path, text(BODY, "float[N,128] x", "float[N,64] y", opset=21, ir=10), WEIGHTS)
    return path, samples(8, 128, count=6)


def answers(path, data):
    session = ort.InferenceSession(str(path))
    return np.concatenate([session.run(None, feed)[0] for feed in data])


def best(found):
    return next(t for t in found.trials if t.digest == found.best)


def test_bytes_are_saved_where_they_cost_least(case, tmp_path):
    path, data = case
    limit = int(0.85 * COUNT)  # int8 takes over 1, int4 half of that
    found = tune.tune(path, "x86_64", data, tmp_path / "out", goal=Goal(min_sqnr=10.0, max_bytes=limit))
    assert found.met, found.sentence
    assert found.trials[0].bytes > limit
    artifact = tmp_path / "out" / "model.onnx"
    assert artifact.stat().st_size <= limit
    assert sqnr_db(answers(path, data), answers(artifact, data)) == pytest.approx(best(found).sqnr_db, abs=0.5)
    decisions = [row.decision for row in load(tmp_path / "out").graph if row.op == "MatMul"]
    assert 0 < decisions.count("packed") < 3, "some in fewer bits, and no more than needed"


def test_a_budget_that_nothing_meets_is_said(case, tmp_path):
    path, data = case
    found = tune.tune(path, "x86_64", data, tmp_path / "out", goal=Goal(min_sqnr=5.0, max_bytes=COUNT // 8))
    assert not found.met
    (row,) = [t for t in found.trials if t.step == "fitting"]
    assert "no form of the nodes takes less" in row.problem
    assert (tmp_path / "out" / "model.onnx").exists()


def test_energy_is_an_estimate_of_arithmetic_and_of_weights(case, tmp_path):
    path, data = case
    first = tune.tune(path, "x86_64", data, tmp_path / "plain", goal=Goal(min_sqnr=0.0)).trials[0].energy
    goal = Goal(min_sqnr=5.0, max_energy=0.8 * first)
    found = tune.tune(path, "x86_64", data, tmp_path / "out", goal=goal)
    assert found.met, found.sentence
    assert best(found).energy <= 0.8 * first
    assert "weights" in best(found).step


def test_kernels_are_timed_by_the_nodes_that_run(case):
    path, data = case
    times = cpu.kernel_times(path, data[:2])
    assert {name for name in times if name.startswith("MatMul")} >= {"MatMul_0", "MatMul_2", "MatMul_4"}
    assert all(ms >= 0 for ms in times.values())
    assert sum(times.values()) > 0


def test_what_went_float_takes_less_where_that_is_enough(case, tmp_path, monkeypatch):
    path, data = case
    monkeypatch.setattr(tune, "ROUNDINGS", ())
    monkeypatch.setattr(tune, "CALIBRATORS", ())
    least = 37.15
    found = tune.tune(path, "x86_64", data, tmp_path / "out", goal=Goal(min_sqnr=least))
    assert found.met, found.sentence
    wide = next(t for t in found.trials if "nodes float" in t.step and not t.misses)
    assert best(found).step == "those in float: 8-bit weights"
    assert best(found).bytes < wide.bytes
    assert sqnr_db(answers(path, data), answers(tmp_path / "out" / "model.onnx", data)) > least - 0.2


def test_every_trial_is_timed_where_time_is_asked_for(case, tmp_path):
    """Also those behind the first, for which float's answers are found and not computed."""
    path, data = case
    found = tune.tune(path, "x86_64", data, tmp_path / "out", goal=Goal(min_sqnr=5.0, min_speedup=1e6))
    timed = [t for t in found.trials if not t.problem]
    assert len(timed) > 1
    assert all(t.speedup > 0 and t.latency_ms > 0 for t in timed)
    assert not found.met
    assert any(t.step == "fitting" and "of time" in t.problem for t in found.trials)
