"""Quantized patterns that onnxruntime does not fuse, planted in an artifact: each is named, a whole one has none."""

import subprocess
import sys

import numpy as np
import pytest

from edgeq import target as targets
from edgeq.runners.fusion import placement
from tests.graph.written import draw, save, text

TARGET = targets.load("x86_64")
QX = "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) w = DequantizeLinear(wq, ws, wz)"
END = "e = QuantizeLinear(b, t, z) y = DequantizeLinear(e, t, z)"
WEIGHTS = {"wq": np.arange(-72, 72, dtype=np.int8).reshape(4, 4, 3, 3), "ws": np.float32(0.01), "wz": np.int8(0)}


def placed(folder, body, zero, outputs="float[] y", conv="uint8"):
    scales = {"s": np.float32(0.05), "t": np.float32(0.1), "z": np.array(zero, conv)}
    path = save(folder, text(body, "float[1,4,8,8] x", outputs), WEIGHTS | scales)
    return path, placement(path, TARGET).float


@pytest.mark.parametrize(
    ("body", "zero", "kind", "named"),
    [
        (f"{QX} b = Conv(d, w) {END}", 128, "uint8", ()),
        (f"{QX} a = Conv(d, w) b = Relu(a) {END}", 0, "uint8", ()),
        # a zero point above the lowest code leaves the Relu, and with it the whole Conv, in float
        (f"{QX} a = Conv(d, w) b = Relu(a) {END}", 0, "int8", ("Conv_3",)),
        (f"{QX} a = Conv(d, w) f = Tanh(a) b = Add(a, f) {END}", 128, "uint8", ("Conv_3",)),
        (f"{QX} b = Conv(d, w) {END} v = Abs(b)", 128, "uint8", ("Conv_3",)),
        ("q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) b = MaxPool<kernel_shape=[2,2]>(d) " + END,
         128, "uint8", ("MaxPool_2",)),  # input and output of different scales
    ],
)  # fmt: skip
def test_planted(tmp_path, body, zero, kind, named):
    outputs = "float[] y, float[] v" if "v = " in body else "float[] y"
    assert placed(tmp_path, body, zero, outputs, kind)[1] == named


def test_a_node_that_another_took_in_is_named_too(tmp_path):
    """onnxruntime makes a Gemm of MatMul and Add, and keeps the name of neither."""
    body = "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) w = DequantizeLinear(wq, ws, wz) "
    body += "m = MatMul(d, w) y = Add(m, bias)"
    weights = {"wq": np.arange(-32, 32, dtype=np.int8).reshape(8, 8), "bias": np.arange(8, dtype=np.float32)}
    weights |= {"ws": np.float32(0.01), "wz": np.int8(0), "s": np.float32(0.05), "z": np.uint8(128)}
    found = placement(save(tmp_path, text(body, "float[4,8] x"), weights), TARGET)
    assert found.kernels["Gemm"] == 1
    assert found.float == ("MatMul_3",)


def test_verify_names_it(tmp_path):
    path, _ = placed(tmp_path, f"{QX} a = Conv(d, w) f = Tanh(a) b = Add(a, f) {END}", 128)
    np.savez(tmp_path / "data.npz", x=draw(2, 4, 8, 8))
    command = [sys.executable, "-m", "edgeq", "verify", path, path, "--data", tmp_path / "data.npz"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "node Conv_3 is quantized but onnxruntime runs it in float" in " ".join(shown.split())
