"""MatMul with a bias becomes Gemm where it is one, and computes the same in onnxruntime."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from edgeq.graph.prepare import prepare
from tests.graph.written import draw, save, text

ROW = np.array([0.5, -1, 2, 3, -4], np.float32)


@pytest.mark.parametrize(
    ("body", "x", "bias", "ops"),
    [
        ("m = MatMul(x, w) y = Add(m, b)", "float[N,3] x", ROW, ["Gemm"]),
        ("m = MatMul(x, w) y = Add(b, m)", "float[N,3] x", ROW, ["Gemm"]),
        ("m = MatMul(x, w) y = Add(m, b)", "float[N,2,3] x", ROW, ["MatMul", "Add"]),  # not a matrix
        ("m = MatMul(x, w) y = Add(m, b)", "float[N,3] x", ROW[:1], ["MatMul", "Add"]),  # not a bias of each column
        ("m = MatMul(x, w) a = Add(m, b) y = Mul(a, m)", "float[N,3] x", ROW, ["MatMul", "Add", "Mul"]),  # read twice
        ("m = MatMul(x, w) y = Add(m, m)", "float[N,3] x", ROW, ["MatMul", "Add"]),
    ],
)
def test_matmul_and_bias(tmp_path, body, x, bias, ops):
    weights = {"w": draw(3, 5), "b": bias}
    path = save(tmp_path, text(body, x), {n: w for n, w in weights.items() if f" {n})" in body or f"({n}" in body})
    prepared = prepare(ir.load(path), 17)
    assert [n.op_type for n in prepared.graph] == ops
    ir.save(prepared, tmp_path / "prepared.onnx")
    feeds = {"x": draw(*([4, 3] if "[N,3]" in x else [4, 2, 3]))}
    left, right = (ort.InferenceSession(p).run(None, feeds)[0] for p in (path, tmp_path / "prepared.onnx"))
    np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-5)
    assert prepared.graph.outputs[0].name == "y"
