"""The command line's contract: one line and exit code 2 for bad input, 1 for a missed budget, nothing left behind."""

import json
from pathlib import Path

from tests.command import matmul, refused, samples

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "sample_models"
DIGITS, CALIB, EVAL = (str(SAMPLES / n) for n in ("digits.onnx", "digits_calib.npz", "digits.npz"))


def test_missed_budget_exits_1_with_the_worst_layers(run, tmp_path):
    base = ("quantize", DIGITS, "--calib", CALIB, "--eval", EVAL, "--labels", "label", "-o", tmp_path / "out")
    code, out, err = run(*base, "--min-sqnr", 90)
    assert code == 1
    assert "worst layers" in out
    assert "node_conv2d" in out
    assert err == f"edgeq: {err[7:].strip()}\n"
    assert "output logits" in err
    code, out, err = run("verify", DIGITS, tmp_path / "out" / "model.onnx", "--data", EVAL, "--min-sqnr", 90)
    assert (code, "worst layers" in out) == (1, True)
    code, out, err = run("verify", DIGITS, tmp_path / "out" / "model.onnx", "--data", EVAL, "--min-sqnr", 10)
    assert (code, err) == (0, "")
    assert "worst layers" not in out
    code, out, err = run(*base, "--max-drop", 0.01, "--min-sqnr", 10)
    assert (code, err) == (0, "")  # and without a terminal, no progress
    assert "top-1 (label)" in out
    assert run(*base, "--quiet") == (0, "", "")


def test_json_is_json(run, tmp_path):
    model, data = matmul(tmp_path / "m.onnx"), samples(tmp_path / "d.npz")
    found = {}
    for command in (
        ("inspect", model), ("plan", model), ("targets",), ("methods",), ("doctor",),
        ("quantize", model, "--calib", data, "-o", tmp_path / "out"),
        ("verify", model, tmp_path / "out" / "model.onnx", "--data", data),
    ):  # fmt: skip
        code, out, err = run(*command, "--json")
        assert (code, err) == (0, ""), command
        found[command[0]] = json.loads(out)
    assert found["inspect"]["ops"] == {"MatMul": 1}
    assert [n["decision"] for n in found["plan"]["nodes"]] == ["integer"]
    assert {"arm64", "x86_64", "generic"} <= {row["target"] for row in found["targets"]}
    assert {"mse", "rtn"} <= {row["name"] for row in found["methods"]}
    assert "cpu" in {row["runtime"] for row in found["doctor"]}
    assert found["quantize"] == json.loads((tmp_path / "out" / "report.json").read_text())
    assert set(found["verify"]["levels"]) == {"disabled", "basic", "all"}
    code, out, _ = run("quantize", model, "--calib", data, "-o", tmp_path / "out", "--min-sqnr", 300, "--json")
    assert (code, bool(json.loads(out)["verification"]["failures"])) == (1, True)


def test_integer_only_artifacts_are_float_free(run, tmp_path):
    base = ("quantize", DIGITS, "--calib", CALIB, "--no-verify", "-q", "-o", tmp_path / "out")
    assert run(*base) == (0, "", "")
    code, out, err = run("inspect", tmp_path / "out" / "model.onnx", "--float-free")
    assert (code, "float tensors between its ends" in " ".join(out.split()), err) == (1, True, "")
    assert run(*base, "--integer-only", "--integer-io") == (0, "", "")
    code, out, err = run("inspect", tmp_path / "out" / "model.onnx", "--float-free", "--json")
    assert (code, json.loads(out)["float_tensors"], err) == (0, [], "")


def test_options_beside_a_recipe_win(run, tmp_path):
    model, data = matmul(tmp_path / "m.onnx"), samples(tmp_path / "d.npz")
    (tmp_path / "r.toml").write_text('target = "arm64"\ncalibrator = "minmax"\n')
    for args, wanted in (((), "arm64"), (("-t", "x86_64"), "x86_64")):
        code, out, _ = run(
            "quantize", model, "--calib", data, "--recipe", tmp_path / "r.toml", *args, "-o", tmp_path / "out", "--json"
        )
        report = json.loads(out)
        assert (code, report["target"], report["recipe"]["calibrator"]) == (0, wanted, "minmax")


def test_hostile_names_print_harmlessly(run, tmp_path):
    name = "a\x1b[2Jb\n[red]c[/red]\u202edcba\x9b"
    model = matmul(tmp_path / "[bold]m.onnx", name=name)
    for command in (("plan", model), ("inspect", model)):
        code, out, _ = run(*command)
        assert code == 0
        assert not set("\x1b\x9b\u202e") & set(out)
    code, out, _ = run("plan", model)
    assert "[red]c[/red]" in out.replace("\n", "")
    samples(tmp_path / "d.npz")
    code, out, _ = run("quantize", model, "--calib", tmp_path / "d.npz", "-o", tmp_path / "[red]out")
    assert code == 0
    assert "[bold]m.onnx for x86_64" in out
    refused(run("inspect", tmp_path / "a\nb\x1b[31m.onnx"), "no such file")
