"""`edgeq inspect`."""

from __future__ import annotations

from typing import Annotated

import typer

from edgeq.cli.options import AsJson, Model
from edgeq.cli.say import print_json, show


def inspect(
    model: Model,
    float_free: Annotated[
        bool, typer.Option("--float-free", help="List float tensors between the model's ends; exit 1 if there are any.")
    ] = False,
    nnapi: Annotated[
        int | None,
        typer.Option("--nnapi", min=27, max=35, help="What NNAPI takes of a quantized model at an Android API level."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Operators, sizes, opset, dynamic axes and the largest tensors of a model."""
    from edgeq.report.inspect import float_table, float_tensors, inspect_file, inspect_tables, nnapi_tables, on_nnapi

    if nnapi is not None:
        import msgspec

        pieces = on_nnapi(model, nnapi)
        print_json(msgspec.to_builtins(pieces)) if as_json else show(nnapi_tables(model, pieces))
        return
    if not float_free:
        found = inspect_file(model)
        print_json(found) if as_json else show(inspect_tables(found))
        return
    left = float_tensors(model)
    print_json({"file": str(model), "float_tensors": left}) if as_json else show(float_table(model, left))
    if left:
        raise typer.Exit(1)
