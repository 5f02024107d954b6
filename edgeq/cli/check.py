"""`edgeq check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeq.cli.options import AsJson, Quiet
from edgeq.cli.say import print_json, print_line, progress, show


def check(
    names: Annotated[list[str] | None, typer.Argument(help="Artifacts of the lock; default: all of them.")] = None,
    lock: Annotated[Path, typer.Option(help="The lock file; paths in it are relative to its folder.")] = Path(
        "edgeq.lock"
    ),
    update: Annotated[bool, typer.Option("--update", help="Write what is seen now into the lock.")] = False,
    add: Annotated[str | None, typer.Option(help="Enter an artifact of this name into the lock, and build it.")] = None,
    model: Annotated[str, typer.Option(help="With --add: its .onnx file.")] = "",
    target: Annotated[str, typer.Option("--target", "-t", help="With --add: its target.")] = "x86_64",
    calib: Annotated[str, typer.Option(help="With --add: its calibration data.")] = "",
    eval_data: Annotated[str, typer.Option("--eval", help="With --add: what it is verified on.")] = "",
    labels: Annotated[str, typer.Option(help="With --add: the array of labels.")] = "",
    metric: Annotated[str, typer.Option(help="With --add: MODULE:FUNCTION.")] = "",
    also: Annotated[list[str], typer.Option(help="With --add: a further target to verify on; repeat it.")] = [],  # noqa: B006
    recipe: Annotated[Path | None, typer.Option(help="With --add: a recipe.toml.")] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Keep statistics and the float model's answers here, for large models.")
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML to this file.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write a table for a pull request to this file.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Rebuild what edgeq.lock holds, verify it again, and exit 1 with a table of what moved too far."""
    import msgspec

    from edgeq import gate
    from edgeq import lock as locks
    from edgeq import recipe as recipes
    from edgeq.files import replacing
    from edgeq.report import gate as shown

    held = locks.load(lock) if lock.exists() or add is None else locks.Lock()
    if add is not None:
        settings = recipes.changed(recipes.load(recipe)) if recipe is not None else {}
        settings.pop("target", None)
        fresh = locks.Locked(model, target, calib, eval_data, labels, metric, tuple(also), settings)
        held = msgspec.structs.replace(held, artifact={**held.artifact, add: fresh})
        names, update = [add], True
    with progress(quiet or as_json) as advance:
        found = [gate.check(n, locks.find(held, n, lock), lock.parent, advance, cache) for n in names or held.artifact]
    if update:
        entries = {one.name: msgspec.structs.replace(held.artifact[one.name], seen=one.seen) for one in found}
        locks.save(msgspec.structs.replace(held, artifact={**held.artifact, **entries}), lock)
    for path, content in ((junit, shown.junit), (markdown, lambda all_: shown.markdown(all_).encode())):
        if path is not None:
            with replacing(path) as file:
                file.write_bytes(content(found))
    if as_json:
        print_json([{"ok": one.ok, **msgspec.to_builtins(one)} for one in found])
    elif not quiet:
        show(shown.gate_tables([one for one in found if not update or held.artifact[one.name].seen is not None]))
        if update:
            print_line(f"{lock}: {', '.join(one.name for one in found)} written as seen now")
    if not update and not all(one.ok for one in found):
        raise typer.Exit(1)
