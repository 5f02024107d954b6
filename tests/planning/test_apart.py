"""Nodes of a static recipe that have another method: what becomes of them, and of those around them."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import edgeq
from edgeq import target
from edgeq.errors import RecipeError, TargetError
from edgeq.numerics.metrics import sqnr_db
from edgeq.recipe import Override, Recipe
from tests.graph.written import draw, samples, save, text

BODY = """
    a = MatMul(x, w)
    b = Relu(a)
    c = MatMul(b, v)
    d = Relu(c)
    y = MatMul(d, u)
"""
WEIGHTS = {"w": draw(32, 48, seed=1), "v": draw(48, 64, seed=2), "u": draw(64, 16, seed=3)}
FIRST, SECOND, THIRD = "MatMul_0", "MatMul_2", "MatMul_4"


@pytest.fixture
def case(tmp_path):
    path = save(tmp_path, text(BODY, "float[N,32] x", "float[N,16] y", opset=21, ir=10), WEIGHTS)
    return path, samples(8, 32)


def artifact(case, folder, name, aim="x86_64", **recipe):
    path, data = case
    return edgeq.quantize(path, aim, data, folder / name, recipe=Recipe(passes=(), **recipe), check=False)


def answers(made, data):
    session = ort.InferenceSession(str(made.artifact))
    return np.concatenate([session.run(None, feed)[0] for feed in data])


def with_half(folder):
    """A target with int8 and float16, as a file."""
    (folder / "generic.toml").write_text((target.folder() / "generic.toml").read_text())
    aim = folder / "both.toml"
    rule = '[[rule]]\nops = ["*"]\nrole = "half"\nmethod = "float16"\n'
    aim.write_text(f'name = "both"\ntitle = "int8 and float16"\nrunner = "cpu"\nextends = "generic"\n{rule}')
    return str(aim)


@pytest.mark.parametrize("method", ["dynamic", "weight_only"])
def test_all_nodes_of_another_method_are_that_method(case, tmp_path, method):
    everything = artifact(case, tmp_path, "rule", rule=(Override(method=method),))
    path, data = case
    plainly = edgeq.quantize(
        path, "x86_64", None, tmp_path / "plain", method=method
    )  # no data: none of it is in its weights
    assert everything.plan.nodes == plainly.plan.nodes
    assert everything.plan.weights == plainly.plan.weights
    np.testing.assert_array_equal(answers(everything, data), answers(plainly, data))


def test_each_node_has_the_method_of_its_rule(case, tmp_path):
    rules = (Override(nodes=(FIRST,), method="weight_only", bits=8), Override(nodes=(SECOND,), method="dynamic"))
    made = artifact(case, tmp_path, "mixed", rule=rules)
    assert {n.name: n.decision for n in made.plan.nodes if n.op == "MatMul"} == {
        FIRST: "packed", SECOND: "dynamic", THIRD: "integer",
    }  # fmt: skip
    ops = [node.op_type for node in onnx.load(made.artifact).graph.node]
    assert [ops.count(op) for op in ("MatMulNBits", "MatMulInteger", "MatMul")] == [1, 1, 1]
    assert ops.count("QuantizeLinear") == 1, "only what the static node reads is rounded"
    float_answers = np.concatenate(
        [np.maximum(np.maximum(f["x"] @ WEIGHTS["w"], 0) @ WEIGHTS["v"], 0) @ WEIGHTS["u"] for f in case[1]]
    )
    assert sqnr_db(float_answers, answers(made, case[1])) > 25


def test_half_precision_beside_integers(case, tmp_path):
    aim = with_half(tmp_path)
    made = artifact(case, tmp_path, "half", aim=aim, rule=(Override(nodes=(SECOND,), method="float16"),))
    graph = onnx.load(made.artifact).graph
    assert {n.name: n.decision for n in made.plan.nodes if n.op == "MatMul"} == {
        FIRST: "integer", SECOND: "half", THIRD: "integer",
    }  # fmt: skip
    halves = {t.name for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT16}
    (node,) = [n for n in graph.node if n.name == SECOND]
    assert node.input[1] in halves
    kept = artifact(case, tmp_path, "float", aim=aim, rule=(Override(nodes=(SECOND,), float=True),))
    assert sqnr_db(answers(kept, case[1]), answers(made, case[1])) > 40, "float16 loses next to nothing"


def test_neighbours_of_another_method_are_not_told_that_codes_come(case, tmp_path):
    """A Relu behind a node whose output is float has nothing to fold into, and stays."""
    made = artifact(case, tmp_path, "out", rule=(Override(nodes=(FIRST,), method="weight_only"),))
    decisions = {n.name: n.decision for n in made.plan.nodes}
    assert decisions["Relu_1"] == "float"
    assert {"a", "x"}.isdisjoint(v.name for v in made.plan.values)


def test_an_operator_that_the_method_has_nothing_for_stays_float(case, tmp_path):
    made = artifact(case, tmp_path, "out", rule=(Override(nodes=("Relu_1",), method="dynamic"),))
    (row,) = [n for n in made.plan.nodes if n.name == "Relu_1"]
    assert (row.decision, row.reason) == ("float", "x86_64 has no dynamic kernel for Relu")


def test_what_can_not_be_is_refused(case, tmp_path):
    with pytest.raises(RecipeError, match="for static recipes of ONNX targets"):
        artifact(case, tmp_path, "out", method="dynamic", rule=(Override(method="weight_only"),))
    with pytest.raises(TargetError, match="no float16 quantization"):
        artifact(case, tmp_path, "out", rule=(Override(method="float16"),))
    with pytest.raises(RecipeError, match="for static recipes of ONNX targets"):
        artifact(case, tmp_path, "out", aim="litert", rule=(Override(method="dynamic"),))
    assert not (tmp_path / "out").exists()
