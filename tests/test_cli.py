"""The command line's contract: one line and exit code 2 for bad input, 1 for a missed budget, nothing left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeq import cli

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "sample_models"
DIGITS, CALIB, EVAL = (str(SAMPLES / n) for n in ("digits.onnx", "digits_calib.npz", "digits.npz"))


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command line in this process: (exit code, stdout, stderr)."""
    before = signal.getsignal(signal.SIGTERM)

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["edgeq", *map(str, args)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        return stopped.value.code, out, err

    yield call
    signal.signal(signal.SIGTERM, before)


def matmul(path, external=False, location="w.bin", name="mm"):
    """x (n,8) → y (n,4) with one constant weight."""
    weights = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name=name)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path, save_as_external_data=external, location="w.bin", size_threshold=0)
    if location != "w.bin":
        model = onnx.load(path, load_external_data=False)
        for entry in model.graph.initializer[0].external_data:
            if entry.key == "location":
                entry.value = location
        path.write_bytes(model.SerializeToString())
    return path


def samples(path, **arrays):
    arrays = arrays or {"x": np.random.default_rng(1).normal(size=(16, 8)).astype(np.float32)}
    np.savez(path, **arrays)
    return path


def bad_model(kind, folder):
    path = folder / "bad.onnx"
    if kind == "absent":
        return path, "bad.onnx"
    if kind == "text":
        path.write_text("this is no model\n" * 40)
    elif kind == "truncated":
        path.write_bytes(Path(DIGITS).read_bytes()[:100_000])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text tensor":
        model = onnx.load(matmul(path))
        model.graph.initializer.append(helper.make_tensor("words", TensorProto.STRING, [1], [b"cat"]))
        onnx.save(model, path)
        return path, "'words' holds text"
    elif kind == "missing data":
        matmul(path, external=True)
        (folder / "w.bin").unlink()
        return path, "w.bin"
    elif kind == "short data":
        matmul(path, external=True)
        (folder / "w.bin").write_bytes(b"abc")
        return path, "w.bin"
    elif kind == "data outside":
        (folder.parent / "outside.bin").write_bytes(bytes(128))
        matmul(path, external=True, location="../outside.bin")
        return path, "../outside.bin"
    return path, "bad.onnx"


def refused(result, *parts):
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.count("\n") == 1, err
    assert err.endswith("\n")
    assert "Traceback" not in err
    for part in parts:
        assert part in err, err


MODELS = ["absent", "text", "truncated", "empty", "missing data", "short data", "data outside", "text tensor"]


@pytest.mark.parametrize("kind", MODELS)
def test_a_bad_model_is_one_line_and_leaves_nothing(run, tmp_path, kind):
    inside = tmp_path / "in"
    inside.mkdir()
    path, named = bad_model(kind, inside)
    results = tmp_path / "new" / "deep" / "out"
    refused(run("quantize", path, "--calib", samples(tmp_path / "d.npz"), "-o", results), named)
    assert not (tmp_path / "new").exists()
    refused(run("inspect", path), named)
    refused(run("plan", path, "--json"), named)
    refused(run("verify", path, path, "--data", tmp_path / "d.npz"), named)


@pytest.mark.parametrize("kind", ["static", "dynamic", "operators"])
def test_a_quantized_model_is_declined_in_one_line(run, tmp_path, kind):
    model, data = matmul(tmp_path / "m.onnx"), samples(tmp_path / "d.npz")
    if kind == "operators":  # as onnxruntime's QOperator format has it
        params = [numpy_helper.from_array(a, k) for k, a in (("s", np.float32(0.1)), ("z", np.uint8(9)))]
        weight = numpy_helper.from_array(np.ones((8, 4), np.uint8), "w")
        ends = [helper.make_tensor_value_info(n, TensorProto.UINT8, ["n", d]) for n, d in (("x", 8), ("y", 4))]
        node = helper.make_node("QLinearMatMul", ["x", "s", "z", "w", "s", "z", "s", "z"], ["y"], name="mm")
        graph = helper.make_graph([node], "g", ends[:1], ends[1:], [*params, weight])
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), model)
        samples(data, x=np.zeros((4, 8), np.uint8))
    else:
        assert run("quantize", model, "--calib", data, "--method", kind, "-o", tmp_path / "one", "-q")[0] == 0
        model = tmp_path / "one" / "model.onnx"
    for method in ("static", "dynamic"):
        again = run("quantize", model, "--calib", data, "--method", method, "-o", tmp_path / "two")
        refused(again, "is quantized already", "give the float one")
        assert not (tmp_path / "two").exists()
    refused(run("plan", model), "is quantized already")


