"""Operators on codes, read back: onnxruntime's kernel for each gives what the float operator between Q and DQ gives."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic

from edgeq.errors import ModelError
from edgeq.graph.prepare import plain
from edgeq.passes.qoperator import to_qdq
from edgeq.passes.strip_qdq import strip_qdq

X, Y = ["x_q", "x_s", "x_z"], ["y_s", "y_z"]
W, B = ["w_q", "w_s", "w_z"], ["b_q", "b_s", "b_z"]
CASES = {  # the operator: its inputs, attributes, and the shape of a weight
    "QLinearConv": ([*X, *W, *Y, "bias"], {"pads": [1] * 4, "group": 2}, (8, 4, 3, 3)),
    "QLinearMatMul": ([*X, *W, *Y], {}, (6, 5)),
    "QGemm": ([*X, *W, "bias", *Y], {"transB": 1, "alpha": 0.5}, (5, 6)),
    "QLinearAdd": ([*X, *B, *Y], {}, None),
    "QLinearMul": ([*X, *B, *Y], {}, None),
    "QLinearSigmoid": ([*X, *Y], {}, None),
    "QLinearLeakyRelu": ([*X, *Y], {"alpha": 0.2}, None),
    "QLinearSoftmax": ([*X, *Y], {"axis": -1, "opset": 13}, None),
    "QLinearAveragePool": ([*X, *Y], {"kernel_shape": [2, 2], "strides": [2, 2]}, None),
    "QLinearGlobalAveragePool": ([*X, *Y], {}, None),
    "QLinearConcat": ([*Y, *X, *B], {"axis": 1}, None),
    "QLinearWhere": (["choice", *X, *B, *Y], {}, None),
}


def built(nodes, constants, inputs=("x",), rank=4, output="y"):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank) for name in inputs],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()],
    )
    sets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=sets, ir_version=8)


def on_codes(op, per_channel):
    """x and b → Q → op → DQ → y, with constants."""
    inputs, attributes, weight = CASES[op]
    rng = np.random.default_rng(3)
    constants = {
        "x_s": np.float32(0.02), "x_z": np.uint8(120), "b_s": np.float32(0.013), "b_z": np.uint8(100),
        "y_s": np.float32(0.03), "y_z": np.uint8(90),
    }  # fmt: skip
    if weight is not None:
        channels = weight[1] if op == "QLinearMatMul" else weight[0]
        shape = (channels,) if per_channel else ()
        constants |= {
            "w_q": rng.integers(-127, 128, weight).astype(np.int8), "w_z": np.zeros(shape, np.int8),
            "w_s": rng.uniform(0.001, 0.01, shape).astype(np.float32),
            "bias": rng.integers(-9000, 9000, channels).astype(np.int32),
        }  # fmt: skip
    if op in ("QLinearSigmoid", "QLinearSoftmax"):
        constants |= {"y_s": np.float32(1 / 256), "y_z": np.uint8(0)}
    constants["choice"] = rng.integers(0, 2, (2, 8, 6, 6)).astype(bool)
    domain = "" if op in ("QLinearConv", "QLinearMatMul") else "com.microsoft"
    nodes = [helper.make_node("QuantizeLinear", ["x", "x_s", "x_z"], ["x_q"])]
    if "b_q" in inputs:
        nodes.append(helper.make_node("QuantizeLinear", ["b", "b_s", "b_z"], ["b_q"]))
    nodes.append(helper.make_node(op, inputs, ["y_q"], domain=domain, name="it", **attributes))
    nodes.append(helper.make_node("DequantizeLinear", ["y_q", *Y], ["y"]))
    used = {name for node in nodes for name in node.input}
    kept = {n: a for n, a in constants.items() if n in used}
    two = op in ("QLinearMatMul", "QGemm")
    made = built(nodes, kept, ("x", "b") if "b_q" in inputs else ("x",), 2 if two else 4)
    shape = (7, 6) if two else (2, 8, 6, 6)
    feeds = {i.name: rng.normal(0, 1, shape).astype(np.float32) for i in made.graph.input}
    return made, feeds


def run(model, feeds, optimized=False):
    options = ort.SessionOptions()
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


def lifted(model):
    return to_qdq(plain(ir.serde.deserialize_model(model)))


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("op", CASES)
def test_each_kernel_agrees_with_the_float_operator(op, per_channel):
    model, feeds = on_codes(op, per_channel)
    made = ir.serde.serialize_model(lifted(model))
    assert {n.domain for n in made.graph.node} <= {"", "ai.onnx"}
    assert not any("QLinear" in n.op_type or n.op_type == "QGemm" for n in made.graph.node)
    wanted, found = run(model, feeds), run(made, feeds)
    step = 1 / 256 if op in ("QLinearSigmoid", "QLinearSoftmax") else 0.03
    assert np.ptp(wanted) > 10 * step
    assert np.abs(wanted - found).max() <= step * 1.01  # a tie may fall to either side
    assert (np.abs(wanted - found) > step / 2).mean() < 0.06


@pytest.mark.parametrize("op", ["QLinearConv", "QLinearMatMul", "QGemm"])
def test_scales_and_codes_are_those_of_the_file(op):
    model, _ = on_codes(op, True)
    held = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    stripped = lifted(model)
    said = strip_qdq(stripped)
    (name,) = [n for n, p in said.constants.items() if p.spec.dtype == "int8"]
    np.testing.assert_array_equal(said.constants[name].scale, held["w_s"])
    axis = said.constants[name].spec.granularity.axis
    shape = [1] * held["w_q"].ndim
    shape[axis] = -1
    real = stripped.graph.initializers[name].const_value.numpy()
    np.testing.assert_array_equal(np.rint(real / held["w_s"].reshape(shape)), held["w_q"])
    assert {float(p.scale) for p in said.activations.values()} == {float(np.float32(0.02)), float(np.float32(0.03))}


def test_what_moves_codes_moves_them_still():
    constants = {
        "s": np.float32(0.05),
        "z": np.uint8(7),
        "shape": np.array([2, -1]),
        "more": np.full((2, 3), 9, np.uint8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["a"]),
        helper.make_node("MaxPool", ["a"], ["b"], kernel_shape=[2, 2]),
        helper.make_node("Reshape", ["b", "shape"], ["c"]),
        helper.make_node("Concat", ["c", "more"], ["d"], axis=1),
        helper.make_node("DequantizeLinear", ["d", "s", "z"], ["y"]),
    ]
    model = built(nodes, constants)
    made = lifted(model)
    feeds = {"x": np.random.default_rng(0).normal(0, 3, (2, 3, 5, 5)).astype(np.float32)}
    np.testing.assert_array_equal(run(ir.serde.serialize_model(made), feeds), run(model, feeds))
    said = strip_qdq(made)
    assert len(said.activations) == 4
    assert all(float(p.scale) == np.float32(0.05) and int(p.zero_point) == 7 for p in said.activations.values())


@pytest.mark.parametrize("op", ["MatMul", "Conv"])
@pytest.mark.parametrize("static", [False, True])
def test_sums_that_are_multiplied_by_their_scales(op, static):
    """The form that onnxruntime's dynamic quantizer writes; and that of scales multiplied beforehand."""
    rng = np.random.default_rng(1)
    weight = rng.normal(0, 0.2, (8, 4) if op == "MatMul" else (4, 8, 3, 3)).astype(np.float32)
    feeds = {"x": rng.normal(0, 1, (5, 8) if op == "MatMul" else (2, 8, 6, 6)).astype(np.float32)}
    if static:
        codes = np.clip(np.rint(weight / 0.005), -127, 127).astype(np.int8)
        constants = {
            "s": np.float32(0.03),
            "z": np.uint8(128),
            "w": codes,
            "wz": np.int8(0),
            "both": np.float32(0.03 * 0.005),
        }
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            helper.make_node(f"{op}Integer", ["q", "w", "z", "wz"], ["i"]),
            helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["both", "f"], ["y"]),
        ]
        model = built(nodes, constants, rank=len(feeds["x"].shape))
        tolerance = 1e-5
    else:
        plainly = built([helper.make_node(op, ["x", "w"], ["y"])], {"w": weight}, rank=len(feeds["x"].shape))
        model = dynamic(plainly)
        tolerance = 0.05
    assert any(n.op_type == f"{op}Integer" for n in model.graph.node)
    made = ir.serde.serialize_model(lifted(model))
    assert {n.op_type for n in made.graph.node} <= {op, "QuantizeLinear", "DequantizeLinear", "Add"}
    assert np.abs(run(made, feeds) - run(model, feeds)).max() <= tolerance * np.abs(run(model, feeds)).max()


