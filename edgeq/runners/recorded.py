"""A reference whose answers are kept: a large float model runs once on each sample, however often it is verified."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgeq.data.arrays import read_npz
from edgeq.errors import CalibrationError
from edgeq.files import remove_dead, replacing
from edgeq.graph import io
from edgeq.runners import cpu
from edgeq.runners.places import open_here
from edgeq.runners.session import Feeds, Outputs, Session, in_streams


class Recorded:
    """See `edgeq.runners.session.Session`. The model is opened at the first sample that is not in `folder`.

    A file of it is named by the sha256 of the model's bytes, of the runtime's version and processor, and of the feeds;
    what is damaged is made anew. Values in `taps` are never recorded. streams: samples that `run_many` has under way.
    """

    def __init__(self, model: Path, folder: Path, threads: int, streams: int = 1) -> None:
        self.model, self.folder, self.threads, self.streams = model, folder, threads, streams
        folder.mkdir(parents=True, exist_ok=True)
        remove_dead(folder, ".npz")
        self._key = hashlib.sha256(f"{io.sha256(io.files(model))} {cpu.version()} {cpu.processor()}".encode())
        self._opened: Session | None = None
        self._opening = threading.Lock()

    @property
    def session(self) -> Session:
        with self._opening:
            if self._opened is None:
                self._opened = open_here(self.model, threads=self.threads)
            return self._opened

    @property
    def outputs(self) -> tuple[str, ...]:
        return self.session.outputs

    @property
    def report(self) -> dict[str, Any]:
        return self.session.report

    @property
    def latency_ms(self) -> float | None:
        return None if self._opened is None else self._opened.latency_ms

    def run(self, feeds: Feeds, taps: Sequence[str] = ()) -> Outputs:
        if taps:
            return self.session.run(feeds, taps)
        key = self._key.copy()
        for name in sorted(feeds):
            array = np.ascontiguousarray(feeds[name])
            key.update(f"{name!r} {array.dtype.str} {array.shape} ".encode() + array.tobytes())
        path = self.folder / f"{key.hexdigest()}.npz"
        if path.is_file():
            try:
                return read_npz(path)
            except CalibrationError:  # damaged: a cache is never an input
                path.unlink(missing_ok=True)
        outputs = self.session.run(feeds)
        with replacing(path) as file, open(file, "wb") as stream:
            np.savez(stream, allow_pickle=False, **outputs)
        return outputs

    def run_many(self, batches: Iterable[Feeds], taps: Sequence[str] = ()) -> Iterator[Outputs]:
        yield from in_streams(partial(self.run, taps=taps), batches, self.streams)

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
