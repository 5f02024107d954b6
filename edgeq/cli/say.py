"""What the command line prints, and its exit on a failed verification. Nothing else prints."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import typer

from edgeq.report.printable import UNPRINTABLE  # not when there is something to say: memory may be short then

LONGEST = 900  # characters of a complaint


def judge(found: Any, failure_table: Any, silent: bool) -> None:
    """Exit 1 when the verification failed, with the table of the worst layers."""
    if found is None or not found.failures:
        return
    if not silent and found.layers:
        show(failure_table(found))
    for failure in found.failures:
        complain(failure)
    raise typer.Exit(1)


def progress(silent: bool) -> Any:
    from edgeq.report.progress import bars

    return bars(silent or not sys.stderr.isatty())


def complain(message: str) -> None:
    """One line on stderr, whatever the names in it hold, and however long a broken file made them."""
    if len(message) > LONGEST:
        message = f"{message[: LONGEST // 2]} … {message[-LONGEST // 2 :]}"
    sys.stderr.write(f"edgeq: {_printable(message)}\n")


def _printable(text: str) -> str:
    return UNPRINTABLE.sub("�", re.sub(r"[\r\n]+", " ", text))


def print_line(text: str) -> None:
    """One line on stdout, whatever the names in it hold."""
    sys.stdout.write(_printable(text) + "\n")


def print_json(found: Any) -> None:
    """Plain data, or JSON that is encoded already; it is for machines, so it stays as it is."""
    text = found.decode().rstrip() if isinstance(found, bytes) else json.dumps(found, indent=2, default=str)
    sys.stdout.write(text + "\n")


def show(*renderables: Any) -> None:
    from rich.console import Console, Group

    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    console.print(Group(*[r for group in renderables for r in (group if isinstance(group, list) else [group])]))
