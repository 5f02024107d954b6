"""Inputs given fixed shapes: what follows is inferred by onnx, and the model still computes the same."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from edgeq.errors import RecipeError
from edgeq.graph.prepare import prepare
from edgeq.graph.shapes import fix_shapes, free_input
from tests.graph.written import CONV, draw, save, text

TWO = "float[N,4,H,8] x, float[N,H] z"


def model(folder):
    return save(folder, text("a = Conv<pads=[1,1,1,1]>(x, w) b = ReduceSum(z) y = Add(a, b)", TWO), {"w": CONV["w"]})


def test_everything_behind_a_fixed_input_is_fixed(tmp_path):
    path = model(tmp_path)
    fixed = ir.load(path)
    assert free_input(fixed) == ("x", ["N", "4", "H", "8"])
    fix_shapes(fixed, {"x": (2, 4, 6, 8)})
    assert free_input(fixed) is None  # z shares its dimension names
    prepared = prepare(fixed, 17)
    assert [list(n.outputs[0].shape) for n in prepared.graph if n.op_type == "Conv"] == [[2, 4, 6, 8]]
    ir.save(prepared, tmp_path / "fixed.onnx")
    feeds = {"x": draw(2, 4, 6, 8), "z": draw(2, 6)}
    left, right = (ort.InferenceSession(p).run(None, feeds)[0] for p in (path, tmp_path / "fixed.onnx"))
    assert np.array_equal(left, right)


def test_what_exporters_write_for_unknown(tmp_path):
    """PP-OCR's models say −1 for the batch and "?" for height and width."""
    path = save(tmp_path, text("y = Relu(x)", "float[N,3,H,W] x"), {})
    unknown = ir.load(path)
    unknown.graph.inputs[0].shape = ir.Shape([-1, 3, "?", "?"])
    fix_shapes(unknown, {"x": (1, 3, 48, 192)})
    assert list(unknown.graph.inputs[0].shape) == [1, 3, 48, 192]


@pytest.mark.parametrize(
    ("shapes", "named"),
    [
        ({"q": (1,)}, "no input 'q'"),
        ({"x": (1, 4, 8)}, "has 4 dimensions"),
        ({"x": (1, 3, 8, 8)}, r"\['N', '4', 'H', '8'\]"),
        ({"x": (1, 4, 6, 8), "z": (1, 7)}, "dimension 'H'"),
    ],
)
def test_shapes_that_do_not_fit(tmp_path, shapes, named):
    with pytest.raises(RecipeError, match=named):
        fix_shapes(ir.load(model(tmp_path)), shapes)
