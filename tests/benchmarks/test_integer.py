"""The integer-only table on the digits task: values, hashes and the emulator, against what is computed here."""

import hashlib
import json

import numpy as np
import onnxruntime
import pytest

import edgeq
from benchmarks import tasks
from tests.require import require

require("ai_edge_litert", "pip install edgeq[litert]")

from benchmarks import integer  # noqa: E402


def test_digits_lose_nothing_and_leave_no_float(tmp_path, capsys):
    assert integer.main(["--models", "digits", "--places", "x86_64", "--json", str(tmp_path / "rows.json")]) == 0
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert set(row["values"]) == {"float", "QDQ", "integer", ".tflite"}
    assert all(abs(row["values"]["QDQ"] - row["values"][k]) <= 0.005 for k in ("integer", ".tflite"))
    assert (row["floats"], row["differing"], row["failed"]) == (0, [0, 40], {})
    assert row["tflite"]["differing"] == [0, 40]
    assert row["tflite"]["transposes"] == 0
    assert 130_000 < row["tflite"]["bytes"] < 0.5 * tasks.load("digits").model.stat().st_size
    assert set(row["ratios"]) == {"float", "QDQ"}
    assert row["hashes"]["x86_64"][:12] in capsys.readouterr().out

    task = tasks.load("digits")
    made = edgeq.quantize(task.model, "x86_64", task.calib, tmp_path / "out", integer_only=True, check=False).artifact
    session, found = onnxruntime.InferenceSession(made), hashlib.sha256()
    for image in np.load(task.model.parent / "digits.npz")["input"][:4]:
        found.update(session.run(None, {"input": image[None]})[0].tobytes())
    assert row["hashes"] == {"x86_64": found.hexdigest()}


def test_a_machine_that_disagrees_is_an_error():
    row = integer.Row(
        "m", "accuracy", "double", hashes={"a53": "1" * 64, "wasm": "2" * 64}, ratios={"float": 1, "QDQ": 1}
    )
    assert not row.one_hash
    assert "DIFFER" in integer.cells(row)


def test_an_unknown_rounding_is_refused():
    with pytest.raises(SystemExit):
        integer.main(["--rounding", "triple"])
