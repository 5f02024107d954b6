"""Lazy weights are written one by one; the file is that of onnx-ir, which serializes the model as a whole."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgeq.graph import io, spliced

SIZES = [0, 1, 100, 119, 120, 127, 128, 129, 16383, 16384, 40000]


def model_of(sizes, lazy, doc=""):
    """A model with one initializer of bytes a size; the names of `lazy` are made when they are asked for."""
    rng = np.random.default_rng(0)
    arrays = {f"w{i}": rng.integers(0, 256, n).astype(np.uint8) for i, n in enumerate(sizes)}
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", [name], [f"y_{name}"], name=f"n_{name}") for name in arrays] or [],
        "g",
        [],
        [info(f"y_{name}", TensorProto.UINT8, ["N"]) for name in arrays],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
        doc_string=doc,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    model = ir.from_proto(proto)
    made = []
    for name in lazy:
        array = arrays[name]

        def make(array=array, name=name):
            made.append(name)
            return ir.tensor(array)

        value = model.graph.initializers[name]
        value.const_value = ir.LazyTensor(make, ir.DataType.UINT8, ir.Shape(array.shape), name=name)
    return model, arrays, made


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(SIZES), max_size=5), st.data())
def test_the_bytes_are_those_of_the_whole(tmp_path_factory, sizes, data):
    lazy = [f"w{i}" for i in range(len(sizes)) if data.draw(st.booleans())]
    model, arrays, made = model_of(sizes, lazy, data.draw(st.sampled_from(["", "text"])))
    folder = tmp_path_factory.mktemp("spliced")
    spliced.write(model, folder / "ours.onnx")
    assert made == lazy
    ir.save(model, folder / "theirs.onnx")
    assert (folder / "ours.onnx").read_bytes() == (folder / "theirs.onnx").read_bytes()
    held = onnx.load(folder / "ours.onnx").graph.initializer
    assert {t.name: numpy_helper.to_array(t).tolist() for t in held} == {k: v.tolist() for k, v in arrays.items()}


def test_the_model_keeps_its_weights(tmp_path):
    model, arrays, _ = model_of([300, 200], ["w1"])
    io.save(model, tmp_path / "m.onnx")
    np.testing.assert_array_equal(model.graph.initializers["w1"].const_value.numpy(), arrays["w1"])


def test_a_weight_that_can_not_be_made_leaves_no_file(tmp_path):
    model, _, _ = model_of([300, 200], ["w1"])

    def fail():
        raise RuntimeError("gone")

    lazy = ir.LazyTensor(fail, ir.DataType.UINT8, ir.Shape([200]), name="w1")
    model.graph.initializers["w1"].const_value = lazy
    with pytest.raises(RuntimeError, match="gone"):
        io.save(model, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []
    assert model.graph.initializers["w1"].const_value is lazy
