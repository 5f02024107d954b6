"""The forms of nodes that a budget buys, against trying all of them."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeq import target
from edgeq.errors import RecipeError
from edgeq.planning.energy import DRAM, FLOAT16, FLOAT32, INT8
from edgeq.recipe import Override
from edgeq.report.schema import Sensitivity
from edgeq.search import budgets
from edgeq.search.budgets import Choice, Form

AS_IS, PACKED, FLOAT = (
    Form("as it is", None), Form("4-bit weights", Override(method="weight_only", bits=4), "packed"),
    Form("float", Override(float=True)),
)  # fmt: skip
FORMS = (AS_IS, PACKED, FLOAT)
HALF = Form("float16", Override(method="float16"))


@given(
    st.lists(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 10)), min_size=3, max_size=3), min_size=1, max_size=5),
    st.floats(1, 500),
)
def test_no_other_set_of_forms_has_less_error_within_the_budget(rows, budget):
    could = {
        str(i): [Choice(f, cost, error) for f, (cost, error) in zip(FORMS, row, strict=True)]
        for i, row in enumerate(rows)
    }
    all_sets = [(sum(c.cost for c in s), sum(c.error for c in s)) for s in product(*could.values())]
    least = min(cost for cost, _ in all_sets)
    try:
        picked = budgets.fit(could, budget)
    except RecipeError:
        assert least > budget * (1 - len(rows) / budgets.PARTS)
        return
    assert picked.keys() == could.keys()
    assert sum(c.cost for c in picked.values()) <= budget * (1 + 1e-9)
    # costs are rounded up to ten thousandths of the budget, so a set that only just fits may be missed
    sure = [error for cost, error in all_sets if cost <= budget * (1 - len(rows) / budgets.PARTS)]
    assert sum(c.error for c in picked.values()) <= min(sure, default=float("inf")) + 1e-9


def test_what_a_target_has_and_nothing_else():
    names = [form.name for form in budgets.forms(target.load("x86_64"))]
    assert names == ["as it is", "8-bit weights", "4-bit weights", "2-bit weights", "float"]
    assert "16-bit activations" in [form.name for form in budgets.forms(target.load("qnn"))]
    assert [form.name for form in budgets.forms(target.load("nnapi"))] == ["as it is", "float"]


def test_costs_follow_their_formulas():
    row = Sensitivity("n", "MatMul", 0.5, macs=1000, decision="integer", bytes=400, float_bytes=1600)
    assert [budgets.bytes_of(f, row) for f in (AS_IS, FLOAT, HALF)] == [400, 1600, 800]
    joules = [budgets.energy_of(f, row) * 1e9 for f in (AS_IS, PACKED, FLOAT, HALF)]
    assert joules == pytest.approx(
        [1000 * INT8 + 400 * DRAM, 1000 * FLOAT32 + 400 * DRAM, 1000 * FLOAT32 + 1600 * DRAM,
         1000 * FLOAT16 + 800 * DRAM]
    )  # fmt: skip
    time = budgets.time_of(
        {"as it is": {"n": 1.0, "n_product": 2.0, "nn": 4.0, "m": 8.0, "out_quant": 16.0}}, {"n": ["out"]}
    )
    assert time(AS_IS, row) == 19.0


def test_a_node_has_the_forms_that_were_measured_for_it():
    def row(name, error, decision):
        return Sensitivity(name, "MatMul", error, 10, decision, 4, 16)

    rows = {
        AS_IS.name: [row("a", 0.1, "integer"), row("b", 0.2, "integer")],
        PACKED.name: [row("a", 0.3, "packed"), row("b", 0.2, "integer")],  # b can't be packed
    }
    found = budgets.choices(rows, FORMS, budgets.bytes_of)
    assert [(c.form.name, c.error) for c in found["a"]] == [("as it is", 0.1), ("4-bit weights", 0.3), ("float", 0.0)]
    assert [c.form.name for c in found["b"]] == ["as it is", "float"]


def test_what_costs_no_less_is_left_out_at_first():
    could = {"a": [Choice(AS_IS, 2, 1), Choice(PACKED, 1, 3), Choice(FLOAT, 8, 0)], "b": [Choice(AS_IS, 2, 1)]}
    assert [c.form for c in budgets.cheaper(could)["a"]] == [AS_IS, PACKED]
    assert budgets.cheaper(could)["b"] == could["b"]


def test_rules_name_nodes_and_no_patterns():
    picked = {
        "a[0]": Choice(PACKED, 1, 1),
        "b": Choice(AS_IS, 1, 1),
        "c": Choice(FLOAT, 1, 0),
        "d": Choice(PACKED, 1, 1),
    }
    found = budgets.rules(picked)
    assert [(r.nodes, r.method, r.float) for r in found] == [
        (("a[[]0]", "d"), "weight_only", None), (("c",), None, True),
    ]  # fmt: skip
    assert budgets.said(picked) == "2 of 4 nodes 4-bit weights, 1 of 4 nodes float"
    assert budgets.said({"b": picked["b"]}) == "nothing changed"
