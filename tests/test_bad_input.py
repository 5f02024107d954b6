"""Bad input: one line, exit code 2 and nothing left behind. A killed run leaves what the next one tidies."""

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

from tests.command import matmul, refused, samples

ROOT = Path(__file__).resolve().parent.parent
DIGITS = ROOT / "sample_models" / "digits.onnx"


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
    elif kind in ("link outside", "hard link"):
        matmul(path, external=True)
        (folder / "w.bin").rename(folder.parent / "outside.bin")
        (folder / "w.bin").symlink_to("../outside.bin") if kind == "link outside" else os.link(
            folder.parent / "outside.bin", folder / "w.bin"
        )
        return path, "w.bin"
    return path, "bad.onnx"


MODELS = [
    "absent",
    "text",
    "truncated",
    "empty",
    "missing data",
    "short data",
    "data outside",
    "link outside",
    "hard link",
    "text tensor",
]


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
        "output that the system refuses": (("-o", "/proc/out"), "/proc/out: can't be written"),
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
