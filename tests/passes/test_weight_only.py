"""Weight-only artifacts: onnxruntime computes on them what numpy does on the dequantized weights."""

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser

from edgeq import target as targets
from edgeq.graph import io
from edgeq.graph.prepare import prepare
from edgeq.numerics import affine
from edgeq.numerics.metrics import sqnr_db
from edgeq.passes import weight_only
from edgeq.passes.tables import store_tables
from edgeq.planning.plan import PACKED, STORED
from edgeq.planning.planner import plan
from edgeq.planning.solve import solve
from edgeq.recipe import Override, Recipe
from edgeq.types import PerBlock, PerChannel, PerTensor, QParams, QSpec, QTensor
from edgeq.weights import rtn

TARGET = msgspec.structs.replace(targets.load("generic"), accuracy_level=0)  # inputs as they are


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def made_of(body, inits, inputs="float[N,64] x", outputs="float[] y", target=TARGET, **settings):
    """(float model, artifact, weights as they are stored, decision by node)."""
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g ({inputs}) => ({outputs}) {{ {body} }}')
    proto.graph.initializer.extend(numpy_helper.from_array(a, k) for k, a in inits.items())
    for node in proto.graph.node:
        node.name = f"{node.output[0]}_node"
    model = prepare(ir.from_proto(proto), TARGET.opset)
    made = plan(model, TARGET, Recipe(method="weight_only", **settings))
    solution, failed = solve(made, model, {})
    assert not failed
    store_tables(model, made, solution)
    weight_only.apply(model, made, solution, target)
    io.check(model)
    return proto, ir.to_proto(model), solution.weights, {n.name: n.decision for n in made.nodes}


def stored(tensor):
    """What the artifact holds: scales are rounded to half precision."""
    params = tensor.params
    scale = params.scale.astype(np.float16).astype(np.float32)
    return affine.dequantize(tensor.data, QParams(scale, params.zero_point, params.spec))


