"""Progress is drawn on stderr or not at all."""

from edgeq.report.progress import bars, peak_mb


def test_silent_is_silent(capsys):
    with bars(True) as show:
        show("collect", 1, 2)
    assert capsys.readouterr() == ("", "")


def test_bars_name_the_step_on_stderr(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # what makes rich take any stream for a terminal
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with bars(False) as show:
        for done in range(4):
            show("collect", done, 3)
        show("plan", 0, None)
    out, err = capsys.readouterr()
    assert out == ""
    assert "collect" in err
    assert "3/3" in err


def test_peak_memory_grows_with_use():
    before = peak_mb()
    held = bytearray(b"x") * (64 << 20)
    assert peak_mb() >= before > 5
    assert peak_mb() > len(held) / 1e6
