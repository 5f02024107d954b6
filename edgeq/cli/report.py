"""`edgeq report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeq.cli.say import print_line


def report(
    folders: Annotated[list[Path], typer.Argument(help="A folder that edgeq quantize wrote; two are compared.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Default: report.html in the folder.")] = None,
) -> None:
    """One self-contained HTML page: coverage, loss, ranges, sizes; or two reports side by side."""
    from edgeq.errors import RecipeError
    from edgeq.files import replacing
    from edgeq.report.page import page

    if len(folders) > 2:
        raise RecipeError(f"{len(folders)} folders given: a page shows one report, or compares two")
    html = page(folders)
    path = output or folders[0] / "report.html"
    with replacing(path) as file:
        file.write_text(html, encoding="utf-8")
    print_line(f"{path}: written")
