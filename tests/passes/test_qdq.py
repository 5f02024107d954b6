"""Q and DQ as they are written: held against the onnx reference evaluator and against what runtimes ask of the form."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from edgeq.graph import io
from edgeq.numerics.metrics import sqnr_db
from edgeq.passes.qdq import insert_qdq
from edgeq.planning.plan import INTEGER, BiasPlan, NodePlan, Plan, ValuePlan, WeightPlan
from edgeq.planning.solve import solve
from edgeq.types import PerBlock, PerChannel, PerTensor, QParams, QSpec, QTensor, Solution

U8 = QSpec("uint8", False, PerTensor())


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def parsed(body, inits, inputs="float[N,8] x", outputs="float[N,6] y", opset=21):
    head = f'<ir_version: 10, opset_import: ["" : {opset}]>'
    proto = parser.parse_model(f"{head} g ({inputs}) => ({outputs}) {{ {body} }}")
    proto.graph.initializer.extend(numpy_helper.from_array(a, k) for k, a in inits.items())
    for node in proto.graph.node:
        node.name = f"{node.output[0]}_node"
    return onnx.shape_inference.infer_shapes(proto)


def value(name, readers, everyone=False, spec=U8, group=None):
    return ValuePlan(name, spec, group or name, "mse", everyone, tuple(readers))


def params(scale, zero=0, spec=U8):
    return QParams(np.asarray(scale, np.float32), np.asarray(zero, np.int32), spec)


def insert(proto, plan, solution, dedicated=False):
    model = insert_qdq(ir.from_proto(onnx.ModelProto.FromString(proto.SerializeToString())), plan, solution, dedicated)
    io.check(model)
    return ir.to_proto(model)


def ops(proto):
    return [n.op_type for n in proto.graph.node]


def weights_only(proto, spec, node="y_node", index=1):
    """The plan and numbers of one weight, found by the code that really finds them."""
    weights = (WeightPlan(node, index, "w", spec, "rtn"),)
    plan = Plan("t", "static", (NodePlan(node, "MatMul", INTEGER),), weights=weights)
    solution, failed = solve(plan, ir.from_proto(proto), {})
    assert not failed
    return plan, solution


@pytest.mark.parametrize(
    ("body", "shape", "x", "granularity", "least"),
    [
        ("y = MatMul (x, w)", (8, 6), (3, 8), PerTensor(), 35),
        ("y = MatMul (x, w)", (8, 6), (3, 8), PerChannel(1), 35),
        ("y = MatMul (x, w)", (8, 6), (3, 8), PerBlock(0, 4), 35),
        ("y = MatMul (x, w)", (2, 8, 6), (2, 3, 8), PerChannel(2), 35),
        ("y = ConvTranspose (x, w)", (8, 3, 3, 3), (1, 8, 4, 4), PerChannel(1), 35),
        ("y = Gemm <transB = 1> (x, w)", (6, 8), (3, 8), PerChannel(0), 35),
    ],
)
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int4"])
def test_a_weight_of_any_granularity(body, shape, x, granularity, least, dtype):
    dims = ",".join(map(str, x))
    proto = parsed(body, {"w": draw(*shape)}, f"float[{dims}] x", "float[] y")
    spec = QSpec(dtype, dtype != "uint8", granularity)
    plan, solution = weights_only(proto, spec)
    made = insert(proto, plan, solution)
    assert ops(made) == ["DequantizeLinear", proto.graph.node[0].op_type]
    feed = {"x": draw(*x)}
    want, got = (ReferenceEvaluator(m).run(None, feed)[0] for m in (proto, made))
    assert sqnr_db(want, got) > least - (24 if dtype == "int4" else 0)


def test_one_quantizer_and_one_dequantizer_for_all_readers_or_a_pair_each():
    proto = parsed("a = MatMul (x, w) b = MatMul (x, w) y = Add (a, b)", {"w": draw(8, 6)})
    plan = Plan("t", "static", (), values=(value("x", ["a_node", "b_node"]),))
    solution = Solution({"x": params(0.05, 128)}, {}, {})
    shared = insert(proto, plan, solution)
    assert sorted(ops(shared)) == ["Add", "DequantizeLinear", "MatMul", "MatMul", "QuantizeLinear"]
    each = insert(proto, plan, solution, dedicated=True)
    assert ops(each).count("QuantizeLinear") == ops(each).count("DequantizeLinear") == 2
    feed = {"x": draw(3, 8)}
    outputs = [ReferenceEvaluator(m).run(None, feed)[0] for m in (shared, each)]
    np.testing.assert_array_equal(*outputs)


def test_only_the_planned_readers_see_the_rounded_value():
    body = "a = MatMul (x, w) y = Add (a, a) z = Neg (x)"
    proto = parsed(body, {"w": draw(8, 6)}, outputs="float[N,6] y, float[N,8] z")
    made = insert(proto, Plan("t", "static", (), (value("x", ["a_node"]),)), Solution({"x": params(0.5, 128)}, {}, {}))
    x = draw(3, 8)
    y, z = ReferenceEvaluator(made).run(None, {"x": x})
    np.testing.assert_array_equal(z, -x)
    np.testing.assert_allclose(y, 2 * (np.rint(x / 0.5) * 0.5) @ draw(8, 6), rtol=1e-5, atol=1e-5)


def test_an_output_that_nodes_read_too_is_rounded_for_all_and_keeps_its_name():
    proto = parsed("a = MatMul (x, w) y = Relu (a)", {"w": draw(8, 6)}, outputs="float[N,6] a, float[N,6] y")
    plan = Plan("t", "static", (), (value("a", ["y_node"], everyone=True),))
    made = insert(proto, plan, Solution({"a": params(0.25, 128)}, {}, {}))
    assert [o.name for o in made.graph.output] == ["a", "y"]
    a, y = ReferenceEvaluator(made).run(None, {"x": draw(3, 8)})
    np.testing.assert_array_equal(a, np.rint(a / 0.25) * 0.25)
    np.testing.assert_array_equal(y, np.maximum(a, 0))


def test_values_of_one_group_share_their_parameters():
    proto = parsed("a = Transpose <perm = [1, 0]> (x) y = Transpose <perm = [1, 0]> (a)", {}, outputs="float[N,8] y")
    plan = Plan("t", "static", (), (value("x", ["a_node"]), value("a", ["y_node"], group="x")))
    made = insert(proto, plan, Solution({"x": params(0.5, 3)}, {}, {}))
    assert {tuple(n.input[1:]) for n in made.graph.node if "Quantize" in n.op_type} == {("x_scale", "x_zero_point")}


def test_a_bias_has_the_scale_of_its_product():
    proto = parsed("y = Gemm (x, w, b)", {"w": draw(8, 6), "b": draw(6) * 100})
    spec = QSpec("int8", True, PerChannel(1))
    plan, solution = weights_only(proto, spec)
    plan = Plan("t", "static", plan.nodes, (value("x", ["y_node"]),), plan.weights, (BiasPlan("y_node", 2, "b", "x"),))
    scale = 0.03 * solution.weights["y_node", 1].params.scale
    codes = np.rint(draw(6) * 100 / scale).astype(np.int32)
    bias = QTensor(codes, QParams(scale, np.zeros(6, np.int32), QSpec("int32", True, PerChannel(0))))
    made = insert(proto, plan, Solution({"x": params(0.03, 128)}, solution.weights, {"y_node": bias}))
    feed = {"x": draw(3, 8)}
    want, got = (ReferenceEvaluator(m).run(None, feed)[0] for m in (proto, made))
    assert sqnr_db(want, got) > 50
    assert "b" not in [i.name for i in made.graph.initializer]


def test_names_already_taken_are_left_to_their_owners():
    body = """
        x_q = Neg (x)
        x_scale = Relu (x_q)
        x_QuantizeLinear = MatMul (x_scale, w)
        y = Add (x_QuantizeLinear, w_scale)
    """
    proto = parsed(body, {"w": draw(8, 6), "w_scale": draw(6)})
    plan, solution = weights_only(proto, QSpec("int8", True, PerChannel(1)), node="x_QuantizeLinear_node")
    plan = Plan("t", "static", plan.nodes, (value("x", ["x_q_node"]),), plan.weights)
    made = insert(proto, plan, Solution({"x": params(0.02, 128)}, solution.weights, {}))
    names = [i.name for i in made.graph.initializer] + [o for n in made.graph.node for o in n.output]
    assert len(set(names)) == len(names)
    feed = {"x": draw(3, 8)}
    want, got = (ReferenceEvaluator(m).run(None, feed)[0] for m in (proto, made))
    assert sqnr_db(want, got) > 30
