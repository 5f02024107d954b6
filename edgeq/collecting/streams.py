"""Samples that walk through a model from cut to cut, so that each node runs once and little is held in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgeq.data import Feeds
from edgeq.graph import io
from edgeq.graph.edit import is_constant
from edgeq.planning.plan import WeightPlan
from edgeq.registry import load


@dataclass(frozen=True)
class Stage:
    """Layers that read `value`, which is known once the nodes before `cut` have run."""

    value: str
    cut: int
    layers: tuple[WeightPlan, ...]


@dataclass(frozen=True)
class _File:
    """An array's bytes and nothing else: what it is stays here."""

    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]


@dataclass
class Stream:
    """Samples on their way through a model: a file a sample and value, of those that nodes from `cut` on will read."""

    model: ir.Model
    folder: Path
    cut: int = 0
    live: tuple[str, ...] = ()
    count: int = 0
    written: int = 0
    held: dict[tuple[int, str], _File] = field(default_factory=dict)

    def start(self, data: Iterable[Feeds]) -> None:
        self.folder.mkdir()
        for feeds in data:
            self._write(self.count, feeds)
            self.count += 1
        self.live = tuple(v.name or "" for v in self.model.graph.inputs)

    def advance(self, stage: Stage) -> None:
        """Run the nodes up to the stage's cut on every sample."""
        wanted = tuple(dict.fromkeys([stage.value, *_read_after(self.model.graph, stage.cut)]))
        fresh = [name for name in wanted if name not in self.live]
        if fresh:
            inputs = [name for name in self.live if self._feeds(name)]
            graph = ir.convenience.extract(self.model.graph, inputs, fresh)
            piece = ir.Model(graph, ir_version=self.model.ir_version, functions=list(self.model.functions.values()))
            path = self.folder / "piece.onnx"
            io.save(piece, path)
            session = load("edgeq.runners", "cpu").open_session(path, threads=1)
            needed = [v.name or "" for v in graph.inputs]
            for index in range(self.count):
                fed = {name: self._read(index, name) for name in needed if (index, name) in self.held}
                self._write(index, session.run(fed))
            session.close()
        for index in range(self.count):
            for name in set(self.live) - set(wanted):
                self._drop(index, name)
        self.cut, self.live = stage.cut, wanted

    def each(self, name: str) -> Iterator[np.ndarray]:
        return (self._read(index, name) for index in range(self.count))

    def _feeds(self, name: str) -> bool:
        return name not in self.model.graph.initializers

    def _read(self, index: int, name: str) -> np.ndarray:
        found = self.held[index, name]
        return np.fromfile(found.path, found.dtype).reshape(found.shape)

    def _write(self, index: int, values: Feeds) -> None:
        for name, array in values.items():
            self._drop(index, name)
            self.written += 1
            file = _File(self.folder / f"{self.written}.bin", array.dtype, array.shape)
            with open(file.path, "wb") as out:  # tofile leaves a file cut short on a full disk, and says nothing
                out.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            self.held[index, name] = file

    def _drop(self, index: int, name: str) -> None:
        found = self.held.pop((index, name), None)
        if found is not None:
            found.path.unlink()


def _read_after(graph: ir.Graph, cut: int) -> list[str]:
    """Values of the main graph, no constants, that are there before `cut` and read behind it or given out."""
    before = set(graph.inputs) | {v for node in list(graph)[:cut] for v in node.outputs}
    found: dict[str, None] = {}
    for node in list(graph)[cut:]:
        bodies = [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
        for reader in (node, *(n for body in bodies for n in body.all_nodes())):
            found |= dict.fromkeys(v.name or "" for v in reader.inputs if v in before and not is_constant(v))
    return list(found)
