"""A session of onnxruntime's CPU provider that gives extrema and a sample of what it computes, not the tensors."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Collection
from pathlib import Path

import numpy as np

from edgeq.calibrate.glance import Glance
from edgeq.errors import ModelError
from edgeq.graph import io
from edgeq.graph.reduce import EVERYTHING, NOTHING, Reduction, reduce_outputs
from edgeq.runners import cpu
from edgeq.runners.session import Feeds

# The weights go to a file of their own, which the session that really runs maps, and are not yet packed.
FOR_SAVING = {
    "session.disable_prepacking": "1",
    "session.optimized_model_external_initializers_file_name": "optimized.data",
    "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
}


class GlanceSession:
    """`run` is an `edgeq.calibrate.collect.Run`: a glance at each of `names`, outputs of the model.

    parts: those of which a sample is wanted. A value that is once met with NaN, or beyond ±`FAR`, is given whole from
    then on. What the reduced model can't run, or onnxruntime not read back, runs in the model's own.
    """

    def __init__(self, model: Path, names: Collection[str], parts: Collection[str], kept: Collection[str] = ()) -> None:
        self._model, self._names, self._parts, self._kept = model, frozenset(names), frozenset(parts), frozenset(kept)
        self._whole: frozenset[str] = frozenset()
        self._work = tempfile.TemporaryDirectory(prefix="edgeq-")
        self._lock = threading.Lock()
        self._plain: cpu.CpuSession | None = None
        try:
            self._reduced: tuple[cpu.CpuSession, Reduction] | None = self._open()
        except ModelError:
            self._reduced = None

    def _open(self) -> tuple[cpu.CpuSession, Reduction]:
        folder = Path(self._work.name)
        optimized, reduced = folder / "optimized.onnx", folder / "reduced.onnx"
        cpu.open_session(self._model, save_optimized=str(optimized), config=FOR_SAVING).close()
        model = io.load(optimized)
        reduction = reduce_outputs(model, io.load(self._model), self._names, self._parts, self._whole, self._kept)
        io.save_graph(model, reduced)
        return cpu.open_session(reduced, optimization="disabled", in_order=True), reduction

    def run(self, feeds: Feeds, look: bool = True) -> dict[str, np.ndarray | Glance]:
        while self._reduced is not None:
            session, reduction = self._reduced
            upto = reduction.upto
            try:
                results = session.run({**feeds, upto: EVERYTHING if look else NOTHING} if upto else feeds)
            except ModelError:
                break
            seen = reduction.read(results)
            far = {n for n, one in seen.items() if isinstance(one, Glance) and not one.near and one.values is None}
            if not far:
                return {**results, **seen}
            with self._lock:
                if not far <= self._whole:
                    self._whole |= far
                    self._reduced = self._open()
        with self._lock:
            if self._plain is None:
                self._plain = cpu.open_session(self._model, threads=1)
        return dict(self._plain.run(feeds))

    def close(self) -> None:
        for session in (self._plain, self._reduced and self._reduced[0]):
            if session is not None:
                session.close()
        self._work.cleanup()
