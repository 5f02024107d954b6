"""Which axis of a weight carries a scale: held against what the operator itself computes, not against its name."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import parser

import edgeq
from edgeq.planning.plan import weight_axis

HEAD = '<ir_version: 8, opset_import: ["" : 17]> agraph '
# op, its attributes, the shape of its input, of its weight, and the axis of its output channels
LAYERS = [
    ("Conv", "", (1, 4, 5, 5), (6, 4, 3, 3), 1),
    ("Conv", "<group = 2>", (1, 4, 5, 5), (6, 2, 3, 3), 1),
    ("Conv", "<group = 4>", (1, 4, 5, 5), (4, 1, 3, 3), 1),
    ("Conv", "", (1, 4, 9), (6, 4, 3), 1),
    ("ConvTranspose", "", (1, 4, 5, 5), (4, 6, 3, 3), 1),
    ("Gemm", "<transB = 0>", (3, 4), (4, 6), 1),
    ("Gemm", "<transB = 1>", (3, 4), (6, 4), 1),
    ("MatMul", "", (3, 4), (4, 6), -1),
    ("MatMul", "", (2, 3, 4), (2, 4, 6), -1),
]


# onnxruntime has an integer kernel with a scale for each channel of these
PER_CHANNEL = [c for c in LAYERS if c[0] in ("Conv", "Gemm") or (c[0] == "MatMul" and len(c[3]) == 2)]


def name(case):
    return f"{case[0]}{case[1]}{len(case[3])}d".replace(" ", "")


def layer(op, attributes, shape, weight):
    dims, sizes = (",".join(map(str, s)) for s in (shape, weight))
    inputs = f"float[{dims}] x, float[{sizes}] w"
    return parser.parse_model(f"{HEAD}({inputs}) => (float[] y) {{ y = {op} {attributes} (x, w) }}")


@pytest.mark.parametrize("case", LAYERS, ids=name)
def test_each_index_of_the_channel_axis_reaches_one_output_channel_alone(case):
    op, attributes, shape, size, out_axis = case
    model = layer(op, attributes, shape, size)
    (node,) = ir.from_proto(model).graph
    axis = weight_axis(node, "channel")
    session = ort.InferenceSession(model.SerializeToString())
    x, w = np.random.default_rng(0).normal(size=shape).astype("f"), np.ones(size, "f")
    before = session.run(None, {"x": x, "w": w})[0]
    reached = set()
    for index in range(size[axis]):
        changed = np.moveaxis(w.copy(), axis, 0)
        changed[index] *= 2
        after = session.run(None, {"x": x, "w": np.moveaxis(changed, 0, axis)})[0]
        differs = np.moveaxis(after != before, out_axis, 0)
        channels = np.flatnonzero(differs.reshape(len(differs), -1).any(1))
        assert len(channels) == 1
        reached |= set(channels)
    assert reached == set(range(before.shape[out_axis]))


def test_blocks_run_along_the_axis_that_is_summed_over():
    for op, attributes, shape, size, _ in LAYERS:
        if "group" in attributes or len(size) == 3:
            continue
        model = layer(op, attributes, shape, size)
        (node,) = ir.from_proto(model).graph
        axis = weight_axis(node, "block")
        assert size[axis] == shape[1 if "Conv" in op else -1]
        assert axis != weight_axis(node, "channel")


@pytest.mark.parametrize("case", PER_CHANNEL, ids=name)
def test_the_artifact_has_a_scale_for_each_channel_of_very_different_size(tmp_path, case):
    """Channels that differ by 1e4: with the scales along any other axis the small ones would all be rounded to 0."""
    op, attributes, shape, size, _ = case
    model = layer(op, attributes, shape, size)
    rng = np.random.default_rng(1)
    (node,) = ir.from_proto(model).graph
    axis = weight_axis(node, "channel")
    spread = np.logspace(-2, 2, size[axis]).reshape([-1 if i == axis else 1 for i in range(len(size))])
    weight = onnx.numpy_helper.from_array((rng.normal(size=size) * spread).astype("f"), "w")
    model.graph.input.pop()
    model.graph.initializer.append(weight)
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    feeds = [{"x": rng.normal(size=shape).astype("f")} for _ in range(8)]
    result = edgeq.quantize(path, "x86_64", feeds, tmp_path / "out", check=False)
    (planned,) = result.plan.nodes
    assert planned.decision == "integer"
    made = onnx.load(result.artifact)
    (dq,) = [n for n in made.graph.node if n.op_type == "DequantizeLinear" and n.input[0].startswith("w")]
    (scale,) = [i for i in made.graph.initializer if i.name == dq.input[1]]
    assert list(scale.dims) == [size[axis]]
    assert [a.i for a in dq.attribute if a.name == "axis"] == [axis]
