"""ONNX to TFLite: float files against onnxruntime, integer files against onnxruntime's QDQ and edgeq's emulator."""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeq.errors import TargetError
from edgeq.formats.tflite_convert import LAYOUT_KEY, convert
from edgeq.formats.tflite_emulate import run
from edgeq.formats.tflite_file import TfModel, TfOp, TfTensor, build
from edgeq.graph.prepare import prepare
from tests.require import require

require("ai_edge_litert", "pip install edgeq[litert]")

from ai_edge_litert.interpreter import Interpreter, OpResolverType  # noqa: E402

Feeds = dict[str, np.ndarray]


def graph(
    nodes, inputs: dict[str, tuple[int, ...]], outputs: list[str], opset: int = 17, **constants
) -> onnx.ModelProto:
    """A checked, shape-inferred model; constants may be arrays of any type."""
    made = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
    )  # fmt: skip
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    onnx.checker.check_model(model)
    return model


def converted(model: onnx.ModelProto, **options) -> TfModel:
    return convert(ir.serde.deserialize_model(model), **options)


def onnx_outputs(model: onnx.ModelProto, feeds: Feeds) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options).run(None, feeds)


def litert_outputs(model: TfModel, feeds: Feeds, reference: bool = True) -> list[np.ndarray]:
    """Images enter and leave as NCHW here, whatever the file's layout."""
    layout = model.metadata.get(LAYOUT_KEY, b"").decode()
    kind = OpResolverType.BUILTIN_REF if reference else OpResolverType.AUTO
    interpreter = Interpreter(model_content=build(model), experimental_op_resolver_type=kind, num_threads=1)
    signature = model.signatures[0]
    runner = interpreter.get_signature_runner(signature.key)
    turned = {n: x.transpose(0, 2, 3, 1) if f'"{n}": "NHWC"' in layout else x for n, x in feeds.items()}
    got = runner(**turned)
    return [got[n].transpose(0, 3, 1, 2) if f'"{n}": "NHWC"' in layout else got[n] for n in signature.outputs]


def codes(model: TfModel) -> Counter[str]:
    return Counter(op.code for op in model.ops)


def random(shape, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(0, scale, shape)).astype(np.float32)


