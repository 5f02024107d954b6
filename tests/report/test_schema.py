"""report.json as Python's own parser reads it."""

import json

import msgspec

from edgeq.report import schema


def made(sqnr):
    drift = schema.OutputDrift("y", sqnr, 1.0, 0.0)
    return schema.Report(
        model=schema.FileInfo("m.onnx", "ab", 3),
        artifact=schema.FileInfo("model.onnx", "cd", 2),
        target="t",
        recipe={"seed": 0},
        versions={"edgeq": "0"},
        nodes=schema.Nodes(2, 1, (schema.FloatNode("n", "Erf", "no kernel"),)),
        calibration={"samples": 1},
        outputs=(drift,),
        runtime=None,
        metric=schema.Metric("top-1", 0.5, 0.25, 0.25),
        warnings=("é\n",),
    )


def test_a_report_is_stable_json_of_version_1():
    table = json.loads(schema.dump(made(None)))
    assert table["schema_version"] == 1
    assert {
        "model", "artifact", "target", "recipe", "versions", "nodes", "outputs", "metric", "runtime", "warnings"
    } <= set(table)  # fmt: skip
    assert table["nodes"]["float"] == [{"name": "n", "op": "Erf", "reason": "no kernel"}]
    assert table["metric"] == {"name": "top-1", "float": 0.5, "quantized": 0.25, "drop": 0.25}
    assert table["outputs"][0]["sqnr_db"] is None
    assert table["warnings"] == ["é\n"]
    assert schema.dump(made(1.5)) == schema.dump(made(1.5)) != schema.dump(made(None))
    assert msgspec.json.decode(schema.dump(made(1.5)), type=schema.Report) == made(1.5)
