"""The command line. Exit codes: 0 fine, 1 verification failed, 2 bad usage or input.

One command a file, named as the command. Each imports what it needs when it runs, so that `--help` is immediate.
"""

from __future__ import annotations

import errno
import gc
import importlib
import re
import signal
import sys
from typing import Annotated, Any

import typer

from edgeq import __version__
from edgeq.cli.say import complain, print_line
from edgeq.errors import EdgeqError

COMMANDS = (
    "export",
    "inspect",
    "plan",
    "quantize",
    "tune",
    "recalibrate",
    "retarget",
    "verify",
    "bench",
    "check",
    "report",
    "package",
    "verify_package",
    "targets",
    "methods",
    "doctor",
)
"""In the order of the help."""
INTERRUPTED = 130
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

app = typer.Typer(
    help="Takes a trained model to the artifact that an edge target really executes, and proves it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Run the command line; every deliberate error is one line on stderr."""
    signal.signal(signal.SIGTERM, _interrupt)  # so that a polite kill tidies up as Ctrl-C does
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    gc.set_threshold(10_000, 10, 10)  # graphs are built of very many objects, few of which go before the graph does
    try:
        code = app(standalone_mode=False)
        if code == INTERRUPTED:  # typer's answer to Ctrl-C, without a word
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except EdgeqError as error:
        complain(str(error))
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        complain("interrupted; nothing was written")
        sys.exit(INTERRUPTED)
    except Exception as error:
        if _starved(error):
            complain("out of memory; give it more, or a smaller model or fewer samples")
            sys.exit(2)
        if isinstance(error, OSError) and (error.filename or error.errno in FULL):  # any write may meet them
            complain(f"{error.filename or 'a file'}: {error.strerror}; choose another folder, or free some room")
            sys.exit(2)
        if not hasattr(error, "format_message"):  # click's usage errors have it, whichever click typer carries
            raise
        complain(error.format_message())
        sys.exit(2)


def _starved(error: Exception) -> bool:
    """Whether memory was short. A library that can't be loaded for that says it in words of its own."""
    loading = isinstance(error, ImportError) and re.search("map segment|bad_alloc|allocate memory", str(error))
    return isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM or bool(loading)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print_line(__version__)
        raise typer.Exit


for name in COMMANDS:
    app.command()(getattr(importlib.import_module(f"edgeq.cli.{name}"), name))
