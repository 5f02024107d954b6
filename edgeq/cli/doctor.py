"""`edgeq doctor`."""

from __future__ import annotations

from typing import Annotated

import typer

from edgeq.cli.options import AsJson
from edgeq.cli.say import print_json, print_line, show


def doctor(
    install: Annotated[str | None, typer.Option(help="Install a runner's runtime, such as arm64.")] = None,
    probe: Annotated[bool, typer.Option("--probe", help="Hold target files against what the runtime does.")] = False,
    target: Annotated[str, typer.Option("--target", "-t", help="What to probe: target,target.")] = "x86_64",
    as_json: AsJson = False,
) -> None:
    """Which runtimes are here, and how to get the others; with --probe, exit 1 where a target file disagrees."""
    from edgeq.registry import load
    from edgeq.report.listings import runtime_rows
    from edgeq.report.tables import listing

    if probe:
        _probe(target.split(","), as_json)
        return
    if install is not None:
        load("edgeq.runners", install, "install").install(lambda line: print_line(line))
    rows = runtime_rows()
    print_json(rows) if as_json else show(listing(rows))


def _probe(names: list[str], as_json: bool) -> None:
    import msgspec

    from edgeq import target as targets
    from edgeq.report.tables import listing
    from edgeq.verifying.probe import probe

    found = [probe(targets.load(name)) for name in names]
    wrong = [
        {
            "target": one.target,
            "pattern": str(row.specimen),
            "the file says": "integer" if row.claimed else "float",
            "the runtime runs": row.error or ", ".join(row.kernels),
        }
        for one in found
        for row in one.disagreements
    ]
    if as_json:
        print_json(msgspec.to_builtins(found))
    else:
        for one in found:
            integer = sum(row.integer for row in one.findings)
            counts = (
                f"{len(one.findings)} patterns, {integer} on integers, {len(one.disagreements)} not as its file says"
            )
            print_line(f"{one.target} on {one.runtime}: {counts}")
        if wrong:
            show(listing(wrong))
    if wrong:
        raise typer.Exit(1)
