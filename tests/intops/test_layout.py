"""Operators that move, join and resize codes: against LiteRT, numpy and the decimal definition."""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_DOWN, ROUND_HALF_UP, Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.intops import layout
from edgeq.intops.concat import ConcatParams, concatenation
from edgeq.intops.quant import Quant
from edgeq.intops.resize import ResizeParams, axis_bilinear, onnx_nearest, resize_bilinear, resize_nearest_neighbor
from tests.intops.drawn import SEEDS, codes, quants
from tests.intops.litert import activation, constant, run_op, same


@settings(max_examples=200, deadline=None)
@given(SEEDS, st.tuples(*[st.integers(1, 9)] * 4), st.sampled_from(["", "alignCorners", "halfPixelCenters"]),
       st.sampled_from(["int8", "uint8"]))  # fmt: skip
def test_resize(seed, sizes, flag, dtype) -> None:
    rng = np.random.default_rng(seed)
    x = codes(rng, (2, *sizes[:2], 3), dtype)
    quant = Quant(0.1, 3, dtype)
    params = ResizeParams(sizes[2:], flag == "alignCorners", flag == "halfPixelCenters")
    for code, function in (
        ("RESIZE_BILINEAR", resize_bilinear),
        ("RESIZE_NEAREST_NEIGHBOR", resize_nearest_neighbor),
    ):
        want = run_op(
            code, [activation("x", x.shape, quant), constant("size", np.array(sizes[2:], np.int32))], {"x": x},
            activation("y", (2, *sizes[2:], 3), quant), {flag: True} if flag else {},
        )  # fmt: skip
        same(function(x, params), want)


@settings(max_examples=50, deadline=None)
@given(SEEDS, st.integers(-1, 2), quants(), quants())
def test_concatenation_requantizes_what_differs(seed, axis, first, out) -> None:
    """LiteRT's int8 CONCATENATION wants one scale: a QUANTIZE before it makes the same model."""
    rng = np.random.default_rng(seed)
    x, y = codes(rng, (2, 3, 4)), codes(rng, (2, 3, 4))
    moved = run_op("QUANTIZE", [activation("x", x.shape, first)], {"x": x}, activation("m", x.shape, out))
    shape = np.concatenate([x, y], axis).shape
    want = run_op(
        "CONCATENATION", [activation("m", x.shape, out), activation("y", y.shape, out)], {"m": moved, "y": y},
        activation("z", shape, out), {"axis": axis},
    )  # fmt: skip
    same(concatenation([x, y], ConcatParams((first, out), out, axis)), want)


def test_moves() -> None:
    rng = np.random.default_rng(0)
    x, quant = codes(rng, (2, 4, 6, 8)), Quant(0.1, -7)
    pads = np.array([[0, 0], [1, 2], [0, 3], [0, 0]], np.int32)
    axes, begin, size = np.array([0, 3, 1, 2], np.int32), np.array([0, 1, 2, 0], np.int32), np.array([2, 2, -1, 8])
    cases = [
        ("PAD", [constant("c", pads)], {}, layout.pad(x, pads.tolist(), quant)),
        ("TRANSPOSE", [constant("c", axes)], {}, layout.transpose(x, axes)),
        ("RESHAPE", [constant("c", np.array([8, -1], np.int32))], {}, layout.reshape(x, (8, -1))),
        ("SLICE", [constant("b", begin), constant("s", size.astype(np.int32))], {}, layout.slice_(x, begin, size)),
        ("STRIDED_SLICE", [constant("b", begin), constant("e", np.array([2, 4, 0, 8], np.int32)),
                           constant("s", np.array([1, 2, -1, 3], np.int32))], {},
         layout.strided_slice(x, begin, (2, 4, 0, 8), (1, 2, -1, 3))),
        ("GATHER", [constant("i", np.array([3, 0, 3], np.int32))], {"axis": 1},
         layout.gather(x, np.array([3, 0, 3]), 1)),
        ("DEPTH_TO_SPACE", [], {"blockSize": 2}, layout.depth_to_space(x, 2)),
        ("SPACE_TO_DEPTH", [], {"blockSize": 2}, layout.space_to_depth(x, 2)),
    ]  # fmt: skip
    for code, constants, options, got in cases:
        given_ = [activation("x", x.shape, quant), *constants]
        same(got, run_op(code, given_, {"x": x}, activation("y", got.shape, quant), options))
    assert all(np.array_equal(a, b) for a, b in zip(layout.split(x, 3, 2), (x[..., :4], x[..., 4:]), strict=True))