def test_what_is_left_of_a_partly_quantized_model_is_quantized(run, tmp_path):
    model, data = matmul(tmp_path / "m.onnx"), samples(tmp_path / "d.npz")
    assert run("quantize", model, "--calib", data, "-o", tmp_path / "one", "-q")[0] == 0
    more = onnx.load(tmp_path / "one" / "model.onnx")
    more.graph.node.append(helper.make_node("MatMul", ["y", "v"], ["z"], name="second"))
    more.graph.initializer.append(numpy_helper.from_array(np.eye(4, dtype=np.float32), "v"))
    more.graph.output[0].name = "z"
    onnx.save(more, model)
    code, out, _ = run("plan", model, "--json")
    nodes = {n["name"]: (n["decision"], n["reason"]) for n in json.loads(out)["nodes"]}
    assert (code, nodes["mm"], nodes["second"][0]) == (0, ("float", "is quantized already"), "integer")
    code, out, _ = run("quantize", model, "--calib", data, "-o", tmp_path / "two", "--json")
    assert (code, json.loads(out)["nodes"]["integer"]) == (0, 1)


GOOD = np.zeros((4, 8), np.float32)
NAN = np.where(np.arange(32).reshape(4, 8) == 9, np.nan, GOOD).astype(np.float32)
DATA = {
    "unknown input": ({"z": GOOD}, "z"),
    "wrong shape": ({"x": GOOD[:, :5]}, "'x'"),
    "wrong rank": ({"x": GOOD.reshape(4, 2, 2, 2)}, "'x'"),
    "wrong dtype": ({"x": GOOD.astype(np.float64)}, "float64"),
    "no samples": ({"x": GOOD[:0]}, "at least one"),
    "NaN": ({"x": NAN}, "NaN in input 'x'"),
    "objects": ({"x": np.array([{}, {}], object)}, "d.npz"),
}


@pytest.mark.parametrize("kind", DATA)
def test_bad_data_is_one_line_and_leaves_nothing(run, tmp_path, kind):
    arrays, named = DATA[kind]
    np.savez(tmp_path / "d.npz", **arrays)
    model = matmul(tmp_path / "m.onnx")
    before = sorted(tmp_path.iterdir())
    refused(run("quantize", model, "--calib", tmp_path / "d.npz", "-o", tmp_path / "out"), named)
    assert sorted(tmp_path.iterdir()) == before
    if kind != "NaN":
        refused(run("verify", model, model, "--data", tmp_path / "d.npz"), named)


