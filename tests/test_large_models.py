"""What is over protobuf's limit is written beside the model. The limit is lowered here; the way is the same."""

import hashlib

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

import edgeq
from edgeq.collecting import layerwise
from edgeq.graph import io
from edgeq.verifying.verify import Budget
from edgeq.weights import tiles
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


def weight_only_model(folder, k=70, n=48):
    """MatMul and Gemm in both layouts, one weight that two nodes share, one with a feature more than whole blocks."""
    body = "a = MatMul (x, u) b = Gemm <transB = 1> (a, v) c = MatMul (b, u) d = Relu (c) y = MatMul (d, w)"
    inits = {"u": draw(k, n), "v": draw(k, n, seed=1), "w": draw(n, 129, seed=2)}
    return save(folder, text(body, f"float[N,{k}] x", "float[] y"), inits, **EXTERNAL)


@pytest.mark.parametrize("lazy", [1 << 28, 0])
@pytest.mark.parametrize(
    ("bits", "block"), [(4, 32), (4, 16), (4, 128), (4, 0), (2, 32), (3, 32), (8, 32), (2, 0), (8, 256)]
)
def test_large_matrices_are_packed_as_they_are_solved(tmp_path, monkeypatch, bits, block, lazy):
    """The artifact's bytes are those of weights that are solved as a whole and packed afterwards."""
    path = weight_only_model(tmp_path)
    settings = {"method": "weight_only", "weight": "rtn", "bits": bits, "block": block, "check": False}
    whole = edgeq.quantize(path, "generic", None, tmp_path / "whole", **settings)
    made = []
    monkeypatch.setattr(tiles, "packed", lambda *args, real=tiles.packed, **more: made.append(1) or real(*args, **more))
    monkeypatch.setattr(layerwise, "MANY", 1)
    monkeypatch.setattr(io, "LAZY_LIMIT", lazy)
    result = edgeq.quantize(path, "generic", None, tmp_path / "out", **settings)
    assert len(made) >= 4
    held = [numpy_helper.to_array(t) for m in (whole, result) for t in onnx.load(m.artifact).graph.initializer]
    assert len(held) % 2 == 0
    for left, right in zip(held[: len(held) // 2], held[len(held) // 2 :], strict=True):
        np.testing.assert_array_equal(left, right)
    if lazy:
        assert result.artifact.read_bytes() == whole.artifact.read_bytes()
        assert result.report.artifact.sha256 == whole.report.artifact.sha256
    feed = {"x": draw(3, 70, seed=5)}
    left, right = (ort.InferenceSession(str(m.artifact)).run(None, feed)[0] for m in (whole, result))
    np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("settings", [{"low_rank": 2}, {"weight": "mse"}, {"weight": "hqq"}])
def test_codes_that_are_asked_for_again_are_the_same(tmp_path, monkeypatch, settings):
    path = weight_only_model(tmp_path)
    settings = {"method": "weight_only", "weight": "rtn", "check": False} | settings
    whole = edgeq.quantize(path, "generic", None, tmp_path / "whole", **settings)
    monkeypatch.setattr(layerwise, "MANY", 1)
    result = edgeq.quantize(path, "generic", None, tmp_path / "out", **settings)
    kept = edgeq.quantize(path, "generic", None, tmp_path / "kept", keep=tmp_path / "keep", **settings)
    again = edgeq.quantize(path, "generic", None, tmp_path / "again", keep=tmp_path / "keep", **settings)
    for other in (result, kept, again):
        assert other.artifact.read_bytes() == whole.artifact.read_bytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_large_matrix_with_a_weight_that_is_no_number_stays_float(tmp_path, monkeypatch, bad):
    weight = draw(64, 64)
    weight[40, 3] = bad
    path = save(tmp_path, text("y = MatMul (x, u)", "float[N,64] x", "float[] y"), {"u": weight}, **EXTERNAL)
    monkeypatch.setattr(layerwise, "MANY", 1)
    result = edgeq.quantize(path, "generic", None, tmp_path / "out", method="weight_only", weight="rtn", check=False)
    assert "NaN or infinity" in result.report.nodes.float[0].reason


def test_hashes_are_of_all_bytes_in_order(tmp_path):
    contents = [b"", b"abc", bytes(range(256)) * 1024, b"x" * (1 << 18), b"y" * ((1 << 18) + 1)]
    paths = [tmp_path / str(i) for i in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    assert io.sha256(paths) == hashlib.sha256(b"".join(contents)).hexdigest()
