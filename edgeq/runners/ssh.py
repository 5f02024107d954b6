"""A board over SSH: sends model, samples and a single-file program, runs it there, and brings back what it computed.

The board needs Python 3.8 or newer with numpy and onnxruntime, `tar` and `timeout`. One connection carries one run:
a tar archive goes in through its standard input, another comes out of its standard output, and the folder on the
board is removed when the connection's shell ends, however it ends.
"""

from __future__ import annotations

import re
import secrets
import shlex
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import IO, Any

import onnx_ir as ir

from edgeq.errors import RecipeError, ToolError
from edgeq.runners import jobs, process
from edgeq.runners.jobs import CHILD, JobSession
from edgeq.runners.session import COMMON, Feeds, options

TITLE = "a board over SSH"
TIMED = True
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.%:@\[\]-]*")
_RESULT = re.compile(r"\./(out/\d+_\d+\.npy|result\.json|optimized\.onnx)")
_GRACE = 30.0  # seconds for the transfers, beyond the time that the program itself is given


def missing() -> str | None:
    """None when this machine can open SSH connections, else one line that says how to install the client."""
    return None if shutil.which("ssh") else "the ssh runner needs an SSH client: run `apt install openssh-client`"


def version() -> str:
    """The SSH client's own version; a board's onnxruntime is in the session's `report` after a run."""
    if line := missing():
        raise ToolError(line)
    return process.run(["sh", "-c", "exec ssh -V 2>&1"], what="ssh", timeout=10).strip()


def open_session(model: Path, **given: Any) -> JobSession:
    """Options: optimization, threads, timeout, proof (see `arm64`); and where the board is.

    host: "user@pi" or an alias of the user's SSH configuration. port: 0 leaves it to that configuration. config:
    another configuration file. python: the interpreter on the board. The board must accept a key: nothing is asked.
    Raises RecipeError, ToolError.
    """
    defaults = {**COMMON, "host": "", "port": None, "config": None, "python": "python3", "proof": False}
    chosen = options("ssh", given, defaults)
    if line := missing():
        raise ToolError(line)
    argv = command(chosen)

    def launch(folder: Path) -> None:
        with tempfile.TemporaryFile() as sent, tempfile.TemporaryFile() as received:
            with tarfile.open(fileobj=sent, mode="w", format=tarfile.PAX_FORMAT) as archive:
                archive.add(folder, arcname=".")
            sent.seek(0)
            limit = chosen["timeout"] + _GRACE
            process.run(argv, what=f"ssh ({chosen['host']})", timeout=limit, stdin=sent, stdout=received)
            received.seek(0)
            unpack(received, folder, f"ssh ({chosen['host']})")

    what = f"ssh ({chosen['host']})"
    return JobSession(model, what, launch, chosen, carries_model=True, proof=chosen["proof"])


def optimized(model: Path, feeds: Feeds, **given: Any) -> ir.Model:
    """The graph that the board really runs, after every optimization. Raises what `open_session` and `run` raise."""
    return jobs.optimized(open_session(model, proof=True, **given), feeds)


def command(chosen: dict[str, Any]) -> list[str]:
    """The local argument list; its last argument is the one string that the board's shell reads, all of it quoted."""
    host, port = chosen["host"], chosen["port"]
    if not _HOST.fullmatch(host):
        raise RecipeError(f"runner ssh: host={host!r} is not a host: give host=user@name")
    if port is not None and (not isinstance(port, int) or not 0 < port < 65536):
        raise RecipeError(f"runner ssh: port={port!r} is not a port: give a number from 1 to 65535")
    place = shlex.quote(f"/tmp/edgeq-{secrets.token_hex(16)}")
    results = "./result.json ./out" + (" ./optimized.onnx" if chosen["proof"] else "")
    late = shlex.quote(f"stopped after {chosen['timeout']:g} s on the board; raise the timeout option")
    remote = "\n".join(
        [
            f"umask 077; mkdir {place} && cd {place} || exit 1",
            f"trap 'rm -rf {place}' EXIT; trap 'exit 1' HUP INT TERM PIPE",
            "tar -xof - || exit 1",
            # `timeout` leads a group of its own; what the program leaves in it would hold the connection open.
            f"timeout -k 5 {chosen['timeout']:.3f} {shlex.quote(chosen['python'])} {CHILD.name} . >&2 & run=$!",
            "wait $run; code=$?; kill -9 -$run 2>/dev/null",
            f"[ $code = 124 ] && echo {late} >&2",
            f"[ $code = 0 ] || exit $code; tar -cf - {results}",
        ]
    )
    argv = ["ssh", "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=15"]
    argv += ["-o", "ClearAllForwardings=yes", "-o", "ForwardAgent=no"]
    argv += ["-F", str(chosen["config"])] if chosen["config"] else []
    argv += ["-p", str(port)] if port else []
    return [*argv, "--", host, f"exec sh -c {shlex.quote(remote)}"]  # whatever the login shell is


def unpack(archive: IO[bytes], folder: Path, what: str) -> None:
    """Takes the results out of a board's archive: plain files of the expected names, nothing else."""
    try:
        with tarfile.open(fileobj=archive, mode="r|") as received:
            for member in received:
                if not _RESULT.fullmatch(member.name) or not member.isreg():
                    continue
                source = received.extractfile(member)
                if source is not None:
                    with (folder / member.name).open("wb") as target:
                        shutil.copyfileobj(source, target)
    except tarfile.TarError as error:
        raise ToolError(f"{what}: what came back is no archive ({error}); does the login print something?") from error
