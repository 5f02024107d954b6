"""What is over protobuf's limit is written beside the model. The limit is lowered here; the way is the same."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import edgeq
from edgeq.graph import io
from edgeq.verifying.verify import Budget
from tests.graph.written import draw, integer, samples, save, text

BODY = "a = MatMul (x, u) r = Relu (a) b = Gemm <transB = 1> (r, v) s = Relu (b) y = MatMul (s, w)"
EXTERNAL = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("method", ["static", "dynamic"])
def test_the_whole_way_with_weights_outside_the_file(tmp_path, monkeypatch, method, dtype):
    inits = {name: (draw(64, 64, seed=i) / 8).astype(dtype) for i, name in enumerate("uvw")}
    kind = "float16" if dtype == np.float16 else "float"
    path = save(tmp_path, text(BODY, f"{kind}[N,64] x", f"{kind}[] y"), inits, **EXTERNAL)
    before = (tmp_path / "weights.bin").read_bytes()
    feeds, out = [{"x": f["x"].astype(dtype)} for f in samples(2, 64)], tmp_path / "out"
    whole = edgeq.quantize(path, "x86_64", feeds, tmp_path / "whole", method=method)
    monkeypatch.setattr(io, "INLINE_LIMIT", 4096)
    result = edgeq.quantize(path, "x86_64", feeds, out, method=method, budget=Budget(min_sqnr=25))
    assert result.ok
    assert len(integer(result)) == 3
    assert {"model.onnx", "model.onnx.data", "recipe.toml", "report.json"} <= {p.name for p in out.iterdir()}
    beside = [t for t in onnx.load(result.artifact, load_external_data=False).graph.initializer if t.data_location]
    assert sum(np.prod(t.dims) for t in beside) == 3 * 64 * 64
    assert result.report.artifact.bytes == sum((out / f"model.onnx{s}").stat().st_size for s in ("", ".data"))
    onnx.checker.check_model(str(result.artifact))
    left, right = ort.InferenceSession(str(whole.artifact)), ort.InferenceSession(str(result.artifact))
    for feed in feeds:
        np.testing.assert_array_equal(left.run(None, feed)[0], right.run(None, feed)[0])
    again = edgeq.quantize(path, "x86_64", feeds, tmp_path / "again", method=method)
    for name in ("model.onnx", "model.onnx.data"):
        assert (again.folder / name).read_bytes() == (out / name).read_bytes()
    assert (tmp_path / "weights.bin").read_bytes() == before
    monkeypatch.undo()
    edgeq.quantize(path, "x86_64", feeds, out, method=method)
    assert not (out / "model.onnx.data").exists()
    assert (out / "model.onnx").read_bytes() == whole.artifact.read_bytes()
