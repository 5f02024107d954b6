"""The folder that receives the artifact: nothing in it is ever half written, and a failed run leaves it as it was."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeq.errors import EdgeqError


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
        work = Path(tempfile.mkdtemp(dir=output if output.is_dir() else output.parent, prefix=f".{output.name}."))
    except OSError as error:
        raise EdgeqError(f"{output}: can't be written ({error.strerror}); choose another output folder") from None
    try:
        yield work
    except OSError as error:
        raise EdgeqError(f"{error.filename or output}: {error.strerror}; free space or choose another folder") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if not output.exists():
            for folder in new:
                folder.rmdir()


def publish(work: Path, output: Path) -> None:
    """Move the results into place; the report goes last, and only over a complete artifact."""
    output.mkdir(parents=True, exist_ok=True)
    (output / "report.json").unlink(missing_ok=True)
    external = (work / "model.onnx.data").exists()
    for file in sorted(work.iterdir()):
        if file.is_file() and not file.name.startswith(".") and file.name != "report.json":
            os.replace(file, output / file.name)
    if not external:
        (output / "model.onnx.data").unlink(missing_ok=True)
    os.replace(work / "report.json", output / "report.json")