def options(folder):
    """name → (arguments beside the model and its data, what the line must name)."""
    (folder / "file").write_text("in the way")
    (folder / "r.toml").write_text('calibrattor = "mse"\n')
    (folder / "s.toml").write_text("samples = -1\n")
    (folder / "t.toml").write_text('name = "t"\ntitle = "t"\nrunner = "cpu"\nextends = "nowhere"\n')
    (folder / "generic.toml").write_text((ROOT / "targets" / "generic.toml").read_text())
    shared = 'extends = "generic"\ntitle = "t"\nname = "t"\n'
    (folder / "u.toml").write_text(shared + 'runner = "abacus"\n')
    (folder / "v.toml").write_text(shared + 'runner = "cpu"\nrunner_options = {colour = "red"}\n')
    out = ("-o", folder / "out")
    return {
        "output is a file": (("-o", folder / "file"), "file"),
        "output under a file": (("-o", folder / "file" / "out"), "file"),
        "target": ((*out, "-t", "toaster"), "choose one of arm64"),
        "target base": ((*out, "-t", folder / "t.toml"), "nowhere"),
        "target runner": ((*out, "-t", folder / "u.toml"), "abacus"),
        "runner option": ((*out, "-t", folder / "v.toml"), "colour"),
        "calibrator": ((*out, "--calibrator", "guess"), "guess"),
        "method": ((*out, "--method", "magic"), "magic"),
        "recipe field": ((*out, "--recipe", folder / "r.toml"), "calibrattor"),
        "recipe value": ((*out, "--recipe", folder / "s.toml"), "samples"),
        "no recipe": ((*out, "--recipe", folder / "none.toml"), "none.toml"),
        "labels": ((*out, "--labels", "truth"), "truth"),
        "metric": ((*out, "--metric", "no.such:thing"), "no.such"),
        "drop of nothing": ((*out, "--max-drop", "0.1"), "--labels"),
        "budget unverified": ((*out, "--min-sqnr", "1", "--no-verify"), "--no-verify"),
        "codes beside floats": ((*out, "--integer-io"), "integer_only"),
        "integers at run time": ((*out, "--integer-only", "--method", "dynamic"), "static"),
        "rounding": ((*out, "--integer-only", "--rounding", "triple"), "rounding"),
        "integer files": ((*out, "--integer-only", "--target", "litert"), "litert"),
        "usage": ((*out, "--colour", "red"), "--colour"),
        "number": ((*out, "--max-drop", "much"), "--max-drop"),
    }


def test_every_bad_option_is_one_line_and_leaves_nothing(run, tmp_path):
    model, data = matmul(tmp_path / "m.onnx"), samples(tmp_path / "d.npz")
    cases = options(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for name, (args, named) in cases.items():
        refused(run("quantize", model, "--calib", data, *args), named)
        assert sorted(tmp_path.rglob("*")) == before, name
    refused(run("quantize", model, "-o", tmp_path / "out"), "--calib")
    assert sorted(tmp_path.rglob("*")) == before


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
    assert (code, "float tensors between its ends" in out, err) == (1, True, "")
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


def test_a_killed_run_leaves_the_old_artifact_whole(tmp_path):
    model, data = str(matmul(tmp_path / "m.onnx")), str(samples(tmp_path / "d.npz"))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "edgeq", "quantize", model, "--calib", data, "-o", str(out), "-q"]
    subprocess.run(command, check=True, cwd=ROOT)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    assert sorted(before) == ["golden.npz", "model.onnx", "recipe.toml", "report.json"]
    (tmp_path / "slow.py").write_text(
        "import time, numpy\ndef samples():\n"
        "    yield {'x': numpy.ones((1, 8), numpy.float32)}\n    print('reached', flush=True)\n    time.sleep(60)\n"
    )
    command[command.index(data)] = "slow:samples"
    work = set()
    for sent, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 130)):
        env = os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
        child = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE)
        assert child.stdout.readline() == b"reached\n"
        time.sleep(0.1)
        left, work = work, {p for p in out.iterdir() if p.is_dir()}
        assert len(work) == 1  # its own: what the killed run left, the next one removed
        assert not left & work
        # A run beside it leaves the folder of a living one alone.
        subprocess.run([*command[:5], "--calib", data, "-o", str(out), "-q"], check=True, cwd=ROOT)
        assert work <= set(out.iterdir())
        before = {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()}
        child.send_signal(sent)
        assert child.wait(20) == code
        child.stdout.close()
        assert {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()} == before
        onnx.checker.check_model(onnx.load(out / "model.onnx"))
    assert not [p for p in out.iterdir() if p.is_dir()]
