"""HardSwish on codes: against the formula within the steps it rounds to, and as the kernels that the runtime runs."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from edgeq.passes import hard_swish

TEXT = """<ir_version: 10, opset_import: ["" : 21]>
g (float[1,N] x) => (float[1,N] y)
<float s = {SCALE}, uint8 z = {ZERO}, float t = {0.03}, uint8 w = {13}> {
   q = QuantizeLinear(x, s, z)  a = DequantizeLinear(q, s, z)  h = HardSwish(a)  r = QuantizeLinear(h, t, w)
   y = DequantizeLinear(r, t, w)
}"""


def model(text):
    return ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))


@pytest.mark.parametrize(("scale", "zero"), [(0.05, 128), (0.03, 100), (0.02, 0)])
def test_codes_give_what_the_formula_gives(tmp_path, scale, zero):
    rewritten = hard_swish.rewrite(model(TEXT.replace("SCALE", str(scale)).replace("ZERO", str(zero))))
    assert "HardSwish" not in [n.op_type for n in rewritten.graph]
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    session = ort.InferenceSession(ir.to_proto(rewritten).SerializeToString(), options)
    kernels = {n.op_type for n in onnx.load(options.optimized_model_filepath).graph.node}
    assert kernels == {"QuantizeLinear", "QLinearAdd", "QLinearMul", "DequantizeLinear"}
    codes = np.arange(256, dtype=np.float32)
    x = (codes - zero) * np.float32(scale)
    got = session.run(None, {"x": x[None]})[0][0]
    want = np.clip(x * np.clip(x / 6 + 0.5, 0, 1), -13 * 0.03, (255 - 13) * 0.03)
    # Half a step of the gate moves the product by |x| / 510, then comes a step of the output; kernels may be one off.
    assert (np.abs(got - want) <= np.abs(x) / 510 + 0.03 / 2 + 0.03 * 0.01 + np.abs(x) / 255).all()
    assert np.sqrt(np.mean((got - want) ** 2)) < 0.012


def test_what_is_no_codes_stays():
    float_in = model(TEXT.replace("SCALE", "0.1").replace("ZERO", "9").replace("HardSwish(a)", "HardSwish(x)"))
    assert "HardSwish" in [n.op_type for n in hard_swish.rewrite(float_in).graph]
    float_out = model(
        TEXT.replace("SCALE", "0.1").replace("ZERO", "9").replace("float[1,N] y)", "float[1,N] y, float[1,N] h)")
    )
    assert "HardSwish" in [n.op_type for n in hard_swish.rewrite(float_out).graph]
