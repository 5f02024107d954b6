"""A session whose inferences happen in a child program: feeds go out and results come back as `.npy` files.

The folder of one job is described in `_child.py`; how the child is started is all that differs between runners.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgeq.errors import ModelError, ToolError
from edgeq.runners import taps as tapping
from edgeq.runners.session import Feeds, Outputs

_CHUNK = 256 * 2**20  # bytes of feeds that one process is given

Launch = Callable[[Path], Mapping[str, Any]]


@dataclass(eq=False)
class JobSession:
    """launch(folder) runs the child over a prepared folder and returns what to add to `report`.

    what: the runner's name in errors. extra: more keys of job.json. self_contained: the model and its external
    weights are copied into each job's folder. proof: `report["ops"]` counts the operators of the graph as the
    runtime rewrote it. report: of the last process, its latency_ms, version, machine and providers. close() removes
    the session's files; so does its collection.
    """

    model: Path
    what: str
    launch: Launch
    options: Mapping[str, Any]
    extra: Mapping[str, Any] = field(default_factory=dict)
    self_contained: bool = False
    proof: bool = False

    def __post_init__(self) -> None:
        graph = tapping.load(self.model).graph
        self.outputs: tuple[str, ...] = tuple(str(v.name) for v in graph.outputs)
        self.inputs: tuple[str, ...] = tuple(str(v.name) for v in graph.inputs if v.name not in graph.initializers)
        self.report: dict[str, Any] = {}
        self._work = Path(tempfile.mkdtemp(prefix="edgeq-"))
        self.close = weakref.finalize(
            self, shutil.rmtree, self._work, ignore_errors=True
        )  # at the latest when collected
        self._models: dict[tuple[str, ...], Path] = {(): self.model.resolve()}

    @property
    def latency_ms(self) -> float | None:
        return self.report.get("latency_ms")

    def run(self, feeds: Feeds, taps: Sequence[str] = ()) -> Outputs:
        return next(self.run_many([feeds], taps))

    def run_many(self, batches: Iterable[Feeds], taps: Sequence[str] = ()) -> Iterator[Outputs]:
        names = tuple(dict.fromkeys([*self.outputs, *taps]))
        model = self._tapped(names[len(self.outputs) :])
        remaining = iter(batches)
        while True:
            with tempfile.TemporaryDirectory(dir=self._work) as temporary:
                folder = Path(temporary)
                samples = self._write(remaining, folder)
                if not samples:
                    return
                self._launch(folder, model, names, samples)
                for sample in range(samples):
                    yield {name: _read(folder / "out" / f"{sample}_{i}.npy", self.what) for i, name in enumerate(names)}

    def _tapped(self, names: tuple[str, ...]) -> Path:
        if names not in self._models:
            folder = Path(tempfile.mkdtemp(dir=self._work))
            self._models[names] = tapping.with_taps(self.model, names, folder).resolve()
        return self._models[names]

    def _write(self, remaining: Iterator[Feeds], folder: Path) -> int:
        """Writes feeds until they are over, or enough for one process; the number of samples written."""
        (folder / "in").mkdir()
        (folder / "out").mkdir()
        samples = size = 0
        while size < _CHUNK and (feeds := next(remaining, None)) is not None:
            for i, name in enumerate(self.inputs):
                if name not in feeds:
                    raise ModelError(f"{self.model}: no array was given for the input {name!r}")
                array = np.asarray(feeds[name], order="C")
                np.save(folder / "in" / f"{samples}_{i}.npy", array, allow_pickle=False)
                size += array.nbytes
            samples += 1
        return samples

    def _launch(self, folder: Path, model: Path, names: Sequence[str], samples: int) -> None:
        data = tapping.data_files(model) if self.self_contained else []
        if self.self_contained:
            shutil.copyfile(model, folder / "model.onnx")
            for location, file in data:
                inside = folder / location
                if not inside.resolve().is_relative_to(folder.resolve()):
                    raise ModelError(f"{model}: its external data {location!r} lies outside the model's folder")
                inside.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, inside)
        job = {
            "model": "model.onnx" if self.self_contained else str(model),
            "data": [location for location, _ in data],
            "optimization": self.options["optimization"],
            "threads": self.options["threads"],
            "inputs": self.inputs,
            "outputs": names,
            "samples": samples,
            "save_optimized": self.proof,
            "providers": ["CPUExecutionProvider"],
            "config": {},
            "plugin": "",
            **self.extra,
        }
        (folder / "job.json").write_text(json.dumps(job))
        found = self.launch(folder)
        try:
            self.report = {**json.loads((folder / "result.json").read_text()), **found}
        except (OSError, ValueError) as error:
            raise ToolError(f"{self.what}: the run ended without a result") from error
        if self.proof:
            self.report["ops"] = operators(folder / "optimized.onnx")


def operators(model: Path) -> dict[str, int]:
    """How many nodes of each operator a model has, subgraphs included, sorted by name."""
    graph = tapping.load(model).graph
    return dict(sorted(Counter(node.op_type for node in graph.all_nodes()).items()))


def _read(path: Path, what: str) -> np.ndarray:
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (OSError, ValueError) as error:
        raise ToolError(f"{what}: the result {path.name} is missing or damaged: {error}") from error
