"""An artifact at each of onnxruntime's levels of optimization: they should all give the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgeq.data import Dataset
from edgeq.errors import EdgeqError
from edgeq.graph import io
from edgeq.numerics.metrics import Drift
from edgeq.runners.places import open_here
from edgeq.runners.session import Session
from edgeq.target import Target
from edgeq.verifying.matrix import finite_db

LEVEL_SAMPLES = 8
LARGE = 1 << 28  # bytes; unoptimized, a run dequantizes all weights, so two samples have to do for more
LEVELS_AGREE_DB = 40.0

Fed = Callable[..., Session]
"""Gives a session of either model that is fed its state; `show`: and tells which."""


def worst_at_levels(
    quantized: Path, float_session: Session, data: Dataset, target: Target, threads: int, fed: Fed
) -> tuple[dict[str, float | None], list[str]]:
    """The worst output's SQNR in dB at each level, null where nothing differs, over a few samples; and what to warn of.

    fed: see `Fed`. Levels that can't be run are none, with the line that says why.
    """
    size = sum(file.stat().st_size for file in io.files(quantized))
    few = list(data.take(LEVEL_SAMPLES if size < LARGE else 2))
    fed_float = fed(float_session)
    references = [fed_float.run(feeds) for feeds in few]
    results: dict[str, list[dict[str, np.ndarray]]] = {}
    for level in ("disabled", "basic", "all"):
        try:
            # Without optimization all weights are dequantized at run time: that memory must not be kept.
            opened = open_here(
                quantized, optimization=level, threads=threads, config=dict(target.session_config), keep=False
            )
        except EdgeqError as error:
            return {}, [f"optimization level {level}: {error}"]
        session = fed(opened)
        results[level] = [session.run(feeds) for feeds in few]
        session.close()
    levels = {level: finite_db(_worst(references, got)) for level, got in results.items()}
    between = _worst(results["disabled"], results["all"])
    if between < LEVELS_AGREE_DB and min(v if v is not None else 999.0 for v in levels.values()) < between + 10:
        return levels, [f"onnxruntime's optimization levels disagree: {between:.1f} dB between disabled and all"]
    return levels, []


def _worst(references: list[dict[str, np.ndarray]], got: list[dict[str, np.ndarray]]) -> float:
    drifts: dict[str, Drift] = {}
    for left, right in zip(references, got, strict=True):
        for name, array in left.items():
            drifts.setdefault(name, Drift(axes=())).update(array, right[name])
    return min((d.result().sqnr_db for d in drifts.values()), default=np.inf)
