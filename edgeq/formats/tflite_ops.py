"""The TFLite operator table: which options an operator takes, and which version of it a file must ask for.

The version is the lowest one that covers the operands' types, as the runtimes' registries expect (TensorFlow
Lite, tools/versioning/op_version.cc): an interpreter refuses a version that it doesn't know, and a
microcontroller or compiler may refuse an unnecessarily high one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# Operator -> table of its options in the schema. An operator that is absent here has none.
OPTIONS: dict[str, str] = {
    "ADD": "AddOptions",
    "ARG_MAX": "ArgMaxOptions",
    "AVERAGE_POOL_2D": "Pool2DOptions",
    "BATCH_MATMUL": "BatchMatMulOptions",
    "CAST": "CastOptions",
    "CONCATENATION": "ConcatenationOptions",
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "DEPTH_TO_SPACE": "DepthToSpaceOptions",
    "DEQUANTIZE": "DequantizeOptions",
    "DIV": "DivOptions",
    "EXPAND_DIMS": "ExpandDimsOptions",
    "FULLY_CONNECTED": "FullyConnectedOptions",
    "GATHER": "GatherOptions",
    "GELU": "GeluOptions",
    "HARD_SWISH": "HardSwishOptions",
    "LEAKY_RELU": "LeakyReluOptions",
    "MAXIMUM": "MaximumMinimumOptions",
    "MAX_POOL_2D": "Pool2DOptions",
    "MEAN": "ReducerOptions",
    "MINIMUM": "MaximumMinimumOptions",
    "MIRROR_PAD": "MirrorPadOptions",
    "MUL": "MulOptions",
    "PACK": "PackOptions",
    "PAD": "PadOptions",
    "PADV2": "PadV2Options",
    "QUANTIZE": "QuantizeOptions",
    "REDUCE_MAX": "ReducerOptions",
    "REDUCE_MIN": "ReducerOptions",
    "RESHAPE": "ReshapeOptions",
    "RESIZE_BILINEAR": "ResizeBilinearOptions",
    "RESIZE_NEAREST_NEIGHBOR": "ResizeNearestNeighborOptions",
    "SLICE": "SliceOptions",
    "SOFTMAX": "SoftmaxOptions",
    "SPACE_TO_DEPTH": "SpaceToDepthOptions",
    "SPLIT": "SplitOptions",
    "SQUARED_DIFFERENCE": "SquaredDifferenceOptions",
    "SQUEEZE": "SqueezeOptions",
    "STRIDED_SLICE": "StridedSliceOptions",
    "SUB": "SubOptions",
    "SUM": "ReducerOptions",
    "TRANSPOSE": "TransposeOptions",
    "TRANSPOSE_CONV": "TransposeConvOptions",
}

# Options whose value is a name of one of the schema's enumerations.
ENUMS: dict[str, str] = {
    "padding": "Padding",
    "fusedActivationFunction": "ActivationFunctionType",
    "inDataType": "TensorType",
    "outDataType": "TensorType",
    "outputType": "TensorType",
    "mode": "MirrorPadMode",
}

# Versions by the type of the first operand: (int8, int16); everything else is version 1.
_BY_TYPE: dict[str, tuple[int, int]] = {
    "ADD": (2, 3),
    "ARG_MAX": (2, 1),
    "AVERAGE_POOL_2D": (2, 3),
    "BATCH_MATMUL": (2, 3),
    "CONCATENATION": (2, 3),
    "CONV_2D": (3, 4),
    "DEPTHWISE_CONV_2D": (3, 5),
    "DEQUANTIZE": (2, 3),
    "FULLY_CONNECTED": (4, 7),
    "GATHER": (2, 4),
    "LEAKY_RELU": (1, 2),
    "LOGISTIC": (2, 3),
    "MAXIMUM": (2, 4),
    "MAX_POOL_2D": (2, 3),
    "MEAN": (2, 3),
    "MINIMUM": (2, 4),
    "MIRROR_PAD": (2, 3),
    "MUL": (2, 4),
    "PACK": (2, 3),
    "PAD": (2, 3),
    "PADV2": (2, 3),
    "REDUCE_MAX": (2, 3),
    "REDUCE_MIN": (2, 3),
    "RELU": (2, 3),
    "RELU6": (2, 3),
    "RESIZE_BILINEAR": (2, 4),
    "RESIZE_NEAREST_NEIGHBOR": (2, 4),
    "RSQRT": (2, 3),
    "SLICE": (2, 4),
    "SOFTMAX": (2, 3),
    "SPACE_TO_DEPTH": (2, 1),
    "SPLIT": (2, 4),
    "STRIDED_SLICE": (2, 4),
    "SUB": (2, 5),
    "SQUARED_DIFFERENCE": (2, 1),
    "TANH": (2, 3),
    "TRANSPOSE": (2, 5),
    "TRANSPOSE_CONV": (2, 3),
}
# Operators whose data is not their first operand.
_DATA_OPERAND = {"SPLIT": 1, "TRANSPOSE_CONV": 2}


def version(code: str, options: Mapping[str, Any], inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """The version to write for one operator. inputs, outputs: its TfTensors (None for an absent operand)."""
    data = inputs[_DATA_OPERAND.get(code, 0)]
    base = {"int8": 0, "int16": 1}.get(data.dtype)
    by_type = _BY_TYPE[code][base] if base is not None and code in _BY_TYPE else 1
    rank = len(data.shape)
    hybrid = data.dtype == "float32" and len(inputs) > 1 and inputs[1] is not None and inputs[1].dtype == "int8"
    per_channel = hybrid and inputs[1].scale is not None and len(inputs[1].scale) > 1
    match code:
        case "CONV_2D":
            grouped = inputs[1].shape[3] != data.shape[3]
            if hybrid:
                return 6 if grouped else 5 if per_channel else 2
            return max(by_type, 6 if grouped else 1, 7 if inputs[1].dtype == "int4" else 1)
        case "DEPTHWISE_CONV_2D":
            if hybrid:
                return 6 if per_channel else 4
            dilated = options.get("dilationHFactor", 1) != 1 or options.get("dilationWFactor", 1) != 1
            return max(by_type, 2 if dilated else 1, 7 if inputs[1].dtype == "int4" else 1)
        case "FULLY_CONNECTED":
            if hybrid:
                return 12 if per_channel else 9 if options.get("asymmetricQuantizeInputs") else 3
            no_bias = len(inputs) < 3 or inputs[2] is None
            return max(
                by_type,
                6 if no_bias else 5 if options.get("keepNumDims") else 1,
                10 if inputs[1].dtype == "int4" else 1,
            )
        case "BATCH_MATMUL" if hybrid:
            return 4 if options.get("asymmetricQuantizeInputs") else 1
        case "TRANSPOSE_CONV":
            fused = options.get("fusedActivationFunction", "NONE") != "NONE"
            biased = len(inputs) > 3 and inputs[3] is not None
            return max(min(by_type, 2), 4 if fused else 3 if biased else 1)
        case "MUL" if data.dtype in ("int8", "uint8") and data.scale is not None:
            large = float(data.scale[0]) * float(inputs[1].scale[0]) / float(outputs[0].scale[0]) >= 1.0
            return max(by_type, 3 if large else 1)
        case "QUANTIZE":
            many = any(t.scale is not None and len(t.scale) > 1 for t in (data, outputs[0]))
            return 3 if many else 2 if "int16" in (data.dtype, outputs[0].dtype) else 1
        case "DEQUANTIZE":
            if data.dtype == "float16":
                return 3
            if data.dtype == "int4":
                return 6
            return 5 if data.scale is not None and len(data.scale) > 1 else by_type
        case "RESIZE_BILINEAR" | "RESIZE_NEAREST_NEIGHBOR":
            special = options.get("halfPixelCenters") or (code.endswith("NEIGHBOR") and options.get("alignCorners"))
            return max(by_type, 3 if special else 1)
        case "TRANSPOSE":
            return max(by_type, 6 if rank > 5 else 4 if rank > 4 else 1)
        case "PAD" | "PADV2":
            return max(by_type, 4 if rank > 4 else 1)
        case "SLICE":
            return max(by_type, 5 if rank > 4 else 1)
        case "SPLIT" if data.dtype == "int32":
            return 3
        case _:
            return by_type
