"""`run`: an integer TFLite model in NumPy, by the kernels of `edgeq.intops`, bit for bit LiteRT's reference kernels.

`rounding` overrides the requantization of every operator that multiplies by a mantissa and shift, to see what a
runtime with the other one would give. Float operators are refused: what is not integer has no one right answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from edgeq.errors import TargetError
from edgeq.formats.tflite_file import TfModel, TfOp, TfTensor
from edgeq.intops import (
    concat,
    conv,
    elementwise,
    fully_connected,
    layout,
    matmul,
    mean,
    pool,
    requantize,
    resize,
    tables,
)
from edgeq.intops import softmax as softmax_ops
from edgeq.intops.quant import Quant
from edgeq.intops.windows import Pads, same_pads
from edgeq.numerics.fixedpoint import Rounding


@dataclass(frozen=True, eq=False)
class Call:
    """One operator with its operands: tensors (None where absent), their arrays, and what it must give."""

    op: TfOp
    tensors: tuple[TfTensor | None, ...]
    arrays: tuple[np.ndarray | None, ...]
    out: TfTensor
    rounding: Rounding | None

    def option(self, name: str, default: Any = None) -> Any:
        return self.op.options.get(name, default)

    def pair(self, name: str, default: int = 1) -> tuple[int, int]:
        height, width = name.format("H"), name.format("W")
        return int(self.option(height, default)), int(self.option(width, default))

    def quant(self, index: int = 0) -> Quant:
        return quant(self.tensors[index])

    def x(self, index: int = 0) -> np.ndarray:
        array = self.arrays[index]
        assert array is not None
        return array

    def list(self, index: int) -> list[int]:
        return [int(v) for v in self.x(index).ravel()]

    def pads(self, kernel: tuple[int, int], dilations: tuple[int, int] = (1, 1)) -> Pads:
        if self.option("padding", "SAME") == "VALID":
            return (0, 0), (0, 0)
        height, width = self.x().shape[1:3]
        return same_pads((height, width), kernel, self.pair("stride{}"), dilations)


def quant(tensor: TfTensor | None) -> Quant:
    """A tensor's scale and zero point. Raises TargetError for a float tensor, or several scales."""
    if tensor is None or tensor.scale is None or len(tensor.scale) != 1:
        raise TargetError(
            tensor.name if tensor else "?", "it is not quantized per tensor, and only integers are emulated"
        )
    zero = 0 if tensor.zero_point is None else int(np.ravel(tensor.zero_point)[0])
    return Quant(float(tensor.scale[0]), zero, tensor.dtype)


def _layer(call: Call, default: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, dict[str, Any]]:
    w = call.tensors[1]
    assert w is not None
    assert w.scale is not None
    zero = 0 if w.zero_point is None else int(np.ravel(w.zero_point)[0])
    bias = call.arrays[2] if len(call.arrays) > 2 else None
    wide = default != "real" and call.quant().dtype == "int16"
    common = {
        "x": call.quant(), "w_scale": w.scale, "out": quant(call.out), "w_zero_point": zero,
        "activation": call.option("fusedActivationFunction", "NONE"),
        "rounding": "int16x8" if wide else call.rounding or default,
    }  # fmt: skip
    return call.x(), call.x(1), bias, common


def _conv(call: Call, function: Callable[..., np.ndarray]) -> np.ndarray:
    x, w, bias, common = _layer(call, "double")
    dilations = call.pair("dilation{}Factor")
    pads = call.pads(w.shape[1:3], dilations)
    return function(
        x, w, bias, conv.ConvParams(strides=call.pair("stride{}"), pads=pads, dilations=dilations, **common)
    )


def _transpose_conv(call: Call) -> np.ndarray:
    height, width = call.list(0)[1:3]
    moved = Call(call.op, call.tensors[2:1:-1] + call.tensors[1:2] + call.tensors[3:],
                 call.arrays[2:1:-1] + call.arrays[1:2] + call.arrays[3:], call.out, call.rounding)  # fmt: skip
    x, w, bias, common = _layer(moved, "double")
    strides, kernel = call.pair("stride{}"), (w.shape[1], w.shape[2])
    valid = call.option("padding", "SAME") == "VALID"
    pads = ((0, 0), (0, 0)) if valid else same_pads((height, width), kernel, strides)
    return conv.transpose_conv(x, w, bias, conv.ConvParams(strides=strides, pads=pads, **common), (height, width))


def _fully_connected(call: Call) -> np.ndarray:
    x, w, bias, common = _layer(call, "real")
    params = fully_connected.FullyConnectedParams(**common)
    return fully_connected.fully_connected(x.reshape(-1, w.shape[1]), w, bias, params).reshape(call.out.shape)


def _binary(call: Call, function: Callable[..., np.ndarray]) -> np.ndarray:
    activation = call.option("fusedActivationFunction", "NONE")
    quants = call.quant(0), call.quant(1), quant(call.out)
    if call.option("potScaleInt16") and all(q.dtype == "int16" and math.frexp(q.scale)[0] == 0.5 for q in quants):
        raise TargetError(f"{call.op.code} {call.out.name!r}", "sums of 16-bit codes by shifts are not emulated")
    params = elementwise.BinaryParams(*quants, activation, call.rounding or "double")
    return function(call.x(), call.x(1), params)


def _table(call: Call, function: Callable[..., np.ndarray]) -> np.ndarray:
    alpha, approximate = float(call.option("alpha", 0.0)), bool(call.option("approximate", False))
    params = tables.TableParams(call.quant(), quant(call.out), alpha, approximate, call.rounding or "double")
    return function(call.x(), params)


