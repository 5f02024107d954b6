"""A concatenation keeps what its inputs keep, through a whole run and when an artifact is calibrated anew."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper as h
from onnx import numpy_helper

from edgeq import pipeline
from edgeq.planning.joints import wide_joints
from edgeq.planning.plan import NodePlan, Plan, ValuePlan
from edgeq.types import QParams, QSpec

U8 = QSpec("uint8", symmetric=False)
SHAPE = (1, 8, 12, 12)


def joined(decision="integer", output=(0.01, 128)):
    """(model, plan, groups) of c = Concat(a, b), with a of -1 to 1.55, b of 0 to 10.2."""
    values = [ir.val(name, ir.DataType.FLOAT, [1, 4]) for name in "ab"]
    node = ir.node("Concat", values, {"axis": 1}, name="cat")
    node.outputs[0].name = "c"
    model = ir.Model(ir.Graph(values, node.outputs, nodes=[node], opset_imports={"": 21}), ir_version=10)
    numbers = {"a": (0.01, 100), "b": (0.04, 0), "c": output}
    groups = {n: QParams(np.float32(s), np.int32(z), U8) for n, (s, z) in numbers.items()}
    rows = tuple(ValuePlan(n, U8, n, "mse", True, ("cat",)) for n in "abc")
    return model, Plan("t", "static", (NodePlan("cat", "Concat", decision),), rows), groups


def ends(params):
    return [float((code - params.zero_point) * params.scale) for code in (0, 255)]


def test_the_result_holds_every_input():
    model, plan, groups = joined()
    found = wide_joints(plan, model, groups)
    low, high = ends(found["c"])
    half = float(found["c"].scale) / 2
    assert low == pytest.approx(-1.28, abs=half)  # its own end is the lowest
    assert high == pytest.approx(10.2, abs=half)
    assert high - low == pytest.approx(11.48, rel=1e-5)
    assert found["a"] is groups["a"]
    assert found["b"] is groups["b"]
    again = wide_joints(plan, model, found)
    assert again["c"] is found["c"]


def test_a_range_that_holds_all_and_a_float_concat_stay():
    for case in (joined(output=(0.05, 40)), joined(decision="float")):
        model, plan, groups = case
        assert wide_joints(plan, model, groups)["c"] is groups["c"]


def test_rare_peaks_of_one_input_reach_the_layer_behind(tmp_path):
    """Every element of the last input is far out, yet few of all are: the least error over all would clip them."""
    rng = np.random.default_rng(0)
    inits = {f"w{i}": rng.normal(0, 0.4, (32 if i else 1, 8, 1, 1)).astype(np.float32) for i in range(4)}
    inits["w0"] *= 40
    inits["v"] = rng.normal(0, 0.1, (4, 97, 1, 1)).astype(np.float32)
    nodes = [h.make_node("Conv", ["x", f"w{i}"], [f"a{i}"], f"part{i}") for i in range(4)]
    nodes.append(h.make_node("Concat", [f"a{i}" for i in range(4)], ["c"], "cat", axis=1))
    nodes.append(h.make_node("Conv", ["c", "v"], ["y"], "last"))
    graph = h.make_graph(
        nodes,
        "g",
        [h.make_tensor_value_info("x", 1, SHAPE)],
        [h.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(a, n) for n, a in inits.items()],
    )
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    feeds = [{"x": rng.laplace(0, 1, SHAPE).astype(np.float32)} for _ in range(8)]
    made = pipeline.quantize(tmp_path / "m.onnx", "generic", feeds, tmp_path / "out", elementwise="all", check=False)
    held = {n.name: numpy_helper.to_array(n) for n in onnx.load(made.artifact).graph.initializer}
    reach = {}
    for node in onnx.load(made.artifact).graph.node:
        if node.op_type == "QuantizeLinear":
            scale, zero = (held[n] for n in node.input[1:])
            reach[node.input[0]] = (0 - int(zero)) * scale, (255 - int(zero)) * scale, scale
    low, high, step = reach["c"]
    for i in range(4):
        assert low - step / 2 <= reach[f"a{i}"][0] + 1e-6
        assert high + step / 2 >= reach[f"a{i}"][1] - 1e-6
