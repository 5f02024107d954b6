"""Calls that run elsewhere and can be given up: in processes of this machine, or on the workers of a Dask cluster.

A call is one that pickle takes; what it gives is a number, what it does lies in files.
"""

from __future__ import annotations

import contextlib
import glob
import os
import pickle
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from edgeq.collecting.workers import connect
from edgeq.errors import ToolError
from edgeq.graph import io
from edgeq.runners import process

Call = Callable[[], float]
_CHILD = "import sys; from edgeq.collecting.crews import serve; serve(int(sys.argv[1]))"
_GRACE = 5.0  # seconds that a process has to tidy up
_LOOK = 0.5  # seconds between two looks for the process that asked


class Running(Protocol):
    """A call under way."""

    def result(self) -> float | None:
        """What it gives, once it has ended; None if it raised, or whoever ran it died."""

    def stop(self) -> None: ...


class Crew(Protocol):
    """Those who run calls, `room` of them at a time."""

    @property
    def room(self) -> int: ...

    def ask(self, question: Callable[[], str]) -> None:
        """Of everyone who is not of this machine. Raises ToolError with the first answer that is not empty."""

    def start(self, call: Call, work: str) -> Running:
        """work: a pattern of the folders that a killed one leaves."""


@contextlib.contextmanager
def crew(workers: int, dask: str | None) -> Iterator[Crew]:
    """So many processes, or the cluster at an address. Raises ToolError when that can't be reached."""
    if dask is None:
        processes = _Processes(workers)
        try:
            yield processes
        finally:
            for step in (_close, _end):  # all hear of it before one is waited for
                for child in processes.idle:
                    step(child)
        return
    with connect(dask) as client:
        yield _Cluster(dask, client)


@dataclass(frozen=True)
class _Processes:
    """A process each for calls under way. It serves the next one too, and where it is killed takes no other with it."""

    room: int
    idle: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def ask(self, question: Callable[[], str]) -> None:
        pass

    def start(self, call: Call, work: str) -> Running:
        child = self.idle.pop() if self.idle else self._child()
        assert child.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it was killed: that is seen when it gives no answer
            pickle.dump(pickle.dumps(call), child.stdin)
            child.stdin.flush()
        return _Process(child, self.idle, work)

    def _child(self) -> subprocess.Popen[bytes]:
        env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}  # a module of the user's is found as it is here
        argv = [sys.executable, "-c", _CHILD, str(os.getpid())]
        with open(os.devnull, "wb") as nowhere:
            return process.start(
                argv, what="worker", env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=nowhere
            )


@dataclass
class _Process:
    child: subprocess.Popen[bytes]
    idle: list[subprocess.Popen[bytes]]
    work: str

    def result(self) -> float | None:
        assert self.child.stdout is not None
        answer = self.child.stdout.readline()
        if answer:
            self.idle.append(self.child)
        return float(answer) if answer.strip() else None

    def stop(self) -> None:
        if self.child in self.idle:
            return
        assert self.child.stdout is not None
        self.child.terminate()
        if select.select([self.child.stdout], [], [], _GRACE)[0]:
            self.result()
        if self.child not in self.idle:
            _end(self.child)
            for left in glob.glob(self.work):
                shutil.rmtree(left, ignore_errors=True)


def _close(child: subprocess.Popen[bytes]) -> None:
    for pipe in (child.stdin, child.stdout):
        assert pipe is not None
        with contextlib.suppress(BrokenPipeError):
            pipe.close()


def _end(child: subprocess.Popen[bytes]) -> None:
    """Of one that finds that there is no other call, or is dead, or doesn't listen."""
    _close(child)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(_GRACE)
    process.kill_group(child)


def serve(parent: int) -> None:
    """The life of a process: calls in, a line for each out, which is empty where it raised or was told to stop.

    Nothing is left of a call that was stopped, or whose answer nobody waits for any more.
    """
    busy = told = False

    def stop(*_: Any) -> None:
        nonlocal busy, told
        told = True
        if busy:
            busy = False  # what tidies up is not to be interrupted
            raise KeyboardInterrupt

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK)
        os.kill(os.getpid(), signal.SIGTERM)  # a process that waits for a call reads the end of them by itself

    signal.signal(signal.SIGTERM, stop)
    threading.Thread(target=look, daemon=True).start()
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1) as answers, contextlib.suppress(EOFError):
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a call prints is no answer
        while True:
            packed, told = pickle.load(sys.stdin.buffer), False  # what was told before was of the last call
            answer = ""
            with contextlib.suppress(Exception, KeyboardInterrupt):
                call = pickle.loads(packed)  # with what it imports, which is not to be interrupted
                busy = not told
                answer = str(call()) if busy else ""
            busy = False
            answers.write(f"{answer}\n")


@dataclass(frozen=True)
class _Cluster:
    address: str
    client: Any

    @property
    def room(self) -> int:
        return max(len(self.client.nthreads()), 1)

    def ask(self, question: Callable[[], str]) -> None:
        with self._named():
            answers = self.client.run(question)
        for worker, answer in answers.items():
            if answer:
                raise ToolError(f"dask at {self.address}: worker {worker} {answer}")

    def start(self, call: Call, work: str) -> Running:
        with self._named(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a large graph: that is the data
            return _Remote(self.client.submit(call, pure=False))

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the client raises errors of its own, of the network, and of the workers' Python
            raise ToolError(f"dask at {self.address}: {io.one_line(error)}") from None


@dataclass(frozen=True)
class _Remote:
    future: Any

    def result(self) -> float | None:
        try:
            return float(self.future.result())
        except Exception:  # of the call, or of the cluster whose workers died again and again
            return None

    def stop(self) -> None:
        self.future.cancel()
