"""Golden vectors: a few samples with what the verified runtime answered, kept beside the artifact in `golden.npz`.

A package carries them to the device, where the same artifact has to give the same answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgeq.data.arrays import read_npz
from edgeq.errors import CalibrationError

NAME = "golden.npz"
COUNT, LIMIT = 4, 4 << 20  # samples, and bytes of all of them together

Arrays = Mapping[str, np.ndarray]


@dataclass
class Golden:
    """Called with the inputs and outputs of each sample, it keeps the first few that are not too large."""

    samples: list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] = field(default_factory=list)
    room: int = LIMIT

    def __call__(self, feeds: Arrays, outputs: Arrays) -> None:
        size = sum(a.nbytes for a in (*feeds.values(), *outputs.values()))
        if len(self.samples) < COUNT and size <= self.room:
            self.samples.append(
                ({k: np.array(v) for k, v in feeds.items()}, {k: np.array(v) for k, v in outputs.items()})
            )
            self.room -= size


def save(golden: Golden, path: Path) -> None:
    """`I/in/NAME` and `I/out/NAME` for sample I."""
    arrays = {
        f"{index}/{side}/{name}": array
        for index, sample in enumerate(golden.samples)
        for side, held in zip(("in", "out"), sample, strict=True)
        for name, array in held.items()
    }
    with open(path, "wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)


def load(path: Path) -> Golden:
    """Raises CalibrationError for a file that holds no golden vectors."""
    found: dict[int, tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] = {}
    try:
        for key, array in read_npz(path).items():
            index, side, name = key.split("/", 2)
            found.setdefault(int(index), ({}, {}))[{"in": 0, "out": 1}[side]][name] = array
    except (ValueError, KeyError):
        raise CalibrationError(f"{path}: not a file of golden vectors; quantize again, with verification") from None
    if not found:
        raise CalibrationError(f"{path}: holds no golden vector; quantize again, with verification")
    return Golden([found[index] for index in sorted(found)])
