"""`edgeq package`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from edgeq.cli.say import print_line


def package(
    folder: Annotated[Path, typer.Argument(help="A folder that edgeq quantize wrote.", show_default=False)],
    platform: Annotated[str, typer.Option("--platform", "-p", help="android, apple, web or bare.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A new folder, or one of an earlier package.")],
    name: Annotated[str, typer.Option(help="Of the package; default: the model's.")] = "",
    version: Annotated[str, typer.Option(help="Of the package.")] = "1.0.0",
    labels: Annotated[Path | None, typer.Option(help="A text file with a class name a line.")] = None,
    licence: Annotated[Path | None, typer.Option("--license", help="A text file with the model's licence.")] = None,
    max_bytes: Annotated[int | None, typer.Option(help="Most bytes that the package may have.")] = None,
    sign: Annotated[Path | None, typer.Option(help="A PEM file with an EC private key.")] = None,
    apk: Annotated[bool, typer.Option("--apk", help="android: also an APK of the assets alone, signed.")] = False,
    keystore: Annotated[
        Path | None, typer.Option(help="The APK's key store, its password in EDGEQ_KEYSTORE_PASSWORD.")
    ] = None,
) -> None:
    """Pack an artifact with metadata, golden vectors and a self-test, for an app or a web page."""
    from functools import partial

    from edgeq.errors import RecipeError
    from edgeq.package.assemble import package as write
    from edgeq.package.contents import gather

    if (apk or keystore is not None) and platform != "android":
        raise RecipeError(f"--apk and --keystore are for --platform android, not {platform}")
    held = gather(folder, name, version, labels, licence)
    extra = None
    if apk:
        from edgeq.package.android import apk as add

        extra = partial(add, held, keystore=keystore, password=os.environ.get("EDGEQ_KEYSTORE_PASSWORD", ""))
    for note in write(held, platform, output, max_bytes=max_bytes, key=sign, extra=extra):
        print_line(f"note: {note}")
    print_line(f"{output}: {held.name} {held.version} for {platform}")