def run(made, folder, **feeds):
    """The outputs, and the operators of the graph that onnxruntime runs."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    session = ort.InferenceSession(made.SerializeToString(), options)
    ran = [n.op_type for n in onnx.load(options.optimized_model_filepath).graph.node]
    return session.run(None, feeds), ran


@pytest.mark.parametrize("block", [0, 16, 32, 128])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_matmul_is_one_packed_kernel(tmp_path, bits, block):
    w, x = draw(256, 24), draw(5, 256)
    _, made, weights, decisions = made_of("y = MatMul (x, w)", {"w": w}, "float[N,256] x", bits=bits, block=block)
    (y,), ran = run(made, tmp_path, x=x)
    assert decisions == {"y_node": PACKED}
    assert ran == ["MatMulNBits"]
    np.testing.assert_allclose(y, x @ stored(weights["y_node", 1]), atol=1e-4)
    overhead = 16 / (block or 256)
    assert len(made.SerializeToString()) < 256 * 24 * (bits + overhead) / 8 + 1500 + 900 * len(made.functions)


@pytest.mark.parametrize("bits", [3, 4])
def test_odd_sizes_and_zero_points(tmp_path, bits):
    """K is no multiple of the block; codes with zero points, unequal in each block."""
    w, x = draw(90, 20) + 0.5, draw(3, 90)
    for block in (0, 32):
        _, made, weights, _ = made_of(
            "y = MatMul (x, w)", {"w": w}, "float[N,90] x", block=block, rule=(Override(weight_type="u8"),), bits=bits
        )
        (y,), ran = run(made, tmp_path, x=x)
        tensor = weights["y_node", 1]
        assert tensor.params.spec.dtype == "uint4"
        assert len(np.unique(tensor.params.zero_point)) > 1
        assert "MatMulNBits" in ran
        np.testing.assert_allclose(y, x @ stored(tensor), atol=1e-4)


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("block", [0, 32])
def test_gemm(tmp_path, transposed, block):
    w, b, x = draw(64, 24), draw(24), draw(5, 64)
    body = f"y = Gemm <alpha=0.5, beta=2.0, transB={transposed}> (x, w, b)"
    inits = {"w": np.ascontiguousarray(w.T) if transposed else w, "b": b}
    _, made, _, _ = made_of(body, inits, block=block, bits=8)
    (y,), ran = run(made, tmp_path, x=x)
    assert "MatMulNBits" in ran
    assert sqnr_db(0.5 * x @ w + 2 * b, y) > 38


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("block", [0, 64, 128])
def test_inputs_are_rounded_in_small_blocks_whatever_shares_a_scale(tmp_path, block, transposed):
    """One loud input costs those in its own block of 32 alone; scales are stored once, as at level 0."""
    w, x = draw(200, 24), draw(5, 200)
    x[:, 199] = 100
    w[199] = 0
    body, inits = f"y = Gemm <transB={transposed}> (x, w)", {"w": np.ascontiguousarray(w.T) if transposed else w}
    sizes, quiet = [], []
    for level in (0, 4):
        target = msgspec.structs.replace(TARGET, accuracy_level=level)
        _, made, weights, _ = made_of(body, inits, "float[N,200] x", target=target, bits=4, block=block)
        (y,), ran = run(made, tmp_path, x=x)
        assert ran == ["MatMulNBits"]
        real = stored(weights["y_node", 1])
        quiet.append(sqnr_db(x @ (real.T if transposed else real), y))
        sizes.append(len(made.SerializeToString()))
    assert quiet[0] > 90
    assert quiet[1] > 21  # 13 if all features shared its step
    assert abs(sizes[1] - sizes[0]) < 400


def test_a_block_that_no_packed_kernel_takes(tmp_path):
    w, x = draw(60, 24), draw(5, 60)
    _, made, weights, _ = made_of("y = MatMul (x, w)", {"w": w}, "float[N,60] x", block=20)
    (y,), ran = run(made, tmp_path, x=x)
    assert ran == ["DequantizeLinear", "MatMul"]
    np.testing.assert_allclose(y, x @ stored(weights["y_node", 1]), atol=1e-4)


@pytest.mark.parametrize(("bits", "block"), [(None, 32), (4, 32), (4, 0), (8, 32), (8, 0)])
def test_tables_are_read_row_by_row(tmp_path, bits, block):
    table, ids = draw(80, 64), np.array([[0, 3, 79]])
    rule = (Override(bits=bits),)
    _, made, weights, _ = made_of("y = Gather (t, i)", {"t": table}, "int64[N,M] i", bits=2, block=block, rule=rule)
    (y,), ran = run(made, tmp_path, i=ids)
    assert ran == ["GatherBlockQuantized"]
    assert weights["y_node", 0].params.spec.bits == (bits or 8)
    np.testing.assert_allclose(y, stored(weights["y_node", 0])[ids], atol=1e-6)


def test_convolutions_shrink_in_the_file_alone(tmp_path):
    body, inits = "y = Conv (x, w)", {"w": draw(32, 16, 3, 3)}
    proto, made, _, decisions = made_of(body, inits, "float[N,16,8,8] x")
    x = draw(1, 16, 8, 8)
    (y,), ran = run(made, tmp_path, x=x)
    assert decisions == {"y_node": STORED}
    assert ran == ["DequantizeLinear", "Conv"]
    assert len(made.SerializeToString()) < len(proto.SerializeToString()) / 3
    wanted = ort.InferenceSession(proto.SerializeToString()).run(None, {"x": x})[0]
    assert sqnr_db(wanted, y) > 38


def test_three_bits_where_others_need_another_opset(tmp_path):
    """A function of the file imports the opset that the file does."""
    body, rule = "h = MatMul (x, w)  y = MatMul (h, v)", (Override(nodes=("y_node",), bits=2, block=20),)
    _, made, _, _ = made_of(body, {"w": draw(60, 60), "v": draw(60, 60)}, "float[N,60] x", rule=rule, bits=3)
    onnx.checker.check_model(made)
    (opset,) = [o.version for o in made.opset_import if not o.domain]
    assert opset == made.functions[0].opset_import[0].version == 25
    assert sorted(run(made, tmp_path, x=draw(2, 60))[1]) == ["DequantizeLinear", "MatMul", "MatMulNBits"]


def test_rules_of_the_recipe_reach_single_nodes(tmp_path):
    body = "h = MatMul (x, w)  y = MatMul (h, v)"
    rule = (Override(nodes=("y_node",), bits=8, block=64), Override(nodes=("h_node",), float=True))
    _, made, weights, decisions = made_of(body, {"w": draw(64, 64), "v": draw(64, 64)}, rule=rule)
    assert decisions["h_node"] == "float"
    assert weights["y_node", 1].params.spec == QSpec("int8", granularity=PerBlock(0, 64))
    assert sorted(run(made, tmp_path, x=draw(2, 64))[1]) == ["MatMul", "MatMulNBits"]


def test_a_shared_weight_is_stored_once():
    w = draw(64, 64)
    body = "h = MatMul (x, w)  y = MatMul (h, w)"
    _, made, _, _ = made_of(body, {"w": w})
    assert len(made.SerializeToString()) < 64 * 64 * 4.5 / 8 + 1500


def test_tiny_scales_stay_single(tmp_path):
    w, x = draw(64, 8) * 1e-7, draw(2, 64)
    _, made, weights, _ = made_of("y = MatMul (x, w)", {"w": w})
    (y,), _ = run(made, tmp_path, x=x)
    tensor = weights["y_node", 1]
    np.testing.assert_allclose(y, x @ affine.dequantize(tensor.data, tensor.params), rtol=1e-3, atol=1e-12)


def test_blocks_of_a_channels_scale_say_the_same():
    for shape, axis in (((90, 8), 1), ((8, 256), 0)):
        tensor = rtn.quantize(draw(*shape), QSpec("int4", granularity=PerChannel(axis)))
        blocks = weight_only.in_blocks(tensor, axis)
        assert isinstance(blocks.params.spec.granularity, PerBlock)
        np.testing.assert_array_equal(*(affine.dequantize(t.data, t.params) for t in (tensor, blocks)))
        shifted: QTensor = weight_only.unsigned(rtn.quantize(draw(*shape), QSpec("int8", granularity=PerBlock(1, 8))))
        assert shifted.data.dtype == np.uint8


@pytest.mark.parametrize("transposed", [0, 1])
def test_one_scale_for_a_whole_weight(tmp_path, transposed):
    w, x = draw(64, 64), draw(5, 64)
    body = f"y = Gemm <transB={transposed}> (x, w)"
    _, made, weights, _ = made_of(body, {"w": w}, rule=(Override(weight_type="s8t"),))
    tensor = weights["y_node", 1]
    assert tensor.params.spec.granularity == PerTensor()
    (y,), ran = run(made, tmp_path, x=x)
    assert ran == ["MatMulNBits"]
    real = stored(tensor)
    np.testing.assert_allclose(y, x @ (real.T if transposed else real), rtol=1e-4, atol=1e-4)
    assert len(made.SerializeToString()) < w.size + 128 + 1200  # a scale a channel is what the kernel has


def test_the_level_is_the_targets(tmp_path):
    """Level 4 rounds the input to int8 in blocks: a relative error of about 1 / 254 / sqrt(3) of each block's range."""
    w, x = draw(256, 24), draw(5, 256)
    outputs = []
    for level in (0, 4):
        target = msgspec.structs.replace(TARGET, accuracy_level=level)
        _, made, _, _ = made_of("y = MatMul (x, w)", {"w": w}, "float[N,256] x", target=target)
        (node,) = [n for n in made.graph.node if n.op_type == "MatMulNBits"]
        assert {a.name: a.i for a in node.attribute}["accuracy_level"] == level
        outputs.append(run(made, tmp_path, x=x)[0][0])
    assert 35 < sqnr_db(*outputs) < 55
