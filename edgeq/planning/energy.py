"""About how much energy an inference takes: a model of arithmetic and of moved bytes, to compare artifacts by.

    E = Σ macs · (multiply + add) + DRAM · bytes of weights + 2 · cache · bytes of activations

Figures of a 45 nm chip at 0.9 V (Horowitz, "Computing's Energy Problem", ISSCC 2014, figure 1.1.9), in pJ. A weight
comes from DRAM once, at the least of the range there (1.3 nJ for 64 bits); an activation goes through a cache of 1 MB,
written and read (100 pJ for 64 bits). Other chips have other figures, in much the same proportions; nothing was
measured.
"""

from __future__ import annotations

from math import prod

import onnx_ir as ir

from edgeq.graph import io
from edgeq.planning.coverage import dims, multiplications
from edgeq.planning.plan import walk

FLOAT32, FLOAT16, INT8 = 3.7 + 0.9, 1.1 + 0.4, 0.2 + 0.1
"""A multiplication and an addition; products of bytes are added in 32 bits."""
DRAM, CACHE = 1300 / 8, 100 / 8
"""A byte."""
FUSED = ("QuantizeLinear", "Relu", "Clip")


def energy(model: ir.Model) -> float:
    """Of one run of a written artifact, mJ; free dimensions count as 1."""
    picojoules = DRAM * io.weight_bytes(model)
    for node, _ in walk(model.graph):
        count, coded = multiplications(node)
        half = node.outputs[0].dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
        picojoules += count * (INT8 if coded else FLOAT16 if half else FLOAT32)
        picojoules += 2 * CACHE * sum(_stored(value) for value in node.outputs)
    return picojoules / 1e9


def _stored(value: ir.Value) -> int:
    """Bytes that are written; none for what only the next kernel of a fused one sees."""
    producer, uses = value.producer(), [use.node.op_type for use in value.uses()]
    fused = bool(uses) and all(op in FUSED for op in uses)
    if fused or value.dtype is None or (producer is not None and producer.op_type == "DequantizeLinear"):
        return 0
    return int(prod(dims(value)) * value.dtype.itemsize)
