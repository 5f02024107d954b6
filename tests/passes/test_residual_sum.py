"""A residual Add before LayerNormalization becomes Sum, which onnxruntime computes to the same bits."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from edgeq.passes import residual_sum


def model(constant):
    second = "c" if constant else "b"
    text = f"""<ir_version: 10, opset_import: ["" : 17]>
    g (float[2,8] a, float[2,8] b) => (float[2,8] y, float[2,8] s)
    <float[8] w, float[8] c> {{
       s = Add(a, {second})
       y = LayerNormalization(s, w)
    }}"""
    proto = onnx.parser.parse_model(text)
    for name in ("w", "c"):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.linspace(1, 2, 8, dtype=np.float32), name))
    kept = {i.name: i for i in proto.graph.initializer if i.raw_data}
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept.values())
    return proto


def test_same_bits_without_the_fused_kernel():
    proto = model(constant=False)
    rewritten = residual_sum.rewrite(ir.from_proto(proto))
    assert [n.op_type for n in rewritten.graph] == ["Sum", "LayerNormalization"]
    rng = np.random.default_rng(0)
    feeds = {n: rng.normal(size=(2, 8)).astype(np.float32) for n in "ab"}
    want = ort.InferenceSession(proto.SerializeToString()).run(None, feeds)
    got = ort.InferenceSession(ir.to_proto(rewritten).SerializeToString()).run(None, feeds)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(got[1], want[1])


def test_a_bias_is_no_residual():
    rewritten = residual_sum.rewrite(ir.from_proto(model(constant=True)))
    assert next(n.op_type for n in rewritten.graph) == "Add"
