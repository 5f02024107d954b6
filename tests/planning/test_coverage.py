"""What `edgeq plan -t a,b,c` counts: operations against onnxruntime's own sums, pieces of a graph drawn by hand."""

import json
import subprocess
import sys

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from edgeq.pipeline import coverage_files
from edgeq.planning.coverage import dims, macs
from edgeq.recipe import Recipe
from tests.graph.written import CONV, draw, save, text

SHAPE = (("x", (1, 4, 8, 8)),)
LINEAR = [
    ("y = Conv (x, w)", (2, 4, 8, 8), (6, 4, 3, 3)),
    ("y = Conv <strides = [2, 2], group = 2> (x, w)", (1, 4, 9, 8), (6, 2, 3, 2)),
    ("y = Conv <dilations = [2]> (x, w)", (1, 4, 9), (6, 4, 3)),
    ("y = ConvTranspose <strides = [2, 2]> (x, w)", (1, 4, 5, 5), (4, 6, 3, 3)),
    ("y = ConvTranspose <group = 2> (x, w)", (1, 4, 5, 5), (4, 3, 2, 2)),
    ("y = Gemm (x, w)", (3, 4), (4, 6)),
    ("y = Gemm <transA = 1, transB = 1> (x, w)", (4, 3), (6, 4)),
    ("y = MatMul (x, w)", (2, 3, 4), (4, 6)),
]


@pytest.mark.parametrize("case", LINEAR, ids=lambda c: c[0])
def test_a_sum_of_products_of_ones_is_their_number(tmp_path, case):
    body, shape, weight = case
    dims = ",".join(map(str, shape))
    path = save(tmp_path, text(body, f"float[{dims}] x"), {"w": np.ones(weight, "f")})
    out = ort.InferenceSession(path).run(None, {"x": np.ones(shape, "f")})[0]
    model = ir.load(path)
    (node,) = model.graph
    node.outputs[0].shape = ir.Shape(out.shape)
    assert macs(node) == out.sum()


def test_pieces_of_a_chain(tmp_path):
    body = "a = Conv(x, w) b = Relu(a) c = Conv(b, w) d = Tanh(c) e = Conv(d, w) y = Erf(e)"
    path = save(tmp_path, text(body), {"w": CONV["w"]})
    (found,) = coverage_files(path, ["x86_64"], Recipe())
    assert found.nodes == {"integer": 4, "float": 1, "refused": 1}  # Relu is folded, Tanh a bridge, Erf without a rule
    assert found.share("integer") == 1
    assert found.islands == 2
    assert found.crossings == 4  # x, c, d and e
    assert [count for count, _ in found.reasons] == [1, 1]


def test_each_target_says_why_not(tmp_path):
    path = save(tmp_path, text("a = Conv(x, w) y = MatMul(a, v)"), {"w": CONV["w"], "v": draw(6, 6)})
    free, xnnpack = coverage_files(path, ["nnapi", "xnnpack"], Recipe())
    assert "--shape x=1,4,8,8" in free.problem
    assert xnnpack.nodes == {"integer": 1, "float": 0, "refused": 1}
    assert xnnpack.macs["refused"] == 4 * 6 * 6 * 6
    assert "float only" in xnnpack.reasons[0][1]
    (fixed,) = coverage_files(path, ["nnapi"], Recipe(shapes=SHAPE))
    assert fixed.problem == ""
    assert fixed.nodes["integer"] == 2


def test_the_command_line_compares_targets(tmp_path):
    path = save(tmp_path, text("y = Conv(x, w)"), {"w": CONV["w"]})
    command = [sys.executable, "-m", "edgeq", "plan", path, "-t", "x86_64,nnapi,qnn", "--shape", "x=1,4,8,8"]
    table = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert all(name in table for name in ("x86_64", "nnapi", "qnn", "100%"))
    rows = json.loads(subprocess.run([*command, "--json"], capture_output=True, check=True).stdout)
    assert [(row["target"], row["nodes"]["integer"]) for row in rows] == [("x86_64", 1), ("nnapi", 1), ("qnn", 1)]
    wrong = subprocess.run([*command[:-1], "x=1,b"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert wrong.stderr == "edgeq: --shape x=1,b: give INPUT=DIMENSIONS, such as input=1,3,224,224\n"


def test_a_size_of_minus_one_is_a_free_one():
    value = ir.Value(name="x", shape=ir.Shape([-1, 3, ir.SymbolicDim("n"), 0]))
    assert dims(value) == [1, 3, 1, 0]
