import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgeq.errors import RecipeError
from edgeq.graph import three_bits
from edgeq.numerics import affine, pack
from edgeq.types import PerBlock, PerTensor, QParams, QSpec, QTensor

SMALL = ["int4", "uint4", "int2", "uint2"]


@given(st.sampled_from([*SMALL, "int8", "uint8"]), st.integers(0, 33), st.integers(0, 1000))
def test_round_trip(dtype, size, seed):
    spec = QSpec(dtype)
    codes = np.random.default_rng(seed).integers(spec.qmin, spec.qmax + 1, size).astype(affine.storage_dtype(dtype))
    packed = pack.pack(codes, spec.bits)
    assert packed.nbytes == -(-size * spec.bits // 8)
    back = pack.unpack(packed, dtype, (size,))
    assert back.dtype == codes.dtype
    np.testing.assert_array_equal(back, codes)


@pytest.mark.parametrize("dtype", SMALL)
@pytest.mark.parametrize("shape", [(5, 3), (8,), (1, 2, 7)])
def test_bytes_are_those_of_onnx(dtype, shape):
    spec = QSpec(dtype)
    codes = np.random.default_rng(1).integers(spec.qmin, spec.qmax + 1, shape).astype(affine.storage_dtype(dtype))
    theirs = numpy_helper.from_array(codes.astype(getattr(ml_dtypes, dtype)))
    assert theirs.data_type == getattr(TensorProto, dtype.upper())
    assert theirs.raw_data == pack.pack(codes, spec.bits).tobytes()
    ours = onnx.TensorProto(
        dims=shape, data_type=theirs.data_type, raw_data=pack.pack(codes, spec.bits).tobytes(), name="w"
    )
    np.testing.assert_array_equal(numpy_helper.to_array(ours).astype(np.int8), codes.astype(np.int8))


def test_too_few_bytes():
    with pytest.raises(ValueError, match="too few"):
        pack.unpack(np.zeros(3, np.uint8), "int4", (7,))


def run_kernel(m, x):
    inputs = ["x", "b", "s"] + (["z"] if m.zero_points is not None else [])
    node = helper.make_node(
        "MatMulNBits", inputs, ["y"], domain="com.microsoft", K=m.k, N=m.n, bits=m.bits, block_size=m.block_size
    )
    held = [numpy_helper.from_array(m.b, "b"), numpy_helper.from_array(m.scales, "s")]
    if m.zero_points is not None:
        held.append(numpy_helper.from_array(m.zero_points, "z"))
    info = helper.make_tensor_value_info
    graph = helper.make_graph([node], "g", [info("x", 1, x.shape)], [info("y", 1, (len(x), m.n))], held)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([2, 4, 8]),
    st.sampled_from([16, 32, 64, 128]),
    st.integers(1, 150),
    st.integers(1, 9),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.integers(0, 1000),
)
def test_the_kernel_reads_the_layout(bits, size, k, n, signed, symmetric, transposed, seed):
    rng = np.random.default_rng(seed)
    spec = QSpec(f"int{bits}" if signed else f"uint{bits}", symmetric, PerBlock(0 if transposed else 1, size))
    w = rng.normal(size=(n, k)).astype(np.float32) + np.float32(0.5)
    w = np.ascontiguousarray(w.T) if transposed else w
    params = affine.qparams(*affine.weight_ranges(w, spec.granularity), spec)
    q = QTensor(affine.quantize(w, params), params)
    m = pack.to_matmul_nbits(q)
    assert m.b.shape == (n, -(-k // size), size * bits // 8)
    assert (m.zero_points is None) or not symmetric
    real = affine.dequantize(q.data, params)
    real = real.T if transposed else real
    x = rng.normal(size=(3, k)).astype(np.float32)
    np.testing.assert_allclose(run_kernel(m, x), x @ real.T, rtol=1e-4, atol=1e-4)
    back = pack.from_matmul_nbits(m)
    np.testing.assert_array_equal(affine.dequantize(back.data, back.params), real)


def test_negative_scales_pass_through_the_kernel():
    """Signed-absmax blocks (as GGUF Q4_0 has them) need them."""
    rng = np.random.default_rng(0)
    spec = QSpec("int4", granularity=PerBlock(1, 32))
    scale = rng.normal(size=(5, 2)).astype(np.float32)
    params = QParams(scale, np.zeros((5, 2), np.int32), spec)
    q = QTensor(rng.integers(-8, 8, (5, 64)).astype(np.int8), params)
    x = rng.normal(size=(2, 64)).astype(np.float32)
    want = x @ affine.dequantize(q.data, params).T
    np.testing.assert_allclose(run_kernel(pack.to_matmul_nbits(q), x), want, rtol=1e-4, atol=1e-3)


def test_forms_without_a_kernel_are_refused():
    for spec in (QSpec("int4", granularity=PerTensor()), QSpec("int16", granularity=PerBlock(1, 32))):
        params = affine.qparams(*affine.weight_ranges(np.ones((4, 32)), spec.granularity), spec)
        with pytest.raises(RecipeError, match="MatMulNBits"):
            pack.to_matmul_nbits(QTensor(np.zeros((4, 32), np.int16), params))


@pytest.mark.parametrize("dtype", ["int4", "uint4"])
def test_three_bits_come_back_by_the_function_of_the_file(dtype):
    """ONNX's reference evaluator, on the function that files carry, undoes the packing of every code in every place."""
    spec = QSpec(dtype, granularity=PerBlock(0, 16), reduce_range=True)
    codes = np.random.default_rng(3).integers(spec.qmin, spec.qmax + 1, (64, 9)).astype(affine.storage_dtype(dtype))
    whole = pack.matmul_codes(QTensor(codes, QParams(np.ones((4, 9), "f"), np.zeros((4, 9), "i"), spec)))
    packed = pack.three_bits(whole)
    assert packed.shape == (9, 4, 6)
    assert len(np.unique(codes)) == 8
    (back,) = ReferenceEvaluator(onnx.parser.parse_function(three_bits.TEXT)).run(None, {"packed": packed}, {})
    half = np.stack([back & 15, back >> 4], -1).reshape(9, 64).T.astype(int)
    np.testing.assert_array_equal(half - 8, codes.astype(int) - (0 if spec.signed else 4))


@pytest.mark.parametrize(("bits", "size"), [(4, 40), (2, 80), (8, 20)])
def test_the_last_byte_is_needed(bits, size):
    codes = (np.arange(size) % (1 << bits)).astype(np.uint8)
    whole = pack.pack(codes, bits)
    np.testing.assert_array_equal(pack.unpack(whole, f"uint{bits}", (size,)), codes)
    with pytest.raises(ValueError, match="too few"):
        pack.unpack(whole[:-1], f"uint{bits}", (size,))


@pytest.mark.parametrize(
    ("dtype", "reduced", "held"),
    [
        ("int4", True, True),
        ("uint4", True, True),
        ("int4", False, False),
        ("int8", True, False),
        ("int2", False, False),
    ],
)
def test_three_bits_hold_reduced_codes_of_four(dtype, reduced, held):
    spec = QSpec(dtype, granularity=PerBlock(0, 16), reduce_range=reduced)
    assert pack.holds_three_bits(spec) == held


def quantized(dtype, size, shape, axis=1, symmetric=True):
    spec = QSpec(dtype, symmetric, PerBlock(axis, size))
    rng = np.random.default_rng(5)
    codes = rng.integers(spec.qmin, spec.qmax + 1, shape).astype(affine.storage_dtype(dtype))
    parts = affine.params_shape(shape, spec.granularity)
    zero = rng.integers(spec.qmin, spec.qmax + 1, parts) if not symmetric else np.full(parts, affine.middle(spec))
    return QTensor(codes, QParams(rng.uniform(0.5, 2, parts).astype(np.float32), zero.astype(np.int32), spec))


@pytest.mark.parametrize(("dtype", "size", "shape", "held"), [
    ("int4", 16, (3, 64), True), ("int4", 8, (3, 64), False), ("int4", 24, (3, 48), False),
    ("int4", 256, (3, 256), True), ("int4", 32, (2, 3, 32), False), ("int4", 32, (64,), False),
    ("int2", 16, (3, 16), True), ("uint8", 16, (3, 16), True), ("int16", 16, (3, 16), False),
])  # fmt: skip
def test_what_the_kernel_takes(dtype, size, shape, held):
    q = quantized(dtype, size, shape, axis=len(shape) - 1)
    if held:
        assert pack.to_matmul_nbits(q).block_size == size
        return
    with pytest.raises(RecipeError, match="MatMulNBits takes rank 2"):
        pack.to_matmul_nbits(q)


@pytest.mark.parametrize("dtype", ["int2", "uint2", "int4", "uint4", "int8", "uint8"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("axis", [0, 1, -1, -2])
def test_the_layout_bit_by_bit(dtype, symmetric, axis):
    """Every code, scale and zero point where the operator's text puts it; what is padded is 0."""
    shape = (40, 3) if axis % 2 == 0 else (3, 40)
    q = quantized(dtype, 16, shape, axis, symmetric)
    m, bits = pack.to_matmul_nbits(q), q.params.spec.bits
    shift = 2 ** (bits - 1) - affine.middle(q.params.spec)
    codes, scales, zeros = (v.T if axis % 2 == 0 else v for v in (q.data, q.params.scale, q.params.zero_point))
    assert (m.k, m.n, m.bits, m.block_size) == (40, 3, bits, 16)
    assert m.b.shape == (3, 3, 2 * bits)
    np.testing.assert_array_equal(m.scales, scales)
    mask, per = 2**bits - 1, 8 // bits
    for n, k in np.ndindex(3, 48):
        byte = int(m.b[n, k // 16, k % 16 // per])
        want = int(codes[n, k]) + shift & mask if k < 40 else 0
        assert byte >> k % per * bits & mask == want
    assert (m.zero_points is None) == symmetric
    if not symmetric:
        assert m.zero_points.shape == (3, -(-3 * bits // 8))
        for n, b in np.ndindex(3, 3):
            assert int(m.zero_points[n, b // per]) >> b % per * bits & mask == int(zeros[n, b]) + shift & mask
    back = pack.from_matmul_nbits(m)
    assert back.params.spec == QSpec(f"uint{bits}", symmetric, PerBlock(1, 16))
    np.testing.assert_array_equal(back.data.astype(int), codes.astype(int) + shift)
    np.testing.assert_array_equal(back.params.zero_point, zeros + shift)


def test_tiles_of_a_large_weight_meet():
    """More codes than are packed at a time, in columns that do not divide them."""
    q = quantized("uint4", 16, (1504, 701), axis=0)
    some = [0, 347, 348, 349, 350, 696, 697, 698, 700]
    part = QTensor(
        np.ascontiguousarray(q.data[:, some]),
        QParams(q.params.scale[:, some], q.params.zero_point[:, some], q.params.spec),
    )
    np.testing.assert_array_equal(pack.matmul_codes(q)[some], pack.matmul_codes(part))
