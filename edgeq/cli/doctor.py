"""`edgeq doctor`."""

from __future__ import annotations

from typing import Annotated

import typer

from edgeq.cli.options import AsJson
from edgeq.cli.say import print_json, print_line, show


def doctor(
    install: Annotated[str | None, typer.Option(help="Install a runner's runtime, such as arm64.")] = None,
    as_json: AsJson = False,
) -> None:
    """Which runtimes are here, and how to get the others."""
    from edgeq.registry import load
    from edgeq.report.listings import runtime_rows
    from edgeq.report.tables import listing

    if install is not None:
        load("edgeq.runners", install, "install").install(lambda line: print_line(line))
    rows = runtime_rows()
    print_json(rows) if as_json else show(listing(rows))
