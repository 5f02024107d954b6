from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from edgeq.errors import ModelError
from edgeq.graph import io
from edgeq.graph.observe import observable
from tests.graph.written import draw, samples, save, text
from tests.runners import tiny


@pytest.mark.parametrize("external", [False, True])
def test_values_become_outputs_and_compute_the_same(tmp_path: Path, external: bool) -> None:
    model = tiny.qdq_conv(tmp_path / "tiny.onnx", external)
    out = tmp_path / "out"
    out.mkdir()
    path, names = observable(model, ["c", "yq", "c", "y"], out)
    assert names == {name: name for name in ("c", "yq", "y")}
    feeds = tiny.samples(1)[0]
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [o.name for o in session.get_outputs()] == ["y", "c", "yq"]
    y, c, yq = session.run(None, feeds)
    np.testing.assert_array_equal(y, tiny.here(model, feeds))
    np.testing.assert_array_equal(y, yq * np.float32(0.05))
    np.testing.assert_allclose(np.maximum(c, 0).clip(max=0.05 * 255), y, atol=0.0251)  # half a step


def test_external_weights_of_a_large_model_stay_out_of_the_file(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(io, "INLINE_LIMIT", 1000)
    inits = {"w": draw(16, 4, 3, 3), "b": draw(16)}
    options = {"save_as_external_data": True, "location": "weights.bin"}
    model = save(tmp_path, text("c = Conv (x, w, b) y = Relu (c)"), inits, **options)
    out = tmp_path / "out"
    out.mkdir()
    path, _ = observable(model, ["c"], out)
    weights = onnx.load(path, load_external_data=False).graph.initializer
    assert [w.name for w in weights if w.data_location == onnx.TensorProto.EXTERNAL] == ["w"]
    y, c = ort.InferenceSession(path).run(None, samples(1, 4, 8, 8)[0])
    np.testing.assert_array_equal(y, np.maximum(c, 0))


def test_errors_name_the_file_and_the_value(tmp_path: Path) -> None:
    model = tiny.qdq_conv(tmp_path / "tiny.onnx")
    with pytest.raises(ModelError, match="no value 'nothing' in"):
        observable(model, ["nothing"], tmp_path)
    (tmp_path / "bad.onnx").write_bytes(b"\x08\xff\xff not a model")
    for name, why in (("bad.onnx", "not a valid ONNX model"), ("absent.onnx", "no such file")):
        with pytest.raises(ModelError, match=f"{name}: {why}") as raised:
            observable(tmp_path / name, [], tmp_path)
        assert "\n" not in str(raised.value)
