"""TFLite files without TensorFlow: a small description in memory, and `build` to bytes.

Tensors are named, operators refer to tensors by name, and an operator's options are the attributes of the
schema's own table in the spelling of its Python object API ({"strideH": 2, "padding": "SAME"}). The schema is
the one that ai-edge-litert carries (TensorFlow Lite, schema.fbs). The same description always gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

from edgeq.errors import ModelError, ToolError
from edgeq.formats import tflite_ops

IDENTIFIER = b"TFL3"
_LIMIT = 2**31 - 1  # flatbuffers address their content with signed 32-bit offsets
_INSTALL = "writing TFLite files needs ai-edge-litert and flatbuffers: pip install edgeq[litert]"

# numpy's name of a type -> the schema's
DTYPES: dict[str, str] = {
    "float32": "FLOAT32",
    "float16": "FLOAT16",
    "float64": "FLOAT64",
    "bfloat16": "BFLOAT16",
    "int4": "INT4",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "bool": "BOOL",
}


@dataclass(frozen=True, eq=False)
class TfTensor:
    """One tensor. shape: -1 marks a dimension that is only known at run time (stored as 1 with a signature).

    data: None for activations. scale: float32 (1,) or (C,), with `axis` the quantized dimension; zero_point the
    same length, or None for zeros. dtype "int4" takes ml_dtypes.int4 data and is stored two to a byte.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    data: np.ndarray | None = None
    scale: np.ndarray | None = None
    zero_point: np.ndarray | None = None
    axis: int = 0


@dataclass(frozen=True)
class TfOp:
    """One operator. code: a name of BuiltinOperator. inputs, outputs: tensor names, "" for an absent operand."""

    code: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TfSignature:
    """A named entry point: its argument names -> tensor names."""

    key: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True)
