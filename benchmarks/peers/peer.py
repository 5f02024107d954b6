"""What every peer's runner shares: its arguments, its samples one at a time, and its one line of JSON.

A runner is executed by the peer's own interpreter with the repository root on PYTHONPATH, so this file imports only
numpy and the standard library.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Feeds:
    """Samples of a folder of `.npz` files (one a sample), or of one `.npz` with samples on axis 0; re-iterable."""

    source: Path
    limit: int

    def __len__(self) -> int:
        return self.limit

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        if self.source.is_dir():
            for file in sorted(self.source.glob("*.npz"))[: self.limit]:
                with np.load(file, allow_pickle=False) as arrays:
                    yield {key: arrays[key] for key in arrays.files}
            return
        with np.load(self.source, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
        for i in range(min(self.limit, len(next(iter(arrays.values()))))):
            yield {key: value[i : i + 1] for key, value in arrays.items()}


class Reader:
    """onnxruntime's CalibrationDataReader protocol over an iterable."""

    def __init__(self, feeds: Feeds) -> None:
        self.feeds = feeds
        self.rewind()

    def rewind(self) -> None:
        self.iterator = iter(self.feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.iterator, None)

    def __iter__(self) -> Reader:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self.iterator)

    def __len__(self) -> int:
        return len(self.feeds)


def at_least_opset(model: Any, wanted: int) -> Any:
    """The model itself, or a converted copy: below opset 13 the peers write per-channel files that do not load."""
    import onnx.version_converter

    current = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    return model if current >= wanted else onnx.version_converter.convert_version(model, wanted)


def main(quantize: Callable[[Path, Feeds, Path, str], None]) -> None:
    """Parse the arguments, time `quantize(model, feeds, out, calibrator)`, print {seconds, peak_rss_mb, error}."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("feeds", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--calibrator", choices=["minmax", "percentile", "entropy"], default="minmax")
    parser.add_argument("--samples", type=int, default=128)
    args = parser.parse_args()
    start, error = time.perf_counter(), ""
    try:
        quantize(args.model, Feeds(args.feeds, args.samples), args.out, args.calibrator)
    except Exception as problem:  # a peer may fail in any way, and that is a result
        error = f"{type(problem).__name__}: {problem}".splitlines()[0][:200]
    seconds = time.perf_counter() - start
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": round(seconds, 3), "peak_rss_mb": round(kib / 1024), "error": error}))
    sys.exit(1 if error else 0)
