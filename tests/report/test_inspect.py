"""Inspection against what onnx itself says of the file."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgeq.report.inspect import float_tensors, inspect_file
from edgeq.report.listings import method_rows, runtime_rows, target_rows

DIGITS = Path(__file__).resolve().parents[2] / "sample_models" / "digits.onnx"


def test_the_ledger_is_that_of_the_file():
    found, model = inspect_file(DIGITS), onnx.load(DIGITS)
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    assert found["ops"] == dict(Counter(n.op_type for n in model.graph.node))
    assert found["bytes"] == DIGITS.stat().st_size
    assert found["opset"][""] == next(o.version for o in model.opset_import if o.domain == "")
    listed = {t["name"]: t for t in found["tensors"]}
    assert set(weights) <= set(listed)
    assert all(listed[n]["bytes"] == w.nbytes and listed[n]["shape"] == list(w.shape) for n, w in weights.items())
    assert (
        found["weight_bytes"]
        == sum(t["bytes"] for t in found["tensors"])
        == sum(found["weight_bytes_by_type"].values())
    )
    assert [t["bytes"] for t in found["tensors"]] == sorted((t["bytes"] for t in found["tensors"]), reverse=True)
    assert [v["name"] for v in found["inputs"]] == [v.name for v in model.graph.input]
    assert isinstance(found["inputs"][0]["shape"][0], str)  # the batch varies
    assert found["inputs"][0]["shape"][1:] == [1, 8, 8]


def test_listings_say_what_each_entry_is():
    for rows, key in ((target_rows(), "title"), (method_rows(), "what"), (runtime_rows(), "state")):
        assert len(rows) >= 3
        assert all(row[key] for row in rows)
    assert next(r for r in runtime_rows() if r["runtime"] == "cpu")["state"].startswith("here, ")


def test_float_tensors_are_listed_with_what_makes_them(tmp_path):
    left = float_tensors(DIGITS)
    model = onnx.load(DIGITS)
    made = {name for node in model.graph.node for name in node.output}
    weights = {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    assert {row["name"] for row in left} >= made | weights | {"input"}
    assert {row["producer"] for row in left if row["name"] == "logits"} == {"Gemm 'node_linear'"}


def test_the_ends_may_be_float_and_what_no_one_types_may_not(tmp_path):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("MaxPool", ["q"], ["p"], kernel_shape=[2]),
        helper.make_node("DequantizeLinear", ["p", "s", "z"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 1, k]) for n, k in (("x", 4), ("y", 3))]
    stored = [numpy_helper.from_array(np.float32(0.1), "s"), numpy_helper.from_array(np.uint8(3), "z")]
    model = helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], stored), ir_version=10)
    onnx.save(model, tmp_path / "m.onnx")
    assert float_tensors(tmp_path / "m.onnx") == []
    model.graph.node[1].domain = "elsewhere"
    model.opset_import.append(helper.make_opsetid("elsewhere", 1))
    onnx.save(model, tmp_path / "m.onnx")
    assert float_tensors(tmp_path / "m.onnx") == [{"name": "p", "producer": "MaxPool ''"}]
