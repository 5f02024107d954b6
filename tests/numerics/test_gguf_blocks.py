"""GGUF block formats against llama.cpp's own C functions (bit for bit) and against the `gguf` package."""

from __future__ import annotations

import ctypes
import importlib
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.errors import ModelError, RecipeError
from edgeq.numerics.gguf import KINDS, dequantize, importance, quantize
from edgeq.types import Stats
from tests.require import require

PACKED = [k for k in KINDS if k not in ("F32", "F16", "BF16")]
BLOCK = [k for k in PACKED if not k.startswith("TQ")]


@pytest.fixture(scope="module")
def ggml() -> ctypes.CDLL:
    require("xllamacpp", "pip install --no-deps xllamacpp")
    lib = ctypes.CDLL(importlib.import_module("xllamacpp").xllamacpp.__file__)
    for kind in PACKED:
        pointer, count = ctypes.c_void_p, ctypes.c_int64
        getattr(lib, f"quantize_row_{c_name(kind)}_ref").argtypes = [pointer, pointer, count]
        getattr(lib, f"dequantize_row_{c_name(kind)}").argtypes = [pointer, pointer, count]
        getattr(lib, f"quantize_{c_name(kind)}").argtypes = [pointer, pointer, count, count, pointer]
        getattr(lib, f"quantize_{c_name(kind)}").restype = ctypes.c_size_t
    return lib


def c_name(kind: str) -> str:
    return kind[:-1].lower() + "K" if kind.endswith("_K") else kind.lower()


