"""What the terminal shows: names of models come out as text, whatever is in them."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from edgeq.report import tables
from edgeq.report.schema import LayerDrift, LostSlice, Metric, OutputDrift, Runtime, Verification

HOSTILE = "\x1b[2J[red]name[/red]\r\n\u202eevil\x9b"


def shown(parts, width=200):
    console = Console(width=width, force_terminal=True, color_system=None)
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    return captured.get()


@given(st.text(max_size=40) | st.just(HOSTILE))
def test_a_cell_holds_no_control_characters_and_reads_no_markup(text):
    cell = tables.plain(text)
    assert len(cell.plain) == len(text)
    assert not cell.spans
    # Cc, Cs, Zl, Zp: control, surrogate, line and paragraph separator; and the marks that turn the direction.
    for character, was in zip(cell.plain, text, strict=True):
        harmless = unicodedata.category(was) not in ("Cc", "Cs", "Zl", "Zp")
        harmless &= unicodedata.bidirectional(was) not in (
            "LRE",
            "RLE",
            "LRO",
            "RLO",
            "PDF",
            "LRI",
            "RLI",
            "FSI",
            "PDI",
        )
        assert character == (was if harmless and was not in "\u200e\u200f" else "�")


def verification(**changes):
    fields = {
        "samples": 3,
        "outputs": (OutputDrift(HOSTILE, 31.25, 0.5, 0.125, (LostSlice(1, 4, 0.0),)), OutputDrift("same", None, 1, 0)),
        "runtime": Runtime("some [bold]runtime", "1.2"),
        "metric": Metric("top-1 (label)", 0.75, 0.5, 0.25),
        "levels": {"disabled": 30.0, "all": None},
        "warnings": (f"node {HOSTILE} fell to float",),
    }
    return Verification(**{**fields, **changes})


def test_verification():
    text = shown(tables.verify_table(verification()))
    assert not {"\x1b", "\x9b", "\u202e", "\r"} & set(text)
    for part in (
        "[red]name[/red]", "some [bold]runtime 1.2", "31.2 dB", "exact", "0.125", "axis 1[4]", "drop +0.2500",
        "disabled 30.0 dB, all exact", "warning: node",
    ):  # fmt: skip
        assert part in text


def test_the_worst_layers_come_first_and_exact_ones_last():
    levels = [None, 40.0, -300.0, 12.0, *range(50, 60)]
    layers = tuple(LayerDrift(f"n{i}", "Conv", db) for i, db in enumerate(levels))
    (made,) = tables.failure_table(verification(layers=layers))
    assert [str(cell) for cell in made.columns[0].cells] == ["n2", "n3", "n1", *(f"n{i}" for i in range(4, 11))]
    assert tables.failure_table(verification()) == []


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0.0 kB"), (1500, "1.5 kB"), (100_000, "0.10 MB"), (2.5e9, "2500.00 MB")]
)
def test_sizes(count, text):
    assert tables.mb(count) == text


def test_listings():
    assert "[red]x" in shown(tables.listing([{"name": "[red]x", "what": 1}]))
    assert shown(tables.listing([])) == "none\n"
