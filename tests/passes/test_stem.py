"""The stem rewrite computes the same convolution: held against onnxruntime on the model as it was."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.graph.prepare import prepare
from edgeq.passes import stem


def conv(channels, kernel, pads, size, stride=2):
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(5, channels, *kernel)).astype(np.float32)
    node = onnx.helper.make_node("Conv", ["x", "w", "b"], ["y"], "conv", strides=[stride, stride], pads=pads)
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, ["N", channels, *size])],
        [onnx.helper.make_tensor_value_info("y", 1, [None] * 4)],
        [onnx.numpy_helper.from_array(weight, "w"), onnx.numpy_helper.from_array(weight[:, 0, 0, 0].copy(), "b")],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=10)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([1, 2, 3, 5]),
    st.tuples(st.integers(1, 7), st.integers(1, 7)),
    st.lists(st.integers(0, 3), min_size=4, max_size=4),
    st.tuples(st.sampled_from([8, 10, 12]), st.sampled_from([8, 14])),
)
def test_equals_the_convolution_it_replaces(channels, kernel, pads, size):
    proto = conv(channels, kernel, pads, size)
    model = stem.rewrite(prepare(ir.from_proto(proto)))
    x = np.random.default_rng(1).normal(size=(2, channels, *size)).astype(np.float32)
    (want,) = ort.InferenceSession(proto.SerializeToString()).run(None, {"x": x})
    (got,) = ort.InferenceSession(ir.to_proto(model).SerializeToString()).run(None, {"x": x})
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("channels", "size", "stride"), [(4, (8, 8), 2), (3, (9, 8), 2), (3, (8, 8), 1)])
def test_leaves_alone_what_it_can_not_improve(channels, size, stride):
    model = stem.rewrite(prepare(ir.from_proto(conv(channels, (3, 3), [1, 1, 1, 1], size, stride))))
    assert [n.op_type for n in model.graph] == ["Conv"]


def test_an_ordinary_stem_is_rewritten():
    model = stem.rewrite(prepare(ir.from_proto(conv(3, (3, 3), [1, 1, 1, 1], (8, 8)))))
    assert [n.op_type for n in model.graph] == ["SpaceToDepth", "Conv"]
    assert tuple(model.graph[1].inputs[1].const_value.shape) == (5, 12, 2, 2)
