"""Whole graphs in integers: ends, metadata, refusals, and the same bits as edgeq's emulator of TFLite files."""

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx_ir.passes.common import ShapeInferencePass

import edgeq
from edgeq import target as targets
from edgeq.errors import ModelError
from edgeq.formats.tflite_convert import LAYOUT_KEY, convert
from edgeq.formats.tflite_emulate import run
from edgeq.graph import io
from edgeq.graph.shapes import fix_shapes
from edgeq.intops.quant import Quant
from edgeq.passes.integer_ends import floats
from edgeq.passes.integer_only import integer_only
from edgeq.recipe import Recipe
from tests.passes.integer import Weight, converted, outputs, qdq
from tests.passes.integer import stored as counted

DIGITS = Path(__file__).parents[2] / "sample_models"
X = {"x": ((2, 4), Quant(0.05, 100, "uint8"))}
W = {"w": Weight(np.arange(-6, 6, dtype=np.int8).reshape(4, 3), np.float32(0.01), axis=1)}
OUT = Quant(0.02, 90, "uint8")


def random_codes(shape=(2, 4), seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The QDQ form of the digits classifier in which every value is quantized, and 20 samples as codes."""
    folder = tmp_path_factory.mktemp("digits")
    recipe = Recipe(elementwise="all", attention=True, calibrator="minmax")
    edgeq.quantize(DIGITS / "digits.onnx", targets.load("integer"), DIGITS / "digits_calib.npz", folder, recipe=recipe,
                   check=False)  # fmt: skip
    images = np.load(DIGITS / "digits_calib.npz")["input"][:20]
    return folder / "model.onnx", images


@pytest.mark.parametrize("rounding", ["single", "double"])
def test_a_classifier_gives_the_bits_of_the_emulator(digits, rounding, tmp_path):
    path, images = digits
    model = io.load(path)
    made = integer_only(io.load(path), rounding, integer_io=True)
    io.save(made, tmp_path / "m.onnx")
    session = ort.InferenceSession(tmp_path / "m.onnx")
    kind, scale, zero = session.get_modelmeta().custom_metadata_map["edgeq.quantization.input"].split()
    assert kind == "uint8"
    codes = np.clip(np.rint(images / np.float32(scale)) + int(zero), 0, 255).astype(np.uint8)
    got = session.run(None, {"input": codes})[0]
    fix_shapes(model, {"input": images.shape})
    ShapeInferencePass(strict_mode=False, data_prop=True)(model)
    lite = convert(model, integer_io=True)
    assert json.loads(lite.metadata[LAYOUT_KEY]) == {"input": "NHWC"}
    signed = (codes.astype(np.int64) - 128).astype(np.int8).transpose(0, 2, 3, 1)
    (want,) = run(lite, {"input": signed}, rounding).values()
    np.testing.assert_array_equal(got, counted(want))


def test_float_ends_are_exact_and_nothing_between_is_float(digits, tmp_path):
    path, images = digits
    made = integer_only(io.load(path))
    assert [row for row in floats(made) if not row[2]] == []
    assert {n.op_type for n in made.graph} & {"Conv", "Gemm", "HardSwish", "Sigmoid", "Mul"} == {"Mul"}
    assert [(v.name, v.dtype) for v in (*made.graph.inputs, *made.graph.outputs)] == [
        ("input", ir.DataType.FLOAT), ("logits", ir.DataType.FLOAT)]  # fmt: skip
    io.save(made, tmp_path / "float.onnx")
    io.save(integer_only(io.load(path), integer_io=True), tmp_path / "codes.onnx")
    ends, codes = (ort.InferenceSession(tmp_path / f"{n}.onnx") for n in ("float", "codes"))
    notes = codes.get_modelmeta().custom_metadata_map
    (s_in, z_in), (s_out, z_out) = (
        (float(s), int(z)) for _, s, z in (notes[f"edgeq.quantization.{n}"].split() for n in ("input", "logits"))
    )
    fed = np.clip(np.rint(images / np.float32(s_in)) + z_in, 0, 255).astype(np.uint8)
    want = (codes.run(None, {"input": fed})[0].astype(np.float32) - z_out) * np.float32(s_out)
    np.testing.assert_array_equal(ends.run(None, {"input": images})[0], want)
    reference = ort.InferenceSession(path).run(None, {"input": images})[0]
    assert (ends.run(None, {"input": images})[0].argmax(1) == reference.argmax(1)).mean() >= 0.9


def test_optimizations_change_no_bit():
    model = qdq("MatMul", ["x", "w"], X, W, [OUT])
    codes = random_codes()
    np.testing.assert_array_equal(outputs(model, {"x": codes})[0], outputs(model, {"x": codes}, optimized=False)[0])


def test_chains_of_functions_are_one_table_rounded_once():
    quant, out = Quant(0.03, 128, "uint8"), Quant(0.02, 60, "uint8")
    model = qdq("Sigmoid", ["x"], {"x": ((256,), quant)}, {}, [out], [("Sqrt", []), ("Div", [np.float32(0.5)])])
    codes = np.arange(256).astype(np.uint8)
    got = outputs(model, {"x": codes})[0]
    real = 2 * np.sqrt(1 / (1 + np.exp(-(codes.astype(np.float64) - 128) * np.float32(0.03))))
    np.testing.assert_array_equal(got, np.clip(np.floor(real / np.float32(0.02) + 0.5) + 60, 0, 255))
    assert [n.op_type for n in converted(model).graph.node] == ["Cast", "Reshape", "GatherElements", "Reshape"]


def test_a_function_of_a_value_and_itself_is_a_table_too():
    quant, out = Quant(0.03, 128, "uint8"), Quant(0.02, 60, "uint8")
    model = qdq("Softplus", ["x"], {"x": ((256,), quant)}, {}, [out], [("Tanh", [])])
    tanh = next(n for n in model.graph.node if n.op_type == "Tanh")
    gate = next(n for n in model.graph.node if "b0" in n.input)
    product = tanh.__class__(op_type="Mul", input=["x_dq", "b0"], output=["mish"], name="product")
    model.graph.node.insert(list(model.graph.node).index(gate), product)
    gate.input[0] = "mish"
    codes = np.arange(256).astype(np.uint8)
    x = (codes.astype(np.float64) - 128) * np.float32(0.03)
    real = x * np.tanh(np.log1p(np.exp(x)))
    np.testing.assert_array_equal(outputs(model, {"x": codes})[0], np.rint(real / np.float32(0.02) + 60).clip(0, 255))


def test_indices_and_shapes_stay_integers_of_their_own():
    model = qdq("ArgMax", ["x"], X, {}, [None], axis=1, keepdims=0)
    codes = random_codes()
    assert outputs(model, {"x": codes})[0].tolist() == codes.argmax(1).tolist()


REFUSED = {
    "operator": (qdq("Hardmax", ["x"], X, {}, [OUT]), "Hardmax 'op': it is not computed in integers"),
    "other axes": (qdq("LayerNormalization", ["x", "s"], X, {"s": np.ones((2, 4), np.float32)}, [OUT], axis=0),
                   "LayerNormalization 'op': it is normalized over the last axis alone"),
    "unquantized weight": (qdq("MatMul", ["x", "w"], X, {"w": np.ones((4, 3), np.float32)}, [OUT]),
                           "MatMul 'op': its weight is not quantized"),
    "scales along the sum": (qdq("MatMul", ["x", "w"], X, {"w": Weight(W["w"].codes, np.ones(4), axis=0)}, [OUT]),
                             "MatMul 'op': its weight has scales along axis 0"),
    "16-bit activations": (qdq("Relu", ["x"], {"x": ((2, 4), Quant(0.1, 0, "int16"))}, {}, [OUT]),
                           "activations have 8 bits, not int16"),
    "infinite": (qdq("Log", ["x"], X, {}, [OUT]), "Log 'op': it is not finite for every code"),
    "quotient": (qdq("Div", ["x", "y"], {**X, "y": X["x"]}, {}, [OUT]), "Div 'op': it is computed in integers"),
    "long rows": (qdq("Softmax", ["x"], {"x": ((1, 5000), OUT)}, {}, [OUT]), "Softmax 'op': its rows have 5000"),
    "output scale": (qdq("Add", ["x", "x"], X, {}, [Quant(1e-9, 0, "uint8")]), "Add 'op': scale 1e-09 is below 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_names_node_and_reason(name):
    model, said = REFUSED[name]
    with pytest.raises(ModelError, match=f"^.*{said}") as caught:
        converted(model)
    assert "\n" not in str(caught.value)


def test_an_accumulator_beyond_its_bound_is_refused():
    wide = {"w": Weight(np.full((70000, 1), 127, np.int8), np.float32(1), axis=1)}
    model = qdq("MatMul", ["x", "w"], {"x": ((1, 70000), Quant(1, 0, "uint8"))}, wide, [OUT])
    with pytest.raises(ModelError, match=r"^MatMul 'op': an accumulator may reach 2266950000, beyond int32"):
        converted(model)


def test_an_unquantized_output_is_refused():
    model = qdq("MatMul", ["x", "w"], X, W, [OUT])
    while model.graph.node[-1].op_type != "MatMul":
        model.graph.node.pop()
    model.graph.output[0].name = "r0"
    with pytest.raises(ModelError, match=r"^MatMul 'op': output 'r0' is not quantized"):
        converted(model)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_models_that_take_and_give_codes_keep_doing_so(dtype):
    """Without QuantizeLinear at the input and DequantizeLinear at the output: their own type stays."""
    model = qdq("Relu", ["x"], {"x": ((2, 4), Quant(0.1, 3, dtype))}, {}, [Quant(0.1, 3, dtype)])
    first, last = model.graph.node[0], model.graph.node[-1]
    kind = model.graph.initializer[1].data_type
    model.graph.input[0].name, model.graph.output[0].name = first.output[0], last.input[0]
    for end in (model.graph.input[0], model.graph.output[0]):
        end.type.tensor_type.elem_type = kind
    model.graph.node.remove(first)
    model.graph.node.remove(last)
    made = converted(model, integer_io=False)
    x = np.random.default_rng(1).integers(-100, 100, (2, 4)).astype(dtype)
    got = ort.InferenceSession(made.SerializeToString()).run(None, {"x_q": x})[0]
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, np.maximum(x, 3))
