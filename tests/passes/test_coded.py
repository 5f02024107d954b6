"""Artifacts of codebook levels: onnxruntime computes on them what numpy does on the reals that the codes stand for."""

from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser

import edgeq
from edgeq import registry
from edgeq import target as targets
from edgeq.collecting.layerwise import solve_layers
from edgeq.errors import RecipeError
from edgeq.graph import io
from edgeq.graph.prepare import prepare
from edgeq.numerics import codebook
from edgeq.numerics.metrics import sqnr_db
from edgeq.passes import weight_only
from edgeq.passes.tables import store_tables
from edgeq.pipeline import plan_file
from edgeq.planning.plan import PACKED, STORED
from edgeq.planning.planner import plan
from edgeq.recipe import Override, Recipe
from edgeq.types import Coded, PerBlock
from tests.graph.written import draw, samples, save, text

NAMES = registry.names("edgeq.weights", "encode")
TARGET = msgspec.structs.replace(targets.load("generic"), accuracy_level=0)
PLAIN = msgspec.structs.replace(TARGET, kernels={})
KERNELS = {"nf4": "MatMulBnb4", "fp4": "MatMulBnb4", "fp8_e4m3": "DequantizeLinear", "fp8_e5m2": "DequantizeLinear"}


def made_of(folder, body, inits, inputs="float[N,64] x", target=TARGET, **settings):
    """(float model, artifact, solution, decision and reason by node)."""
    source = f'<ir_version: 8, opset_import: ["" : 17]> g ({inputs}) => (float[] y) {{ {body} }}'
    proto = parser.parse_model(source)
    proto.graph.initializer.extend(numpy_helper.from_array(a, k) for k, a in inits.items())
    for node in proto.graph.node:
        node.name = f"{node.output[0]}_node"
    model = prepare(ir.from_proto(proto), 17)
    made = plan(model, target, Recipe(method="weight_only", **settings))
    solution, failed = solve_layers(made, model, None, Path(folder), True, None, lambda *_: None)
    assert not failed
    store_tables(model, made, solution)
    weight_only.apply(model, made, solution, target)
    io.check(model)
    return proto, ir.to_proto(model), solution, {n.name: (n.decision, n.reason) for n in made.nodes}


def stored(tensor: Coded):
    """What the artifact holds: scales and levels of normal half numbers are rounded to them."""

    def half(x, alone=True):
        size = np.abs(x) if alone else np.abs(x).max(-1)
        size = size[size != 0]
        fits = size.size == 0 or (size.min() >= 2.0**-14 and size.max() < 65504)
        return x.astype(np.float16).astype(np.float32) if fits else x

    plain = tensor.scale.ndim == 0
    levels = tensor.levels if tensor.levels.ndim == 1 else half(tensor.levels, alone=False)
    scale = tensor.scale if plain else half(tensor.scale)
    return codebook.real(Coded(tensor.data, levels, scale, tensor.spec, tensor.code))


