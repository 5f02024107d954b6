"""Keep codes of fewer bits than their type has within their range: QuantizeLinear saturates at its type's ends alone.

    Q(x)   →   Clip(Q(x), qmin, qmax)          of codes, so that Q stays behind the operator it is fused with

ONNX has types of 2, 4 and 8 bits, and Clip takes those of 8: codes of 3 bits are held in 8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgeq.graph.edit import Names, add_initializer, make_node
from edgeq.numerics.affine import storage_dtype
from edgeq.types import QParams


def held(params: QParams) -> QParams:
    """The same numbers in the type that their codes are stored in."""
    if not params.spec.reduce_range:
        return params
    dtype = "int8" if params.spec.signed else "uint8"
    return replace(params, spec=replace(params.spec, dtype=dtype, reduce_range=False))


def clip_codes(model: ir.Model, activations: Mapping[str, QParams]) -> None:
    """Put a Clip, in place, behind each QuantizeLinear of a value that `activations` gives a reduced range by name."""
    names = Names(model)
    for node in list(model.graph):
        value = node.inputs[0] if node.op_type == "QuantizeLinear" else None
        params = activations.get(value.name or "") if value is not None else None
        if value is None or params is None or not params.spec.reduce_range:
            continue
        codes, kind = node.outputs[0], storage_dtype(held(params).spec.dtype)
        ends = (np.asarray(end, kind) for end in (params.spec.qmin, params.spec.qmax))
        low, high = (add_initializer(model.graph, names.new(f"{codes.name}_end"), end) for end in ends)
        clip = make_node("Clip", [codes, low, high], names.new(f"{codes.name}_clipped"), codes.dtype, codes.shape)
        codes.replace_all_uses_with(clip.outputs[0])
        model.graph.insert_after(node, clip)
        clip.replace_input_with(0, codes)
