"""A first look gives the SQNR and agreement of the samples it is given, and runs the float model once."""

import numpy as np
import onnxruntime as ort
import pytest

import edgeq
from edgeq import target
from edgeq.data import open_data
from edgeq.graph import io
from edgeq.numerics.metrics import sqnr_db
from edgeq.runners import cpu
from edgeq.verifying.glimpse import Glimpse, glimpse
from tests.command import matmul
from tests.graph.written import draw


def test_it_is_of_the_samples_and_runs_float_once(tmp_path, monkeypatch):
    path = matmul(tmp_path / "m.onnx")
    data = [{"x": draw(50, 8, seed=i)} for i in range(4)]
    made = edgeq.quantize(path, "generic", data, tmp_path / "out", check=False).artifact
    left, right = (ort.InferenceSession(str(p)) for p in (path, made))
    pairs = [np.concatenate([s.run(None, feed)[0] for feed in data]) for s in (left, right)]
    samples = open_data(data, io.input_shapes(io.load(path)))
    look = (path, made, target.load("generic"), samples, (), tmp_path / "answers")
    found = glimpse(*look)
    assert found.sqnr_db == pytest.approx(sqnr_db(*pairs), abs=0.01)
    tops = [np.concatenate([s.run(None, feed)[0].argmax(-1) for feed in data]) for s in (left, right)]
    assert 0.9 < found.agreement <= 1
    assert found.agreement == np.mean(tops[0] == tops[1])
    opened, really = [], cpu.open_session
    monkeypatch.setattr(cpu, "open_session", lambda file, **ways: (opened.append(file), really(file, **ways))[1])
    assert glimpse(*look) == found
    assert opened == [made]


def test_one_is_better_by_decibels_or_by_agreement():
    best = Glimpse(20.0, 0.95)
    assert Glimpse(20.05, 0.90).beats(best)
    assert Glimpse(15.0, 0.96).beats(best)
    assert not Glimpse(19.9, 0.95).beats(best)
    assert not best.beats(best)
