"""`edgeq inspect`."""

from __future__ import annotations

from edgeq.cli.options import AsJson, Model
from edgeq.cli.say import print_json, show


def inspect(model: Model, as_json: AsJson = False) -> None:
    """Operators, sizes, opset, dynamic axes and the largest tensors of a model."""
    from edgeq.report.inspect import inspect_file, inspect_tables

    found = inspect_file(model)
    print_json(found) if as_json else show(inspect_tables(found))
