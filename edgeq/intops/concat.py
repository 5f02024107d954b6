"""CONCATENATION: codes side by side; inputs of another scale or zero point than the output's are requantized first.

TFLite's int8 kernel accepts only one quantization for all; NNAPI accepts several from API 29.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeq.intops.quant import Quant
from edgeq.intops.requantize import QuantizeParams, quantize
from edgeq.numerics.fixedpoint import Rounding


@dataclass(frozen=True)
class ConcatParams:
    """x: one Quant for each input, in order."""

    x: tuple[Quant, ...]
    out: Quant
    axis: int = -1
    rounding: Rounding = "double"


def concatenation(arrays: Sequence[np.ndarray], params: ConcatParams) -> np.ndarray:
    """CONCATENATION of arrays, one for each of params.x, along params.axis."""
    same = [
        a if quant == params.out else quantize(a, QuantizeParams(quant, params.out, params.rounding))
        for a, quant in zip(arrays, params.x, strict=True)
    ]
    return np.concatenate(same, axis=params.axis)


OPS = {"CONCATENATION": concatenation}
