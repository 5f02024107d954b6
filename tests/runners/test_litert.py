from pathlib import Path

import numpy as np
import pytest

from edgeq.errors import ModelError, RecipeError, ToolError
from edgeq.runners import litert
from tests.require import require

require("litert", "pip install edgeq[litert]", lambda: litert.missing() is None)

import flatbuffers  # noqa: E402
from ai_edge_litert import schema_py_generated as schema  # noqa: E402

RNG = np.random.default_rng(11)
# Multiples of four: the requantization multiplier 1/4 then gives integers, the same under every rounding.
WEIGHTS = [(4 * RNG.integers(-20, 21, (6, 8))).astype(np.int8), (4 * RNG.integers(-3, 4, (4, 6))).astype(np.int8)]


def answer(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """y = saturate(x wᵀ · (sx · sw / sy)): 0.5 · 0.5 / 1.0 in the first layer, 1.0 · 0.25 / 1.0 in the second."""
    middle = np.clip(x.astype(np.int64) @ WEIGHTS[0].T.astype(np.int64) // 4, -128, 127)
    return middle, np.clip(middle @ WEIGHTS[1].T.astype(np.int64) // 4, -128, 127)


def two_layers(path: Path) -> Path:
    """Two int8 FULLY_CONNECTED layers without bias: x (1,8) → middle (1,6) → y (1,4)."""
    model = schema.ModelT()
    model.version, model.description = 3, b"two layers"
    model.buffers = [schema.BufferT() for _ in range(3)]
    for buffer, weights in zip(model.buffers[1:], WEIGHTS, strict=True):
        buffer.data = np.frombuffer(weights.tobytes(), np.uint8)
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    code.version = 4
    model.operatorCodes = [code]
    graph = schema.SubGraphT()
    tensors = [("x", (1, 8), 0.5, 0), ("w0", (6, 8), 0.5, 1), ("middle", (1, 6), 1.0, 0)]
    tensors += [("w1", (4, 6), 0.25, 2), ("y", (1, 4), 1.0, 0)]
    graph.tensors = []
    for name, shape, scale, buffer in tensors:
        tensor = schema.TensorT()
        tensor.name, tensor.shape = name.encode(), list(shape)
        tensor.type, tensor.buffer = schema.TensorType.INT8, buffer
        tensor.quantization = schema.QuantizationParametersT()
        tensor.quantization.scale, tensor.quantization.zeroPoint = [scale], [0]
        graph.tensors.append(tensor)
    graph.operators = []
    for inputs, output in (([0, 1, -1], 2), ([2, 3, -1], 4)):
        operator = schema.OperatorT()
        operator.inputs, operator.outputs = inputs, [output]
        operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
        operator.builtinOptions = schema.FullyConnectedOptionsT()
        graph.operators.append(operator)
    graph.inputs, graph.outputs = [0], [4]
    model.subgraphs = [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


@pytest.mark.parametrize("kernels", list(litert.KERNELS))
def test_int8_layers_and_the_value_between_them(tmp_path: Path, kernels: str) -> None:
    session = litert.open_session(two_layers(tmp_path / "two.tflite"), kernels=kernels)
    assert session.outputs == ("y",)
    feeds = [{"x": RNG.integers(-128, 128, (1, 8)).astype(np.int8)} for _ in range(5)]
    for given, got in zip(feeds, session.run_many(feeds), strict=True):
        np.testing.assert_array_equal(got["y"], answer(given["x"])[1])
    got = session.run(feeds[0], taps=["middle"])
    assert got["middle"].dtype == np.int8
    np.testing.assert_array_equal(got["middle"], answer(feeds[0]["x"])[0])
    assert session.report["version"] == litert.version()
    assert (session.latency_ms or 0) > 0


def test_errors_are_one_line(tmp_path: Path) -> None:
    model = two_layers(tmp_path / "two.tflite")
    x = np.zeros((1, 8), np.int8)
    with pytest.raises(ToolError, match=r"litert: failed .*: no tensor 'nothing' in the model"):
        litert.open_session(model).run({"x": x}, taps=["nothing"])
    with pytest.raises(ToolError, match=r"litert: .*[Ee]rror"):
        litert.open_session(model).run({"x": x.astype(np.float32)})
    with pytest.raises(ModelError, match="no array was given for the input 'x'"):
        litert.open_session(model).run({"z": x})
    with pytest.raises(RecipeError, match="kernels='fast' is not one of default, builtin, reference"):
        litert.open_session(model, kernels="fast")


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    good = two_layers(tmp_path / "two.tflite").read_bytes()
    bad = tmp_path / "bad.tflite"
    for content in (b"", b"not a model at all", good[:60], b"\xff" * 4 + good[4:]):
        bad.write_bytes(content)
        with pytest.raises(ModelError, match=r"bad\.tflite: not a ") as raised:
            litert.open_session(bad)
        assert "\n" not in str(raised.value)


def test_a_file_damaged_inside_ends_its_own_process_only(tmp_path: Path) -> None:
    content = bytearray(two_layers(tmp_path / "two.tflite").read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    bad = tmp_path / "bad.tflite"
    bad.write_bytes(content)
    with pytest.raises((ToolError, ModelError)):
        litert.open_session(bad).run({"x": np.zeros((1, 8), np.int8)})