@pytest.mark.parametrize("block", [2, 3])
def test_depth_and_space_by_their_definition(block) -> None:
    x = codes(np.random.default_rng(block), (2, 3, 2, 4 * block**2))
    deep = layout.depth_to_space(x, block)
    assert deep.shape == (2, 3 * block, 2 * block, 4)
    for n, row, column, c in np.ndindex(deep.shape):
        inner = (row % block) * block + column % block
        assert deep[n, row, column, c] == x[n, row // block, column // block, inner * 4 + c]
    same(layout.space_to_depth(deep, block), x)


def test_onnx_nearest_by_decimal_rounding() -> None:
    """ROUND_HALF_DOWN and ROUND_HALF_UP are towards and away from zero: positions are not negative but at the edge."""
    ways = {"floor": ROUND_FLOOR, "ceil": ROUND_CEILING, "round_prefer_floor": ROUND_HALF_DOWN,
            "round_prefer_ceil": ROUND_HALF_UP}  # fmt: skip
    positions = np.arange(-0.25, 6.5, 0.25)
    for mode, way in ways.items():
        want = [min(max(int(Decimal(float(p)).to_integral_value(way)), 0), 4) for p in positions]
        assert onnx_nearest(positions, mode, 5).tolist() == want


@settings(max_examples=50, deadline=None)
@given(SEEDS, quants("uint8"), quants("uint8"))
def test_concatenation_of_uint8_is_litert_s(seed, first, out) -> None:
    """Its uint8 kernel takes inputs of any scale."""
    rng = np.random.default_rng(seed)
    x, y = codes(rng, (2, 3, 40), "uint8"), codes(rng, (2, 3, 40), "uint8")
    want = run_op(
        "CONCATENATION", [activation("x", x.shape, first), activation("y", y.shape, out)], {"x": x, "y": y},
        activation("z", (4, 3, 40), out), {"axis": 0},
    )  # fmt: skip
    same(concatenation([x, y], ConcatParams((first, out), out, 0)), want)


def test_a_resize_has_neither_flag_unless_told() -> None:
    x = np.arange(12, dtype=np.int8).reshape(1, 3, 4, 1)
    quant = Quant(0.5, 0, "int8")
    want = run_op(
        "RESIZE_BILINEAR", [activation("x", x.shape, quant), constant("s", np.int32([7, 9]))], {"x": x},
        activation("y", (1, 7, 9, 1), quant), {"alignCorners": False, "halfPixelCenters": False},
    )  # fmt: skip
    same(resize_bilinear(x, ResizeParams((7, 9))), want)


def test_layout_defaults_and_edges() -> None:
    x = np.arange(24, dtype=np.int8).reshape(2, 3, 4)
    np.testing.assert_array_equal(layout.gather(x, np.array([1])), x[1:])
    np.testing.assert_array_equal(layout.slice_(x, (1, 0, 2), (-1, 2, 1)), x[1:, :2, 2:3])
    for short in (layout.slice_, lambda *a: layout.strided_slice(*a, (1, 1, 1))):
        with pytest.raises(ValueError, match=r"shorter|longer"):
            short(x, (0, 0, 0), (1, 1))
    assert layout.pad(x, ((0, 1), (0, 0), (2, 0)), Quant(1.0, 9))[2, 0, 0] == 9


def test_concatenation_is_along_the_last_axis_of_as_many_as_are_described() -> None:
    x, quant = codes(np.random.default_rng(2), (2, 3)), Quant(0.5)
    np.testing.assert_array_equal(concatenation([x, x], ConcatParams((quant, quant), quant)), np.concatenate([x, x], 1))
    with pytest.raises(ValueError, match=r"shorter|longer"):
        concatenation([x, x], ConcatParams((quant,), quant))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 30), st.sampled_from(["", "align", "half"]))
def test_sources_of_a_resize_are_the_real_positions(n, out, flag) -> None:
    """Within a 1024th and what its rounding of the scale adds over the length; nearest is exact."""
    params = ResizeParams((out, 1), flag == "align", flag == "half")
    lower, upper, weight = axis_bilinear(n, out, params)
    i = np.arange(out)
    if flag == "align" and out > 1:
        real = i * (n - 1) / (out - 1)
    else:
        real = (i + 0.5) * n / out - 0.5 if flag == "half" else i * n / out
    assert ((lower >= 0) & (lower <= upper) & (upper < n))[real < n - 1].all()
    inside = (real >= 0) & (real <= n - 1)
    assert np.abs(lower + weight / 1024 - real)[inside].max(initial=0) <= (0.5 * out + 1) / 1024
    x = np.arange(n, dtype=np.int8).reshape(1, n, 1, 1)
    got = resize_nearest_neighbor(x, params)[0, :, 0, 0]
    source = real + 0.5 if flag == "align" else np.floor((i + 0.5) * n / out) if flag == "half" else real
    sound = np.abs(source - np.rint(source)) > 1e-4 if flag != "half" else np.abs((i + 0.5) * n / out % 1 - 0.5) < 0.499
    np.testing.assert_array_equal(got[sound], np.clip(np.floor(source), 0, n - 1)[sound])
