"""Where an artifact is run: on a target's own runtime, on what stands in for it, or on a board over SSH."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from edgeq.errors import RecipeError, ToolError
from edgeq.registry import load
from edgeq.runners.session import Feeds, Session
from edgeq.target import Target

if TYPE_CHECKING:
    from edgeq.runners.cpu import CpuSession  # which imports onnxruntime


@dataclass(frozen=True)
class Place:
    """name: the target's, or the board's. note: the line that says why another runtime stands in; else None.

    target: None for a board, which runs any.
    """

    name: str
    runner: ModuleType
    options: Mapping[str, Any]
    note: str | None = None
    target: Target | None = None

    @property
    def timed(self) -> bool:
        """Whether its latency is that of the target's own runtime, on this machine or a board: no emulator's."""
        return bool(self.runner.TIMED) and self.note is None

    def open(self, model: Path, streams: int = 1, **more: Any) -> Session:
        """streams: samples that `run_many` has under way, where the runner can have several."""
        if getattr(self.runner, "STREAMS", False):
            more["streams"] = streams
        session: Session = self.runner.open_session(model, **{**self.options, **more})
        return session

    def optimized(self, model: Path, feeds: Feeds) -> ir.Model | None:
        """The graph that the runtime really runs; None where it shows none."""
        show = getattr(self.runner, "optimized", None)
        return show(model, feeds, **self.options) if show else None


def of_target(target: Target, strict: bool = False) -> Place:
    """The target's runtime, or else its stand-in, unless `strict`. Raises ToolError when there is none to run on."""
    why = "it runs on a device only"
    if target.runner:
        runner = load("edgeq.runners", target.runner, "open_session")
        line = runner.missing()
        if line is None:
            return Place(target.name, runner, _options(target, runner), target=target)
        why = line
    if strict or not target.stand_in:
        raise ToolError(f"target {target.name} can't be verified here: {why}")
    stand_in = load("edgeq.runners", target.stand_in, "open_session")
    note = f"verified on {stand_in.TITLE} instead of {target.title}: {why}"
    return Place(target.name, stand_in, {}, note, target)


def _options(target: Target, runner: ModuleType) -> dict[str, Any]:
    """What its runner is opened with: sums are not kept from saturating where the target's do."""
    keeps_exact = hasattr(runner, "saturates")
    return ({"exact": False} if target.saturates and keeps_exact else {}) | dict(target.runner_options)


def open_here(model: Path, **given: Any) -> CpuSession:
    """On this machine's CPU, which runs whatever comes: a float model in any type, an artifact of another target.

    given: options of `edgeq.runners.cpu.open_session`, and what it raises.
    """
    session: CpuSession = load("edgeq.runners", "halves", "open_session").open_session(model, **given)
    return session


def board(host: str, python: str = "python3") -> Place:
    """A board: "user@pi", "user@pi:2222" or "user@[::1]:2222". Raises RecipeError, ToolError without an SSH client."""
    user, at, rest = host.rpartition("@")
    if rest.startswith("["):
        name, _, port = rest[1:].partition("]")
        port = port.removeprefix(":")
    elif rest.count(":") == 1:
        name, _, port = rest.partition(":")
    else:  # no port, or a bare IPv6 address
        name, port = rest, ""
    if port and not port.isdecimal():
        raise RecipeError(f"{host!r} is not a board: give user@name or user@name:port")
    runner = load("edgeq.runners", "ssh", "open_session")
    if line := runner.missing():
        raise ToolError(line)
    options = {"host": f"{user}{at}{name}", "port": int(port) if port else None, "python": python}
    return Place(host, runner, options)
