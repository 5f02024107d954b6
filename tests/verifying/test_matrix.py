"""One artifact at several places: distances taken by hand, and a board that is a real sshd on loopback."""

import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgeq import target as targets
from edgeq.data import open_data
from edgeq.errors import RecipeError, ToolError, VerifyError
from edgeq.runners import cpu
from edgeq.runners.places import Place, board, of_target
from edgeq.verifying.matrix import output_codes
from edgeq.verifying.verify import Budget, verify
from tests.require import kernels_like_a_targets
from tests.runners import tiny
from tests.runners.test_ssh import board as sshd  # noqa: F401 (a fixture)

TARGET = targets.load("x86_64")
STEP = 0.05


@pytest.fixture
def artifact(tmp_path):
    return tiny.qdq_conv(tmp_path / "q.onnx")


@pytest.fixture
def data():
    return open_data(tiny.samples(4), {"x": (1, 3, 12, 12)})


def with_tail(path, op):
    """The artifact with a float operator behind its last codes."""
    model = onnx.load(path)
    model.graph.node.append(helper.make_node(op, ["y"], ["z"]))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 16, 12, 12]))
    onnx.save(model, path)
    return path


def elsewhere(change, fails_on_taps=False):
    """A place whose runtime is this machine's, but for what `change(name, array)` does to each value."""

    class Changed:
        def __init__(self, session):
            self.session, self.outputs = session, session.outputs
            self.report, self.latency_ms = {"version": "9-beta"}, 7.0

        def run_many(self, batches, taps=()):
            if taps and fails_on_taps:
                raise ToolError("no")
            for got in self.session.run_many(batches, taps):
                yield {name: change(name, array) for name, array in got.items()}

        def close(self):
            self.session.close()

    runner = SimpleNamespace(
        TITLE="changed", TIMED=True, open_session=lambda model, **o: Changed(cpu.open_session(model, **o))
    )
    return Place("elsewhere", runner, {})


def moved(by):
    return lambda name, array: array + np.float32(by) if name == "y" else array


def test_distances_are_those_of_numpy(artifact, data):
    found = verify(artifact, artifact, TARGET, data, places=[elsewhere(moved(3 * STEP)), of_target(TARGET)])
    first, far, again = found.matrix
    (drift,) = far.outputs
    signal = sum((tiny.here(artifact, f).astype(np.float64) ** 2).sum() for f in tiny.samples(4))
    noise = 4 * 16 * 144 * (3 * STEP) ** 2
    assert drift.sqnr_db == pytest.approx(10 * np.log10(signal / noise), abs=1e-3)
    assert drift.apart == pytest.approx(3 * STEP, rel=1e-5)
    assert (drift.steps, drift.identical) == (3, False)
    assert (far.target, far.runtime.name, far.runtime.version, far.runtime.latency_ms) == (
        "elsewhere",
        "changed",
        "9",
        7,
    )
    for row in (first, again):
        assert row.target == "x86_64"
        assert [(o.sqnr_db, o.apart, o.steps, o.identical) for o in row.outputs] == [(None, 0, 0, True)]
    assert verify(artifact, artifact, TARGET, data).matrix == ()


def test_a_single_bit_counts(artifact, data):
    def one_bit(name, array):
        changed = array.copy()
        changed.flat[5] = np.nextafter(changed.flat[5], np.float32(np.inf))
        return changed

    (drift,) = verify(artifact, artifact, TARGET, data, places=[elsewhere(one_bit)]).matrix[1].outputs
    assert (drift.steps, drift.identical) == (0, False)


@pytest.mark.parametrize(("codes", "steps"), [(0, 0), (2, 2)])
def test_behind_a_float_tail_the_codes_are_read(artifact, data, codes, steps):
    """The tail's output differs, and the codes before it tell whether that is the tail's doing."""
    with_tail(artifact, "Sigmoid")

    def change(name, array):
        return array + np.float32(1e-7) if name == "z" else np.maximum(array, codes) - np.uint8(codes)

    (drift,) = verify(artifact, artifact, TARGET, data, places=[elsewhere(change)]).matrix[1].outputs
    assert (drift.steps, drift.identical) == (steps, False)
    place = elsewhere(change, fails_on_taps=True)
    (drift,) = verify(artifact, artifact, TARGET, data, places=[place]).matrix[1].outputs
    assert drift.steps is None


def test_codes_before_an_output(artifact, tmp_path):
    assert {k: (round(v.step, 6), v.names) for k, v in output_codes(artifact).items()} == {"y": (STEP, ("yq",))}
    (codes,) = output_codes(with_tail(artifact, "Flatten")).values()
    assert (round(codes.step, 6), codes.names) == (STEP, ("yq",))
    (codes,) = output_codes(with_tail(tiny.qdq_conv(tmp_path / "b.onnx"), "Sigmoid")).values()
    assert (codes.step, codes.names) == (None, ("yq",))


