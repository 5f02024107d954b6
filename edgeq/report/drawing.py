"""Where things go on the report's page: the graph as lanes of nodes, and the scales of its charts. Numbers only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgeq.report.schema import DrawnNode

STEP, LANE, RADIUS = 22, 20, 6


@dataclass(frozen=True)
class Dot:
    """A node at the middle of its mark, in pixels."""

    x: int
    y: int
    node: DrawnNode


@dataclass(frozen=True)
class Map:
    """The graph, left to right. paths: SVG path data, an edge each; blurred: those that leave the integers."""

    width: int
    height: int
    dots: tuple[Dot, ...]
    paths: tuple[str, ...]


def lay_out(nodes: Sequence[DrawnNode]) -> Map:
    """A column for each step of the longest path to a node; within a column nodes keep the lane of what they read.

    O(nodes + edges). `nodes` are in topological order and name what they read by index.
    """
    depth = [0] * len(nodes)
    lane = [0] * len(nodes)
    taken: dict[int, set[int]] = {}
    for index, node in enumerate(nodes):
        depth[index] = 1 + max((depth[i] for i in node.reads), default=-1)
        wanted = min((lane[i] for i in node.reads), default=0)
        column = taken.setdefault(depth[index], set())
        while wanted in column:
            wanted += 1
        column.add(wanted)
        lane[index] = wanted
    place = [(STEP // 2 + STEP * d, LANE // 2 + LANE * row) for d, row in zip(depth, lane, strict=True)]
    paths = []
    for index, node in enumerate(nodes):
        x, y = place[index]
        for source in node.reads:
            left, top = place[source]
            middle = x - STEP // 2
            paths.append(f"M{left} {top}H{middle - STEP // 2}C{middle} {top} {middle} {y} {x} {y}")
    dots = tuple(Dot(x, y, node) for (x, y), node in zip(place, nodes, strict=True))
    width = STEP * (1 + max(depth, default=0))
    return Map(width, LANE * (1 + max(lane, default=0)), dots, tuple(paths))


@dataclass(frozen=True)
class Line:
    """A curve over nodes. points: SVG coordinates in a box of WIDTH × HEIGHT; marks: (y, label) of the dB axis."""

    points: str
    dots: tuple[tuple[float, float, str], ...]


WIDTH, HEIGHT = 720, 180


def decibel_axis(curves: Sequence[Sequence[float | None]]) -> tuple[float, float, tuple[tuple[float, str], ...]]:
    """(lowest, highest, marks) of an axis in steps of 10 dB that holds every finite value of the curves."""
    known = [v for curve in curves for v in curve if v is not None and math.isfinite(v)] or [0.0, 40.0]
    low, high = 10 * math.floor(min(known) / 10), 10 * math.ceil(max(known) / 10)
    high = max(high, low + 10)
    step = 10 * max(1, math.ceil((high - low) / 60))
    marks = tuple((_height(v, low, high), f"{v} dB") for v in range(low, high + 1, step))
    return low, high, marks


def _height(value: float, low: float, high: float) -> float:
    return round(HEIGHT * (1 - (value - low) / (high - low)), 1)


def curve(values: Sequence[tuple[str, float | None]], low: float, high: float) -> Line:
    """(name, dB) in order; an exact layer (None) lies on the upper edge."""
    step = WIDTH / max(len(values) - 1, 1)
    dots = []
    for index, (name, value) in enumerate(values):
        known = high if value is None or not math.isfinite(value) else value
        label = f"{name}: {'exact' if value is None else f'{value:.1f} dB'}"
        dots.append((round(index * step, 1), _height(known, low, high), label))
    return Line(" ".join(f"{x},{y}" for x, y, _ in dots), tuple(dots))


@dataclass(frozen=True)
class Bars:
    """A histogram in a box of 100 × 40. left, right: where the chosen range ends, in the same units."""

    path: str
    left: float
    right: float


def bars(counts: Sequence[int], edges: tuple[float, float], chosen: tuple[float, float]) -> Bars:
    """Bar heights are logarithms of the counts, so that a tail that is clipped can be seen."""
    top = math.log1p(max(counts, default=0)) or 1.0
    width = 100 / max(len(counts), 1)
    path = "".join(
        f"M{round(i * width, 2)} 40v-{round(40 * math.log1p(c) / top, 2)}h{round(width, 2)}V40z"
        for i, c in enumerate(counts)
        if c
    )
    span = (edges[1] - edges[0]) or 1.0
    left, right = (min(max(100 * (v - edges[0]) / span, 0.0), 100.0) for v in chosen)
    return Bars(path, round(left, 1), round(right, 1))
