"""Files are written whole or not at all."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from edgeq.errors import ModelError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place at the end, and is gone if that end isn't reached.

    Raises ModelError when the folder or the disk refuses it.
    """
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise ModelError(f"{path}: can't be written ({error.strerror}); choose another output folder") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def spilled(shape: tuple[int, ...], dtype: np.dtype, folder: Path | None = None) -> np.ndarray:
    """An array of zeros on disk, in a file without a name in `folder`, for what is needed later but not meanwhile."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return np.memmap(file, dtype, "w+", shape=shape)


def let_go(array: np.ndarray) -> None:
    """Take a mapped array's pages out of memory; they come back from its file when they are read."""
    held = getattr(array, "_mmap", None)
    if held is not None and hasattr(mmap, "MADV_DONTNEED"):
        held.madvise(mmap.MADV_DONTNEED)
