"""The plan refuses what a recipe can't mean."""

import onnx_ir as ir
import pytest

from edgeq import target
from edgeq.errors import RecipeError, TargetError
from edgeq.graph.prepare import prepare
from edgeq.planning.planner import plan
from edgeq.recipe import Override, Recipe


@pytest.fixture
def model():
    return prepare(ir.load("sample_models/digits.onnx"))


@pytest.mark.parametrize("field", ["act_type", "weight_type"])
def test_an_unknown_type_is_named_with_those_there_are(model, field):
    recipe = Recipe(rule=(Override(**{field: "nope"}),))
    with pytest.raises(RecipeError, match=r"'nope' is not one of x86_64's: choose .*u8"):
        plan(model, target.load("x86_64"), recipe)


def test_a_method_without_rules_is_refused(model):
    with pytest.raises(TargetError, match="no float16 quantization; choose dynamic or static or weight_only"):
        plan(model, target.load("x86_64"), Recipe(method="float16"))


def test_the_recipe_keeps_nodes_float(model):
    made = plan(model, target.load("x86_64"), Recipe(rule=(Override(ops=("Gemm",), float=True),)))
    (gemm,) = [n for n in made.nodes if n.op == "Gemm"]
    assert (gemm.decision, gemm.reason) == ("float", "the recipe keeps it float")
    assert all(w.node != gemm.name for w in made.weights)


def test_a_whole_plan_leaves_nothing_float(model):
    whole = target.load("integer")
    made = plan(model, whole, Recipe(elementwise="all", attention=True))
    assert {n.decision for n in made.nodes} <= {"integer", "folded"}
    inputs, outputs = ({v.name for v in ends} for ends in (model.graph.inputs, model.graph.outputs))
    assert inputs | outputs <= {v.name for v in made.values}
    assert {v.name for v in made.values if v.calibrator == "minmax"} == outputs


def test_what_a_whole_plan_has_no_integers_for_is_named(model):
    recipe = Recipe(elementwise="all", rule=(Override(ops=("Gemm",), float=True),))
    with pytest.raises(TargetError, match=r"^integers only: Gemm 'node_linear': the recipe keeps it float; leave out"):
        plan(model, target.load("integer"), recipe)
