"""Let the first convolution see four times the channels at half the size, exactly.

A stride-2 Conv of an image with C channels equals a stride-1 Conv of SpaceToDepth(2) of it, with 4C channels: tap u of
the kernel reads row 2i + u - pad, which is row i + a of phase b for u - pad = 2a + b, b in {0, 1}. onnxruntime's
symmetric int8 convolution wants a multiple of 4 channels, which three colours are not.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeq.graph.edit import Names, add_initializer, constant, make_node, static_shape


def rewrite(model: ir.Model) -> ir.Model:
    """Rewrite in place the 2-D stride-2 convolutions of graph inputs of known, even size; returns the model."""
    names = Names(model)
    for node in list(model.graph):
        if node.op_type == "Conv" and node.domain == "":
            _rewrite(model.graph, node, names)
    return model


def fold_kernel(weight: np.ndarray, pads: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """The kernel (O, C, kh, kw) for SpaceToDepth(2) of its input, (O, 4C, kh', kw'), and its top and left padding.

    pads: the old kernel's top and left padding.
    """
    out, channels, *sizes = weight.shape
    taps = [[divmod(u - pad, 2) for u in range(size)] for size, pad in zip(sizes, pads, strict=True)]
    least = [min(a for a, _ in axis) for axis in taps]
    size = [max(a for a, _ in axis) - low + 1 for axis, low in zip(taps, least, strict=True)]
    folded = np.zeros((out, 2, 2, channels, *size), weight.dtype)
    for u, (a, phase_h) in enumerate(taps[0]):
        for v, (b, phase_w) in enumerate(taps[1]):
            folded[:, phase_h, phase_w, :, a - least[0], b - least[1]] = weight[:, :, u, v]
    return folded.reshape(out, 4 * channels, *size), (-least[0], -least[1])


def _rewrite(graph: ir.Graph, node: ir.Node, names: Names) -> None:
    source, weight, shape = node.inputs[0], constant(node.inputs[1]), _image(node.inputs[0])
    if source is None or weight is None or shape is None or weight.ndim != 4 or weight.shape[1] % 4 == 0:
        return
    attributes = node.attributes
    pads = tuple(attributes.get_ints("pads", (0, 0, 0, 0)))
    plain = attributes.get_int("group", 1) == 1 and tuple(attributes.get_ints("dilations", (1, 1))) == (1, 1)
    auto = attributes.get_string("auto_pad", "NOTSET") != "NOTSET"
    if not plain or auto or tuple(attributes.get_ints("strides", (1, 1))) != (2, 2):
        return
    folded, begin = fold_kernel(weight, (pads[0], pads[1]))
    end = []
    for axis in (0, 1):
        rows = (shape[axis] + pads[axis] + pads[axis + 2] - weight.shape[2 + axis]) // 2 + 1
        end.append(rows - 1 + folded.shape[2 + axis] - shape[axis] // 2 - begin[axis])
    if min(*begin, *end) < 0:
        return
    assert source.shape is not None
    dims = [source.shape[0], folded.shape[1], shape[0] // 2, shape[1] // 2]
    deep = make_node(
        "SpaceToDepth", [source], names.new(f"{source.name}_deep"), source.dtype, ir.Shape(dims), {"blocksize": 2}
    )
    graph.insert_before(node, deep)
    node.replace_input_with(0, deep.outputs[0])
    node.replace_input_with(1, add_initializer(graph, names.new(f"{node.name}_stem"), folded))
    attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", list(folded.shape[2:]))
    attributes["strides"] = ir.AttrInt64s("strides", [1, 1])
    attributes["pads"] = ir.AttrInt64s("pads", [*begin, *end])


def _image(value: ir.Value | None) -> tuple[int, int] | None:
    """Height and width of a graph input whose size is known and even."""
    if value is None or not value.is_graph_input() or value.dtype != ir.DataType.FLOAT or value.shape is None:
        return None
    known = static_shape(ir.Value(shape=ir.Shape(list(value.shape)[2:])))
    if len(value.shape) != 4 or known is None or any(d % 2 or d < 2 for d in known):
        return None
    return known[0], known[1]
