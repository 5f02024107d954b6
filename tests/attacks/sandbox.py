"""A process that has imported edgeq, and forks a child for every attack: under limits, and measured.

Run as a script it reads a JSON list of arguments a line: of the command line, or `read` KIND FILE for the readers that
no command reaches. It answers each with what the child printed, how it ended, and what it took.
"""

import contextlib
import importlib
import json
import os
import pkgutil
import resource
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECONDS, BYTES = 2.0, 500 << 20
ROOM = 1 << 30  # of addresses beyond those held at the fork: threads and allocators reserve more than they touch
HANG = 20  # s of wall-clock time, on machines that do much else
MORE = ("onnxruntime", "onnxscript", "onnx_ir.passes.common", "rich.console", "rich.table", "jinja2", "flatbuffers")


@dataclass(frozen=True)
class Outcome:
    """code: of the exit, or minus the signal. seconds: of processor time. bytes: the most memory that was in use."""

    code: int
    out: str
    err: str
    seconds: float
    bytes: int


class Sandbox:
    def __init__(self) -> None:
        env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, __file__], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, *args: object) -> Outcome:
        self.process.stdin.write(json.dumps([str(a) for a in args]) + "\n")
        self.process.stdin.flush()
        return Outcome(**json.loads(self.process.stdout.readline()))

    def refuses(self, *args: object, names: str = "", codes: tuple[int, ...] = (2,)) -> Outcome:
        """One line on stderr, one of the exit codes, and within the limits; what is let through does its work, too."""
        found = self(*args)
        shown = f"{' '.join(map(str, args))}\n{found}"
        assert found.code in codes, shown
        if found.code:
            assert found.out == "" or found.code == 1, shown
            assert found.err.count("\n") == 1, shown
            assert found.err.isprintable() or found.err[:-1].isprintable(), shown
            assert len(found.err) < 1000, shown
            assert names in found.err, shown
        assert found.seconds < SECONDS * (1 if found.code else 6), shown  # javac takes half of that, on a busy machine
        assert found.bytes < BYTES, shown
        return found

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def read(kind: str, file: str) -> None:
    from edgeq.collecting import stats
    from edgeq.formats import gguf, tflite_read
    from edgeq.verifying import golden

    if kind == "gguf":
        for tensor in gguf.read(file).tensors.values():
            tensor.floats()
    elif kind == "tflite":
        tflite_read.read(Path(file).read_bytes())
    else:
        {"golden": golden, "stats": stats}[kind].load(Path(file))


def attack(args: list[str]) -> None:
    from edgeq import cli
    from edgeq.cli.say import complain
    from edgeq.errors import EdgeqError

    if args[0] != "read":
        sys.argv = ["edgeq", *args]
        cli.main()
    try:
        read(*args[1:])
    except EdgeqError as error:
        complain(str(error))
        sys.exit(error.exit_code)


def forked(args: list[str]) -> dict[str, object]:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            os.setsid()
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            held = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            resource.setrlimit(resource.RLIMIT_AS, (held + ROOM, held + ROOM))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.alarm(HANG)
            code = 70
            try:
                attack(args)
                code = 0
            except SystemExit as stop:
                code = int(stop.code or 0)
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                with contextlib.suppress(Exception):
                    sys.stdout.flush()
                    sys.stderr.flush()
                os._exit(code)
        _, status, used = os.wait4(child, 0)
        out.seek(0)
        err.seek(0)
        return {
            "code": os.waitstatus_to_exitcode(status),
            "out": out.read().decode(errors="replace"),
            "err": err.read().decode(errors="replace"),
            "seconds": used.ru_utime + used.ru_stime,
            "bytes": used.ru_maxrss * 1024,
        }


def main() -> None:
    import edgeq

    answers = os.fdopen(os.dup(1), "w")
    for module in pkgutil.walk_packages(edgeq.__path__, "edgeq."):
        if not module.name.startswith(("edgeq.train", "edgeq.export", "edgeq.__main__", "edgeq.pytest")):
            with contextlib.suppress(ImportError):
                importlib.import_module(module.name)
    for name in MORE:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for line in sys.stdin:
        answers.write(json.dumps(forked(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
