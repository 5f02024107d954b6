"""A session of a stateful model: what it gives for its state is what it is fed with the next sample.

A sample that holds one of the state inputs begins a sequence; so does the first one. What a beginning sample doesn't
hold of the state is zeros.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgeq.errors import RecipeError
from edgeq.graph import io
from edgeq.runners.session import Feeds, Outputs, Session

Pairs = Sequence[tuple[str, str]]


def with_state(session: Session, model: Path, pairs: Pairs, show: bool = False) -> Session:
    """The session, fed back by `pairs` of (output, input). show: `run` also returns the state that was fed.

    model: the float model, whose inputs say what zeros look like. Raises RecipeError for a name that it lacks.
    """
    if not pairs:
        return session
    graph = io.load(model).graph
    inputs, outputs = ({v.name or "": v for v in ends} for ends in (graph.inputs, graph.outputs))
    for out, into in pairs:
        for name, ends, what in ((out, outputs, "output"), (into, inputs, "input")):
            if name not in ends:
                raise RecipeError(f"state: {model} has no {what} {name!r}: it has {', '.join(ends)}")
    return Feedback(session, {into: out for out, into in pairs}, inputs, show)


@dataclass(eq=False)
class Feedback:
    """See `edgeq.runners.session.Session`. source: input → the output that feeds it."""

    session: Session
    source: dict[str, str]
    inputs: dict[str, ir.Value]
    show: bool = False
    held: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.outputs, self.report = self.session.outputs, self.session.report

    @property
    def latency_ms(self) -> float | None:
        return self.session.latency_ms

    def run(self, feeds: Feeds, taps: Sequence[str] = ()) -> Outputs:
        if not self.held or any(name in feeds for name in self.source):
            self.held = {name: self._zeros(name, feeds) for name in self.source if name not in feeds}
        fed = self.held
        results = self.session.run({**fed, **feeds}, taps)
        self.held = {name: results[out] for name, out in self.source.items()}
        return {**results, **fed} if self.show else results

    def run_many(self, batches: Iterable[Feeds], taps: Sequence[str] = ()) -> Iterator[Outputs]:
        for feeds in batches:
            yield self.run(feeds, taps)

    def close(self) -> None:
        self.session.close()

    def _zeros(self, name: str, feeds: Feeds) -> np.ndarray:
        """A free dimension is as long as the one of that name among the inputs that are given, else 1."""
        lengths = {
            str(dim): length
            for key, array in feeds.items()
            if key in self.inputs and self.inputs[key].shape is not None
            for dim, length in zip(self.inputs[key].shape or (), array.shape, strict=False)
        }
        value = self.inputs[name]
        if value.shape is None or value.dtype is None:
            raise RecipeError(f"state: the model doesn't tell the shape of {name!r}; let a first sample hold it")
        shape = [dim if isinstance(dim, int) else lengths.get(str(dim), 1) for dim in value.shape]
        return np.zeros(shape, value.dtype.numpy())
