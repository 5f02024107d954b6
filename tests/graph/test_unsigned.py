"""int8 weights as uint8: the same values by the operators' definition, and sums that no kernel saturates."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from edgeq.graph import io
from edgeq.graph.unsigned import unsigned_weights
from edgeq.planning import saturation
from edgeq.runners import cpu
from edgeq.verifying.verification import verify_files
from tests.graph.written import draw, save, text

ENDS = {"s": np.float32(0.02), "z": np.uint8(120), "t": np.float32(0.2), "m": np.uint8(100)}
Q = "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)"
CODES = np.random.default_rng(0).integers(-128, 128, (6, 4, 3, 3)).astype(np.int8)
MATRIX = np.random.default_rng(1).integers(-128, 128, (4, 5)).astype(np.int8)
CHANNELS = {"ws": np.linspace(0.01, 0.03, 6).astype(np.float32), "wz": np.arange(-3, 3).astype(np.int8)}
ONE = {"ws": np.float32(0.01), "wz": np.int8(-7)}
IMAGE, ROWS = "float[2,4,6,6] x", "float[3,4] x"
FORMS = {
    "Conv": (f"{Q} w = DequantizeLinear<axis=0>(c, ws, wz) y = Conv(d, w)", IMAGE, {"c": CODES} | CHANNELS, 1),
    "no zero point": (f"{Q} w = DequantizeLinear(c, ws) y = Conv(d, w)", IMAGE, {"c": CODES} | ONE, 1),
    "Gemm": (f"{Q} w = DequantizeLinear(c, ws, wz) y = Gemm(d, w)", ROWS, {"c": MATRIX} | ONE, 1),
    "tied": (
        f"{Q} w = DequantizeLinear(c, ws, wz) a = MatMul(d, w) b = MatMul(d, w) y = Add(a, b)", ROWS,
        {"c": MATRIX} | ONE, 1,
    ),
    "QLinearConv": (
        "q = QuantizeLinear(x, s, z) e = QLinearConv(q, s, z, c, ws, wz, t, m) y = DequantizeLinear(e, t, m)", IMAGE,
        {"c": CODES} | ONE, 1,
    ),
    "MatMulInteger": (
        "q = QuantizeLinear(x, s, z) i = MatMulInteger(q, c, z) y = Cast<to=1>(i)", ROWS, {"c": MATRIX}, 1,
    ),
    "int8 activations": (
        "q = QuantizeLinear(x, s, k) d = DequantizeLinear(q, s, k) w = DequantizeLinear(c, ws, wz) y = MatMul(d, w)",
        ROWS, {"c": MATRIX, "k": np.int8(3)} | ONE, 0,
    ),
    "float": ("w = DequantizeLinear(c, ws, wz) y = MatMul(x, w)", ROWS, {"c": MATRIX} | ONE, 0),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_the_values_are_the_same(tmp_path, form):
    body, inputs, inits, count = FORMS[form]
    used = {name: array for name, array in (ENDS | inits).items() if f" {name}" in body or f"({name}" in body}
    path = save(tmp_path, text(body, inputs, opset=21, ir=10), used)
    model = ir.load(path)
    assert unsigned_weights(model) == count
    io.check(model)
    made = ir.to_proto(model)
    x = draw(*([2, 4, 6, 6] if inputs == IMAGE else [3, 4]))
    want, got = (ReferenceEvaluator(proto).run(None, {"x": x})[0] for proto in (onnx.load(path), made))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
    assert np.ptp(want) > 0.1
    assert unsigned_weights(model) == 0


def widest(folder):
    """Two products of 255 and 127, added: 64770, of which a saturating kernel leaves 32767."""
    inits = {"s": np.float32(1), "z": np.uint8(0), "c": np.full((2, 2), 127, np.int8), "ws": np.float32(1)}
    body = f"{Q} w = DequantizeLinear(c, ws) y = MatMul(d, w)"
    return save(folder, text(body, "float[1,2] x"), inits), {"x": np.full((1, 2), 255, np.float32)}


def test_a_session_gives_sums_that_do_not_saturate(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu, "saturates", lambda: True)
    path, fed = widest(tmp_path)
    session = cpu.open_session(path)
    np.testing.assert_array_equal(session.run(fed)["y"], [[64770, 64770]])
    session.close()


def test_a_machine_that_would_lose_some_is_named(tmp_path, monkeypatch):
    path, fed = widest(tmp_path)
    assert len(saturation.written(ir.load(path))) == 1
    assert verify_files(path, path, "x86_64", fed).warnings == ()
    monkeypatch.setattr(cpu, "saturates", lambda: True)
    (line,) = verify_files(path, path, "x86_64", fed).warnings
    assert line.startswith("this machine has no VNNI")
    assert "1 layers may saturate" in line
