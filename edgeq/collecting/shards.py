"""One part of the data, counted anywhere: a `Task` is plain data, and `count_part` needs only it and the model file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from edgeq.calibrate.collect import Run, collect, needs_histogram
from edgeq.collecting import stats
from edgeq.collecting.stats import Statistics
from edgeq.data import BLOCK, Dataset, Feeds, open_data, position
from edgeq.data.padding import Padding
from edgeq.recipe import Preprocess, Recipe
from edgeq.runners.cpu import CpuSession, open_session
from edgeq.runners.feedback import with_state
from edgeq.runners.glances import GlanceSession


class Packed(msgspec.Struct, array_like=True, frozen=True):
    """An array as plain data."""

    dtype: str
    shape: tuple[int, ...]
    content: bytes


class Task(msgspec.Struct, frozen=True):
    """What to look at, and on which samples.

    calibrators: value → calibrator. outputs: value → the name under which the model file gives it. channels: values
    whose channels count too (see `collect`). source: what `open_data` makes the data from, with shapes, those of the
    inputs, and padding, the data's; where there is no such thing, `packed` holds the samples themselves. samples, seed,
    preprocess, state: the recipe's. part: which of `parts` of the samples so chosen. threads: samples in flight at a
    time.
    """

    calibrators: dict[str, str]
    outputs: dict[str, str]
    channels: tuple[str, ...] = ()
    source: str = ""
    packed: tuple[dict[str, Packed], ...] = ()
    shapes: dict[str, tuple[int | None, ...] | None] = {}
    padding: tuple[Padding, ...] = ()
    samples: int = 0
    seed: int = 0
    preprocess: Preprocess | None = None
    state: tuple[tuple[str, str], ...] = ()
    part: int = 0
    parts: int = 1
    threads: int = 1


def chosen(data: Dataset, recipe: Recipe | Task) -> Dataset:
    """The samples of the data that calibrate, without padding: drawn by `seed`, but in a sequence the first ones."""
    drawn = data.take(recipe.samples) if recipe.state else data.sample(recipe.samples, recipe.seed)
    return drawn.unpadded()


def count(model: Path, task: Task, data: Dataset, progress: Callable[[int], None] = lambda _: None) -> Statistics:
    """Run the model on all of `data`. A stateful one takes its samples one after the other, whatever `threads` says."""
    # One sample a core beats all cores on one sample, and the reductions run in parallel too.
    names = {value: task.outputs.get(value, value) for value in task.calibrators}
    parts = {names[v] for v, c in task.calibrators.items() if needs_histogram(c)}
    kept = [names[v] for v in task.channels]
    session = open_session(model, threads=1) if task.state else GlanceSession(model, names.values(), parts, kept)
    try:
        run: Run = session.run if isinstance(session, GlanceSession) else _fed_back(session, model, task)
        threads = 1 if task.state else task.threads
        place = partial(position, part=task.part, parts=task.parts)
        summaries, seen = collect(run, data, task.calibrators, task.outputs, progress, threads, task.channels, place)
    finally:
        session.close()
    return Statistics(summaries, tuple(task.calibrators), seen)


def _fed_back(session: CpuSession, model: Path, task: Task) -> Run:
    running = with_state(session, model, task.state, show=True)
    return lambda feeds, _: running.run(feeds)


def count_part(model: Path, task: bytes, progress: Callable[[int], None] = lambda _: None) -> bytes:
    """The statistics (`stats.dump`) of one part. A pure function of the two files' contents and the data."""
    asked = msgspec.msgpack.decode(task, type=Task)
    if asked.source:
        data = open_data(asked.source, asked.shapes, asked.preprocess, [into for _, into in asked.state])
        mine = chosen(replace(data, padding=asked.padding), asked).part(asked.part, asked.parts)
    else:
        mine = Dataset("data", lambda: map(_unpack, asked.packed), len(asked.packed))
    return stats.dump(count(model, asked, mine, progress))


def split(task: Task, data: Dataset, parts: int) -> list[bytes]:
    """The tasks of all parts. Data that no other process can open goes along, each sample in one of them."""
    pieces = [msgspec.structs.replace(task, part=part, parts=parts) for part in range(parts)]
    if data.source is not None:
        pieces = [msgspec.structs.replace(piece, source=data.source, padding=data.padding) for piece in pieces]
    else:
        packed: list[list[dict[str, Packed]]] = [[] for _ in pieces]
        for index, feeds in enumerate(chosen(data, task)):
            packed[index // BLOCK % parts].append(_pack(feeds))
        pieces = [msgspec.structs.replace(p, packed=tuple(held)) for p, held in zip(pieces, packed, strict=True)]
    return [msgspec.msgpack.encode(piece) for piece in pieces]


def _pack(feeds: Feeds) -> dict[str, Packed]:
    return {k: Packed(a.dtype.str, a.shape, a.tobytes()) for k, a in feeds.items()}


def _unpack(feeds: dict[str, Packed]) -> Feeds:
    return {k: np.frombuffer(p.content, p.dtype).reshape(p.shape) for k, p in feeds.items()}
