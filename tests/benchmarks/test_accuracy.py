"""The accuracy table: float, the peer and edgeq beside one another, on the digits task that needs no download."""

import json

import numpy as np
import onnxruntime
import pytest

from benchmarks import accuracy, tasks


def digits_accuracy() -> float:
    """Float accuracy computed straight from the model and the labels, without the benchmark's own evaluation."""
    task = tasks.load("digits")
    with np.load(task.model.parent / "digits.npz") as data:
        logits = onnxruntime.InferenceSession(task.model).run(["logits"], {"input": data["input"]})[0]
        return float((logits.argmax(1) == data["label"]).mean())


def test_digits_are_measured_by_all_three(tmp_path, capsys):
    assert accuracy.main(["--tasks", "digits", "--markdown", "--json", str(tmp_path / "rows.json")]) == 0
    rows = {row["tool"]: row for row in json.loads((tmp_path / "rows.json").read_text())}
    assert list(rows) == ["float", "ort", "edgeq"]
    assert rows["float"]["value"] == pytest.approx(digits_accuracy())
    assert abs(rows["edgeq"]["loss"]) <= 0.003
    assert rows["edgeq"]["loss"] == pytest.approx(rows["float"]["value"] - rows["edgeq"]["value"])
    assert 0.2 < rows["edgeq"]["size"] < 0.6
    assert rows["edgeq"]["seconds"] > 0
    printed = capsys.readouterr().out.splitlines()
    assert all(line.count("|") == 8 for line in printed[:5])
    assert f"{rows['edgeq']['value']:.4f}" in printed[4]


def test_each_named_calibrator_has_a_row_and_a_wrong_one_fails(capsys):
    assert accuracy.main(["--tasks", "digits", "--calibrators", "minmax,nonsense", "--no-peers"]) == 1
    out = capsys.readouterr().out
    assert "edgeq minmax" in out
    assert "digits: edgeq nonsense failed: " in out
    assert "ort" not in [cell.strip() for line in out.splitlines() for cell in line.split("│")]


def test_an_unknown_task_is_refused(capsys):
    with pytest.raises(SystemExit):
        accuracy.main(["--tasks", "digits,nothing"])
    assert "no task nothing" in capsys.readouterr().err
