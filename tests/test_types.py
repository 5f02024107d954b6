"""Types that no shipped target of onnxruntime uses for activations, and scales per block: a target is only a file."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import edgeq
from edgeq.numerics.metrics import sqnr_db
from tests.graph.written import CONV, draw, integer, samples, save, text

TARGET = """
name   = "trial"
title  = "a trial"
runner = "cpu"
opset  = 21

[types]
act    = {act}
weight = {weight}

[[rule]]
ops      = ["Conv", "Gemm", "MatMul"]
act      = "act"
weight   = "weight"
output_q = "required"
folds    = ["Relu"]

[[rule]]
ops      = ["Add", "Sigmoid"]
role     = "join"
act      = "act"
output_q = "required"
"""
BODY = """
    a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    r = Relu (a)
    c = Conv <pads = [1, 1, 1, 1]> (r, w, b)
    s = Add (c, r)
    f = Flatten (s)
    g = Gemm <transB = 1> (f, gw, gb)
    y = MatMul (g, m)
"""
INITS = CONV | {"gw": draw(40, 256) / 16, "gb": draw(40), "m": draw(40, 6)}
WIDE = '{dtype = "int16", symmetric = true, per = "channel"}'
NARROW = '{dtype = "int8", symmetric = true, per = "channel", narrow = true}'


def quantize(folder, act, weight, least):
    (folder / "trial.toml").write_text(TARGET.format(act=act, weight=weight))
    path = save(folder, text(BODY), INITS)
    feeds = samples(1, 4, 8, 8)
    result = edgeq.quantize(path, str(folder / "trial.toml"), feeds, folder / "out", elementwise="all")
    assert {"Conv_0", "Conv_2", "Gemm_5", "MatMul_6"} <= integer(result)
    left, right = ort.InferenceSession(str(path)), ort.InferenceSession(str(result.artifact))
    for feed in feeds:
        assert sqnr_db(left.run(None, feed)[0], right.run(None, feed)[0]) > least
    return result, onnx.load(result.artifact)


@pytest.mark.parametrize(("weight", "least"), [(NARROW, 28), (WIDE, 70)])
@pytest.mark.parametrize("act", ['{dtype = "int16", symmetric = true}', '{dtype = "uint16"}'])
def test_activations_of_sixteen_bits(tmp_path, act, weight, least):
    """onnxruntime has no kernels for them: the file runs as float arithmetic on rounded values, and it is said."""
    result, model = quantize(tmp_path, act, weight, least)
    codes = onnx.TensorProto.UINT16 if "uint16" in act else onnx.TensorProto.INT16
    inferred = onnx.shape_inference.infer_shapes(model).graph.value_info
    steps = {n.output[0] for n in model.graph.node if n.op_type == "QuantizeLinear"}
    assert {v.type.tensor_type.elem_type for v in inferred if v.name in steps} == {codes}
    fell = {w for w in result.report.warnings if "is quantized but onnxruntime runs it in float" in w}
    assert {w.split()[1] for w in fell} >= {"Conv_0", "Conv_2", "Gemm_5"}  # MatMul becomes MatMulNBits, if it can


@pytest.mark.parametrize("size", [1, 3, 16])
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_weights_with_a_scale_per_block(tmp_path, dtype, size):
    weight = f'{{dtype = "{dtype}", symmetric = true, per = "block", block_size = {size}, narrow = true}}'
    _, model = quantize(tmp_path, '{dtype = "uint8"}', weight, 25 if dtype == "int8" else 9)
    shapes = {t.name: list(t.dims) for t in model.graph.initializer}
    blocks = {}
    for node in model.graph.node:
        found = {a.name: a.i for a in node.attribute}
        if node.op_type == "DequantizeLinear" and "block_size" in found:
            assert found["block_size"] == size
            dims, scales = shapes[node.input[0]], shapes[node.input[1]]
            axis = found["axis"]
            assert scales == [-(-d // size) if i == axis else d for i, d in enumerate(dims)]
            blocks[node.input[0]] = axis
    assert blocks == {"w_q": 1, "gw_q": 1, "m_q": 0}


def test_smaller_blocks_lose_less(tmp_path):
    """Weights whose rows differ a thousandfold: only scales of their own keep the small ones."""
    weight = draw(64, 8) * np.repeat(10.0 ** np.arange(-3, 1), 16)[:, None].astype(np.float32)
    path = save(tmp_path, text("y = MatMul (x, w)", "float[N,64] x"), {"w": weight})
    feeds = [{"x": f["x"] / np.repeat(10.0 ** np.arange(-3, 1), 16).astype(np.float32)} for f in samples(4, 64)]
    reached = []
    for size in (64, 16):
        kind = f'{{dtype = "int4", symmetric = true, per = "block", block_size = {size}}}'
        (tmp_path / "t.toml").write_text(TARGET.format(act='{dtype = "uint16"}', weight=kind))
        result = edgeq.quantize(path, str(tmp_path / "t.toml"), feeds, tmp_path / f"out{size}")
        reached.append(result.report.outputs[0].sqnr_db)
    assert reached[1] > reached[0] + 10
