"""`read`: a TFLite file's bytes to the description that `tflite_file.build` writes.

A file is untrusted: a flatbuffer is a web of offsets that nothing checks. Here every offset is followed through
the schema's Python accessors, which cannot leave the bytes; counts are held against the file's size before
anything is allocated, and whatever goes astray becomes one ModelError.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np

from edgeq.errors import ModelError
from edgeq.formats.tflite_file import DTYPES, IDENTIFIER, TfModel, TfOp, TfSignature, TfTensor, schema_module
from edgeq.formats.tflite_ops import ENUMS, OPTIONS


def read(data: bytes) -> TfModel:
    """The description of a file of one subgraph. Doubled tensor names get a suffix; constants are views of `data`.

    Raises ModelError for what is not a TFLite file, is damaged, or holds what `TfModel` can't (several subgraphs,
    custom operators, external buffers).
    """
    schema = schema_module()
    if len(data) < 8 or data[4:8] != IDENTIFIER:
        raise ModelError("not a TFLite file: the identifier TFL3 is missing")
    try:
        return _model(schema, data)
    except (struct.error, IndexError, ValueError, TypeError, OverflowError, AttributeError) as error:
        # What following a bad offset ends in, in Python; UnicodeDecodeError is a ValueError.
        raise ModelError(f"the TFLite file is damaged: {error}") from error


def _count(value: int, data: bytes, what: str) -> int:
    """A vector's declared length; four bytes at least stand behind each element."""
    if value * 4 > len(data):
        raise ModelError(f"the TFLite file is damaged: {value} {what} in {len(data)} bytes")
    return value


def _names(enum: Any) -> dict[int, str]:
    return {v: k for k, v in vars(enum).items() if isinstance(v, int)}


def _model(schema: ModuleType, data: bytes) -> TfModel:
    root = schema.Model.GetRootAs(data, 0)
    if root.SubgraphsLength() != 1:
        raise ModelError(f"the TFLite file holds {root.SubgraphsLength()} subgraphs; only files of one can be read")
    graph = root.Subgraphs(0)
    raw = [graph.Tensors(i) for i in range(_count(graph.TensorsLength(), data, "tensors"))]
    texts = [t.Name() or b"" for t in raw]
    if sum(map(len, texts)) > len(data):  # names may share bytes, but not grow beyond the file
        raise ModelError("the TFLite file is damaged: its tensor names are longer than the file")
    names: list[str] = []
    seen: Counter[str] = Counter()
    for i, text in enumerate(texts):
        name = text.decode() or f"tensor{i}"
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name};{i}")
    tensors = tuple(_tensor(schema, root, t, name) for t, name in zip(raw, names, strict=True))

    def named(indices: Any) -> tuple[str, ...]:
        listed = [] if isinstance(indices, int) else indices.tolist()  # an absent vector reads as 0
        if any(not -1 <= i < len(names) for i in listed):
            raise ModelError(f"the TFLite file is damaged: an operator names tensor {max(listed)} of {len(names)}")
        return tuple("" if i == -1 else names[i] for i in listed)

    codes = [root.OperatorCodes(i) for i in range(_count(root.OperatorCodesLength(), data, "operator codes"))]
    builtin = _names(schema.BuiltinOperator)
    ops = []
    for i in range(_count(graph.OperatorsLength(), data, "operators")):
        op = graph.Operators(i)
        code = codes[op.OpcodeIndex()]
        name = builtin.get(max(code.BuiltinCode(), code.DeprecatedBuiltinCode()), "")
        if name in ("", "CUSTOM"):
            raise ModelError(f"operator {i} of the TFLite file is not a builtin one")
        ops.append(TfOp(name, named(op.InputsAsNumpy()), named(op.OutputsAsNumpy()), _options(schema, op, name)))
    return TfModel(
        tensors,
        tuple(ops),
        named(graph.InputsAsNumpy()),
        named(graph.OutputsAsNumpy()),
        tuple(_signature(root.SignatureDefs(i), names) for i in range(root.SignatureDefsLength())),
        {
            root.Metadata(i).Name().decode(): bytes(_bytes(root, root.Metadata(i).Buffer()))
            for i in range(_count(root.MetadataLength(), data, "metadata entries"))
        },
        (root.Description() or b"").decode(),
    )