def _pool(call: Call, function: Callable[..., np.ndarray]) -> np.ndarray:
    kernel = int(call.option("filterHeight")), int(call.option("filterWidth"))
    activation = call.option("fusedActivationFunction", "NONE")
    params = pool.PoolParams(quant(call.out), kernel, call.pair("stride{}"), call.pads(kernel), activation)
    return function(call.x(), params)


def _resize(call: Call, function: Callable[..., np.ndarray]) -> np.ndarray:
    height, width = call.list(1)
    flags = bool(call.option("alignCorners", False)), bool(call.option("halfPixelCenters", False))
    return function(call.x(), resize.ResizeParams((height, width), *flags))


def _matmul(call: Call) -> np.ndarray:
    adjoint = bool(call.option("adjX", False)), bool(call.option("adjY", False))
    params = matmul.MatMulParams(call.quant(0), call.quant(1), quant(call.out), *adjoint, call.rounding or "double")
    return matmul.batch_matmul(call.x(), call.x(1), params)


def _concat(call: Call) -> np.ndarray:
    given = tuple(call.quant(i) for i in range(len(call.tensors)))
    params = concat.ConcatParams(given, quant(call.out), int(call.option("axis", 0)), call.rounding or "double")
    return concat.concatenation([call.x(i) for i in range(len(call.tensors))], params)


def _mean(call: Call) -> np.ndarray:
    axes, keep = tuple(call.list(1)), bool(call.option("keepDims", False))
    params = mean.ReduceParams(call.quant(), quant(call.out), axes, keep, call.rounding or "double")
    return mean.mean(call.x(), params)


def _quantize(call: Call) -> np.ndarray:
    source = call.tensors[0]
    given = None if source is not None and source.scale is None else call.quant()
    return requantize.quantize(call.x(), requantize.QuantizeParams(given, quant(call.out), call.rounding or "double"))


def _strided_slice(call: Call) -> np.ndarray:
    begin, end, strides = (call.list(i) for i in (1, 2, 3))
    if any(call.option(name, 0) for name in ("ellipsisMask", "newAxisMask", "shrinkAxisMask", "beginMask")):
        raise TargetError(call.op.code, "only the end mask is emulated")
    mask = int(call.option("endMask", 0))
    bounds = [
        slice(b, None if mask >> i & 1 else e, s) for i, (b, e, s) in enumerate(zip(begin, end, strides, strict=True))
    ]
    return call.x()[tuple(bounds)]


KERNELS: dict[str, Callable[[Call], np.ndarray]] = {
    "CONV_2D": partial(_conv, function=conv.conv_2d),
    "DEPTHWISE_CONV_2D": partial(_conv, function=conv.depthwise_conv_2d),
    "TRANSPOSE_CONV": _transpose_conv,
    "FULLY_CONNECTED": _fully_connected,
    "BATCH_MATMUL": _matmul,
    "CONCATENATION": _concat,
    "MEAN": _mean,
    "QUANTIZE": _quantize,
    "DEQUANTIZE": lambda call: requantize.dequantize(call.x(), call.quant()),
    "SOFTMAX": lambda call: softmax_ops.softmax(
        call.x(), softmax_ops.SoftmaxParams(call.quant(), float(call.option("beta", 1.0)))
    ),
    **{code: partial(_binary, function=f) for code, f in elementwise.OPS.items()},
    **{code: partial(_table, function=f) for code, f in tables.OPS.items()},
    **{code: partial(_pool, function=f) for code, f in pool.OPS.items()},
    **{code: partial(_resize, function=f) for code, f in resize.OPS.items()},
    "PAD": lambda call: layout.pad(call.x(), call.x(1).tolist(), call.quant()),
    "PADV2": lambda call: np.pad(call.x(), call.x(1).tolist(), constant_values=call.x(2).ravel()[0]),
    "RESHAPE": lambda call: call.x().reshape(call.out.shape),
    "TRANSPOSE": lambda call: layout.transpose(call.x(), call.list(1)),
    "SLICE": lambda call: layout.slice_(call.x(), call.list(1), call.list(2)),
    "STRIDED_SLICE": _strided_slice,
    "GATHER": lambda call: layout.gather(call.x(), call.x(1), int(call.option("axis", 0))),
    "DEPTH_TO_SPACE": lambda call: layout.depth_to_space(call.x(), int(call.option("blockSize"))),
    "SPACE_TO_DEPTH": lambda call: layout.space_to_depth(call.x(), int(call.option("blockSize"))),
}


def run(
    model: TfModel, feeds: Mapping[str, np.ndarray], rounding: Rounding | None = None, taps: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """The model's outputs, and the tensors named in `taps`, by tensor name.

    feeds: an array for each input tensor. Raises TargetError for an operator without an integer kernel or with a
    float operand (QUANTIZE of a float input and DEQUANTIZE of an output are allowed).
    """
    tensors = {t.name: t for t in model.tensors}
    arrays = {t.name: t.data for t in model.tensors if t.data is not None} | dict(feeds)
    for op in model.ops:
        operands = tuple(tensors[n] if n else None for n in op.inputs)
        out = tensors[op.outputs[0]]
        kernel = KERNELS.get(op.code)
        real = any(t is not None and t.dtype == "float32" for t in (*operands, out))
        if kernel is None or len(op.outputs) != 1 or (real and op.code not in ("QUANTIZE", "DEQUANTIZE")):
            raise TargetError(f"{op.code} {out.name!r}", "it is not computed on integers", "quantize what it reads")
        given = tuple(arrays[n] if n else None for n in op.inputs)
        arrays[out.name] = kernel(Call(op, operands, given, out, rounding))
    return {name: arrays[name] for name in (*model.outputs, *taps)}
