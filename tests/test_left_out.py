"""Padding is left out by all that calibrates or ranks, not by `quantize` alone: held against data without any."""

import json

import numpy as np
import onnxruntime.quantization as ort_quantization
import pytest

import edgeq
from edgeq.recalibration import recalibrate
from edgeq.retarget import retarget
from tests.graph.written import masked


@pytest.fixture
def case(tmp_path):
    """A model, padded samples, and the same without."""
    path = masked(tmp_path)
    mask = np.arange(12) < np.random.default_rng(0).integers(1, 12, (20, 1))
    padded = {"input_ids": mask * np.arange(41, 61)[:, None], "attention_mask": mask.astype(np.int64)}
    bare = [{k: v[i : i + 1, :n] for k, v in padded.items()} for i, n in enumerate(mask.sum(1))]
    return path, padded, bare


def test_retarget(case, tmp_path):
    path, padded, bare = case
    ort_quantization.quantize_dynamic(path, tmp_path / "theirs.onnx", op_types_to_quantize=["MatMul"])
    for name, calib in (("a", padded), ("b", bare)):
        assert retarget(tmp_path / "theirs.onnx", "x86_64", tmp_path / f"{name}.onnx", calib=calib).measured
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_recalibrate(case, tmp_path):
    path, padded, bare = case
    made = edgeq.quantize(path, "x86_64", padded, tmp_path / "out", check=False).artifact
    for name, data in (("a", padded), ("b", bare)):
        recalibrate(made, tmp_path / f"{name}.onnx", data=data)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_sensitivity(case, tmp_path):
    path, padded, bare = case
    found = [
        edgeq.quantize(path, "x86_64", data, tmp_path / str(i), check=False, rank=True).folder
        for i, data in enumerate((padded, bare))
    ]
    one, two = (json.loads((folder / "report.json").read_text())["sensitivity"] for folder in found)
    assert one == two
    assert one