def _bytes(root: Any, buffer: int) -> bytes:
    if not 0 <= buffer < root.BuffersLength():
        raise ModelError(f"the TFLite file is damaged: buffer {buffer} of {root.BuffersLength()}")
    entry = root.Buffers(buffer)
    if entry.Offset() > 1 or entry.Size() > 1:
        raise ModelError("the TFLite file keeps constants outside its flatbuffer, which can't be read here")
    return b"" if entry.DataIsNone() else entry.DataAsNumpy().data


def _tensor(schema: ModuleType, root: Any, raw: Any, name: str) -> TfTensor:
    kind = _names(schema.TensorType).get(raw.Type(), "")
    dtype = {v: k for k, v in DTYPES.items()}.get(kind)
    if dtype is None:
        raise ModelError(f"tensor {name!r} is of type {kind or raw.Type()}, which can't be read here")
    dims = [] if raw.ShapeIsNone() else raw.ShapeAsNumpy().tolist()
    dynamic = dims if raw.ShapeSignatureIsNone() else raw.ShapeSignatureAsNumpy().tolist()
    content = _bytes(root, raw.Buffer())
    data = None
    if len(content):
        if dynamic != dims or any(d < 0 for d in dims):
            raise ModelError(f"tensor {name!r} has both data and unknown dimensions")
        numpy_type = np.dtype(getattr(ml_dtypes, dtype) if dtype in ("int4", "bfloat16") else dtype)
        size = math.prod(dims)
        if dtype == "int4":
            pairs = np.frombuffer(content, np.uint8)
            nibbles = np.stack([pairs & 15, pairs >> 4], -1).ravel()[:size].astype(np.int8)
            data = ((nibbles ^ 8) - 8).astype(numpy_type).reshape(dims)
        elif len(content) != size * numpy_type.itemsize:
            raise ModelError(f"tensor {name!r} of {dtype}{dims} has {len(content)} bytes of data")
        else:
            data = np.frombuffer(content, numpy_type.newbyteorder("<")).reshape(dims)
    quantization = raw.Quantization()
    if quantization is None or quantization.ScaleIsNone():
        return TfTensor(name, tuple(dynamic), dtype, data)
    scale = quantization.ScaleAsNumpy()
    zero_point = np.zeros(scale.shape, np.int64) if quantization.ZeroPointIsNone() else quantization.ZeroPointAsNumpy()
    return TfTensor(name, tuple(dynamic), dtype, data, scale, zero_point, quantization.QuantizedDimension())


def _options(schema: ModuleType, op: Any, code: str) -> dict[str, Any]:
    table = OPTIONS.get(code)
    if table is None or op.BuiltinOptionsType() != getattr(schema.BuiltinOptions, table):
        return {}
    union = op.BuiltinOptions()
    unpacked = getattr(schema, table + "T").InitFromBuf(union.Bytes, union.Pos)
    out = {}
    for name, value in vars(unpacked).items():
        if value is None:
            continue
        if name in ENUMS:
            value = _names(getattr(schema, ENUMS[name])).get(value, value)
        out[name] = tuple(value.tolist()) if isinstance(value, np.ndarray) else value
    return out


def _signature(raw: Any, names: list[str]) -> TfSignature:
    def mapping(length: int, entry: Any) -> dict[str, str]:
        return {entry(i).Name().decode(): names[entry(i).TensorIndex()] for i in range(length)}

    return TfSignature(
        (raw.SignatureKey() or b"").decode(),
        mapping(raw.InputsLength(), raw.Inputs),
        mapping(raw.OutputsLength(), raw.Outputs),
    )
