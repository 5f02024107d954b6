"""The energy of small graphs, added up by hand from the published figures."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper, parser

from edgeq.planning.energy import energy
from tests.graph.written import draw

DRAM, CACHE = 1300 / 8, 2 * 100 / 8  # pJ a byte: read once; written and read


def millijoules(body, **arrays):
    text = (
        f'<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]> g (float[2,4] x) => (float[2,3] y) {{{body}}}'
    )
    model = parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in arrays.items())
    return energy(ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(model)))


def test_floats():
    want = 24 * (3.7 + 0.9) + DRAM * 48 + CACHE * (24 + 24)
    assert millijoules("a = MatMul(x, w) y = Tanh(a)", w=draw(4, 3)) == pytest.approx(want / 1e9)
    assert millijoules("a = MatMul(x, w) y = Relu(a)", w=draw(4, 3)) == pytest.approx((want - CACHE * 24) / 1e9)


def test_halves():
    body = "h = Cast<to=10>(x) a = MatMul(h, w) y = Cast<to=1>(a)"
    want = 24 * (1.1 + 0.4) + DRAM * 24 + CACHE * (16 + 12 + 24)
    assert millijoules(body, w=draw(4, 3).astype(np.float16)) == pytest.approx(want / 1e9)


def test_codes():
    """Reals between the layer and its codes are never stored."""
    body = """q = QuantizeLinear(x, s, u) d = DequantizeLinear(q, s, u) w = DequantizeLinear(c, s)
    a = MatMul(d, w) r = QuantizeLinear(a, s, u) y = DequantizeLinear(r, s, u)"""
    arrays = {"s": np.float32(1), "u": np.uint8(0), "c": np.ones((4, 3), np.int8)}
    want = 24 * (0.2 + 0.1) + DRAM * (12 + 4 + 1) + CACHE * (8 + 6)
    assert millijoules(body, **arrays) == pytest.approx(want / 1e9)


def test_packed_weights_are_multiplied_as_floats():
    nodes = [helper.make_node("MatMulNBits", ["x", "c", "s"], ["y"], "n", domain="com.microsoft", K=32, N=3, bits=4,
                              block_size=32)]  # fmt: skip
    ends = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [2, d]) for n, d in (("x", 32), ("y", 3))]
    held = [numpy_helper.from_array(np.zeros((3, 1, 16), np.uint8), "c"), numpy_helper.from_array(draw(3), "s")]
    model = helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], held))
    want = 2 * 3 * 32 * (3.7 + 0.9) + DRAM * (48 + 12) + CACHE * 24
    assert energy(ir.serde.deserialize_model(model)) == pytest.approx(want / 1e9)
