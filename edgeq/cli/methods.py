"""`edgeq methods`."""

from __future__ import annotations

from edgeq.cli.options import AsJson
from edgeq.cli.say import print_json, show


def methods(as_json: AsJson = False) -> None:
    """Calibrators and weight algorithms."""
    from edgeq.report.listings import method_rows
    from edgeq.report.tables import listing

    rows = method_rows()
    print_json(rows) if as_json else show(listing(rows))
