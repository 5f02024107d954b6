import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from edgeq.errors import ToolError
from edgeq.runners import process

# Starts a child of its own, writes that child's id, and waits for ever.
FAMILY = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(sys.argv[1], "w").write(str(child.pid))
time.sleep(600)
"""


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # killed, and not yet collected by init


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


def test_time_limit_kills_the_whole_group(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    with pytest.raises(ToolError, match=r"^sleeper: stopped after 2 s; raise the timeout option"):
        process.run([sys.executable, "-c", FAMILY, str(note)], what="sleeper", timeout=2)
    assert gone(int(note.read_text()))


def test_interrupt_kills_the_whole_group(tmp_path: Path) -> None:
    note = tmp_path / "pid"

    def interrupt() -> None:
        while not (note.exists() and note.read_text()):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        process.run([sys.executable, "-c", FAMILY, str(note)], what="sleeper", timeout=60)
    assert gone(int(note.read_text()))


def test_children_left_by_a_finished_program_are_killed(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    code = FAMILY.rsplit("time.sleep", 1)[0]
    process.run([sys.executable, "-c", code, str(note)], what="parent", timeout=60)
    assert gone(int(note.read_text()))


def test_failure_is_one_line_with_the_end_of_stderr() -> None:
    code = "import sys; sys.stderr.write('noise\\n' * 9999 + '  it   broke: here\\n\\n'); sys.exit(3)"
    with pytest.raises(ToolError) as raised:
        process.run([sys.executable, "-c", code], what="tool", timeout=60)
    assert str(raised.value) == "tool: failed with exit status 3: it broke: here"
    with pytest.raises(ToolError, match=r"^tool: killed by SIGILL: it printed nothing$"):
        process.run([sys.executable, "-c", "import os; os.kill(os.getpid(), 4)"], what="tool", timeout=60)


def test_program_that_is_not_there() -> None:
    with pytest.raises(ToolError, match=r"^tool: can't start /nowhere/tool: No such file"):
        process.run(["/nowhere/tool"], what="tool", timeout=1)


def test_arguments_reach_the_program_unread_by_a_shell() -> None:
    odd = "$(touch x); `id` 'q\" *"
    assert (
        process.run([sys.executable, "-c", "import sys; print(sys.argv[1])", odd], what="t", timeout=60) == odd + "\n"
    )


def _build_and_fail(place: Path) -> None:
    with process.built_once(place) as work:
        (work / "file").write_text("three")
        raise ZeroDivisionError


def test_built_once_replaces_whole_or_not_at_all(tmp_path: Path) -> None:
    place = tmp_path / "runtime"
    for content in ("one", "two"):
        with process.built_once(place) as work:
            (work / "file").write_text(content)
    with pytest.raises(ZeroDivisionError):
        _build_and_fail(place)
    assert (place / "file").read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["runtime"]


def test_cache_can_be_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEQ_CACHE", "/elsewhere")
    assert process.cache("arm64") == Path("/elsewhere/arm64")
    monkeypatch.delenv("EDGEQ_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert process.cache() == Path("/caches/edgeq")
