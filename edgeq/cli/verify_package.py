"""`edgeq verify-package`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeq.cli.say import print_line


def verify_package(
    folder: Annotated[Path, typer.Argument(help="A folder that edgeq package wrote.", show_default=False)],
    key: Annotated[Path | None, typer.Option(help="A PEM file with the public key of who signed it.")] = None,
) -> None:
    """Check that every file of a package is what was packed, and who signed it; exit 1 when not."""
    from edgeq.package.assemble import check

    count = check(folder, key)
    print_line(f"{folder}: {count} files are what was packed{'' if key is None else f', signed by {key}'}")
