"""Calls that run elsewhere and can be given up: in processes of this machine, or on the workers of a Dask cluster.

A call is one that pickle takes; what it gives is a number, what it does lies in files.
"""

from __future__ import annotations

import contextlib
import glob
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, Protocol

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
        yield _Processes(workers)
        return
    with connect(dask) as client:
        yield _Cluster(dask, client)


@dataclass(frozen=True)
class _Processes:
    """A call is a process, so one that is killed takes no other with it."""

    room: int

    def ask(self, question: Callable[[], str]) -> None:
        pass

    def start(self, call: Call, work: str) -> Running:
        env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}  # a module of the user's is found as it is here
        with tempfile.TemporaryFile() as given, open(os.devnull, "wb") as nowhere:
            pickle.dump(call, given)
            given.seek(0)
            output = tempfile.TemporaryFile()  # noqa: SIM115
            argv = [sys.executable, "-c", _CHILD, str(os.getpid())]
            child = process.start(argv, what="worker", env=env, stdin=given, stdout=output, stderr=nowhere)
        return _Process(child, output, work)


@dataclass(frozen=True)
class _Process:
    child: subprocess.Popen[bytes]
    output: IO[bytes]
    work: str

    def result(self) -> float | None:
        return float(process.last_line(process.tail(self.output))) if self.child.wait() == 0 else None

    def stop(self) -> None:
        self.child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.child.wait(_GRACE)
        process.kill_group(self.child)
        self.output.close()
        for left in glob.glob(self.work):
            shutil.rmtree(left, ignore_errors=True)


def serve(parent: int) -> None:
    """The life of a process: a call in, a number out. It leaves nothing when it is told to end, or nobody waits."""

    def leave(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: what tidies up is not to be interrupted
        raise KeyboardInterrupt

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK)
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, leave)
    threading.Thread(target=look, daemon=True).start()
    found = pickle.load(sys.stdin.buffer)()
    sys.stdout.write(f"\n{found}\n")


@dataclass(frozen=True)
class _Cluster:
    address: str
    client: Any

    @property
    def room(self) -> int:
        return max(len(self.client.nthreads()), 1)

    def ask(self, question: Callable[[], str]) -> None:
        with self._named():
            for worker, answer in self.client.run(question).items():
                if answer:
                    raise ToolError(f"worker {worker}: {answer}")

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
