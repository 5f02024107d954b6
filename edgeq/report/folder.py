"""The folder that receives the artifact: nothing in it is ever half written, and a failed run leaves it as it was.

Each run works in a hidden folder that it holds locked. The kernel lets go of the lock when the run ends, however it
ends, so the next run can tell what a killed one left from what another one is working in.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from edgeq.errors import EdgeqError
from edgeq.files import locked, remove_unlocked

SUFFIX = ".edgeq"
MAYBE = (
    "model.onnx",
    "model.onnx.data",
    "model.tflite",
    "model_vela.tflite",
    "golden.npz",
)  # an earlier run's must not stay beside an artifact that has none


@contextmanager
def work_folder(output: Path) -> Iterator[Path]:
    """A work folder on the output's file system, gone whatever happens, as are folders made on the way to nothing."""
    output = Path(os.path.abspath(output))
    if output.exists() and not output.is_dir():
        raise EdgeqError(f"{output}: is a file; give a folder")
    new = [folder for folder in output.parents if not folder.exists()]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        # An output folder that is there may be a mount point: only inside it can files be moved into place.
        work, lock = _claim(output if output.is_dir() else output.parent, f".{output.name}.")
    except OSError as error:
        raise EdgeqError(f"{output}: can't be written ({error.strerror}); choose another output folder") from None
    try:
        yield work
    except OSError as error:
        raise EdgeqError(f"{error.filename or output}: {error.strerror}; free space or choose another folder") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
        os.close(lock)
        for folder in new:
            if folder.exists() and not any(folder.iterdir()):
                folder.rmdir()


def _claim(parent: Path, prefix: str) -> tuple[Path, int]:
    """A new, locked work folder and its lock; folders of the same prefix whose run is dead are removed first."""
    for left in parent.iterdir():
        if left.name.startswith(prefix) and left.name.endswith(SUFFIX) and not left.is_symlink():
            remove_unlocked(left, os.O_DIRECTORY, partial(shutil.rmtree, ignore_errors=True))
    made = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
    lock = os.open(made, os.O_RDONLY)
    locked(lock)
    return made.rename(f"{made}{SUFFIX}"), lock  # named only now, or another run might find it unlocked


def publish(work: Path, output: Path) -> None:
    """Move the results into place; the report goes last, and only over a complete artifact.

    Runs that end together take turns, so that a report is never beside another run's artifact.
    """
    output.mkdir(parents=True, exist_ok=True)
    turn = os.open(output, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system that knows no locks
            fcntl.flock(turn, fcntl.LOCK_EX)
        (output / "report.json").unlink(missing_ok=True)
        stale = [name for name in MAYBE if not (work / name).exists()]
        for file in sorted(work.iterdir()):
            if file.is_file() and not file.name.startswith(".") and file.name != "report.json":
                os.replace(file, output / file.name)
        for name in stale:
            (output / name).unlink(missing_ok=True)
        os.replace(work / "report.json", output / "report.json")
    finally:
        os.close(turn)
