"""What is written takes its place whole; what a killed run left is told from what another one is writing."""

import subprocess
import sys

import pytest

from edgeq.files import remove_dead, replacing

KILLED = """
import os, signal, sys
from pathlib import Path
from edgeq.files import replacing
with replacing(Path(sys.argv[1])) as file:
    file.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_run_left_is_removed_and_a_living_ones_is_not(tmp_path):
    assert subprocess.run([sys.executable, "-c", KILLED, tmp_path / "a.npz"]).returncode == -9
    (dead,) = tmp_path.iterdir()
    assert dead.read_text() == "half"
    with replacing(tmp_path / "b.npz") as alive:
        alive.write_text("whole")
        remove_dead(tmp_path, ".npz")
        assert list(tmp_path.iterdir()) == [alive]
    assert [file.name for file in tmp_path.iterdir()] == ["b.npz"]
    remove_dead(tmp_path, ".npz")
    assert (tmp_path / "b.npz").read_text() == "whole"


def test_one_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "a.txt") as file:
        file.write_text(str(1 / 0))
    assert list(tmp_path.iterdir()) == []


def test_a_file_taken_for_dead_before_it_was_locked_is_begun_again(tmp_path, monkeypatch):
    seen = []

    def taken(handle):
        if not seen:
            next(tmp_path.glob(".*")).unlink()
        seen.append(handle)
        return True

    monkeypatch.setattr("edgeq.files.locked", taken)
    with replacing(tmp_path / "a.txt") as file:
        file.write_text("whole")
    assert len(seen) == 2
    assert (tmp_path / "a.txt").read_text() == "whole"
