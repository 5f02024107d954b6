"""Golden vectors are what the verified artifact answered, few and small."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

import edgeq
from edgeq.errors import CalibrationError
from edgeq.verifying import golden
from edgeq.verifying.golden import COUNT, LIMIT, Golden

SAMPLES = Path(__file__).resolve().parents[2] / "sample_models"


def test_they_are_what_the_artifact_answers(tmp_path):
    edgeq.quantize(SAMPLES / "digits.onnx", "x86_64", SAMPLES / "digits_calib.npz", tmp_path / "out")
    held = golden.load(tmp_path / "out" / golden.NAME).samples
    assert len(held) == COUNT
    session = ort.InferenceSession(str(tmp_path / "out" / "model.onnx"), providers=["CPUExecutionProvider"])
    with np.load(SAMPLES / "digits_calib.npz") as data:
        for index, (feeds, outputs) in enumerate(held):
            np.testing.assert_array_equal(feeds["input"], data["input"][index : index + 1])
            np.testing.assert_array_equal(outputs["logits"], session.run(None, feeds)[0])
    edgeq.quantize(SAMPLES / "digits.onnx", "x86_64", SAMPLES / "digits_calib.npz", tmp_path / "out", check=False)
    assert not (tmp_path / "out" / golden.NAME).exists()


def test_large_samples_are_left_out_and_names_survive(tmp_path):
    kept = Golden()
    kept({"x": np.zeros(LIMIT, np.uint8)}, {"y": np.zeros(1)})
    assert kept.samples == []
    for index in range(COUNT + 1):
        kept({"a/in/b": np.full((2, 0), 1.5), "é": np.array(index)}, {"y/0": np.array([index], np.int8)})
    golden.save(kept, tmp_path / "g.npz")
    held = golden.load(tmp_path / "g.npz").samples
    assert [int(feeds["é"]) for feeds, _ in held] == list(range(COUNT))
    assert held[0][0]["a/in/b"].shape == (2, 0)
    assert held[1][1]["y/0"].dtype == np.int8


def test_another_npz_is_refused(tmp_path):
    np.savez(tmp_path / "g.npz", x=np.zeros(3))
    with pytest.raises(CalibrationError, match="not a file of golden vectors"):
        golden.load(tmp_path / "g.npz")
