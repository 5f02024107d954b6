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
import onnx_ir as ir

from edgeq.errors import ModelError, ToolError
from edgeq.graph import io
from edgeq.graph.observe import observable
from edgeq.runners import process
from edgeq.runners.session import Feeds, Outputs

_CHUNK = 256 * 2**20  # bytes of feeds that one process is given

Launch = Callable[[Path], Mapping[str, Any] | None]

CHILD = Path(__file__).with_name("_child.py")
ONNX_ON_CPU: dict[str, Any] = {"providers": [("CPUExecutionProvider", {})], "config": {}, "plugin": ""}


@dataclass(eq=False)
class JobSession:
    """launch(folder) runs the program over a prepared folder, its working directory, and returns more of `report`.

    what: the runner's name in errors. program: the file that is copied into the folder and run. engine, settings:
    see `_child.py`. carries_model: the model and its external weights are copied into the folder too. proof: the
    report gets ops, the operators of the graph as the runtime rewrote it, and placement. needs: a provider without
    which the run counts as failed (onnxruntime falls back to the CPU in silence). names: (inputs, outputs) of a model
    that is not ONNX, whose values the program finds by name. report: what the last process reported. close() removes
    the session's files; so does its collection.
    """

    model: Path
    what: str
    launch: Launch
    options: Mapping[str, Any]
    engine: str = "onnxruntime"
    settings: Mapping[str, Any] = field(default_factory=lambda: ONNX_ON_CPU)
    program: Path = CHILD
    carries_model: bool = False
    proof: bool = False
    needs: str = ""
    names: tuple[Sequence[str], Sequence[str]] | None = None

    def __post_init__(self) -> None:
        inputs, outputs = self.names or _signature(self.model)
        self.inputs: tuple[str, ...] = tuple(inputs)
        self.outputs: tuple[str, ...] = tuple(outputs)
        self.report: dict[str, Any] = {}
        self.optimized: ir.Model | None = None
        self._work = Path(tempfile.mkdtemp(prefix="edgeq-"))
        self.close = weakref.finalize(self, shutil.rmtree, self._work, ignore_errors=True)
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
        if self.names:
            return self.model.resolve()
        if names not in self._models:
            folder = Path(tempfile.mkdtemp(dir=self._work))
            self._models[names] = observable(self.model, names, folder)[0].resolve()
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
        data: list[str] = []
        if self.carries_model:
            shutil.copyfile(model, folder / f"model{model.suffix}")
            data = [] if self.names else io.copy_weights(model, folder)
        job = {
            "model": f"model{model.suffix}" if self.carries_model else str(model),
            "data": data,
            "inputs": self.inputs,
            "outputs": names,
            "samples": samples,
            "optimization": self.options["optimization"],
            "threads": self.options["threads"],
            "proof": self.proof,
            "engine": self.engine,
            "settings": {**self.settings, "taps": len(names) > len(self.outputs)},
        }
        (folder / "job.json").write_text(json.dumps(job))
        shutil.copyfile(self.program, folder / self.program.name)
        found = self.launch(folder)
        try:
            self.report = {**json.loads((folder / "result.json").read_text()), **(found or {})}
        except (OSError, ValueError) as error:
            raise ToolError(f"{self.what}: the run ended without a result") from error
        if self.needs and self.needs not in self.report["providers"]:
            raise ToolError(f"{self.what}: {self.needs} could not be started: its device or its libraries are missing")
        if (folder / "optimized.onnx").exists():
            self.optimized = io.read_graph(folder / "optimized.onnx")
            self.report["ops"] = operators(self.optimized)


def local(argv: Sequence[str], what: str, timeout: float, env: Mapping[str, str] | None = None) -> Launch:
    """A launch that runs `argv _child.py .` on this machine."""

    def launch(folder: Path) -> None:
        process.run([*argv, CHILD.name, "."], what=what, timeout=timeout, env=env, cwd=folder)

    return launch


def optimized(session: JobSession, feeds: Feeds) -> ir.Model:
    """The graph that a session opened with proof really runs, after every optimization; the session is closed."""
    try:
        session.run(feeds)
    finally:
        session.close()
    assert session.optimized is not None
    return session.optimized


def operators(model: ir.Model) -> dict[str, int]:
    """How many nodes of each operator a model has, subgraphs included, sorted by name."""
    return dict(sorted(Counter(node.op_type for node in model.graph.all_nodes()).items()))


def _signature(model: Path) -> tuple[list[str], list[str]]:
    """The names of a model's inputs (without initializers) and outputs."""
    loaded = io.load(model)
    return list(io.input_shapes(loaded)), [v.name or "" for v in loaded.graph.outputs]


def _read(path: Path, what: str) -> np.ndarray:
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (OSError, ValueError) as error:
        raise ToolError(f"{what}: the result {path.name} is missing or damaged: {error}") from error
