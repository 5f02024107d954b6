"""AIMET's `.encodings` files: scales by the names of an ONNX model's values, in JSON.

Version 0.6 has a list of rows a name; 1.0 lists of rows that say their name, with scale and offset as lists. Codes
count from 0 there, so that offset = -(zero point of an unsigned type). Source: AIMET's documentation, "Encoding format
specification".
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgeq.errors import ModelError
from edgeq.passes.strip_qdq import Encodings
from edgeq.types import INT_RANGES, PerChannel, PerTensor, QParams, QSpec


def read(path: str | os.PathLike[str]) -> Encodings:
    """What the file says of integers; rows of floats are left out.

    Raises ModelError for a file that can't be read, is none, or has a width that ONNX has no type for.
    """
    try:
        held = msgspec.json.decode(Path(path).read_bytes(), type=dict[str, Any])
        found = (_rows(held[key]) for key in ("activation_encodings", "param_encodings"))
        return Encodings(*({name: _params(row, path) for name, row in part if row} for part in found))
    except OSError as error:
        raise ModelError(f"{path}: can't be read ({error.strerror})") from None
    except (msgspec.DecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{path}: no .encodings file ({type(error).__name__}: {error})") from None


def _rows(part: Any) -> list[tuple[str, list[dict[str, Any]]]]:
    """(name, rows of a tensor or of its channels) in the older form."""
    if isinstance(part, dict):
        return [(name, [r for r in rows if str(r.get("dtype", "int")).lower() == "int"]) for name, rows in part.items()]
    return [
        (
            row["name"],
            [
                {"bitwidth": row["bw"], "is_symmetric": row.get("is_sym", False), "scale": s, "offset": o}
                for s, o in zip(row["scale"], row["offset"], strict=True)
                if str(row.get("dtype", "INT")).lower() == "int"
            ],
        )
        for row in part
    ]


def _params(rows: list[dict[str, Any]], path: object) -> QParams:
    dtype = f"uint{int(rows[0]['bitwidth'])}"
    if dtype not in INT_RANGES:
        raise ModelError(f"{path}: codes of {rows[0]['bitwidth']} bits: ONNX has types of 2, 4, 8 and 16")
    scale = np.array([row["scale"] for row in rows], np.float32)
    zero = np.array([-row["offset"] for row in rows], np.int32)
    symmetric = bool((zero == 2 ** (QSpec(dtype).bits - 1)).all())
    if len(rows) == 1:
        return QParams(scale.reshape(()), zero.reshape(()), QSpec(dtype, symmetric, PerTensor()))
    return QParams(scale, zero, QSpec(dtype, symmetric, PerChannel(0)))
