"""`edgeq targets`."""

from __future__ import annotations

from edgeq.cli.options import AsJson
from edgeq.cli.say import print_json, show


def targets(as_json: AsJson = False) -> None:
    """The targets that there are, and whether their runtime is installed."""
    from edgeq.report.listings import target_rows
    from edgeq.report.tables import listing

    rows = target_rows()
    print_json(rows) if as_json else show(listing(rows))