def empty(w: np.ndarray, kind: str) -> np.ndarray:
    return np.zeros((len(w), w.shape[1] // KINDS[kind].size * KINDS[kind].nbytes), np.uint8)


def reference(lib: ctypes.CDLL, w: np.ndarray, kind: str) -> np.ndarray:
    out = empty(w, kind)
    getattr(lib, f"quantize_row_{c_name(kind)}_ref")(w.ctypes.data, out.ctypes.data, w.size)
    return out


def file_quantizer(lib: ctypes.CDLL, w: np.ndarray, kind: str, imatrix: np.ndarray | None) -> np.ndarray:
    out = empty(w, kind)
    importance = None if imatrix is None else imatrix.ctypes.data
    getattr(lib, f"quantize_{c_name(kind)}")(w.ctypes.data, out.ctypes.data, len(w), w.shape[1], importance)
    return out


def weights(name: str) -> np.ndarray:
    rng = np.random.default_rng(7)
    shape = (150, 768)
    normal = rng.standard_normal(shape)
    table = {
        "normal": normal,
        "heavy tails": rng.standard_t(2, shape),
        "mostly zero": normal * (rng.random(shape) < 0.05),  # holds -0 too, and blocks of zeros
        "positive": rng.random(shape) + 0.1,
        "negative": -rng.random(shape) - 0.1,
        "ternary": rng.integers(-1, 2, shape),
        "many magnitudes": normal * 10.0 ** rng.integers(-9, 5, (shape[0], 1)),
        "constant": np.full(shape, 0.3),
        "one row of one block": normal[:1, :256],
    }
    return np.ascontiguousarray(table[name], np.float32)


DISTRIBUTIONS = [
    "normal", "heavy tails", "mostly zero", "positive", "negative", "ternary", "many magnitudes", "constant",
    "one row of one block",
]  # fmt: skip


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_codes_equal_the_c_reference(ggml: ctypes.CDLL, kind: str, name: str) -> None:
    w = weights(name)
    got, want = quantize(w, kind), reference(ggml, w, kind)
    if kind == "IQ4_NL":  # the reference leaves the codes of an all-zero block undefined
        full = np.abs(w.reshape(-1, 32)).max(1) > 0
        got, want = got.reshape(-1, 18)[full], want.reshape(-1, 18)[full]
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_importance_matrix_equals_the_c_quantizer(ggml: ctypes.CDLL, kind: str, name: str) -> None:
    w = weights(name)
    imatrix = np.random.default_rng(3).gamma(1.0, 1.0, w.shape[1]).astype(np.float32)
    imatrix[5:40] = 0  # channels that calibration never saw
    np.testing.assert_array_equal(quantize(w, kind, imatrix), file_quantizer(ggml, w, kind, imatrix))


@pytest.mark.parametrize("kind", PACKED)
def test_search_equals_the_c_quantizer_of_files(ggml: ctypes.CDLL, kind: str) -> None:
    w = weights("normal")
    np.testing.assert_array_equal(quantize(w, kind, search=True), file_quantizer(ggml, w, kind, None))


@pytest.mark.parametrize("kind", PACKED)
def test_dequantize_equals_c_on_any_bytes(ggml: ctypes.CDLL, kind: str) -> None:
    k = KINDS[kind]
    data = np.random.default_rng(1).integers(0, 256, (40, 3 * k.nbytes), dtype=np.uint8)
    block = data.reshape(-1).view(k.layout)
    for name in k.halves:
        block[name] = np.random.default_rng(2).standard_normal(len(block))
    want = np.empty((40, 3 * k.size), np.float32)
    getattr(ggml, f"dequantize_row_{c_name(kind)}")(data.ctypes.data, want.ctypes.data, want.size)
    np.testing.assert_array_equal(dequantize(data, kind), want)


@pytest.mark.parametrize("kind", list(KINDS))
def test_gguf_package_reads_the_same_weights(kind: str) -> None:
    gguf = pytest.importorskip("gguf")
    w = weights("normal")
    number = gguf.GGMLQuantizationType(KINDS[kind].number)
    assert number.name == kind
    assert gguf.GGML_QUANT_SIZES[number] == (KINDS[kind].size, KINDS[kind].nbytes)
    data = quantize(w, kind)
    np.testing.assert_array_equal(dequantize(data, kind), gguf.quants.dequantize(data, number))


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0"])
def test_gguf_package_writes_the_same_bytes(kind: str) -> None:
    gguf = pytest.importorskip("gguf")
    w = weights("heavy tails")
    want = gguf.quants.quantize(w, gguf.GGMLQuantizationType[kind])
    np.testing.assert_array_equal(quantize(w, kind), want.view(np.uint8))


@pytest.mark.parametrize("kind", BLOCK)
def test_error_falls_with_bits(kind: str) -> None:
    """Uniform noise of a b-bit grid has 6.02 b + c dB; every kind must be within a few dB of its code's bits."""
    w = weights("normal")
    error = dequantize(quantize(w, kind), kind) - w
    sqnr = 10 * np.log10(np.mean(w**2) / np.mean(error**2))
    code_bits = int(kind[2] if kind.startswith("IQ") else kind[1])
    assert 6.02 * code_bits - 5 < sqnr < 6.02 * code_bits + 1


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(BLOCK), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_a_row_does_not_depend_on_its_neighbours(kind: str, rows: int, per_row: int, seed: int) -> None:
    w = np.random.default_rng(seed).standard_normal((rows, per_row * KINDS[kind].size)).astype(np.float32)
    np.testing.assert_array_equal(quantize(w, kind), np.concatenate([quantize(r[None], kind) for r in w]))


@pytest.mark.parametrize("kind", [k for k in KINDS if KINDS[k].size > 1])
def test_shape_error_names_shape_and_block(kind: str) -> None:
    with pytest.raises(ModelError, match=rf"{KINDS[kind].size}.*\(2, 40\)"):
        quantize(np.zeros((2, 40), np.float32), kind)
    with pytest.raises(ModelError, match=str(KINDS[kind].nbytes)):
        dequantize(np.zeros((2, KINDS[kind].nbytes + 1), np.uint8), kind)


def test_refuses_what_cannot_be_stored() -> None:
    w = np.zeros((2, 256), np.float32)
    w[1, 3] = np.nan
    with pytest.raises(ModelError, match="NaN"):
        quantize(w, "Q4_K")
    w[1, 3] = 1e9
    with pytest.raises(ModelError, match="float16"):
        quantize(w, "Q8_0")
    with pytest.raises(ModelError, match="float16"):
        quantize(w, "F16")
    with pytest.raises(ModelError, match="importance"):
        quantize(np.ones((2, 256), np.float32), "Q4_K", np.ones(255))
    with pytest.raises(RecipeError, match="Q4_K"):
        quantize(w, "Q4_X")
    assert quantize(np.zeros((0, 256), np.float32), "Q4_K").shape == (0, 144)


def test_bits_are_the_file_formats() -> None:
    """Bytes of a block by llama.cpp's ggml-common.h, over its weights."""
    known = {
        "Q4_0": 18 / 32,
        "Q5_1": 24 / 32,
        "Q8_0": 34 / 32,
        "Q4_K": 144 / 256,
        "Q6_K": 210 / 256,
        "F32": 4.0,
        "BF16": 2,
    }
    assert {kind: KINDS[kind].bits for kind in known} == {kind: 8 * size for kind, size in known.items()}


def edges(name: str) -> np.ndarray:
    """Blocks of what comparisons and roundings of the C code turn on."""
    rng = np.random.default_rng(13)
    shape = (60, 512)
    tiny = np.float32(1e-15)  # GROUP_MAX_EPS
    near_tiny = np.array([tiny, np.nextafter(tiny, np.float32(0)), np.nextafter(tiny, np.float32(1)), 0, 1e-20])
    table = {
        "quarters": rng.integers(-64, 65, shape) / 4,  # ties of every rounding
        "few levels": rng.choice([-2.0, -1, 0, 0.5, 1, 2], shape),  # trials as good as each other
        "codes": rng.integers(-8, 8, shape),  # what 4 bits hold exactly
        "ends": rng.choice([-1.0, 1.0], shape),
        "one each": np.where(np.arange(512) % 32 == 7, rng.choice([-3.0, 5.0], shape), 0),
        "the least": rng.choice(near_tiny, shape) * rng.choice([-1, 1], shape),
        "the least alone": np.repeat(rng.choice(near_tiny, (60, 16)), 32, 1),
        "zeros of both signs": rng.choice([0.0, -0.0, 1.0], shape, p=[0.45, 0.45, 0.1]),
    }
    return np.ascontiguousarray(table[name], np.float32)


EDGES = ["quarters", "few levels", "codes", "ends", "one each", "the least", "the least alone", "zeros of both signs"]


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("name", EDGES)
def test_edges_equal_the_c_reference(ggml: ctypes.CDLL, kind: str, name: str) -> None:
    w = edges(name)
    got, want = quantize(w, kind), reference(ggml, w, kind)
    if kind == "IQ4_NL":  # the reference leaves the codes of an all-zero block undefined
        full = np.abs(w.reshape(-1, 32)).max(1) > 1e-15
        got, want = got.reshape(-1, 18)[full], want.reshape(-1, 18)[full]
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("name", EDGES)
def test_edges_equal_the_c_quantizer_with_importance(ggml: ctypes.CDLL, kind: str, name: str) -> None:
    w = edges(name)
    imatrix = np.random.default_rng(3).choice(np.float32([0, 0.25, 1, 4]), w.shape[1])
    np.testing.assert_array_equal(quantize(w, kind, imatrix), file_quantizer(ggml, w, kind, imatrix))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_one_bad_importance_is_enough(bad: float) -> None:
    imatrix = np.ones(256, np.float32)
    imatrix[77] = bad
    with pytest.raises(ModelError, match="importance"):
        quantize(np.ones((2, 256), np.float32), "Q4_K", imatrix)


@pytest.mark.parametrize("kind", KINDS)
def test_many_rows_are_as_one_by_one(kind: str) -> None:
    """More weights than are done at a time, in rows that do not divide it, and rows longer than that."""
    rng = np.random.default_rng(2)
    for shape in ((90, 768), (2, 70_400 // 256 * 256)):
        w = rng.standard_normal(shape).astype(np.float32)
        data = quantize(w, kind)
        some = [0, 1, len(w) // 2, len(w) - 1]
        np.testing.assert_array_equal(data[some], quantize(w[some], kind))
        np.testing.assert_array_equal(dequantize(data, kind)[some], dequantize(data[some], kind))


def test_importance_is_the_mean_square_of_each_input() -> None:
    x = np.random.default_rng(4).normal(size=(50, 7))
    np.testing.assert_allclose(importance(Stats(x.T @ x, np.abs(x).mean(0), 50)), np.square(x).mean(0), rtol=1e-6)
    assert importance(Stats(np.zeros((7, 7)), np.zeros(7), 0)).tolist() == [0.0] * 7


@pytest.mark.parametrize("most", ["3e+09", "2e+19", "3e+38"])  # of which squares, sums or nothing is finite
@pytest.mark.parametrize("kind", PACKED)
def test_values_too_large_for_the_scales_are_refused_in_any_row(kind: str, most: str) -> None:
    w = np.ones((3, 256), np.float32)
    quantize(w * np.float32(1000), kind)
    w[2] = np.linspace(-1, 1, 256) * np.float32(most)
    with pytest.raises(ModelError, match=rf"{re.escape(most)}, beyond .*float16"):
        quantize(w, kind)


@pytest.mark.parametrize("kind", ["Q4_0", "Q6_K", "F16"])
def test_what_is_no_matrix_or_no_bytes_is_refused(kind: str) -> None:
    """Each of it alone: dimensions, type and width."""
    width, nbytes = 256, 256 // KINDS[kind].size * KINDS[kind].nbytes
    for shape in ((width,), (1, 1, width)):
        with pytest.raises(ModelError, match="does not divide"):
            quantize(np.ones(shape, np.float32), kind)
    for data in (np.zeros(nbytes, np.uint8), np.zeros((1, 1, nbytes), np.uint8), np.zeros((1, nbytes), np.int8)):
        with pytest.raises(ModelError, match=f"blocks of {KINDS[kind].nbytes} bytes"):
            dequantize(data, kind)
    for shape in ((257,), (2, 256), ()):
        with pytest.raises(ModelError, match="importance"):
            quantize(np.ones((2, 256), np.float32), kind, np.ones(shape, np.float32))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_nothing_stay_nothing(kind: str) -> None:
    for rows, blocks in ((0, 1), (3, 0), (0, 0)):
        data = quantize(np.zeros((rows, blocks * KINDS[kind].size), np.float32), kind)
        assert data.shape == (rows, blocks * KINDS[kind].nbytes)
        assert dequantize(data, kind).shape == (rows, blocks * KINDS[kind].size)
