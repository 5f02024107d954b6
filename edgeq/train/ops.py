"""ONNX operators in torch: `OPS[op](node, *tensors)`, for the graphs that `prepare` gives. Source: the ONNX operator
specification, opset 21; an operand that is absent is None.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional

from edgeq.errors import ModelError

Op = Callable[..., Any]


def _ints(node: ir.Node, name: str, default: list[int]) -> list[int]:
    return [int(v) for v in node.attributes.get_ints(name, default)]


def _pads(node: ir.Node, x: Tensor, kernel: list[int], strides: list[int], dilations: list[int]) -> list[int]:
    """The padding of a convolution or pool, as ONNX lays it out: all beginnings, then all ends."""
    dims = x.dim() - 2
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    pads = _ints(node, "pads", [0] * 2 * dims)
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        for axis in range(dims):
            size, span = x.shape[2 + axis], dilations[axis] * (kernel[axis] - 1) + 1
            total = max((-(-size // strides[axis]) - 1) * strides[axis] + span - size, 0)
            small, large = total // 2, total - total // 2
            pads[axis], pads[dims + axis] = (small, large) if auto == "SAME_UPPER" else (large, small)
    return pads


def _padded(x: Tensor, pads: list[int], value: float) -> Tensor:
    """x with that padding made explicit."""
    dims = x.dim() - 2
    if not any(pads):
        return x
    flat = [p for axis in reversed(range(dims)) for p in (pads[axis], pads[dims + axis])]
    return functional.pad(x, flat, value=value)


def conv(node: ir.Node, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    dims = x.dim() - 2
    strides, dilations = _ints(node, "strides", [1] * dims), _ints(node, "dilations", [1] * dims)
    pads = _pads(node, x, list(w.shape[2:]), strides, dilations)
    if pads[:dims] != pads[dims:]:  # even ones torch's convolutions add themselves
        x, pads = _padded(x, pads, 0.0), [0] * 2 * dims
    if dims == 2 and x.device.type == "cpu":  # the layout of oneDNN's kernels, which else reorder both each time
        x, w = (t.contiguous(memory_format=torch.channels_last) for t in (x, w))
    function = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[dims]
    return function(x, w, b, strides, pads[:dims], dilations, node.attributes.get_int("group", 1))


def gemm(node: ir.Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a = a.T if node.attributes.get_int("transA", 0) else a
    b = b.T if node.attributes.get_int("transB", 0) else b
    y = node.attributes.get_float("alpha", 1.0) * (a @ b)
    return y if c is None else y + node.attributes.get_float("beta", 1.0) * c


def pool(node: ir.Node, x: Tensor, greatest: bool) -> Tensor:
    dims = x.dim() - 2
    kernel = _ints(node, "kernel_shape", [])
    strides, dilations = _ints(node, "strides", [1] * dims), _ints(node, "dilations", [1] * dims)
    if node.attributes.get_int("ceil_mode", 0):
        raise ModelError(f"node {node.name!r} ({node.op_type}): ceil_mode can't be trained; export without it")
    pads = _pads(node, x, kernel, strides, dilations)
    if greatest:
        x = _padded(x, pads, -math.inf)
        return {1: functional.max_pool1d, 2: functional.max_pool2d}[dims](x, kernel, strides, 0, dilations)
    ones = torch.ones_like(x[:1, :1])
    padded = _padded(x, pads, 0.0)
    average = {1: functional.avg_pool1d, 2: functional.avg_pool2d}[dims]
    y = average(padded, kernel, strides)
    if node.attributes.get_int("count_include_pad", 0) or padded is x:
        return y
    return y / average(_padded(ones, pads, 0.0), kernel, strides)


def reduced(node: ir.Node, x: Tensor, axes: Tensor | None, function: Callable[..., Tensor]) -> Tensor:
    found = axes.tolist() if axes is not None else _ints(node, "axes", list(range(x.dim())))
    return function(x, dim=tuple(int(a) for a in found), keepdim=bool(node.attributes.get_int("keepdims", 1)))


def sliced(
    node: ir.Node, x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None
) -> Tensor:
    which = axes.tolist() if axes is not None else range(len(starts))
    strides = steps.tolist() if steps is not None else [1] * len(starts)
    for axis, start, end, step in zip(which, starts.tolist(), ends.tolist(), strides, strict=True):
        index = (
            torch.arange(x.shape[axis])[slice(int(start), None if end < -(2**31) else int(end), int(step))]
            if step > 0
            else None
        )
        if index is None:
            chosen = list(range(x.shape[axis]))[
                slice(int(start), None if end < -x.shape[axis] else int(end), int(step))
            ]
            index = torch.tensor(chosen, dtype=torch.long)
        x = x.index_select(int(axis), index.to(x.device))
    return x


def split(node: ir.Node, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = node.attributes.get_int("axis", 0)
    if sizes is not None:
        return tuple(x.split(sizes.tolist(), axis))
    return tuple(x.split(-(-x.shape[axis] // len(node.outputs)), axis))


def reshape(node: ir.Node, x: Tensor, shape: Tensor) -> Tensor:
    keep = not node.attributes.get_int("allowzero", 0)
    return x.reshape([x.shape[i] if n == 0 and keep else n for i, n in enumerate(shape.tolist())])


def pad(node: ir.Node, x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None) -> Tensor:
    mode = node.attributes.get_string("mode", "constant")
    dims = axes.tolist() if axes is not None else list(range(x.dim()))
    given = pads.tolist()
    both = {int(d) % x.dim(): (given[i], given[len(dims) + i]) for i, d in enumerate(dims)}
    flat = [p for axis in reversed(range(x.dim())) for p in both.get(axis, (0, 0))]
    if mode == "constant":
        return functional.pad(x, flat, value=0.0 if value is None else float(value))
    while len(flat) > 2 and flat[-2:] == [0, 0]:
        flat = flat[:-2]
    return functional.pad(x, flat, mode={"reflect": "reflect", "edge": "replicate"}[mode])


def resize(
    node: ir.Node, x: Tensor, roi: Any = None, scales: Tensor | None = None, sizes: Tensor | None = None
) -> Tensor:
    mode = node.attributes.get_string("mode", "nearest")
    how = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    size = [int(s) for s in sizes.tolist()[2:]] if sizes is not None else None
    factor = scales.tolist()[2:] if size is None and scales is not None else None
    if mode == "nearest" and how in ("asymmetric", "half_pixel"):
        return functional.interpolate(x, size, factor, mode="nearest" if how == "asymmetric" else "nearest-exact")
    if mode == "linear" and how in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        return functional.interpolate(x, size, factor, mode="bilinear", align_corners=how == "align_corners")
    raise ModelError(f"node {node.name!r} (Resize): {mode} with {how} can't be trained; use half_pixel")


def layer_norm(node: ir.Node, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    axis = node.attributes.get_int("axis", -1) % x.dim()
    return functional.layer_norm(x, x.shape[axis:], scale, bias, node.attributes.get_float("epsilon", 1e-5))


def clip(node: ir.Node, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return x.clamp(None if low is None else float(low), None if high is None else float(high))


def gelu(node: ir.Node, x: Tensor) -> Tensor:
    return functional.gelu(x, approximate=node.attributes.get_string("approximate", "none"))


def unsqueeze(node: ir.Node, x: Tensor, axes: Tensor) -> Tensor:
    rank = x.dim() + axes.numel()
    for axis in sorted(int(a) % rank for a in axes.reshape(-1).tolist()):
        x = x.unsqueeze(axis)
    return x


def squeeze(node: ir.Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(int(a) for a in axes.reshape(-1).tolist()))


def flatten(node: ir.Node, x: Tensor) -> Tensor:
    axis = node.attributes.get_int("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), -1)


def gather(node: ir.Node, x: Tensor, indices: Tensor) -> Tensor:
    axis = node.attributes.get_int("axis", 0) % x.dim()
    indices = torch.where(indices < 0, indices + x.shape[axis], indices).long().to(x.device)
    found = x.index_select(axis, indices.reshape(-1))
    return found.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def cast(node: ir.Node, x: Tensor) -> Tensor:
    kinds = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool, 10: torch.float16, 11: torch.float64}
    return x.to(kinds[node.attributes.get_int("to", 1)])


def depth_to_space(node: ir.Node, x: Tensor) -> Tensor:
    size = node.attributes.get_int("blocksize", 1)
    if node.attributes.get_string("mode", "DCR") == "CRD":
        return functional.pixel_shuffle(x, size)
    n, c, h, w = x.shape
    return x.reshape(n, size, size, c // size**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, -1, h * size, w * size)


def _space_to_depth(x: Tensor, size: int) -> Tensor:
    n, c, h, w = x.shape
    return (
        x.reshape(n, c, h // size, size, w // size, size).permute(0, 3, 5, 1, 2, 4).reshape(n, -1, h // size, w // size)
    )


def _power(base: Tensor, exponent: Tensor) -> Tensor:
    return base.pow(exponent.to(base.dtype))


def _unary(function: Callable[[Tensor], Tensor]) -> Op:
    return lambda node, x: function(x)


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Op:
    return lambda node, x, y: function(x, y)


OPS: dict[str, Op] = {
    "Conv": conv,
    "Gemm": gemm,
    "MatMul": _binary(torch.matmul),
    "Add": _binary(torch.add),
    "Sub": _binary(torch.sub),
    "Mul": _binary(torch.mul),
    "Div": lambda node, x, y: x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc"),
    "Pow": _binary(_power),
    "Max": _binary(torch.maximum),
    "Min": _binary(torch.minimum),
    "Equal": _binary(torch.eq),
    "Less": _binary(torch.lt),
    "Greater": _binary(torch.gt),
    "And": _binary(torch.logical_and),
    "Sum": lambda node, *xs: torch.stack(torch.broadcast_tensors(*xs)).sum(0),
    "Where": lambda node, c, x, y: torch.where(c, x, y),
    "Relu": _unary(torch.relu),
    "Sigmoid": _unary(torch.sigmoid),
    "Tanh": _unary(torch.tanh),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Log": _unary(torch.log),
    "Sqrt": _unary(torch.sqrt),
    "Neg": _unary(torch.neg),
    "Abs": _unary(torch.abs),
    "Sin": _unary(torch.sin),
    "Cos": _unary(torch.cos),
    "Not": _unary(torch.logical_not),
    "Reciprocal": _unary(torch.reciprocal),
    "Identity": _unary(lambda x: x),
    "Dropout": lambda node, x, *_: x,
    "Softplus": _unary(functional.softplus),
    "Mish": _unary(functional.mish),
    "HardSwish": _unary(functional.hardswish),
    "HardSigmoid": lambda node, x: (
        x * node.attributes.get_float("alpha", 0.2) + node.attributes.get_float("beta", 0.5)
    ).clamp(0, 1),
    "LeakyRelu": lambda node, x: functional.leaky_relu(x, node.attributes.get_float("alpha", 0.01)),
    "Elu": lambda node, x: functional.elu(x, node.attributes.get_float("alpha", 1.0)),
    "PRelu": lambda node, x, slope: torch.where(x < 0, slope * x, x),
    "Gelu": gelu,
    "Clip": clip,
    "Softmax": lambda node, x: x.softmax(node.attributes.get_int("axis", -1)),
    "LogSoftmax": lambda node, x: x.log_softmax(node.attributes.get_int("axis", -1)),
    "LayerNormalization": layer_norm,
    "MaxPool": lambda node, x: pool(node, x, True),
    "AveragePool": lambda node, x: pool(node, x, False),
    "GlobalAveragePool": _unary(lambda x: x.mean(tuple(range(2, x.dim())), keepdim=True)),
    "GlobalMaxPool": _unary(lambda x: x.amax(tuple(range(2, x.dim())), keepdim=True)),
    "ReduceMean": lambda node, x, axes=None: reduced(node, x, axes, torch.mean),
    "ReduceSum": lambda node, x, axes=None: reduced(node, x, axes, torch.sum),
    "ReduceMax": lambda node, x, axes=None: reduced(node, x, axes, torch.amax),
    "ReduceMin": lambda node, x, axes=None: reduced(node, x, axes, torch.amin),
    "Concat": lambda node, *xs: torch.cat(xs, node.attributes.get_int("axis", 0)),
    "Split": split,
    "Slice": sliced,
    "Pad": pad,
    "Resize": resize,
    "Reshape": reshape,
    "Flatten": flatten,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Transpose": lambda node, x: x.permute(_ints(node, "perm", list(reversed(range(x.dim()))))),
    "Expand": lambda node, x, shape: x * torch.ones(shape.tolist(), dtype=x.dtype, device=x.device),
    "Tile": lambda node, x, repeats: x.repeat(repeats.tolist()),
    "Gather": gather,
    "Cast": cast,
    "Shape": lambda node, x: torch.tensor(x.shape)[
        node.attributes.get_int("start", 0) : node.attributes.get_int("end", x.dim())
    ],
    "ConstantOfShape": lambda node, shape: torch.full(
        shape.tolist(), float(node.attributes["value"].as_tensor().numpy().reshape(-1)[0])
        if "value" in node.attributes else 0.0
    ),
    "Range": lambda node, start, limit, delta: torch.arange(start.item(), limit.item(), delta.item()),
    "DepthToSpace": lambda node, x: depth_to_space(node, x),
    "SpaceToDepth": lambda node, x: _space_to_depth(x, node.attributes.get_int("blocksize", 1)),
}  # fmt: skip
