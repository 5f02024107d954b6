"""Inspection against what onnx itself says of the file."""

from collections import Counter
from pathlib import Path

import onnx
from onnx import numpy_helper

from edgeq.report.inspect import inspect_file
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