class TfModel:
    """A model of one subgraph. ops in execution order; inputs and outputs are tensor names."""

    tensors: tuple[TfTensor, ...]
    ops: tuple[TfOp, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    signatures: tuple[TfSignature, ...] = ()
    metadata: Mapping[str, bytes] = field(default_factory=dict)
    description: str = ""


def schema_module() -> ModuleType:
    try:
        from ai_edge_litert import schema_py_generated
    except ImportError as error:
        raise ToolError(_INSTALL) from error
    return schema_py_generated


@dataclass(frozen=True, eq=False)
class _Buffer:
    """Stands for the schema's BufferT, which would not align its bytes to 16 as the file format asks."""

    schema: ModuleType
    data: bytes

    def Pack(self, builder: Any) -> int:
        if self.data:
            builder.StartVector(1, len(self.data), 16)
            builder.head = builder.head - len(self.data)
            builder.Bytes[builder.head : builder.head + len(self.data)] = self.data
            content = builder.EndVector()
        self.schema.BufferStart(builder)
        if self.data:
            self.schema.BufferAddData(builder, content)
        return int(self.schema.BufferEnd(builder))


def _enum(schema: ModuleType, enum: str, name: str, where: str) -> int:
    value = getattr(getattr(schema, enum), name, None)
    if value is None:
        raise ModelError(f"{where}: the TFLite schema has no {enum} {name!r}")
    return int(value)


def stored_bytes(tensor: TfTensor) -> bytes:
    """The tensor's data as a file holds it: little endian, C order, int4 packed two to a byte, the low one first.

    Raises ModelError where the data's shape or type is not the tensor's.
    """
    if tensor.data is None:
        return b""
    if tensor.data.shape != tensor.shape or tensor.data.dtype.name != tensor.dtype:
        raise ModelError(
            f"tensor {tensor.name!r} is declared {tensor.dtype}{list(tensor.shape)} but its data is "
            f"{tensor.data.dtype.name}{list(tensor.data.shape)}: make them agree"
        )
    if tensor.dtype != "int4":
        return np.ascontiguousarray(tensor.data).astype(tensor.data.dtype.newbyteorder("<"), copy=False).tobytes()
    nibbles = tensor.data.astype(np.int8).ravel().view(np.uint8) & 15
    nibbles = np.pad(nibbles, (0, nibbles.size % 2))
    return (nibbles[0::2] | nibbles[1::2] << 4).tobytes()


def build(model: TfModel) -> bytes:
    """The file. Raises ModelError for a name that is missing or doubled, data that doesn't fit its tensor, an
    unknown operator or option, or more than 2 GiB of content."""
    schema = schema_module()
    try:
        import flatbuffers
    except ImportError as error:
        raise ToolError(_INSTALL) from error
    index = {t.name: i for i, t in enumerate(model.tensors)}
    if len(index) != len(model.tensors):
        raise ModelError("two TFLite tensors have one name: give each its own")

    def at(names: Sequence[str], where: str) -> list[int]:
        for name in names:
            if name and name not in index:
                raise ModelError(f"{where} names the tensor {name!r}, which the model doesn't have")
        return [index[n] if n else -1 for n in names]

    contents: dict[bytes, int] = {b"": 0}  # buffer 0 is empty by convention; equal constants are stored once
    tensors = [_tensor(schema, t, contents.setdefault(stored_bytes(t), len(contents))) for t in model.tensors]
    metadata = []
    for name, value in model.metadata.items():
        entry = schema.MetadataT()
        entry.name, entry.buffer = name, contents.setdefault(bytes(value), len(contents))
        metadata.append(entry)
    if sum(map(len, contents)) > _LIMIT - 2**24:
        raise ModelError("the model's constants exceed 2 GiB, the most that a TFLite file holds: quantize or split it")

    codes: dict[tuple[str, int], int] = {}
    operators = []
    for op in model.ops:
        ins, outs = at(op.inputs, f"operator {op.code}"), at(op.outputs, f"operator {op.code}")
        operands = [model.tensors[i] if i >= 0 else None for i in ins]
        version = tflite_ops.version(op.code, op.options, operands, [model.tensors[i] for i in outs])
        operators.append(_operator(schema, op, codes.setdefault((op.code, version), len(codes)), ins, outs))

    graph = schema.SubGraphT()
    graph.name, graph.tensors, graph.operators = "main", tensors, operators
    graph.inputs = np.array(at(model.inputs, "the input list"), np.int32)
    graph.outputs = np.array(at(model.outputs, "the output list"), np.int32)

    root = schema.ModelT()
    root.version, root.description, root.subgraphs = 3, model.description, [graph]
    root.operatorCodes = [_code(schema, name, version) for name, version in codes]
    root.buffers = [_Buffer(schema, data) for data in contents]
    root.metadata = metadata or None
    root.signatureDefs = [_signature(schema, s, index) for s in model.signatures] or None

    builder = flatbuffers.Builder(sum(map(len, contents)) + 4096)
    builder.Finish(root.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


def _code(schema: ModuleType, name: str, version: int) -> Any:
    code = schema.OperatorCodeT()
    code.builtinCode = _enum(schema, "BuiltinOperator", name, "operator")
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)  # what readers older than code 127 look at
    code.version = version
    return code


def _tensor(schema: ModuleType, tensor: TfTensor, buffer: int) -> Any:
    out = schema.TensorT()
    out.name, out.buffer, out.hasRank = tensor.name, buffer, True
    if tensor.dtype not in DTYPES:
        raise ModelError(f"tensor {tensor.name!r}: TFLite has no type {tensor.dtype}; it has {', '.join(DTYPES)}")
    out.type = _enum(schema, "TensorType", DTYPES[tensor.dtype], f"tensor {tensor.name!r}")
    out.shape = np.array([1 if d < 0 else d for d in tensor.shape], np.int32)
    if any(d < 0 for d in tensor.shape):
        out.shapeSignature = np.array(tensor.shape, np.int32)
    if tensor.scale is not None:
        scale = np.atleast_1d(np.asarray(tensor.scale, np.float32))
        zero_point = np.zeros(scale.shape) if tensor.zero_point is None else np.atleast_1d(tensor.zero_point)
        if scale.ndim != 1 or zero_point.shape != scale.shape or not (scale > 0).all() or not np.isfinite(scale).all():
            raise ModelError(
                f"tensor {tensor.name!r}: scales must be finite and positive, one or one per channel, with as many "
                f"zero points; not {scale.shape} and {zero_point.shape}"
            )
        out.quantization = schema.QuantizationParametersT()
        out.quantization.scale, out.quantization.zeroPoint = scale, zero_point.astype(np.int64)
        out.quantization.quantizedDimension = tensor.axis
    return out


def _operator(schema: ModuleType, op: TfOp, code: int, inputs: list[int], outputs: list[int]) -> Any:
    out = schema.OperatorT()
    out.opcodeIndex = code
    out.inputs, out.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
    table = tflite_ops.OPTIONS.get(op.code)
    if table is None:
        if op.options:
            raise ModelError(f"operator {op.code} takes no options, not {', '.join(op.options)}")
        return out
    out.builtinOptionsType = _enum(schema, "BuiltinOptions", table, op.code)
    options = out.builtinOptions = getattr(schema, table + "T")()
    for name, value in op.options.items():
        if not hasattr(options, name):
            raise ModelError(f"operator {op.code} has no option {name!r}; it has {', '.join(vars(options))}")
        if isinstance(value, str):
            value = _enum(schema, tflite_ops.ENUMS[name], value, f"{op.code} {name}")
        elif isinstance(value, list | tuple):
            value = np.array(value, np.int32)
        setattr(options, name, value)
    return out


def _signature(schema: ModuleType, signature: TfSignature, index: Mapping[str, int]) -> Any:
    out = schema.SignatureDefT()
    out.signatureKey, out.subgraphIndex = signature.key, 0
    for mapping, attribute in ((signature.inputs, "inputs"), (signature.outputs, "outputs")):
        entries = []
        for argument, name in mapping.items():
            if name not in index:
                raise ModelError(f"signature {signature.key!r} names the tensor {name!r}, which the model doesn't have")
            entry = schema.TensorMapT()
            entry.name, entry.tensorIndex = argument, index[name]
            entries.append(entry)
        setattr(out, attribute, entries)
    return out
