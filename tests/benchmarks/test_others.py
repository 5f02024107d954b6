"""A sample of other people's models, in all ways; and all that once failed."""

import numpy as np
import onnx
import pytest
from onnx import helper as h

from benchmarks.others.attempt import DECLINED, FAILED, FLOAT, QUANTIZED, WAYS, attempt, compare
from benchmarks.others.cases import Case, node_tests, stored_tests
from benchmarks.others.made import torch_models
from benchmarks.others.run import table
from tests.require import require

ONCE_FAILED = {
    "test_ai_onnx_ml_label_encoder_string_int",
    "test_scan_sum",
    "test_split_to_sequence_1",
    "test_regex_full_match_empty",
    "test_string_concat_empty_string",
    "test_string_split_consecutive_delimiters",
    "test_strnorm_model_monday_casesensintive_nochangecase",
    "test_strnorm_model_nostopwords_nochangecase",
}
EVERY = {"node": 197, "simple": 8, "pytorch-converted": 9, "pytorch-operator": 9}


@pytest.mark.parametrize("source", EVERY)
def test_a_sample_of_them(source):
    cases = list(node_tests() if source == "node" else stored_tests(source))
    chosen = [c for i, c in enumerate(cases) if i % EVERY[source] == 0 or c.name in ONCE_FAILED]
    rows = [row for case in chosen for row in attempt(case)]
    assert len(rows) == len(chosen) * len(WAYS) > 0
    assert [row for row in rows if row.outcome == FAILED] == []
    assert [row for row in rows if row.outcome == FLOAT]
    assert all(row.why for row in rows if row.outcome == DECLINED)
    if source == "pytorch-converted":
        assert [row for row in rows if row.outcome == QUANTIZED]
    assert f"| {source} |" in table(rows)


def test_blocks_that_torch_exports():
    require("torch", "pip install edgeq[torch]")
    rows = [row for case in torch_models(every=9) for row in attempt(case)]
    assert {row.outcome for row in rows} <= {QUANTIZED, FLOAT}
    assert len({row.name for row in rows if row.outcome == QUANTIZED}) == 2


def test_failures_are_seen(monkeypatch):
    graph = h.make_graph(
        [h.make_node("Relu", ["x"], ["y"])],
        "g",
        [h.make_tensor_value_info("x", 1, [2])],
        [h.make_tensor_value_info("y", 1, [2])],
    )
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)
    case = Case("relu", "own", model, {"x": np.array([-1, 1], np.float32)})
    assert [row.outcome for row in attempt(case, WAYS[:1])] == [FLOAT]
    other = onnx.ModelProto.FromString(model.SerializeToString())
    other.graph.node[0].op_type = "Abs"
    monkeypatch.setattr("edgeq.pipeline.prepare", lambda model, opset: onnx_ir_of(other))
    assert [row.outcome for row in attempt(case, WAYS[:1])] == [FAILED]

    def broken(model, opset):
        raise KeyError("x")

    monkeypatch.setattr("edgeq.pipeline.prepare", broken)
    (row,) = attempt(case, WAYS[:1])
    assert row.outcome == FAILED
    assert "KeyError" in row.why


def onnx_ir_of(proto):
    import onnx_ir

    return onnx_ir.from_proto(proto)


@pytest.mark.parametrize(
    ("want", "got", "problem"),
    [
        ([np.zeros(2)], [np.zeros(3)], "became"),
        ([np.zeros(2)], [], "became"),
        ([np.zeros(2)], [None], "optional"),
        ([np.array([1.0, np.nan])], [np.array([1.0, 2.0])], "came or went"),
        ([np.array([1, 2])], [np.array([1, 3])], "outputs differ"),
        ([np.array([1.0, 2.0])], [np.array([1.0, 2.1])], "differ by"),
        ([np.array([1.0, np.inf])], [np.array([1.0, np.inf])], ""),
    ],
)
def test_what_is_compared(want, got, problem):
    found = compare(want, got, exact=True, random=False)[1]
    assert problem in found
    assert bool(problem) == bool(found)
