from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from edgeq.errors import ModelError
from edgeq.runners import taps
from tests.runners import tiny


@pytest.mark.parametrize("external", [False, True])
def test_values_become_outputs_and_compute_the_same(tmp_path: Path, external: bool) -> None:
    model = tiny.qdq_conv(tmp_path / "tiny.onnx", external)
    out = tmp_path / "out"
    out.mkdir()
    path = taps.with_taps(model, ["c", "yq", "c", "y"], out)
    feeds = tiny.samples(1)[0]
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [o.name for o in session.get_outputs()] == ["y", "c", "yq"]
    y, c, yq = session.run(None, feeds)
    np.testing.assert_array_equal(y, tiny.here(model, feeds))
    np.testing.assert_array_equal(y, yq * np.float32(0.05))
    np.testing.assert_allclose(np.maximum(c, 0).clip(max=0.05 * 255), y, atol=0.0251)  # half a step


def test_external_weights_stay_out_of_the_model_file(tmp_path: Path) -> None:
    model = tiny.qdq_conv(tmp_path / "tiny.onnx", external=True)
    out = tmp_path / "out"
    out.mkdir()
    written = onnx.load(taps.with_taps(model, ["c"], out), load_external_data=False)
    assert any(w.data_location == onnx.TensorProto.EXTERNAL for w in written.graph.initializer)


def test_external_weights_follow_a_copy_of_the_model(tmp_path: Path) -> None:
    model = tiny.qdq_conv(tmp_path / "tiny.onnx", external=True)
    out = tmp_path / "out"
    out.mkdir()
    assert taps.copy_data(tiny.qdq_conv(tmp_path / "inside.onnx"), out) == []
    assert taps.copy_data(model, out) == ["weights/tiny.bin"]
    assert (out / "weights" / "tiny.bin").read_bytes() == (tmp_path / "weights" / "tiny.bin").read_bytes()


def test_errors_name_the_file_and_the_value(tmp_path: Path) -> None:
    model = tiny.qdq_conv(tmp_path / "tiny.onnx")
    with pytest.raises(ModelError, match="no value 'nothing' to read"):
        taps.with_taps(model, ["nothing"], tmp_path)
    (tmp_path / "bad.onnx").write_bytes(b"\x08\xff\xff not a model")
    for name in ("bad.onnx", "absent.onnx"):
        with pytest.raises(ModelError, match=f"{name}: not a readable ONNX model") as raised:
            taps.with_taps(tmp_path / name, [], tmp_path)
        assert "\n" not in str(raised.value)
