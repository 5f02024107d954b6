"""A model file whose lazy weights are made while they are written, one after the other, and never in memory together.

protobuf writes a message's fields in the order of their numbers (onnx.proto), so that such a weight's bytes lie

    ModelProto   ir_version … | graph = 7 | opset_import …
    GraphProto   node, name | initializer = 5 … | doc_string, input, output …
    TensorProto  dims, data_type, name, raw_data = 9

each behind its tag, number · 8 + 2, and its length. A reader would take the fields in any order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

GRAPH, INITIALIZER, RAW_DATA = 7, 5, 9


def write(model: ir.Model, path: Path) -> None:
    """Write the model to one file: the bytes of `ir.save`."""
    held = {v: v.const_value for v in model.graph.initializers.values() if v.const_value is not None}
    lazy = {v: tensor for v, tensor in held.items() if isinstance(tensor, ir.LazyTensor)}
    try:
        for value, tensor in lazy.items():
            value.const_value = ir.LazyTensor(_nothing, tensor.dtype, tensor.shape, name=value.name)
        proto = ir.to_proto(model)
    finally:
        for value, tensor in lazy.items():
            value.const_value = tensor
    pieces: list[bytes | ir.LazyTensor] = []
    for value, initializer in zip(held, proto.graph.initializer, strict=True):
        head = initializer.SerializeToString()
        if value not in lazy:
            pieces += [_begin(INITIALIZER, len(head)), head]
            continue
        size = lazy[value].nbytes
        head = head.removesuffix(_begin(RAW_DATA, 0)) + _begin(RAW_DATA, size)
        pieces += [_begin(INITIALIZER, len(head) + size), head, lazy[value]]
    proto.graph.ClearField("initializer")
    front, behind = _around(proto.graph, INITIALIZER)
    proto.ClearField("graph")
    first, last = _around(proto, GRAPH)
    size = len(front) + sum(map(_size, pieces)) + len(behind)
    with open(path, "wb") as file:
        for piece in (first, _begin(GRAPH, size), front, *pieces, behind, last):
            if isinstance(piece, bytes):
                file.write(piece)
            else:
                piece.tofile(file)


def _nothing() -> ir.TensorProtocol:
    return ir.tensor(np.empty(0, np.uint8))


def _size(piece: bytes | ir.LazyTensor) -> int:
    return len(piece) if isinstance(piece, bytes) else piece.nbytes


def _begin(number: int, length: int) -> bytes:
    """The tag of a field of bytes, and how many they are: seven bits a byte, the lowest first."""
    out = bytearray([number << 3 | 2])
    while length > 127:
        out.append(length & 127 | 128)
        length >>= 7
    return bytes([*out, length])


def _around(message: Any, number: int) -> tuple[bytes, bytes]:
    """What is written of a message before and behind a field that it lacks."""
    before = type(message)()
    before.CopyFrom(message)
    for field, _ in message.ListFields():
        if field.number > number:
            before.ClearField(field.name)
    whole, size = message.SerializeToString(), before.ByteSize()
    return whole[:size], whole[size:]
