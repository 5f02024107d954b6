"""Run `count_part` elsewhere: in processes of this machine, or on the workers of a Dask cluster."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from edgeq import errors
from edgeq.collecting.shards import count_part
from edgeq.errors import EdgeqError, ToolError
from edgeq.graph import io
from edgeq.runners import process

Progress = Callable[[int], None]
_CHILD = "import sys; from edgeq.collecting.workers import serve; serve(*sys.argv[1:])"
_RETRIES = 2
_WAIT = 30.0  # seconds to reach a scheduler


def in_processes(model: Path, tasks: Sequence[bytes], folder: Path, progress: Progress) -> list[bytes]:
    """The results of all tasks, a process each, which are gone when this ends in whatever way.

    Tasks and results pass through files in `folder`. Raises what a task raised, ToolError for a process that died.
    """
    # A module of the user's that the data names is found there as it is here.
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    places = [folder / f"worker{index}" for index in range(len(tasks))]
    with contextlib.ExitStack() as stack:
        children = []
        for place, task in zip(places, tasks, strict=True):
            place.mkdir()
            (place / "task").write_bytes(task)
            output = stack.enter_context(tempfile.TemporaryFile())
            argv = [sys.executable, "-c", _CHILD, str(model), str(place), str(os.getpid())]
            child = process.start(argv, what="worker", env=env, stdout=output, stderr=output)
            stack.callback(process.kill_group, child)
            children.append((child, place, output))
        running = True
        while running:
            running = False
            for index, (child, place, output) in enumerate(children):
                code = child.poll()
                running |= code is None
                if code:
                    why = process.last_line(process.tail(output))
                    raise ToolError(f"worker {index + 1} of {len(tasks)}: {process.ending(code)}: {why}")
                if (place / "error").exists():
                    raise _error(place / "error")
            progress(sum(_length(place / "done") for place in places))
            time.sleep(0.05 if running else 0)
        return [(place / "result").read_bytes() for place in places]


def serve(model: str, place: str, parent: str) -> None:
    """The life of a worker process: `place/task` in, `place/result` or `place/error` out, `done` grows by sample.

    parent: the number of the process that asked, which may be gone before this one has come so far as to look.
    """
    folder = Path(place)
    with open(folder / "done", "wb", buffering=0) as done:

        def advance(_: int) -> None:
            done.write(b".")
            if os.getppid() != int(parent):
                raise ToolError("the process that asked for this part is gone")

        try:
            result = count_part(Path(model), (folder / "task").read_bytes(), advance)
        except EdgeqError as error:
            _write(folder / "error", msgspec.msgpack.encode([type(error).__name__, str(error)]))
        else:
            _write(folder / "result", result)


def _write(path: Path, content: bytes) -> None:
    """The reader may look at any time."""
    path.with_suffix(".part").write_bytes(content)
    path.with_suffix(".part").rename(path)


def _error(path: Path) -> EdgeqError:
    name, message = msgspec.msgpack.decode(path.read_bytes(), type=tuple[str, str])
    kind = getattr(errors, name, EdgeqError)
    return kind(message) if kind is not errors.TargetError else EdgeqError(message)


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def on_dask(address: str, model: Path, split: Callable[[int], list[bytes]], progress: Progress) -> list[bytes]:
    """The results of the tasks that `split` makes for a number of parts. A part whose worker dies is done again.

    The workers need edgeq, and the data where `open_data` looks for it; model and tasks are sent as bytes. Raises
    ToolError when the cluster can't be reached or gives up, and what a task raised.
    """
    files = [(str(f.relative_to(model.parent)), f.read_bytes()) for f in io.files(model)]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a large graph: that is the model, sent once
            with connect(address) as client, client.as_current():
                from distributed import as_completed

                tasks = split(2 * max(len(client.nthreads()), 1))
                # Not scattered: what a task made is made again when the worker that holds it dies.
                shared = client.submit(list, files, pure=False)
                parts = [client.submit(_remote, shared, task, pure=False, retries=_RETRIES) for task in tasks]
                for _ in as_completed(parts):
                    progress(sum(part.done() for part in parts))
                return client.gather(parts)
    except EdgeqError:
        raise
    except Exception as error:  # the client raises errors of its own, of the network, and of the workers' Python
        raise ToolError(f"dask at {address}: {io.one_line(error)}; see the log of its workers") from None


def connect(address: str) -> Any:
    """A client of the Dask cluster. Raises ToolError when it can't be reached."""
    try:
        from distributed import Client
    except ImportError:
        raise ToolError("--dask needs distributed: pip install 'edgeq[dask]'") from None
    try:
        return Client(address, timeout=_WAIT, set_as_default=False)
    except Exception as error:  # the client raises errors of its own, and of the network
        raise ToolError(f"dask at {address}: {io.one_line(error)}; see the log of its scheduler") from None


def _remote(files: list[tuple[str, bytes]], task: bytes) -> bytes:
    with tempfile.TemporaryDirectory(prefix="edgeq-") as folder:
        for name, content in files:
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return count_part(Path(folder, files[0][0]), task)
