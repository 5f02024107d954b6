"""Files are written whole or not at all, and TOML is read within bounds."""

from __future__ import annotations

import fcntl
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgeq.errors import ModelError, RecipeError

MOST_TOML = 1 << 20  # bytes
MOST_DOTS = 1000  # in one line: a key of n dotted parts takes the parser n² steps and bytes


def read_toml(path: Path) -> dict[str, Any]:
    """The table in a TOML file. Raises RecipeError in one line when it can't be read."""
    try:
        if not path.is_file():
            raise RecipeError(f"{path}: no such file; give a TOML file")
        content = path.read_bytes()
        if len(content) > MOST_TOML or max(map(_dots, content.splitlines()), default=0) > MOST_DOTS:
            raise RecipeError(f"{path}: over {MOST_TOML} bytes, or {MOST_DOTS} dots in a line; that is no such file")
        return msgspec.toml.decode(content, type=dict[str, Any])
    except OSError as error:
        raise RecipeError(f"{path}: can't be read ({error.strerror})") from None
    except RecursionError:
        raise RecipeError(f"{path}: nested too deeply") from None
    except (msgspec.MsgspecError, ValueError) as error:  # UnicodeDecodeError and a number of 5000 digits are of these
        raise RecipeError(f"{path}: {error}") from None


def _dots(line: bytes) -> int:
    return line.count(b".")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place at the end, and is gone if that end isn't reached.

    Raises ModelError when the folder or the disk refuses it.
    """
    temporary: Path | None = None
    handle = -1
    try:
        while temporary is None:
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
            locked(handle)  # until it ends, however it ends: see `remove_dead`
            if os.fstat(handle).st_nlink:
                temporary = Path(name)
            else:  # somebody took it for dead before it was locked
                os.close(handle)
        yield temporary
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise ModelError(f"{path}: can't be written ({error.strerror}); choose another output folder") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
            os.close(handle)


def locked(handle: int) -> bool:
    """Whether the lock of a file or folder was got: not when somebody has it, or the file system knows none."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def remove_dead(folder: Path, suffix: str) -> None:
    """Remove what killed runs left of `replacing` files of a suffix, in a folder that others may be writing to."""
    for left in folder.glob(f".*{suffix}.*{suffix}"):
        if left.is_file():
            remove_unlocked(left, os.O_NOFOLLOW | os.O_NONBLOCK, partial(Path.unlink, missing_ok=True))


def remove_unlocked(left: Path, flags: int, remove: Callable[[Path], None]) -> None:
    """Call `remove` unless the run that made it lives and has it locked. flags: of `os.open`, what it must be."""
    try:
        handle = os.open(left, os.O_RDONLY | flags)
    except OSError:  # its run has just moved or removed it, or it is none of ours
        return
    if locked(handle):
        remove(left)
    os.close(handle)


def spilled(shape: tuple[int, ...], dtype: np.dtype, folder: Path | None = None) -> np.ndarray:
    """An array of zeros on disk, in a file without a name in `folder`, for what is needed later but not meanwhile."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return np.memmap(file, dtype, "w+", shape=shape)


def read_ahead(array: np.ndarray) -> None:
    """Have the system read a mapped array's pages from the disk meanwhile, in large pieces and in order."""
    held = getattr(array, "_mmap", None)
    if held is not None and hasattr(mmap, "MADV_WILLNEED"):
        held.madvise(mmap.MADV_WILLNEED)


def let_go(array: np.ndarray) -> None:
    """Take a mapped array's pages out of memory; they come back from its file when they are read."""
    held = getattr(array, "_mmap", None)
    if held is not None and hasattr(mmap, "MADV_DONTNEED"):
        held.madvise(mmap.MADV_DONTNEED)
