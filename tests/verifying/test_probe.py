"""Target files against the installed runtime, and the probe against target files that were made to lie."""

import json
import subprocess
import sys

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from edgeq import target as targets
from edgeq.errors import ToolError
from edgeq.registry import load
from edgeq.target import Rule
from edgeq.verifying.probe import cases, probe, probeable
from edgeq.verifying.specimens import OPERATORS, feeds_of, model_of
from tests.require import SATURATES, require


def runs(findings, name, method="static", **wanted):
    """Whether the patterns of an operator run on integers: the set of answers."""
    return {
        row.integer
        for row in findings
        if row.specimen.name == name
        and row.method == method
        and all(getattr(row.specimen, k) == v for k, v in wanted.items())
    }


@pytest.mark.parametrize("name", ["x86_64", "x86_64-avx2", "generic", "arm64"])
def test_the_file_says_what_the_runtime_does(name):
    target = targets.load(name)
    runner = load("edgeq.runners", target.runner)
    require(target.runner, runner.missing() or "", lambda: runner.missing() is None)
    found = probe(target)
    assert [(str(row.specimen), row.kernels, row.error) for row in found.disagreements] == []
    assert len(found.findings) > 120
    assert {row.specimen.op for row in found.findings} == {n.partition(":")[0] for n in OPERATORS} - {"Gather"}


def test_what_is_known_of_onnxruntime_is_found_again():
    found = probe(targets.load("x86_64")).findings
    assert runs(found, "Conv", ends="float") == {False}  # QLinearConv has no float output
    assert runs(found, "Gemm", ends="float", act="uint8") == {True}
    assert runs(found, "Conv", behind="Relu") == runs(found, "Conv", behind="Clip") == {True}
    assert runs(found, "MaxPool", same=True) == {True}
    assert runs(found, "MaxPool", same=False) == {False}
    assert runs(found, "Resize:nearest", same=True) == {True}
    for name in ("Tanh", "Sub", "Div", "HardSwish", "Resize:linear", "Pad", "LayerNormalization", "ConvTranspose"):
        assert runs(found, name) == {False}
    assert runs(found, "MatMul", "dynamic") == runs(found, "LSTM", "dynamic") == {True}
    packed = [row for row in found if row.method == "weight_only"]
    assert [(row.specimen.name, "MatMulNBits" in row.kernels) for row in packed] == [("Gemm", True), ("MatMul", True)]
    kernels = {row.specimen.name: row.kernels for row in found if row.integer and row.method == "static"}
    assert kernels["Add"] == ("QLinearAdd",)


def changed(*rules, without=()):
    """x86_64 with some operators taken out of its rules, and with more rules."""
    target = targets.load("x86_64")
    kept = tuple(
        msgspec.structs.replace(rule, ops=tuple(op for op in rule.ops if op not in without)) for rule in target.rule
    )
    return msgspec.structs.replace(target, rule=(*kept, *rules))


@pytest.mark.parametrize(
    ("target", "op", "claimed"),
    [
        (changed(Rule(("Tanh",), "join", act="u8")), "Tanh", True),
        (changed(Rule(("Pad",), "same", act="u8")), "Pad", True),
        (changed(Rule(("Resize",), "same", act="u8")), "Resize:linear", True),
        (changed(Rule(("Conv",), act="u8", weight="s8c")), "Conv", True),  # its output's Q taken for optional
        (changed(Rule(("MaxPool",), "bridge", act="u8")), "MaxPool", False),
        (changed(without=("Sigmoid",)), "Sigmoid", False),
        (changed(without=("Gemm",)), "Gemm", False),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_file_that_lies_is_found_out(target, op, claimed):
    found = probe(target).disagreements
    assert op in {row.specimen.name for row in found}
    assert {row.claimed for row in found if row.specimen.name == op} == {claimed}


def test_specimens_are_valid_models_that_compute_the_same_fused_and_unfused(tmp_path):
    target = targets.load("x86_64")
    specimens = [specimen for specimen, _ in cases(target)]
    model = model_of(specimens, target.opset)
    ir.save(model, tmp_path / "m.onnx")
    onnx.checker.check_model(onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "m.onnx"), strict_mode=True))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain, fused = (ort.InferenceSession(tmp_path / "m.onnx", o) for o in (options, ort.SessionOptions()))
    feeds = feeds_of(model)
    lost = "int8" if SATURATES else ""  # activations whose sums can't be made exactly there
    for value, a, b in zip(plain.get_outputs(), plain.run(None, feeds), fused.run(None, feeds), strict=True):
        specimen = specimens[int(value.name[1:].partition("_")[0])]
        assert specimen.act == lost or np.abs(a - b).max() <= 0.0501, specimen  # one step at most
        assert np.ptp(a) > 0


def test_runtimes_that_show_no_graph_are_refused_in_one_line():
    assert {"x86_64", "arm64"} <= set(probeable())
    with pytest.raises(ToolError, match=r"^openvino: its runtime shows no optimized graph; probe one of .*x86_64"):
        probe(targets.load("openvino"))


def test_the_command_line_fails_on_a_disagreement(tmp_path):
    base = (targets.folder() / "generic.toml").read_text()
    lying = tmp_path / "lying.toml"
    lying.write_text(base + '\n[[rule]]\nops = ["Erf"]\nrole = "join"\nact = "u8"\n')
    command = [sys.executable, "-m", "edgeq", "doctor", "--probe", "-t"]
    right = subprocess.run([*command, "x86_64"], capture_output=True, text=True, check=True)
    assert "0 not as its file says" in right.stdout
    wrong = subprocess.run([*command, str(lying)], capture_output=True, text=True, check=False)
    assert wrong.returncode == 1
    assert "Erf" in wrong.stdout
    assert wrong.stderr == ""
    rows = json.loads(subprocess.run([*command, str(lying), "--json"], capture_output=True, check=False).stdout)
    assert [row["claimed"] for row in rows[0]["findings"] if row["specimen"]["name"] == "Erf"] == [True, True]
