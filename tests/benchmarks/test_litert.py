"""The table of LiteRT files on the digits model: what it calls exact is, and a wrong kernel is found."""

import json

import pytest

from tests.require import require

require("ai_edge_litert", "pip install edgeq[litert]")

from benchmarks import litert  # noqa: E402
from edgeq.intops import elementwise  # noqa: E402


def rows(folder, *forms):
    path = folder / "rows.json"
    code = litert.main(["--models", "digits", "--forms", ",".join(forms), "--json", str(path)])
    return code, {row["form"]: row for row in json.loads(path.read_text())}


def test_digits_in_every_form(tmp_path, capsys):
    code, found = rows(tmp_path, *litert.FORMS)
    assert code == 0
    assert list(found) == list(litert.FORMS)
    assert found["float32"]["error"] < 1e-5
    assert all(row["transposes"] == 0 and not row["failed"] for row in found.values())
    assert found["int8"]["integers"] == [67, 67]  # nothing of it is float
    for form in ("int8", "int16"):
        wrong, total = found[form]["differing"]
        assert wrong == 0
        assert total > 50_000
        assert found[form]["step"] <= 1
    assert "0 of 70044" in capsys.readouterr().out


def test_a_kernel_that_is_another_is_counted(tmp_path, monkeypatch):
    """The sums of 16 bits with the shift of 8 bits: wrong without a warning."""
    monkeypatch.setattr(elementwise, "LEFT_SHIFT_16", elementwise.LEFT_SHIFT)
    code, found = rows(tmp_path, "int16")
    assert code == 1
    assert found["int16"]["differing"][0] > 1000


def test_what_is_refused_is_a_row_that_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(litert.FORMS, "weights", ("litert", "weight_only"))
    code, found = rows(tmp_path, "weights")
    assert code == 1
    assert found["weights"]["failed"]


@pytest.mark.parametrize(("error", "good"), [(1e-5, True), (2e-4, False)])
def test_a_float_file_has_a_bound(error, good):
    assert litert.Row("m", "float32", error=error).good is good
    assert litert.Row("m", "hybrid", error=error).good
    assert not litert.Row("m", "int8", step=2).good
