"""What a quantized unit gives on NNAPI's reference driver: its uint8 arithmetic, from the kernels of `edgeq.intops`.

Where NNAPI differs from TFLite: the product of an input's and a weight's scale is rounded to float32 before it is
divided by the output's (OperationsUtils.cpp, GetQuantizedConvolutionMultiplier), which now and then moves the last bit
of a multiplier; uint8 Concat and Resize are computed in float32 in both. Drivers of vendors may be a code apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import ceil
from typing import Any

import numpy as np

from edgeq.errors import ModelError
from edgeq.graph.edit import constant, static_shape
from edgeq.intops import concat, conv, elementwise, fully_connected, pool, requantize, resize, softmax
from edgeq.intops.quant import Quant
from edgeq.intops.windows import Pads, Pair
from edgeq.nnapi.support import product
from edgeq.nnapi.units import DQ, Operand, Q, Unit
from edgeq.numerics.fixedpoint import Rounding

Arrays = Mapping[str, np.ndarray]
NHWC, NCHW = (0, 2, 3, 1), (0, 3, 1, 2)


def execute(unit: Unit, arrays: Arrays, rounding: Rounding = "double") -> np.ndarray:
    """The codes that a unit makes (floats of a DequantizeLinear), in ONNX's layout.

    arrays: by name what the unit reads. The unit is one that `support.refusal` takes. Raises ModelError when an
    accumulator leaves int32.
    """
    try:
        return KERNELS[unit.op](unit, arrays, rounding)
    except ModelError as error:
        raise ModelError(f"node {unit.name}: {error}") from None


def quant(operand: Operand | None) -> Quant:
    """One scale and one zero point for the whole tensor."""
    assert operand is not None
    assert operand.scale is not None
    assert operand.zero_point is not None
    return Quant(float(operand.scale.reshape(())), int(operand.zero_point.reshape(())), operand.dtype)


def array(operand: Operand | None, arrays: Arrays) -> np.ndarray:
    """Constant or computed."""
    assert operand is not None
    held = constant(operand.value)
    return arrays[operand.name] if held is None else held


def _pads(unit: Unit, size: Pair, kernel: Pair, strides: Pair, dilations: Pair) -> Pads:
    """((top, bottom), (left, right)) of a Conv or pool, auto_pad included."""
    kind = unit.node.attributes.get_string("auto_pad", "NOTSET")
    if kind in ("NOTSET", "VALID"):
        top, left, bottom, right = unit.node.attributes.get_ints("pads", (0,) * 4) if kind == "NOTSET" else (0,) * 4
        return (top, bottom), (left, right)

    def along(n: int, k: int, stride: int, dilation: int) -> Pair:
        total = max((ceil(n / stride) - 1) * stride + (k - 1) * dilation + 1 - n, 0)
        small = total // 2
        return (small, total - small) if kind == "SAME_UPPER" else (total - small, small)

    rows, columns = (along(*axis) for axis in zip(size, kernel, strides, dilations, strict=True))
    return rows, columns


def _pair(unit: Unit, name: str) -> Pair:
    first, second = unit.node.attributes.get_ints(name, (1, 1))
    return first, second


def _layer(unit: Unit) -> dict[str, Any]:
    """The scale of x is within w_scale, rounded to float32 with it."""
    x, w = unit.inputs[0], unit.inputs[1]
    assert x is not None
    assert w is not None
    assert w.zero_point is not None
    unscaled = Quant(1.0, quant(x).zero_point, x.dtype)
    zero = int(w.zero_point.reshape(-1)[0])
    return {"x": unscaled, "w_scale": product(x, w), "out": quant(unit.outputs[0]), "w_zero_point": zero}


def _bias(unit: Unit, arrays: Arrays) -> np.ndarray | None:
    bias = unit.inputs[2] if len(unit.inputs) > 2 else None
    return None if bias is None else array(bias, arrays).reshape(-1)


def _conv(unit: Unit, arrays: Arrays, rounding: Rounding) -> np.ndarray:
    x, w = array(unit.inputs[0], arrays), array(unit.inputs[1], arrays)
    kernel, strides, dilations = (w.shape[2], w.shape[3]), _pair(unit, "strides"), _pair(unit, "dilations")
    pads = _pads(unit, (x.shape[2], x.shape[3]), kernel, strides, dilations)
    params = conv.ConvParams(strides=strides, pads=pads, dilations=dilations, rounding=rounding, **_layer(unit))
    depthwise = unit.node.attributes.get_int("group", 1) > 1 and w.shape[1] == 1
    function, order = (conv.depthwise_conv_2d, (1, 2, 3, 0)) if depthwise else (conv.conv_2d, NHWC)
    return function(x.transpose(NHWC), w.transpose(order), _bias(unit, arrays), params).transpose(NCHW)


def _matmul(unit: Unit, arrays: Arrays, rounding: Rounding) -> np.ndarray:
    w = array(unit.inputs[1], arrays)
    rows = w if unit.node.attributes.get_int("transB", 0) else w.T
    params = fully_connected.FullyConnectedParams(rounding=rounding, **_layer(unit))
    return fully_connected.fully_connected(array(unit.inputs[0], arrays), rows, _bias(unit, arrays), params)


def _binary(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    def run(unit: Unit, arrays: Arrays, rounding: Rounding) -> np.ndarray:
        left, right = unit.inputs
        params = elementwise.BinaryParams(quant(left), quant(right), quant(unit.outputs[0]), rounding=rounding)
        return function(array(left, arrays), array(right, arrays), params)

    return run


def _average_pool(unit: Unit, arrays: Arrays, rounding: Rounding) -> np.ndarray:
    x, kernel, strides = array(unit.inputs[0], arrays), _pair(unit, "kernel_shape"), _pair(unit, "strides")
    pads = _pads(unit, (x.shape[2], x.shape[3]), kernel, strides, (1, 1))
    params = pool.PoolParams(quant(unit.outputs[0]), kernel, strides, pads)
    return pool.average_pool_2d(x.transpose(NHWC), params).transpose(NCHW)


def _resize(unit: Unit, arrays: Arrays, rounding: Rounding) -> np.ndarray:
    shape = static_shape(unit.node.outputs[0])
    assert shape is not None
    get = unit.node.attributes.get_string
    function = resize.resize_bilinear if get("mode", "nearest") == "linear" else resize.resize_nearest_neighbor
    position = get("coordinate_transformation_mode", "half_pixel")
    params = resize.ResizeParams((shape[2], shape[3]), position == "align_corners", position == "half_pixel")
    return function(array(unit.inputs[0], arrays).transpose(NHWC), params).transpose(NCHW)


def _softmax(unit: Unit, arrays: Arrays, rounding: Rounding) -> np.ndarray:
    axis = unit.node.attributes.get_int("axis", -1)
    moved = np.moveaxis(array(unit.inputs[0], arrays), axis, -1)
    return np.moveaxis(softmax.softmax(moved, softmax.SoftmaxParams(quant(unit.inputs[0]))), -1, axis)


def _concat(unit: Unit, arrays: Arrays, rounding: Rounding) -> np.ndarray:
    axis = unit.node.attributes.get_int("axis", 0)
    params = concat.ConcatParams(tuple(map(quant, unit.inputs)), quant(unit.outputs[0]), axis, rounding)
    return concat.concatenation([array(x, arrays) for x in unit.inputs], params)


def _transpose(unit: Unit, arrays: Arrays, rounding: Rounding) -> np.ndarray:
    x = array(unit.inputs[0], arrays)
    return x.transpose(unit.node.attributes.get_ints("perm", tuple(reversed(range(x.ndim)))))


def _reshape(unit: Unit, arrays: Arrays, rounding: Rounding) -> np.ndarray:
    x, wanted = array(unit.inputs[0], arrays), array(unit.inputs[1], arrays).tolist()
    return x.reshape([x.shape[i] if n == 0 else n for i, n in enumerate(wanted)])


def _quantize(unit: Unit, arrays: Arrays, rounding: Rounding) -> np.ndarray:
    return requantize.quantize(
        array(unit.inputs[0], arrays), requantize.QuantizeParams(None, quant(unit.outputs[0]), rounding)
    )


def _dequantize(unit: Unit, arrays: Arrays, rounding: Rounding) -> np.ndarray:
    return requantize.dequantize(array(unit.inputs[0], arrays), quant(unit.inputs[0]))


KERNELS: dict[str, Callable[[Unit, Arrays, Rounding], np.ndarray]] = {
    "Conv": _conv,
    "Gemm": _matmul,
    "MatMul": _matmul,
    "Add": _binary(elementwise.add),
    "Mul": _binary(elementwise.mul),
    "AveragePool": _average_pool,
    "Resize": _resize,
    "Softmax": _softmax,
    "Concat": _concat,
    "Transpose": _transpose,
    "Reshape": _reshape,
    Q: _quantize,
    DQ: _dequantize,
}