def run(made, folder, **feeds):
    """The output, and the operators of the graph that onnxruntime runs."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    session = ort.InferenceSession(made.SerializeToString(), options)
    ran = [n.op_type for n in onnx.load(options.optimized_model_filepath).graph.node]
    return session.run(None, feeds)[0], ran


def size(made):
    return len(made.SerializeToString())


@pytest.mark.parametrize("block", [0, 16, 64])
@pytest.mark.parametrize("name", NAMES)
def test_matmul(tmp_path, name, block):
    w, x = draw(256, 48), draw(5, 256)
    _, made, solution, decisions = made_of(
        tmp_path, "y = MatMul (x, w)", {"w": w}, "float[N,256] x", weight=name, block=block
    )
    y, ran = run(made, tmp_path, x=x)
    tensor = solution.codes["y_node", 1]
    kernel = KERNELS.get(name)
    assert decisions["y_node"][0] == (PACKED if kernel == "MatMulBnb4" else STORED)
    wanted = {"MatMulBnb4": ["MatMulBnb4"], "DequantizeLinear": ["DequantizeLinear", "MatMul"], None: ["MatMul"]}
    assert ran == wanted[kernel]
    np.testing.assert_allclose(y, x @ stored(tensor), rtol=1e-4, atol=2e-4)
    assert sqnr_db(x @ w, y) > 12
    bits = w.size * tensor.spec.bits + 16 * tensor.scale.size * (
        tensor.levels.shape[-1] if name == "kmeans_groups" else 1
    )
    digits = 0 if kernel else 512
    assert size(made) < bits / 8 * (2 if name == "fp8_e5m2" else 1) + digits + 3000


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_of_odd_sizes(tmp_path, name, transposed):
    """K is no multiple of the block: no kernel takes it, the last block is cut."""
    w, b, x = draw(90, 21), draw(21), draw(5, 90)
    body = f"y = Gemm <alpha=0.5, beta=2.0, transB={transposed}> (x, w, b)"
    inits = {"w": np.ascontiguousarray(w.T) if transposed else w, "b": b}
    _, made, solution, _ = made_of(tmp_path, body, inits, "float[N,90] x", weight=name, block=32)
    y, ran = run(made, tmp_path, x=x)
    assert ran == ["Gemm"]
    real = stored(solution.codes["y_node", 1])
    np.testing.assert_allclose(y, x @ (real.T if transposed else real) + 2 * b, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_gemm_by_the_kernel(tmp_path, name, transposed):
    w, b, x = draw(64, 24), draw(24), draw(5, 64)
    inits = {"w": np.ascontiguousarray(w.T) if transposed else w, "b": b}
    _, made, solution, _ = made_of(tmp_path, f"y = Gemm <transB={transposed}> (x, w, b)", inits, weight=name)
    y, ran = run(made, tmp_path, x=x)
    assert ran == ["MatMulBnb4", "Add"]
    real = stored(solution.codes["y_node", 1])
    np.testing.assert_allclose(y, x @ (real.T if transposed else real) + b, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_target_without_kernels_looks_codes_up(tmp_path, name):
    w, x = draw(128, 24), draw(5, 128)
    _, made, solution, decisions = made_of(
        tmp_path, "y = MatMul (x, w)", {"w": w}, "float[N,128] x", PLAIN, weight=name
    )
    y, ran = run(made, tmp_path, x=x)
    assert ran == ["MatMul"]  # the weight was folded when the session opened
    assert decisions["y_node"][0] == STORED
    assert "looked up" in decisions["y_node"][1]
    assert made.opset_import[0].version == 17
    np.testing.assert_allclose(y, x @ stored(solution.codes["y_node", 1]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
@pytest.mark.parametrize("name", NAMES)
def test_only_rows_of_a_table_that_are_asked_for_become_real(tmp_path, name, shape):
    table, ids = draw(300, 60), np.array(np.arange(np.prod(shape, dtype=int)).reshape(shape) * 74)
    dims = f"[{','.join('ABC'[: len(shape)])}]" if shape else ""
    _, made, solution, _ = made_of(tmp_path, "y = Gather (t, i)", {"t": table}, f"int64{dims} i", weight=name, block=16)
    y, ran = run(made, tmp_path, i=ids)
    tensor = solution.codes["y_node", 0]
    np.testing.assert_allclose(y, stored(tensor)[ids], rtol=2e-3, atol=1e-4)
    assert y.shape == (*shape, 60)
    large = [i for i in onnx.load(tmp_path / "optimized.onnx").graph.initializer if np.prod(i.dims) >= table.size]
    assert all(numpy_helper.to_array(i).dtype == np.uint8 for i in large if name != "kmeans_groups")
    assert ran.count("Gather") >= 2


@pytest.mark.parametrize("name", NAMES)
def test_convolutions_shrink_in_the_file(tmp_path, name):
    w, x = draw(32, 15, 3, 3), draw(1, 15, 8, 8)
    proto, made, solution, decisions = made_of(tmp_path, "y = Conv (x, w)", {"w": w}, "float[N,15,8,8] x", weight=name)
    y, ran = run(made, tmp_path, x=x)
    assert ("DequantizeLinear" in ran) == name.startswith("fp8")
    assert decisions["y_node"][0] == STORED
    assert "float" in decisions["y_node"][1]
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(stored(solution.codes["y_node", 1]), "w"))
    wanted = ort.InferenceSession(proto.SerializeToString()).run(None, {"x": x})[0]
    np.testing.assert_allclose(y, wanted, rtol=1e-3, atol=2e-3)
    assert size(made) < w.size * (solution.codes["y_node", 1].spec.bits / 8) + 32 * 2 * 16 + 3500


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("name", ["kmeans", "kmeans_scaled"])
def test_codes_of_every_size_take_just_their_bits(tmp_path, name, bits):
    w, x = draw(256, 96), draw(3, 256)
    _, made, solution, _ = made_of(
        tmp_path, "y = MatMul (x, w)", {"w": w}, "float[N,256] x", weight=name, bits=bits, block=32
    )
    y, _ = run(made, tmp_path, x=x)
    np.testing.assert_allclose(y, x @ stored(solution.codes["y_node", 1]), rtol=1e-3, atol=1e-3)
    scales = 0 if name == "kmeans" else w.size // 32 * 2
    assert size(made) < w.size * bits / 8 + scales + 512 + 7000
    assert sqnr_db(x @ w, y) > 5.5 * bits - 4


def test_a_recurrent_weight(tmp_path):
    w, r, x = draw(1, 96, 24), draw(1, 96, 32), draw(5, 2, 24)
    body = "y, h = GRU <hidden_size=32> (x, w, r)"
    proto, made, solution, _ = made_of(
        tmp_path, body, {"w": w / 5, "r": np.tile(r, (1, 1, 1)) / 5}, "float[5,2,24] x", weight="kmeans"
    )
    assert not solution.codes  # both are small
    w, r = draw(1, 384, 64) / 8, draw(1, 384, 128) / 8
    body = "y, h = GRU <hidden_size=128> (x, w, r)"
    proto, made, solution, _ = made_of(tmp_path, body, {"w": w, "r": r}, "float[5,2,64] x", weight="kmeans")
    assert sorted(solution.codes) == [("y_node", 1), ("y_node", 2)]
    x = draw(5, 2, 64)
    for init in proto.graph.initializer:
        real = stored(solution.codes["y_node", 1 if init.name == "w" else 2])
        init.CopyFrom(numpy_helper.from_array(real, init.name))
    wanted = ort.InferenceSession(proto.SerializeToString()).run(None, {"x": x})[0]
    np.testing.assert_allclose(run(made, tmp_path, x=x)[0], wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["nf4", "kmeans", "fp8_e4m3"])
def test_a_shared_weight_is_stored_once(tmp_path, name):
    w = draw(64, 64)
    body = "h = MatMul (x, w)  y = MatMul (h, w)"
    _, made, solution, _ = made_of(tmp_path, body, {"w": w}, weight=name)
    assert size(made) < 64 * 64 * (solution.codes["y_node", 1].spec.bits + 0.5) / 8 + 512 + 4000


@pytest.mark.parametrize("name", ["kmeans", "iq4_nl"])
def test_an_embedding_that_is_the_head_too(tmp_path, name):
    table, ids = draw(200, 64), np.array([[3, 199, 3]])
    body = "h = Gather (t, i)  m = Reshape (h, flat)  y = Gemm <transB=1> (m, t)"
    inits = {"t": table, "flat": np.array([-1, 64])}
    _, made, solution, _ = made_of(tmp_path, body, inits, "int64[N,M] i", weight=name, block=32)
    rows = stored(solution.codes["h_node", 0])[ids[0]]
    y, _ = run(made, tmp_path, i=ids)
    np.testing.assert_allclose(y, rows @ stored(solution.codes["y_node", 1]).T, rtol=1e-3, atol=1e-3)
    assert run(made, tmp_path, i=np.zeros((1, 0), np.int64))[0].shape == (0, 200)


def test_a_weight_inside_a_branch(tmp_path):
    """What makes it real stands in the main graph, and the body sees it."""
    body = """c = Greater (s, zero)
        y = If (c) <then_branch = t () => (float[N,32] a) { a = MatMul (x, w) },
                    else_branch = e () => (float[N,32] b) { b = MatMul (x, v) }>"""
    inits = {"w": draw(64, 32), "v": draw(64, 32, seed=1), "zero": np.zeros((), np.float32)}
    _, made, solution, _ = made_of(tmp_path, body, inits, "float[N,64] x, float s", weight="kmeans_scaled")
    assert len(solution.codes) == 2
    x = draw(3, 64)
    for s, key in ((1, "w"), (-1, "v")):
        y, _ = run(made, tmp_path, x=x, s=np.array(s, np.float32))
        assert sqnr_db(x @ inits[key], y) > 18


@pytest.mark.parametrize("weight", ["rtn", "nf4", "kmeans"])
@pytest.mark.parametrize("transposed", [0, 1])
def test_corrections_are_added_to_the_output(tmp_path, weight, transposed):
    w, b, x = draw(64, 48), draw(48), draw(5, 64)
    w[7] *= 30
    inits = {"w": np.ascontiguousarray(w.T) if transposed else w, "b": b}
    body = f"g = Gemm <transB={transposed}> (x, w, b)  y = Relu (g)"
    found = []
    for settings in ({}, {"low_rank": 8}, {"outliers": 0.05}, {"outliers": 0.05, "low_rank": 8}):
        _, made, solution, _ = made_of(tmp_path, body, inits, weight=weight, **settings)
        y, _ = run(made, tmp_path, x=x)
        tensor = solution.codes.get(("g_node", 1)) or solution.weights["g_node", 1]
        real = codebook.real(tensor)
        real = (real.T if transposed else real).copy()
        for part in solution.corrections.get("g_node", ()):
            real += part.left @ part.right if part.left.ndim == 2 else np.eye(64, dtype="f4")[:, part.left] @ part.right
        np.testing.assert_allclose(y, np.maximum(x @ real + b, 0), rtol=5e-3, atol=0.05)
        found.append(sqnr_db(np.maximum(x @ w + b, 0), y))
    assert found[0] + 1 < min(found[1:3])
    assert max(found[1:3]) < found[3]


def test_the_corrections_of_a_graph_output(tmp_path):
    w, x = draw(64, 48), draw(5, 64)
    _, made, solution, _ = made_of(tmp_path, "y = MatMul (x, w)", {"w": w}, weight="rtn", bits=2, low_rank=48)
    y, ran = run(made, tmp_path, x=x)
    assert made.graph.output[0].name == "y"
    assert "MatMulNBits" in ran
    assert len(solution.corrections["y_node"]) == 1
    assert sqnr_db(x @ w, y) > 50  # a full rank makes up for everything


@pytest.mark.parametrize("weight", ["rtn", "nf4"])
def test_nodes_may_be_named_after_their_outputs(tmp_path, weight):
    proto = parser.parse_model(text("y = MatMul (x, w)", "float[N,64] x"))
    proto.graph.node[0].name = "y"
    proto.graph.initializer.append(numpy_helper.from_array(draw(64, 48), "w"))
    onnx.save(proto, tmp_path / "named.onnx")
    made = edgeq.quantize(
        tmp_path / "named.onnx", "generic", None, tmp_path / "out", method="weight_only", weight=weight,
        recipe=Recipe(low_rank=48, outliers=0.1), check=False,
    )  # fmt: skip
    y, _ = run(onnx.load(made.artifact), tmp_path, x=draw(5, 64))
    assert sqnr_db(draw(5, 64) @ draw(64, 48), y) > 35


def test_data_and_rules_from_end_to_end(tmp_path):
    """Layer by layer, on data: what is kept is taken up again, each rule holds, and data helps."""
    body = "a = MatMul (x, w1)  r = Relu (a)  y = MatMul (r, w2)"
    path = save(tmp_path, text(body, "float[N,64] x"), {"w1": draw(64, 96) / 8, "w2": draw(96, 32, seed=1) / 8})
    scale = np.geomspace(0.05, 3, 64, dtype=np.float32)
    data = [{"x": draw(16, 64, seed=i) * scale} for i in range(20)]
    held_out = [{"x": draw(16, 64, seed=100 + i) * scale} for i in range(10)]
    rules = (Override(nodes=("*",), ops=("MatMul",), bits=2, block=32),)
    found, files = {}, []
    for calib in (None, data):
        result = edgeq.quantize(
            path, "generic", calib, tmp_path / "out", eval_data=held_out, method="weight_only", weight="kmeans_scaled",
            rule=rules, keep=tmp_path / "kept",
        )  # fmt: skip
        assert result.report.verification is not None
        found[calib is None] = result.report.verification.outputs[0].sqnr_db
        files.append(result.artifact.read_bytes())
    assert found[False] > found[True] + 1
    again = edgeq.quantize(
        path, "generic", data, tmp_path / "b", method="weight_only", weight="kmeans_scaled", rule=rules,
        keep=tmp_path / "kept", check=False,
    )  # fmt: skip
    assert again.artifact.read_bytes() == files[1]


@pytest.mark.parametrize("name", ["fp8_e4m3", "fp8_e5m2", "nf4"])
def test_one_scale_for_a_whole_weight(tmp_path, name):
    """float8 a tensor: DequantizeLinear with one scale. NF4's kernel has none such, so its codes are looked up."""
    w, x = draw(64, 48), draw(5, 64)
    rule = (Override(weight_type="s8t"),)
    _, made, solution, _ = made_of(tmp_path, "y = MatMul (x, w)", {"w": w}, weight=name, rule=rule)
    tensor = solution.codes["y_node", 1]
    assert tensor.scale.shape == ()
    y, ran = run(made, tmp_path, x=x)
    assert ran == (["DequantizeLinear", "MatMul"] if name.startswith("fp8") else ["MatMul"])
    np.testing.assert_allclose(y, x @ codebook.real(tensor), rtol=1e-2, atol=1e-2)  # the scale is a half number
    assert sqnr_db(x @ w, y) > 12
    path = save(tmp_path, text("y = MatMul (x, w)", "float[N,64] x"), {"w": w})
    with_data = edgeq.quantize(
        path, "generic", samples(16, 64), tmp_path / "out", method="weight_only", weight=name, rule=rule, check=False
    )
    fed = {"x": x}
    np.testing.assert_array_equal(y, ort.InferenceSession(str(with_data.artifact)).run(None, fed)[0])


def test_what_codes_can_not_be(tmp_path):
    path = save(tmp_path, text("y = MatMul (x, w)", "float[N,64] x"), {"w": draw(64, 96)})
    with pytest.raises(RecipeError, match="--method weight_only"):
        edgeq.quantize(path, "generic", samples(4, 64), tmp_path / "out", weight="nf4")
    for settings, match in (
        ({"weight": "nf4", "bits": 2}, "nf4 has codes of 4 bits, not 2"),
        ({"weight": "rtn", "bits": 5}, "integers of 2, 3, 4 or 8 bits, not 5"),
    ):
        with pytest.raises(RecipeError, match=match):
            plan_file(path, "generic", Recipe(method="weight_only", **settings))


def test_the_recipes_defaults(tmp_path):
    """Each code's own block, unless one is asked for; a table's codes are as fine as they come."""
    path = save(tmp_path, text("y = MatMul (x, w)", "float[N,64] x"), {"w": draw(64, 96)})
    for weight, block in (("nf4", 64), ("iq4_nl", 32)):
        made = plan_file(path, "generic", Recipe(method="weight_only", weight=weight))
        assert made.weights[0].spec.granularity == PerBlock(0, block)
        assert made.weights[0].spec.dtype == "uint4"