def dynamic(model):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        onnx.save(model, Path(folder) / "f.onnx")
        quantize_dynamic(Path(folder) / "f.onnx", Path(folder) / "q.onnx")
        return onnx.load(Path(folder) / "q.onnx")


def test_what_can_not_be_read_back_is_named():
    constants = {"s": np.float32(0.05), "z": np.uint8(7), "w": np.ones((4, 4), np.int8)}
    start = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"])
    odd = [start, helper.make_node("MatMulInteger", ["q", "w", "z"], ["i"], name="odd"),
           helper.make_node("Cast", ["i"], ["y"], to=TensorProto.FLOAT)]  # fmt: skip
    with pytest.raises(ModelError, match=r"'odd' \(MatMulInteger\) can't be read back: its sums go elsewhere"):
        lifted(built(odd, constants, rank=2))
    cast = [start, helper.make_node("Cast", ["q"], ["y"], to=TensorProto.FLOAT, name="odd")]
    with pytest.raises(ModelError, match=r"'odd' \(Cast\) can't be read back: it reads codes"):
        lifted(built(cast, constants, rank=2))
    model, _ = on_codes("QLinearAveragePool", False)
    model.graph.node[1].attribute.append(helper.make_attribute("channels_last", 1))
    with pytest.raises(ModelError, match=r"'it' \(QLinearAveragePool\) can't be read back: ONNX has no"):
        lifted(model)
