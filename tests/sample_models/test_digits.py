"""The committed digits model and its samples: onnxruntime reads them, and they keep what their README promises."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

FOLDER = Path(__file__).parents[2] / "sample_models"


@pytest.fixture(scope="module")
def evaluation():
    with np.load(FOLDER / "digits.npz") as data:
        return {name: data[name] for name in data.files}


@pytest.fixture(scope="module")
def calibration():
    with np.load(FOLDER / "digits_calib.npz") as data:
        return {name: data[name] for name in data.files}


def logits(images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(FOLDER / "digits.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, {"input": images})[0]


def test_accuracy_on_held_out_samples(evaluation):
    found = logits(evaluation["input"]).argmax(1)
    assert len(found) == 600
    assert np.mean(found == evaluation["label"]) >= 0.985


def test_batch_is_dynamic(evaluation):
    whole = logits(evaluation["input"][:5])
    single = np.concatenate([logits(evaluation["input"][i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(whole, single, rtol=1e-4, atol=1e-4)


def test_structure_is_that_of_an_unfused_mobilenet():
    model = onnx.load(FOLDER / "digits.onnx")
    onnx.checker.check_model(model, full_check=True)
    ops = Counter(node.op_type for node in model.graph.node)
    assert ops["BatchNormalization"] == 17
    assert {"HardSwish", "HardSigmoid", "Mul", "Add", "Concat", "Gemm"} <= set(ops)
    groups = [a.i for n in model.graph.node if n.op_type == "Conv" for a in n.attribute if a.name == "group"]
    assert sum(g > 1 for g in groups) == 5, "one depthwise convolution in each block"
    assert 17 <= model.opset_import[0].version <= 21


def test_samples_do_not_overlap_and_are_clean(evaluation, calibration):
    seen = {row.tobytes() for row in evaluation["input"]}
    assert len(seen) == len(evaluation["input"])
    assert not seen & {row.tobytes() for row in calibration["input"]}
    for data in (evaluation, calibration):
        assert data["input"].dtype == np.float32
        assert data["input"].shape[1:] == (1, 8, 8)
        assert data["label"].dtype == np.int64
        np.testing.assert_array_equal(np.round(data["input"] * 16) / 16, data["input"])
        assert 0 <= data["input"].min() < data["input"].max() <= 1
        assert set(data["label"]) == set(range(10))


def test_files_are_small_and_name_no_machine():
    files = [FOLDER / name for name in ("digits.onnx", "digits.npz", "digits_calib.npz")]
    assert sum(f.stat().st_size for f in files) < 2_000_000
    assert not any(word in files[0].read_bytes() for word in (b'File "', b"site-packages", b"/home/", b"/root/"))
