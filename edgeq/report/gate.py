"""What the drift gate found, for a terminal, a pull request and a CI server."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import Any

from edgeq.report.printable import UNPRINTABLE
from edgeq.report.tables import plain, table

COLUMNS = ("what", "locked", "now", "", "why")


def gate_tables(found: Sequence[Any]) -> list[Any]:
    """A table for each artifact that has rows to show: what moved or failed, or one line when nothing did."""
    shown: list[Any] = []
    for one in found:
        rows = [(r.what, r.locked, r.now, r.verdict, r.why) for r in one.rows if r.verdict != "same"]
        verdict = "passes" if one.ok else "FAILS"
        if rows:
            shown.append(table(f"{one.name} {verdict}", COLUMNS, rows))
        else:
            shown.append(plain(f"{one.name} {verdict}: {len(one.rows)} comparisons, nothing moved"))
    return shown


def markdown(found: Sequence[Any]) -> str:
    """A table for a comment on a pull request; names can't reach out of their cells."""
    lines = []
    for one in found:
        lines += [f"### {'✅' if one.ok else '❌'} {_cell(one.name)}", "", "| what | locked | now | | why |"]
        lines += ["|---|---|---|---|---|"]
        moved = [r for r in one.rows if r.verdict != "same"]
        lines += [f"| {' | '.join(_cell(v) for v in (r.what, r.locked, r.now, r.verdict, r.why))} |" for r in moved]
        if not moved:
            lines.append(f"| {len(one.rows)} comparisons | | | same | |")
        lines.append("")
    return "\n".join(lines)


def _cell(text: str) -> str:
    escaped = UNPRINTABLE.sub("�", text)
    for mark in "\\`*_[]<>|#@":
        escaped = escaped.replace(mark, f"\\{mark}" if mark not in "<>@" else f"&#{ord(mark)};")
    return escaped


def junit(found: Sequence[Any]) -> bytes:
    """JUnit XML: a suite for each artifact, a test case for each comparison."""
    root = ET.Element("testsuites", name="edgeq")
    for one in found:
        failed = sum(r.verdict == "failed" for r in one.rows)
        suite = ET.SubElement(root, "testsuite", name=_text(one.name), tests=str(len(one.rows)), failures=str(failed))
        for row in one.rows:
            case = ET.SubElement(suite, "testcase", classname=f"edgeq.{_text(one.name)}", name=_text(row.what))
            if row.verdict == "failed":
                message = f"{row.locked} → {row.now}: {row.why}"
                ET.SubElement(case, "failure", message=_text(message)).text = _text(message)
    ET.indent(root)
    return bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def _text(text: str) -> str:
    return UNPRINTABLE.sub("�", text)
