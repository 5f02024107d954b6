"""TFLite files: LiteRT loads and runs what `build` writes, `read` gives it back, and damage is one ModelError."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.errors import ModelError
from edgeq.formats.tflite_file import DTYPES, TfModel, TfOp, TfSignature, TfTensor, build, stored_bytes
from edgeq.formats.tflite_read import read
from tests.require import require

require("ai_edge_litert", "pip install edgeq[litert]")

from ai_edge_litert.interpreter import Interpreter  # noqa: E402


def model() -> TfModel:
    """Two inputs, two outputs, per-channel weights, a fused activation, a signature, metadata and a custom name."""
    rng = np.random.default_rng(0)
    one = np.ones(1, np.float32)
    scale = np.float32([0.5, 0.25, 0.125, 1.0])
    w = rng.integers(-127, 128, (4, 3, 3, 2)).astype(np.int8)
    return TfModel(
        tensors=(
            TfTensor("image", (1, 8, 8, 2), "int8", None, one / 10, np.array([3])),
            TfTensor("stem/weights", (4, 3, 3, 2), "int8", w, scale, None, 0),
            TfTensor("stem/bias", (4,), "int32", np.arange(4, dtype=np.int32), one / 10 * scale),
            TfTensor("features", (1, 8, 8, 4), "int8", None, one * 50, np.array([-4])),
            TfTensor("other", (1, 8, 8, 4), "int8", None, one, np.array([0])),
            TfTensor("sum", (1, 8, 8, 4), "int8", None, one * 60, np.array([1])),
        ),
        ops=(
            TfOp(
                "CONV_2D",
                ("image", "stem/weights", "stem/bias"),
                ("features",),
                {"padding": "SAME", "strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1,
                 "fusedActivationFunction": "RELU"},
            ),
            TfOp("ADD", ("features", "other"), ("sum",)),
        ),
        inputs=("image", "other"),
        outputs=("sum", "features"),
        signatures=(TfSignature("serving_default", {"x": "image", "y": "other"}, {"z": "sum", "f": "features"}),),
        metadata={"note": b"some bytes"},
        description="a test",
    )  # fmt: skip


def test_litert_sees_names_quantization_and_signature() -> None:
    interpreter = Interpreter(model_content=build(model()))
    interpreter.allocate_tensors()
    image, other = interpreter.get_input_details()
    assert (image["name"], other["name"]) == ("image", "other")
    assert image["quantization"] == (pytest.approx(0.1), 3)
    weights = next(d for d in interpreter.get_tensor_details() if d["name"] == "stem/weights")
    assert weights["quantization_parameters"]["scales"].tolist() == [0.5, 0.25, 0.125, 1.0]
    assert interpreter.get_signature_list() == {"serving_default": {"inputs": ["x", "y"], "outputs": ["f", "z"]}}
    x, y = np.zeros((1, 8, 8, 2), np.int8), np.zeros((1, 8, 8, 4), np.int8)
    out = interpreter.get_signature_runner()(x=x, y=y)
    assert out["f"].shape == (1, 8, 8, 4)
    assert out["f"].min() >= -4  # RELU


def test_the_same_description_gives_the_same_bytes_and_reads_back() -> None:
    data = build(model())
    assert data == build(model())
    back = read(data)
    assert build(back) == data
    original = model()
    assert (back.inputs, back.outputs, back.signatures) == (original.inputs, original.outputs, original.signatures)
    assert (back.metadata, back.description) == (original.metadata, original.description)
    for got, want in zip(back.tensors, original.tensors, strict=True):
        assert (got.name, got.shape, got.dtype, got.axis) == (want.name, want.shape, want.dtype, want.axis)
        assert np.array_equal(got.scale, want.scale)
        assert want.data is None or np.array_equal(got.data, want.data)
    for got_op, want_op in zip(back.ops, original.ops, strict=True):
        assert (got_op.code, got_op.inputs, got_op.outputs) == (want_op.code, want_op.inputs, want_op.outputs)
        assert dict(want_op.options).items() <= dict(got_op.options).items()


def test_constants_are_aligned_to_16_bytes_and_stored_once() -> None:
    big = np.arange(4096, dtype=np.float32)
    ops = (TfOp("ADD", ("a", "b"), ("y",)),)
    tensors = (*(TfTensor(n, big.shape, "float32", big.copy()) for n in "ab"), TfTensor("y", big.shape, "float32"))
    data = build(TfModel(tensors, ops, (), ("y",)))
    assert data.count(big.tobytes()) == 1
    assert data.index(big.tobytes()) % 16 == 0
    interpreter = Interpreter(model_content=data)
    interpreter.allocate_tensors()
    interpreter.invoke()
    assert np.array_equal(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]), 2 * big)


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d not in ("uint16", "bfloat16", "int4")])
def test_every_type_reaches_litert(dtype: str) -> None:
    values = np.array([[0, 1, 1, 0]]).astype(dtype)
    tensors = (TfTensor("x", (1, 4), dtype), TfTensor("shape", (2,), "int32", np.array([4, 1], np.int32)),
               TfTensor("y", (4, 1), dtype))  # fmt: skip
    interpreter = Interpreter(
        model_content=build(TfModel(tensors, (TfOp("RESHAPE", ("x", "shape"), ("y",)),), ("x",), ("y",)))
    )
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], values)
    interpreter.invoke()
    got = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    assert got.dtype == values.dtype
    assert np.array_equal(got, values.T)


def test_int4_weights_are_packed_as_litert_unpacks_them() -> None:
    q = np.arange(-8, 7).reshape(3, 5).astype(ml_dtypes.int4)  # an odd count: the last byte is half used
    tensor = TfTensor("w", (3, 5), "int4", q, np.float32([0.5, 1.0, 2.0]), None, 0)
    assert len(stored_bytes(tensor)) == 8
    description = TfModel(
        (TfTensor("x", (1, 5), "float32"), tensor, TfTensor("y", (1, 3), "float32"),
         TfTensor("d", (3, 5), "float32")),
        (TfOp("DEQUANTIZE", ("w",), ("d",)), TfOp("FULLY_CONNECTED", ("x", "d", ""), ("y",))),
        ("x",), ("y",),
    )  # fmt: skip
    interpreter = Interpreter(model_content=build(description))
    interpreter.allocate_tensors()
    x = np.eye(1, 5, 2, dtype=np.float32)
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    got = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    assert np.array_equal(got[0], q.astype(np.float32)[:, 2] * [0.5, 1.0, 2.0])
    assert np.array_equal(read(build(description)).tensors[1].data, q)


def test_unknown_dimensions_become_a_shape_signature() -> None:
    tensors = (TfTensor("x", (-1, 4), "float32"), TfTensor("y", (-1, 4), "float32"))
    data = build(TfModel(tensors, (TfOp("TANH", ("x",), ("y",)),), ("x",), ("y",)))
    interpreter = Interpreter(model_content=data)
    detail = interpreter.get_input_details()[0]
    assert detail["shape_signature"].tolist() == [-1, 4]
    interpreter.resize_tensor_input(detail["index"], (3, 4))
    interpreter.allocate_tensors()
    interpreter.invoke()
    assert interpreter.get_output_details()[0]["shape"].tolist() == [3, 4]
    assert read(data).tensors[0].shape == (-1, 4)


CASES = [
    (lambda m: replace(m, inputs=("nothing",)), "'nothing', which the model doesn't have"),
    (lambda m: replace(m, tensors=(*m.tensors, m.tensors[0])), "one name"),
    (lambda m: replace(m, ops=(TfOp("CONV_9D", ("image",), ("sum",)),)), "no BuiltinOperator 'CONV_9D'"),
    (lambda m: replace(m, ops=(TfOp("ADD", ("image", "other"), ("sum",), {"strides": 1}),)), "no option 'strides'"),
    (lambda m: replace(m, ops=(TfOp("TANH", ("image",), ("sum",), {"alpha": 1}),)), "takes no options"),
    (lambda m: replace(m, ops=(TfOp("ADD", ("image",), ("sum",), {"fusedActivationFunction": "ELU"}),)), "'ELU'"),
    (lambda m: replace(m, tensors=(replace(m.tensors[1], shape=(4, 18)),)), r"declared int8\[4, 18\]"),
    (lambda m: replace(m, tensors=(replace(m.tensors[0], scale=np.zeros(1)),)), "finite and positive"),
    (lambda m: replace(m, tensors=(replace(m.tensors[0], dtype="complex64"),)), "no type complex64"),
    (lambda m: replace(m, signatures=(TfSignature("f", {"x": "nothing"}, {}),)), "signature 'f'"),
]


@pytest.mark.parametrize(("change", "message"), CASES, ids=[m for _, m in CASES])
def test_what_is_not_a_model_is_refused(change, message) -> None:
    with pytest.raises(ModelError, match=message):
        build(change(model()))


def test_not_a_tflite_file() -> None:
    for data in (b"", b"TFL3", b"\x08\0\0\0ONNX" + bytes(64)):
        with pytest.raises(ModelError, match="not a TFLite file"):
            read(data)


GOOD = build(model())


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=6),
       st.integers(8, len(GOOD)))  # fmt: skip
def test_damage_is_a_model_error_or_a_model(changes: list[tuple[int, int]], length: int) -> None:
    damaged = bytearray(GOOD)
    for position, value in changes:
        damaged[position] = value
    damaged[4:8] = b"TFL3"
    for data in (bytes(damaged), bytes(damaged[:length])):
        with contextlib.suppress(ModelError):
            assert isinstance(read(data), TfModel)