def test_kernels_are_those_of_each_runtimes_graph(artifact, data):
    found = verify(artifact, artifact, TARGET, data, places=[elsewhere(moved(0))], proof=True)
    here, there = found.matrix
    assert here.kernels["QLinearConv"] == 1
    assert "Conv" not in here.kernels
    assert there.kernels == {}
    assert found.warnings == (
        "elsewhere: its runtime doesn't show the graph that it runs, so no kernel is proven there",
    )
    leaking = onnx.load(artifact)  # the Conv's output is read in float too
    leaking.graph.node.append(helper.make_node("Abs", ["c"], ["leak"]))
    leaking.graph.output.append(helper.make_tensor_value_info("leak", TensorProto.FLOAT, [1, 16, 12, 12]))
    onnx.save(leaking, artifact)
    found = verify(artifact, artifact, TARGET, data, proof=True)
    assert found.warnings == ("node conv is quantized but x86_64 runs it in float",)
    assert found.matrix[0].kernels["Conv"] == 1


def test_budgets_hold_everywhere(artifact, data):
    found = verify(artifact, artifact, TARGET, data, places=[elsewhere(moved(1))], budget=Budget(min_sqnr=30))
    (failure,) = found.failures
    assert failure.startswith("elsewhere: output y has ")


def test_a_runtime_that_gives_another_shape_is_named(artifact, data):
    with pytest.raises(VerifyError, match=r"^elsewhere: output 'y' has shape .*, here it is \(16, 12, 12\)"):
        verify(artifact, artifact, TARGET, data, places=[elsewhere(lambda name, array: array[0])])


def test_boards_by_name():
    options = [board(h).options for h in ("user@pi", "pi:2222", "u@[::1]:22", "u@::1")]
    assert [(o["host"], o["port"]) for o in options] == [
        ("user@pi", None),
        ("pi", 2222),
        ("u@::1", 22),
        ("u@::1", None),
    ]
    for text in ("pi:x", "[::1]x"):
        with pytest.raises(RecipeError, match="is not a board"):
            board(text)


def test_a_missing_runtime_stands_in_or_ends_it(artifact, tmp_path, monkeypatch, run):
    monkeypatch.setenv("EDGEQ_CACHE", str(tmp_path / "empty"))
    np.savez(tmp_path / "d.npz", x=np.concatenate([f["x"] for f in tiny.samples(2)]))
    command = ["verify", artifact, artifact, "--data", tmp_path / "d.npz", "-t", "x86_64,arm64"]
    code, out, _ = run(*command, "--json")
    found = json.loads(out)
    assert code == 0
    assert "edgeq doctor --install arm64" in found["matrix"][1]["stand_in"]
    assert found["warnings"] == [found["matrix"][1]["stand_in"]]
    code, out, err = run(*command, "--require")
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        "edgeq: target arm64 can't be verified here: arm64 runtime not installed: run `edgeq doctor --install arm64`"
    ]
    code, out, _ = run(*command)
    assert code == 0
    assert "stands in" in out
    code, _, err = run(*command[:-1], "x86_64,arm63")
    assert code == 2
    assert "no target 'arm63'" in err


@pytest.fixture
def known(sshd, tmp_path, monkeypatch):  # noqa: F811
    """The board `pi`, known to the SSH configuration that an `ssh` on the path reads."""
    real = shutil.which("ssh")
    config = Path(sshd["config"])
    (tmp_path / "config").write_text(config.read_text().replace("Host board", "Host pi"))
    script = tmp_path / "bin" / "ssh"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec {real} -F {tmp_path}/config "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    return next(line.split()[1] for line in config.read_text().splitlines() if "Port" in line)


def test_a_board_beside_this_machine(known, artifact, tmp_path, run):
    kernels_like_a_targets()
    np.savez(tmp_path / "d.npz", x=np.concatenate([f["x"] for f in tiny.samples(2)]))
    there = ["--host", f"pi:{known}", "--host-python", sys.executable, "--json"]
    code, out, err = run("verify", artifact, artifact, "--data", tmp_path / "d.npz", "--proof", *there)
    assert (code, err) == (0, "")
    here, pi = json.loads(out)["matrix"]
    assert (here["target"], pi["target"]) == ("x86_64", f"pi:{known}")
    assert pi["outputs"][0]["identical"]
    assert pi["kernels"] == here["kernels"]
    assert pi["kernels"]["QLinearConv"] == 1
    assert pi["runtime"]["version"] == here["runtime"]["version"]  # the board's onnxruntime, not the SSH client's
    assert pi["runtime"]["latency_ms"] > 0
    code, out, err = run("bench", artifact, artifact, "--rounds", "1", *there)
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["place"] == f"pi:{known}"
    assert [row["latency_ms"] > 0 for row in found["rows"]] == [True, True]
    code, _, err = run("bench", artifact, "--host", "pi:1")
    assert code == 2
    assert "onnection refused" in err
    assert len(err.splitlines()) == 1
