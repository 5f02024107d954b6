"""Which pieces of a graph NNAPI runs, what is copied at their borders, and why the rest stays on the CPU.

Source: onnxruntime, core/providers/partitioning_utils.cc (the groups that a provider is given).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgeq.nnapi.support import refusal
from edgeq.nnapi.units import Unit, units

COPIES = ("Reshape", "Flatten", "Identity")  # a partition of one of these alone is not worth it


@dataclass(frozen=True)
class Partition:
    """nodes: names. inputs, outputs: bytes of each value that is copied over its border, by name."""

    nodes: tuple[str, ...]
    inputs: dict[str, int]
    outputs: dict[str, int]

    @property
    def bytes(self) -> int:
        return sum(self.inputs.values()) + sum(self.outputs.values())


@dataclass(frozen=True)
class Fallback:
    node: str
    op: str
    reason: str


@dataclass(frozen=True)
class Partitioning:
    """What a level makes of a model: the pieces that NNAPI runs, and each node that the CPU does, with the reason."""

    api_level: int
    nodes: int
    partitions: tuple[Partition, ...]
    cpu: tuple[Fallback, ...]

    @property
    def bytes(self) -> int:
        return sum(p.bytes for p in self.partitions)


@dataclass(frozen=True, eq=False)
class Group:
    """Units of one executor, in an order in which they can run."""

    taken: bool
    units: tuple[Unit, ...]


def partition(graph: ir.Graph, level: int) -> Partitioning:
    """Partition a graph whose shapes are inferred. level: 27 to 35."""
    found = units(graph)
    why = {unit: refusal(unit, level) for unit in found}
    partitions: list[Partition] = []
    for group in groups(found, lambda unit: not why[unit]):
        if group.taken and len(group.units) == 1 and group.units[0].op in COPIES:
            why[group.units[0]] = f"a {group.units[0].op} alone is not worth the copies"
        elif group.taken:
            partitions.append(Partition(tuple(unit.name for unit in group.units), *borders(group, found)))
    cpu = tuple(Fallback(unit.name, unit.op, reason) for unit, reason in why.items() if reason)
    return Partitioning(level, len(found), tuple(partitions), cpu)


def borders(group: Group, everything: Sequence[Unit]) -> tuple[dict[str, int], dict[str, int]]:
    """(inputs, outputs) of a group: bytes by name of what it reads of others, and of what others read of it."""
    members = set(group.units)
    made = {out.value: out for unit in group.units for out in unit.outputs}
    inputs = {x.name: x.nbytes for unit in group.units for x in unit.reads() if x.value not in made}
    elsewhere = {x.value for unit in everything if unit not in members for x in unit.reads()}
    outputs = {o.name: o.nbytes for value, o in made.items() if value.is_graph_output() or value in elsewhere}
    return inputs, outputs


def groups(found: Sequence[Unit], taken: Callable[[Unit], bool]) -> list[Group]:
    """The units in groups, each of one executor, in an order in which they can run.

    Units are visited when all that they read is there. One that is taken joins the open group, connected or not. One
    that isn't runs before the group, unless it needs something of it: then it waits until nothing else is left to
    visit, and the group is closed.
    """
    maker = {out.value: unit for unit in found for out in unit.outputs}
    needs = {unit: {maker[x.value] for x in unit.reads() if x.value in maker} for unit in found}
    readers: dict[Unit, list[Unit]] = {unit: [] for unit in found}
    for unit, before in needs.items():
        for other in before:
            readers[other].append(unit)
    left = {unit: len(before) for unit, before in needs.items()}
    ready, waiting = deque(unit for unit in found if not left[unit]), deque[Unit]()
    made: list[Group] = []
    inside: list[Unit] = []
    outside: list[Unit] = []
    members: set[Unit] = set()
    while ready:
        unit = ready.popleft()
        if not taken(unit) and needs[unit] & members:
            waiting.append(unit)
        else:
            (inside if taken(unit) else outside).append(unit)
            members.update((unit,) if taken(unit) else ())
            for reader in readers[unit]:
                left[reader] -= 1
                if not left[reader]:
                    ready.append(reader)
        if not ready:
            made += [Group(flag, tuple(part)) for flag, part in ((False, outside), (True, inside)) if part]
            inside, outside, members = [], [], set()
            ready, waiting = waiting, deque()
    return made
