"""Child programs: a list of arguments (never a shell), a group of their own, a time limit, and nothing left behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from edgeq.errors import ToolError

_TAIL = 64 * 1024  # how much of an output is ever read back


def cache(*parts: str) -> Path:
    """A folder of the user's cache that holds installed runtimes: `$EDGEQ_CACHE`, else `~/.cache/edgeq`."""
    root = os.environ.get("EDGEQ_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "edgeq")
    return Path(root, *parts)


@contextlib.contextmanager
def built_once(folder: Path) -> Iterator[Path]:
    """A temporary sibling of `folder` to build in, which takes its place, whole or not at all, when the block ends."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield work
        if folder.exists():
            old = work.with_name(work.name + "-old")
            folder.rename(old)
            shutil.rmtree(old, ignore_errors=True)
        work.chmod(0o755)
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kills the child and all that it started in its group, and waits for it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # no process of the group is left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def start(
    argv: Sequence[str],
    *,
    what: str,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: IO[bytes] | int | None = None,
    stdout: IO[bytes] | int,
    stderr: IO[bytes],
) -> subprocess.Popen[bytes]:
    """A child in its own group. Raises ToolError when the program is not there."""
    try:
        return subprocess.Popen(
            list(argv),
            stdin=stdin or subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=None if env is None else dict(env),
            cwd=cwd,
            start_new_session=True,
        )
    except OSError as error:
        raise ToolError(f"{what}: can't start {argv[0]}: {error.strerror}") from error


def run(
    argv: Sequence[str],
    *,
    what: str,
    timeout: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: IO[bytes] | None = None,
    stdout: IO[bytes] | None = None,
) -> str:
    """Runs a child to its end and returns the last 64 KiB of its output (nothing when `stdout` is a given file).

    Raises ToolError, in one line that begins with `what`: not found, over `timeout` seconds, or the end of stderr.
    """
    with contextlib.ExitStack() as stack:
        out = stdout or stack.enter_context(tempfile.TemporaryFile())
        err = stack.enter_context(tempfile.TemporaryFile())
        process = start(argv, what=what, env=env, cwd=cwd, stdin=stdin, stdout=out, stderr=err)
        stack.callback(kill_group, process)  # on success too: a child may leave children of its own
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise ToolError(
                f"{what}: stopped after {timeout:g} s; raise the timeout option, or give fewer samples"
            ) from None
        if code:
            raise ToolError(f"{what}: {ending(code)}: {last_line(tail(err) or ('' if stdout else tail(out)))}")
        return "" if stdout else tail(out)


def ending(code: int) -> str:
    """How a process ended, in words."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"failed with exit status {code}"


def tail(file: IO[bytes]) -> str:
    """The last 64 KiB of a file as text."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _TAIL))
    return file.read().decode("utf-8", "replace")


def last_line(text: str, limit: int = 300) -> str:
    """The last line that says something, cut to `limit` characters."""
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    return lines[-1][:limit] if lines else "it printed nothing"
