"""What the command line prints, and its exit on a failed verification. Nothing else prints."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import typer


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
    """One line on stderr, whatever the names in it hold."""
    from edgeq.report.tables import UNPRINTABLE

    line = re.sub(r"[\r\n]+", " ", message)
    sys.stderr.write(f"edgeq: {UNPRINTABLE.sub('�', line)}\n")


def print_line(text: str) -> None:
    sys.stdout.write(text + "\n")


def print_json(found: Any) -> None:
    print_line(json.dumps(found, indent=2, default=str))


def show(*renderables: Any) -> None:
    from rich.console import Console, Group

    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    console.print(Group(*[r for group in renderables for r in (group if isinstance(group, list) else [group])]))
