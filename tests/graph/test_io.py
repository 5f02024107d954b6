"""What a model's files are, and that what was read is let go."""

import gc
import weakref

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from edgeq.errors import ModelError
from edgeq.graph import io
from edgeq.graph.prepare import prepare
from tests.graph.written import CONV, draw, save, text


def written(path, size, location=None, name="w"):
    """A model that adds `size` floats, in its own file or in another."""
    weight = numpy_helper.from_array(np.zeros(size, np.float32), name)
    ends = [helper.make_tensor_value_info(v, 1, ["N"]) for v in "xy"]
    graph = helper.make_graph([helper.make_node("Add", ["x", name], ["y"])], "g", ends[:1], ends[1:], [weight])
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    onnx.save(model, path, save_as_external_data=location is not None, location=location, size_threshold=0)
    return path


@pytest.mark.parametrize("size", [4, (1 << 18) - 16, (1 << 18) - 17, (1 << 18) - 18, 1 << 19])
def test_files_are_the_model_and_the_external_data_it_names(tmp_path, size):
    alone, parted = written(tmp_path / "alone.onnx", size), written(tmp_path / "parted.onnx", size, "weights.bin")
    assert io.files(alone) == [alone]
    assert io.files(parted) == [parted, tmp_path / "weights.bin"]


@pytest.mark.parametrize("filler", range((1 << 20) - 160, (1 << 20) - 20, 7))
def test_a_name_may_lie_across_the_pieces_that_are_read(tmp_path, filler):
    path = written(tmp_path / "m.onnx", 4, "beside.bin", "w" * filler)
    assert b"location" in path.read_bytes()
    assert io._mentions(path, b"location")
    assert not io._mentions(path, b"locatiom")


def test_a_missing_model_has_no_files(tmp_path):
    with pytest.raises(ModelError, match="no such file"):
        io.files(tmp_path / "none.onnx")


def test_nothing_holds_on_to_a_model_that_was_prepared(tmp_path):
    """Its weights may be most of what fits into memory."""
    path = save(tmp_path, text("c = Conv(x, w, b) t = Transpose(c) y = Transpose(t)"), {**CONV, "w": draw(4, 4, 3, 3)})
    model = prepare(ir.load(path))
    held = weakref.ref(model.graph)
    del model
    gc.collect()
    assert held() is None
