"""Killed, starved and doubled runs: an artifact is whole and right, or it is not there.

EDGEQ_KILLS says how many times each command is killed, 3 without it.
"""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.command import matmul, samples

ROOT = Path(__file__).resolve().parent.parent
TIMED = ("report.json", "tuning.json")
KILLS = int(os.environ.get("EDGEQ_KILLS", "3"))
ENV = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def start(*args, **options):
    command = [sys.executable, "-m", "edgeq", *map(str, args)]
    return subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def finish(process):
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def contents(folder):
    """Every file but for what depends on time."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.name not in TIMED and ".edgeq" not in str(p)]
    return {p.relative_to(folder): p.read_bytes() for p in files}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    model, data = matmul(folder / "m.onnx"), samples(folder / "d.npz")
    assert finish(start("quantize", model, "--calib", data, "-o", folder / "out", "-q"))[0] == 0
    return folder


def commands(made, out):
    static = ("quantize", made / "m.onnx", "--calib", made / "d.npz", "-o", out, "-q")
    return {
        "static": static,
        "weight_only": (*static, "--method", "weight_only", "--no-verify"),
        "gptq": (*static, "--method", "weight_only", "--weight", "gptq", "--no-verify", "--keep", out.parent / "kept"),
        "tune": ("tune", made / "m.onnx", "--calib", made / "d.npz", "-o", out, "-q", "--min-sqnr", "30"),
        "package": ("package", made / "out", "--platform", "bare", "-o", out),
    }


@pytest.mark.parametrize("kind", ["static", "weight_only", "gptq", "tune", "package"])
def test_a_run_killed_at_any_moment_leaves_no_half_artifact(made, tmp_path, kind):
    """The next run goes on from what is left; one that ended is begun anew if it resumes, else it is overwritten."""
    out, last = tmp_path / "out", {"package": "SHA256SUMS", "tune": "tuning.json"}.get(kind, "report.json")
    began = time.monotonic()
    (tmp_path / "good").mkdir()
    assert finish(start(*commands(made, tmp_path / "good" / "out")[kind]))[0] == 0
    lasted, good = time.monotonic() - began, contents(tmp_path / "good" / "out")
    moments = random.Random(7)
    for _ in range(KILLS):
        process = start(*commands(made, out)[kind])
        time.sleep(lasted * moments.uniform(0.3, 1.0))
        process.send_signal(signal.SIGKILL)
        ended = finish(process)[0] == 0
        left = contents(out) if out.exists() else {}
        if (out / last).exists():
            assert left == good
        for name, data in left.items():
            assert good.get(name, data if ".trials" in name.parts else b"") == data, name
        if ended and kind in ("gptq", "tune"):
            shutil.rmtree(out)
            shutil.rmtree(tmp_path / "kept", ignore_errors=True)
    assert finish(start(*commands(made, out)[kind]))[0] == 0
    assert contents(out) == good
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".edgeq")] == []


@pytest.mark.parametrize("kind", ["static", "package"])
def test_a_full_disk_is_one_line(made, tmp_path, kind):
    """A limit on the size of files acts as a disk that is full after so many bytes."""
    args = commands(made, tmp_path / "new" / "out")[kind]
    limited = start(*args, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (900, 900)))
    code, out, err = finish(limited)
    assert (code, out) == (2, ""), err
    assert err.count("\n") == 1, err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("options", "names"), [("size=8k", "No space left"), ("ro", "Read-only")])
@pytest.mark.parametrize("kind", ["static", "weight_only", "tune", "package"])
def test_a_file_system_that_is_full_or_read_only_is_one_line(made, tmp_path, kind, options, names):
    """A tmpfs in a mount namespace of its own; what the run left there is listed before the namespace goes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", disk], check=False).returncode:
        pytest.skip("no tmpfs may be mounted here")
    script = 'mount -t tmpfs -o "$1" none "$0" && shift && { "$@"; code=$?; find "$0" -type f >&2; exit $code; }'
    command = [sys.executable, "-m", "edgeq", *map(str, commands(made, disk / "out")[kind])]
    ran = subprocess.run(["unshare", "-rm", "sh", "-c", script, disk, options, *command],
                         env=ENV, capture_output=True, text=True, check=False, timeout=120)  # fmt: skip
    assert (ran.returncode, ran.stdout) == (2, ""), ran.stderr
    line, *left = ran.stderr.splitlines()  # what `tune` has found by then stays for the next run
    assert [file for file in left if ".trials" not in file or file.endswith(".edgeq")] == []
    assert line.startswith("edgeq: ")
    assert names in line


def test_too_little_memory_is_one_line(run, made, tmp_path, monkeypatch):
    def starved(*_args, **_more):
        raise MemoryError

    monkeypatch.setattr("edgeq.pipeline.quantize", starved)
    code, out, err = run("quantize", made / "m.onnx", "--calib", made / "d.npz", "-o", tmp_path / "out")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "out of memory" in err


def test_too_little_memory_to_load_a_library_is_one_line(made, tmp_path):
    """numpy fits into so many addresses, onnx and onnxruntime don't; what they print themselves may come before."""
    room = 180 << 20
    env = ENV | {"OPENBLAS_NUM_THREADS": "1"}
    args = [sys.executable, "-m", "edgeq", *map(str, commands(made, tmp_path / "new" / "out")["static"])]
    limited = subprocess.run(args, env=env, capture_output=True, text=True, check=False, timeout=60,
                             preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (room, room)))  # fmt: skip
    assert (limited.returncode, limited.stdout) == (2, ""), limited.stderr
    assert limited.stderr.splitlines()[-1].startswith("edgeq: out of memory"), limited.stderr
    assert "Traceback" not in limited.stderr
    assert list(tmp_path.iterdir()) == []


def test_runs_into_one_output_at_a_time_are_all_right(made, tmp_path):
    """Two alike and one of another method: the folder is one of theirs, whole."""
    out = tmp_path / "out"
    kinds = ("static", "static", "weight_only")
    ended = [finish(process) for process in [start(*commands(made, out)[kind]) for kind in kinds]]
    assert [code for code, _, _ in ended] == [0, 0, 0], ended
    held = json.loads((out / "report.json").read_text())
    kind = {"static": "static"}.get(held["recipe"]["method"], "weight_only")
    assert finish(start(*commands(made, tmp_path / "alone")[kind]))[0] == 0
    assert contents(out) == contents(tmp_path / "alone")


def test_runs_with_one_cache_at_a_time_are_all_right(made, tmp_path):
    lock = tmp_path / "edgeq.lock"
    for name in ("m.onnx", "d.npz"):
        (tmp_path / name).write_bytes((made / name).read_bytes())
    added = ("check", "--lock", lock, "--add", "a", "--model", "m.onnx", "--calib", "d.npz", "-q")
    assert finish(start(*added))[0] == 0
    both = [start("check", "--lock", lock, "--cache", tmp_path / "cache", "-q") for _ in range(2)]
    assert [finish(process) for process in both] == [(0, "", "")] * 2
    assert finish(start("check", "--lock", lock, "--cache", tmp_path / "cache", "-q")) == (0, "", "")