IMAGE = {"x": (1, 6, 9, 10)}
N = helper.make_node
CONV = {"w": random((8, 6, 3, 3), 1, 0.2), "b": random(8, 2)}
CASES = {
    "conv": ([N("Conv", ["x", "w", "b"], ["y"], pads=[1, 1, 1, 1])], IMAGE, CONV),
    "conv_stride": ([N("Conv", ["x", "w", "b"], ["y"], pads=[1, 1, 1, 1], strides=[2, 2])], IMAGE, CONV),
    "conv_dilated": ([N("Conv", ["x", "w"], ["y"], dilations=[2, 3])], IMAGE, {"w": CONV["w"]}),
    "conv_same": ([N("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER", strides=[2, 2])], IMAGE, {"w": CONV["w"]}),
    "conv_grouped": ([N("Conv", ["x", "w"], ["y"], group=2)], IMAGE, {"w": random((4, 3, 3, 3), 3, 0.2)}),
    "depthwise": ([N("Conv", ["x", "w"], ["y"], group=6, pads=[1, 1, 1, 1])], IMAGE, {"w": random((12, 1, 3, 3), 3)}),
    "conv_relu6": ([N("Conv", ["x", "w", "b"], ["c"]), N("Clip", ["c", "lo", "hi"], ["y"])], IMAGE,
                   {**CONV, "lo": np.float32(0), "hi": np.float32(6)}),
    "transposed_valid": ([N("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2])], IMAGE,
                         {"w": random((6, 4, 2, 2), 3)}),
    "transposed_cut": ([N("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2], pads=[1, 0, 0, 1])], IMAGE,
                       {"w": random((6, 4, 3, 3), 3)}),
    "transposed_same": ([N("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2], pads=[0, 0, 1, 1])], IMAGE,
                        {"w": random((6, 4, 3, 3), 3)}),
    "max_pool": ([N("MaxPool", ["x"], ["y"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])], IMAGE, {}),
    "average_pool": ([N("AveragePool", ["x"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])], IMAGE, {}),
    "average_counted": ([N("AveragePool", ["x"], ["y"], kernel_shape=[3, 2], pads=[1, 0, 1, 1], strides=[2, 2],
                           count_include_pad=1)], IMAGE, {}),
    "global_pool": ([N("GlobalAveragePool", ["x"], ["y"])], IMAGE, {}),
    "resize_nearest": ([N("Resize", ["x", "", "s"], ["y"], mode="nearest", nearest_mode="floor",
                          coordinate_transformation_mode="asymmetric")], IMAGE, {"s": np.float32([1, 1, 2, 3])}),
    "resize_half": ([N("Resize", ["x", "", "s"], ["y"], mode="nearest")], IMAGE, {"s": np.float32([1, 1, 2, 2])}),
    "resize_linear": ([N("Resize", ["x", "", "s"], ["y"], mode="linear")], IMAGE, {"s": np.float32([1, 1, 2, 3])}),
    "resize_corners": ([N("Resize", ["x", "", "s"], ["y"], mode="linear",
                          coordinate_transformation_mode="align_corners")], IMAGE, {"s": np.float32([1, 1, 2, 3])}),
    "depth_to_space": ([N("DepthToSpace", ["x"], ["y"], blocksize=2)], {"x": (1, 8, 3, 5)}, {}),
    "space_to_depth": ([N("SpaceToDepth", ["x"], ["y"], blocksize=2)], {"x": (1, 3, 4, 6)}, {}),
    "channel_scale": ([N("Conv", ["x", "w"], ["c"]), N("Mul", ["c", "s"], ["m"]), N("Add", ["m", "t"], ["y"])], IMAGE,
                      {"w": CONV["w"], "s": random((1, 8, 1, 1), 4), "t": random((8, 1, 1), 5)}),
    "concat_slice_split": ([N("Conv", ["x", "w"], ["c"]), N("Concat", ["c", "c"], ["d"], axis=1),
                            N("Slice", ["d", "st", "en", "ax", "sp"], ["s"]),
                            N("Split", ["s"], ["p", "q"], axis=3, num_outputs=2), N("Sub", ["p", "q"], ["y"])], IMAGE,
                           {"w": CONV["w"], "st": np.array([1, -1]), "en": np.array([14, -100]), "ax": np.array([1, 2]),
                            "sp": np.array([2, -2])}),
    "pad": ([N("Pad", ["x", "p", "v"], ["y"])], IMAGE,
            {"p": np.array([0, 0, 1, 2, 0, 0, 3, 0]), "v": np.float32(1.5)}),
    "pad_reflect": ([N("Pad", ["x", "p"], ["y"], mode="reflect")], IMAGE, {"p": np.array([0, 0, 1, 2, 0, 0, 2, 1])}),
    "mean_channels": ([N("Conv", ["x", "w"], ["c"]), N("ReduceMean", ["c"], ["y"], axes=[1, 3], keepdims=0)], IMAGE,
                      {"w": CONV["w"]}),
    "flatten_gemm": ([N("Conv", ["x", "w"], ["c"]), N("Flatten", ["c"], ["f"]),
                      N("Gemm", ["f", "v", "b"], ["y"], transB=1, alpha=0.5, beta=2.0)], IMAGE,
                     {"w": CONV["w"], "v": random((5, 448), 6, 0.1), "b": random(5, 7)}),
    "flatten_out": ([N("Conv", ["x", "w"], ["c"]), N("Flatten", ["c"], ["y"])], IMAGE, {"w": CONV["w"]}),
    "attention": ([N("Transpose", ["x"], ["t"], perm=[0, 2, 1, 3]), N("Transpose", ["x"], ["u"], perm=[0, 2, 3, 1]),
                   N("MatMul", ["t", "u"], ["m"]), N("Softmax", ["m"], ["s"], axis=-1), N("MatMul", ["s", "t"], ["a"]),
                   N("Transpose", ["a"], ["b"], perm=[0, 2, 1, 3]), N("Reshape", ["b", "shape"], ["y"])],
                  {"x": (1, 7, 2, 8)}, {"shape": np.array([1, 7, 16])}),
    "linear_rank3": ([N("MatMul", ["x", "w"], ["m"]), N("Add", ["m", "b"], ["a"]), N("Gelu", ["a"], ["y"])],
                     {"x": (2, 5, 16)}, {"w": random((16, 12), 1), "b": random(12, 2)}),
    "layer_norm": ([N("LayerNormalization", ["x", "g", "b"], ["y"], axis=-1, epsilon=1e-6)], {"x": (2, 5, 16)},
                   {"g": random(16, 1), "b": random(16, 2)}),
    "softmax_channels": ([N("Conv", ["x", "w"], ["c"]), N("Softmax", ["c"], ["y"], axis=1)], IMAGE, {"w": CONV["w"]}),
    "softmax_rows": ([N("Softmax", ["x"], ["y"], axis=2)], IMAGE, {}),
    "gather": ([N("Gather", ["x", "i"], ["y"], axis=1)], {"x": (4, 6, 3)}, {"i": np.array([[5, 0], [2, 2]])}),
    "squeeze": ([N("GlobalAveragePool", ["x"], ["g"]), N("Squeeze", ["g", "a"], ["y"])], IMAGE,
                {"a": np.array([2, 3])}),
    "reductions": ([N("Conv", ["x", "w"], ["c"]), N("ReduceSum", ["c", "a"], ["s"], keepdims=1),
                    N("ReduceMax", ["s"], ["m"], axes=[1], keepdims=0), N("ReduceMin", ["m"], ["y"], axes=[2])], IMAGE,
                   {"w": CONV["w"], "a": np.array([2])}),
    "where": ([N("Conv", ["x", "w"], ["c"]), N("Where", ["m", "c", "v"], ["y"])], IMAGE,
              {"w": CONV["w"], "m": np.arange(8).reshape(1, 8) % 3 > 0, "v": random((8, 1, 1), 5)}),
    "max_min": ([N("Max", ["x", "c", "d"], ["m"]), N("Min", ["m", "d"], ["y"])], {"x": (3, 4)},
                {"c": random((1, 4), 1), "d": random((3, 1), 2)}),
}  # fmt: skip
CASES |= {
    op: ([N(op, ["x"], ["y"])], {"x": (3, 40)}, {})
    for op in ("Relu", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "LeakyRelu", "Gelu", "Elu", "Exp", "Neg", "Abs",
               "Floor", "Ceil", "Sin", "Cos", "Reciprocal")
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_float_files_agree_with_onnxruntime(name: str) -> None:
    nodes, inputs, constants = CASES[name]
    opset = 20 if any(n.op_type == "Gelu" for n in nodes) else 18 if "split" in name else 17
    model = graph(nodes, inputs, ["y"], opset, **constants)
    feeds = {n: random(s, 9, 2.0) for n, s in inputs.items()}
    (want,) = onnx_outputs(model, feeds)
    file = converted(model)
    for reference in (False,) if name in ("Elu", "Ceil") else (True, False):  # those two have no reference kernel
        (got,) = litert_outputs(file, feeds, reference)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    assert build(file) == build(converted(model))


GELU_HEAD = [N("Div", ["x", "root"], ["z"]), N("Erf", ["z"], ["e"]), N("Add", ["one", "e"], ["g"])]
GELUS = {
    "product_first": [*GELU_HEAD, N("Mul", ["x", "g"], ["p"]), N("Mul", ["p", "half"], ["y"])],
    "halved_input": [*GELU_HEAD, N("Mul", ["half", "x"], ["h"]), N("Mul", ["h", "g"], ["y"])],
    "halved_gate": [*GELU_HEAD, N("Mul", ["g", "half"], ["h"]), N("Mul", ["x", "h"], ["y"])],
    "divided": [*GELU_HEAD, N("Mul", ["g", "x"], ["p"]), N("Div", ["p", "two"], ["y"])],
}


@pytest.mark.parametrize("name", GELUS)
def test_a_gelu_of_several_nodes_is_one_operator(name: str) -> None:
    numbers = {"root": np.sqrt(2), "one": 1, "half": 0.5, "two": 2}
    model = graph(GELUS[name], {"x": (3, 40)}, ["y"], **{n: np.float32(v) for n, v in numbers.items()})
    file = converted(model)
    assert codes(file) == {"GELU": 1}
    x = {"x": random((3, 40), 3, 2.0)}
    np.testing.assert_allclose(litert_outputs(file, x)[0], onnx_outputs(model, x)[0], atol=1e-5)


def test_what_only_looks_like_a_gelu_is_not_taken_for_one() -> None:
    numbers = {"root": np.float32(np.sqrt(2)), "one": np.float32(1), "half": np.float32(0.25)}
    with pytest.raises(TargetError, match="Erf"):
        converted(graph(GELUS["product_first"], {"x": (3, 40)}, ["y"], **numbers))


def test_rank_one_outputs_and_several_inputs_keep_their_names() -> None:
    nodes = [N("Conv", ["image", "w"], ["c"]), N("Mul", ["c", "gain"], ["feature_map"]),
             N("ReduceMean", ["feature_map"], ["score"], axes=[1, 2, 3], keepdims=0)]  # fmt: skip
    model = graph(nodes, {"image": (2, 6, 5, 5), "gain": (2, 8, 1, 1)}, ["score", "feature_map"], w=CONV["w"])
    file = converted(model)
    feeds = {"image": random((2, 6, 5, 5)), "gain": random((2, 8, 1, 1), 3)}
    assert list(file.signatures[0].inputs) == ["image", "gain"]
    assert list(file.signatures[0].outputs) == ["score", "feature_map"]
    for got, want in zip(litert_outputs(file, feeds), onnx_outputs(model, feeds), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def cnn() -> onnx.ModelProto:
    """Stride-2 stem, depthwise and pointwise layers, a residual, squeeze and excitation, pools, a flattened head."""
    nodes = [
        N("Conv", ["x", "w0", "b0"], ["a0"], pads=[1, 1, 1, 1], strides=[2, 2]), N("HardSwish", ["a0"], ["a1"]),
        N("Conv", ["a1", "w1", "b1"], ["a2"], pads=[1, 1, 1, 1], group=8), N("Relu", ["a2"], ["a3"]),
        N("GlobalAveragePool", ["a3"], ["s0"]), N("Conv", ["s0", "w4", "b4"], ["s1"]), N("Relu", ["s1"], ["s2"]),
        N("Conv", ["s2", "w5", "b5"], ["s3"]), N("HardSigmoid", ["s3"], ["s4"]), N("Mul", ["a3", "s4"], ["a4"]),
        N("Conv", ["a4", "w2", "b2"], ["a5"]), N("Add", ["a5", "a1"], ["a6"]),
        N("MaxPool", ["a6"], ["a7"], kernel_shape=[2, 2], strides=[2, 2]),
        N("Concat", ["a7", "a7"], ["a8"], axis=1), N("Resize", ["a8", "", "r"], ["a9"], mode="nearest"),
        N("AveragePool", ["a9"], ["a10"], kernel_shape=[2, 2], strides=[2, 2]),
        N("Sigmoid", ["a10"], ["a11"]), N("Mul", ["a10", "a11"], ["a12"]),
        N("Flatten", ["a12"], ["f"]), N("Gemm", ["f", "w3", "b3"], ["g"], transB=1), N("Softmax", ["g"], ["y"]),
    ]  # fmt: skip
    shapes = {"w0": (8, 3, 3, 3), "w1": (8, 1, 3, 3), "w2": (8, 8, 1, 1), "w3": (10, 256), "w4": (4, 8, 1, 1),
              "w5": (8, 4, 1, 1)}  # fmt: skip
    constants = {n: random(s, i, 1 / np.sqrt(np.prod(s[1:]))) for i, (n, s) in enumerate(shapes.items())}
    constants |= {"b" + n[1:]: random(s[0], i + 9, 0.1) for i, (n, s) in enumerate(shapes.items())}
    return graph(nodes, {"x": (1, 3, 16, 16)}, ["y"], r=np.float32([1, 1, 2, 2]), **constants)


def qdq(model: onnx.ModelProto, tmp_path, activation: str) -> onnx.ModelProto:
    """onnxruntime's own static quantization: an independent source of QDQ graphs."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = [{"x": random((1, 3, 16, 16), 100 + i)} for i in range(8)]

        def get_next(self) -> Feeds | None:
            return self.left.pop() if self.left else None

    source, path = tmp_path / "float.onnx", tmp_path / "qdq.onnx"
    onnx.save(model, source)
    kind = QuantType.QUInt8 if activation == "uint8" else QuantType.QInt8
    quantize_static(source, path, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, activation_type=kind,
                    weight_type=QuantType.QInt8)  # fmt: skip
    return onnx.shape_inference.infer_shapes(onnx.load(path))


def test_a_plain_cnn_keeps_no_transpose() -> None:
    file = converted(cnn())
    assert "TRANSPOSE" not in codes(file)
    x = {"x": random((1, 3, 16, 16), 50)}
    for reference in (True, False):
        np.testing.assert_allclose(litert_outputs(file, x, reference)[0], onnx_outputs(cnn(), x)[0], atol=1e-5)
    kept = converted(cnn(), keep_layout=True)
    assert codes(kept)["TRANSPOSE"] == 1
    assert LAYOUT_KEY not in kept.metadata
    np.testing.assert_allclose(litert_outputs(kept, x)[0], onnx_outputs(cnn(), x)[0], atol=1e-5)


def test_float16_halves_the_file_and_stays_close() -> None:
    x = {"x": random((1, 3, 16, 16), 50)}
    wide, half = (converted(cnn(), weights=w) for w in ("float32", "float16"))
    assert sum(t.data.nbytes for t in half.tensors if t.data is not None and t.dtype == "float16") > 3000
    assert len(build(half)) < len(build(wide))
    np.testing.assert_allclose(litert_outputs(half, x)[0], onnx_outputs(cnn(), x)[0], atol=1e-3)


@pytest.mark.parametrize("activation", ["int8", "uint8"])
def test_a_qdq_graph_becomes_an_integer_file(tmp_path, activation: str) -> None:
    model = qdq(cnn(), tmp_path, activation)
    file = converted(model, integer_io=True)
    assert {t.dtype for t in file.tensors} <= {"int8", "int32"}, "a float tensor is left"
    assert "TRANSPOSE" not in codes(file)
    entry, scale = file.tensors[0], float(file.tensors[0].scale[0])
    rng = np.random.default_rng(0)
    total = wrong = 0
    for _ in range(10):
        x = rng.integers(-128, 128, entry.shape).astype(np.int8)
        nchw = x.transpose(0, 3, 1, 2)
        (want,) = litert_outputs(file, {"x": nchw})
        (got,) = run(file, {"x": x}).values()
        total, wrong = total + want.size, wrong + int((got != want).sum())
        real = ((nchw.astype(np.float32) - entry.zero_point[0]) * np.float32(scale)).astype(np.float32)
        (other,) = onnx_outputs(model, {"x": real})
        result = next(t for t in file.tensors if t.name == file.outputs[0])
        # Softmax of 1/256; the runtimes round differently on the way there.
        assert np.abs((want.astype(float) - result.zero_point[0]) * result.scale[0] - other).max() <= 3 / 256
    assert (wrong, total) == (0, 100)


def test_the_emulator_shows_every_step_and_other_roundings(tmp_path) -> None:
    file = converted(qdq(cnn(), tmp_path, "int8"), integer_io=True)
    steps = [op.outputs[0] for op in file.ops]
    x = np.random.default_rng(3).integers(-128, 128, file.tensors[0].shape).astype(np.int8)
    double, single = (run(file, {"x": x}, r, steps) for r in ("double", "single"))
    apart = [np.abs(double[s].astype(int) - single[s].astype(int)).max() for s in steps]
    assert 0 < max(apart) <= 4


def test_float_between_integers_is_refused_by_the_emulator() -> None:
    with pytest.raises(TargetError, match="not computed on integers"):
        run(converted(cnn()), {"x": np.zeros((1, 16, 16, 3), np.float32)})


def test_quantized_weights_alone_make_a_hybrid_file() -> None:
    rng = np.random.default_rng(0)
    w = rng.integers(-127, 128, (32, 10)).astype(np.int8)
    scale = rng.uniform(0.005, 0.01, 10).astype(np.float32)
    nodes = [N("DequantizeLinear", ["w", "s", "z"], ["d"], axis=1), N("MatMul", ["x", "d"], ["y"])]
    model = graph(nodes, {"x": (4, 32)}, ["y"], w=w, s=scale, z=np.zeros(10, np.int8))
    x = {"x": random((4, 32), 1)}
    (want,) = onnx_outputs(model, x)
    plain, hybrid = converted(model), converted(model, weights="hybrid")
    assert next(t for t in hybrid.tensors if t.name.startswith("w")).dtype == "int8"
    np.testing.assert_allclose(litert_outputs(plain, x)[0], want, atol=1e-4)
    np.testing.assert_allclose(litert_outputs(hybrid, x)[0], want, atol=0.02 * np.abs(want).max())


def test_int16_activations_with_int8_weights() -> None:
    rng = np.random.default_rng(0)
    w = rng.integers(-127, 128, (8, 6, 3, 3)).astype(np.int8)
    s_w = rng.uniform(0.002, 0.004, 8).astype(np.float32)
    zero = np.int16(0)
    nodes = [
        N("QuantizeLinear", ["x", "sx", "z"], ["q"]), N("DequantizeLinear", ["q", "sx", "z"], ["xd"]),
        N("DequantizeLinear", ["w", "sw", "zw"], ["wd"], axis=0), N("Conv", ["xd", "wd", "b"], ["c"]),
        N("QuantizeLinear", ["c", "sy", "z"], ["qy"]), N("DequantizeLinear", ["qy", "sy", "z"], ["y"]),
    ]  # fmt: skip
    s_x, s_y = np.float32(4 / 32768), np.float32(16 / 32768)
    model = graph(nodes, IMAGE, ["y"], 21, w=w, sw=s_w, zw=np.zeros(8, np.int8), b=random(8, 2), sx=s_x, sy=s_y, z=zero)
    x = {"x": random(IMAGE["x"], 5)}
    file = converted(model)
    (got,), (want,) = litert_outputs(file, x), onnx_outputs(model, x)
    assert np.abs(got - want).max() <= 2.01 * s_y  # the 16-bit multiplier has half a step of its own


@pytest.mark.parametrize("shifts", [True, False])
def test_sums_of_16_bits_by_shifts_are_not_emulated(shifts: bool) -> None:
    """What LiteRT computes where a file allows it and all scales are powers of two; edgeq's files never do."""
    scale, x = np.float32([2**-12]), np.arange(-8, 8, dtype=np.int16)
    tensors = tuple(TfTensor(n, (16,), "int16", None, scale, np.zeros(1, np.int64)) for n in "abc")
    options = {"fusedActivationFunction": "NONE", "potScaleInt16": shifts}
    file = TfModel(tensors, (TfOp("ADD", ("a", "b"), ("c",), options),), ("a", "b"), ("c",))
    if shifts:
        with pytest.raises(TargetError, match="ADD 'c': sums of 16-bit codes by shifts"):
            run(file, {"a": x, "b": x})
    else:
        np.testing.assert_array_equal(run(file, {"a": x, "b": x})["c"], 2 * x)


def test_a_bias_without_a_zero_point_has_zero() -> None:
    """As edgeq's own artifacts store it: int32 codes, and DequantizeLinear with two inputs."""
    bias, scale = np.array([5, -7, 300], np.int32), np.float32([0.5, 0.25, 0.125])
    nodes = [N("DequantizeLinear", ["b", "s"], ["d"], axis=0), N("Gemm", ["x", "w", "d"], ["y"])]
    model = graph(nodes, {"x": (2, 4)}, ["y"], b=bias, s=scale, w=random((4, 3), 2))
    x = {"x": random((2, 4), 1)}
    np.testing.assert_allclose(litert_outputs(converted(model), x)[0], onnx_outputs(model, x)[0], atol=1e-5)


REFUSED = {
    "Erf": ([N("Erf", ["x"], ["y"])], {"x": (3, 4)}, {}, "Erf 'y': edgeq writes no TFLite operator"),
    "group": ([N("ConvTranspose", ["x", "w"], ["y"], group=2)], IMAGE, {"w": random((6, 2, 3, 3))}, "ungrouped"),
    "conv1d": ([N("Conv", ["x", "w"], ["y"])], {"x": (1, 3, 9)}, {"w": random((2, 3, 3))}, "over two axes"),
    "pool": ([N("AveragePool", ["x"], ["y"], kernel_shape=[2, 2], pads=[1, 1, 1, 1])], IMAGE, {}, "counted"),
    "ceil": ([N("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)], IMAGE, {}, "ceil_mode"),
    "pixels": ([N("Resize", ["x", "", "s"], ["y"], mode="nearest", nearest_mode="ceil")], IMAGE,
               {"s": np.float32([1, 1, 2, 2])}, "other pixels"),
    "cubic": ([N("Resize", ["x", "", "s"], ["y"], mode="cubic")], IMAGE, {"s": np.float32([1, 1, 2, 2])}, "cubic"),
    "trans": ([N("Gemm", ["x", "w"], ["y"], transA=1)], {"x": (4, 3)}, {"w": random((4, 5))}, "transA"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_expressed_is_refused(name: str) -> None:
    nodes, inputs, constants, message = REFUSED[name]
    with pytest.raises(TargetError, match=message):
        converted(graph(nodes, inputs, ["y"], **constants))


def test_unknown_dimensions_are_refused() -> None:
    model = graph([N("Relu", ["x"], ["y"])], {"x": ("batch", 3)}, ["y"])  # type: ignore[dict-item]
    with pytest.raises(TargetError, match="not fixed"):
        converted(model)


@pytest.mark.parametrize(("name", "shape"), [
    ("ch_ppocr_mobile_v2.0_cls_infer", (1, 3, 48, 192)), ("ch_PP-OCRv4_det_infer", (1, 3, 64, 96)),
    ("ch_PP-OCRv4_rec_infer", (1, 3, 48, 80)),
])  # fmt: skip
def test_real_models_agree_with_onnxruntime(name: str, shape: tuple[int, ...]) -> None:
    require("rapidocr_onnxruntime", "pip install edgeq[zoo]")
    spec = find_spec("rapidocr_onnxruntime")
    assert spec is not None
    assert spec.origin is not None
    source = onnx.load(Path(spec.origin).parent / "models" / f"{name}.onnx")
    for dim, size in zip(source.graph.input[0].type.tensor_type.shape.dim, shape, strict=True):
        dim.dim_value = size
    for dim in source.graph.output[0].type.tensor_type.shape.dim:
        dim.Clear()
    del source.graph.value_info[:]
    feeds = {source.graph.input[0].name: random(shape, 7)}
    (want,) = onnx_outputs(source, feeds)
    file = convert(prepare(ir.serde.deserialize_model(source)))
    assert ("TRANSPOSE" in codes(file)) == ("rec" in name)  # only the recognizer has attention
    np.testing.assert_allclose(litert_outputs(file, feeds)[0], want, atol=1e-4)
