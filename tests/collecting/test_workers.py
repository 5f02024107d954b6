"""Wherever the samples are counted, the artifact is the same to the byte; and what dies on the way is noticed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import edgeq
from edgeq.calibrate.glance import FIRST
from edgeq.collecting import workers
from edgeq.errors import CalibrationError, EdgeqError, ToolError
from tests.graph.written import CONV, draw, masked, save, text
from tests.require import require

ROOT = Path(__file__).resolve().parents[2]
BODY = "c = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(c) y = Add(r, x)"
DASK = "pip install 'edgeq[dask]'"


@pytest.fixture
def model(tmp_path):
    return save(tmp_path, text(BODY), CONV)


def rows(count):
    """Samples that differ in range, so that one left out or counted twice shows."""
    return draw(count, 4, 8, 8) * np.linspace(0.5, 3, count, dtype=np.float32)[:, None, None, None]


def artifact(folder, model, data, **asked):
    result = edgeq.quantize(model, "x86_64", data, folder, check=False, **asked)
    return result.artifact.read_bytes(), result.report.calibration["samples"]


def sources(folder):
    """The same 40 samples as a file, a folder, a callable of a module, arrays, a list and a generator."""
    data = rows(40)
    np.savez(folder / "d.npz", x=data)
    (folder / "d").mkdir()
    for i, row in enumerate(data):
        np.save(folder / "d" / f"{i:03}.npy", row[None])
    (folder / "forty.py").write_text(
        "import numpy as np, pathlib\n"
        "def rows():\n"
        "    for row in np.load(pathlib.Path(__file__).with_name('d.npz'))['x']:\n"
        "        yield {'x': row[None]}\n"
    )
    singles = [{"x": row[None]} for row in data]
    return {
        "npz": folder / "d.npz",
        "folder": folder / "d",
        "callable": "forty:rows",
        "arrays": {"x": data},
        "list": singles,
        "generator": iter(singles),
    }


def test_processes_give_the_same_bytes(tmp_path, model, monkeypatch):
    given = sources(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for samples, calibrator, names in (
        (0, "moving_average", ["folder", "callable", "generator"]),
        (19, "mse", ["npz", "arrays"]),
    ):
        settings = {"samples": samples, "calibrator": calibrator}
        one = artifact(tmp_path / "one", model, given["list"], **settings)
        assert one[1] == (samples or 40)
        for name in names:
            assert artifact(tmp_path / "two", model, given[name], workers=2, **settings) == one, name


def test_processes_leave_out_the_same_padding(tmp_path, monkeypatch):
    """Batches that become samples of a row each, whose number only walking tells, or an index."""
    path = masked(tmp_path)
    mask = np.arange(12) < np.random.default_rng(0).integers(1, 13, (60, 1))
    arrays = {"input_ids": mask * np.arange(1, 61)[:, None], "attention_mask": mask.astype(np.int64)}
    batches = [{k: v[i : i + 3] for k, v in arrays.items()} for i in range(0, 60, 3)]
    np.savez(tmp_path / "d.npz", **arrays)
    (tmp_path / "b").mkdir()
    for i, batch in enumerate(batches):
        np.savez(tmp_path / "b" / f"{i:02}.npz", **batch)
    (tmp_path / "batches.py").write_text(
        "import numpy as np, pathlib\n"
        "def rows():\n"
        "    for path in sorted(pathlib.Path(__file__).with_name('b').iterdir()):\n"
        "        yield dict(np.load(path))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    bare = [{k: v[i : i + 1, :n] for k, v in arrays.items()} for i, n in enumerate(mask.sum(1))]
    one = artifact(tmp_path / "one", path, bare, samples=0, padding=())
    assert one[1] == 60
    for given in (tmp_path / "d.npz", tmp_path / "b", "batches:rows", batches):
        assert artifact(tmp_path / "two", path, given, samples=0, workers=2) == one, given
    assert artifact(tmp_path / "one", path, tmp_path / "b", samples=0) == one
    drawn = artifact(tmp_path / "one", path, tmp_path / "b", samples=9)
    assert drawn[1] == 27
    assert artifact(tmp_path / "two", path, tmp_path / "b", samples=9, workers=2) == drawn
    assert artifact(tmp_path / "two", path, tmp_path / "b", samples=0, padding=(), workers=2)[0] != one[0]


def test_processes_look_as_closely_at_each_of_many_samples(tmp_path, model):
    data = [{"x": row[None]} for row in rows(FIRST + 70)]
    asked = {"samples": 0, "calibrator": "percentile"}
    assert artifact(tmp_path / "one", model, data, **asked) == artifact(
        tmp_path / "three", model, data, workers=3, **asked
    )


def test_what_a_process_raises_is_raised_here(tmp_path, model):
    data = rows(40)
    data[20] = np.nan
    np.savez(tmp_path / "d.npz", x=data)
    with pytest.raises(CalibrationError, match="NaN in input 'x'"):
        artifact(tmp_path / "out", model, tmp_path / "d.npz", workers=2)
    assert not (tmp_path / "out").exists()
    with pytest.raises(EdgeqError, match="--workers 0"):
        artifact(tmp_path / "out", model, tmp_path / "d.npz", workers=0)


def test_workers_are_either_here_or_there(tmp_path, model):
    with pytest.raises(EdgeqError, match="leave out --workers"):
        artifact(tmp_path / "out", model, {"x": rows(9)}, workers=2, dask="tcp://127.0.0.1:9")


def test_a_process_that_dies_is_named(tmp_path, model, monkeypatch):
    (tmp_path / "deadly.py").write_text(
        "import os, signal, numpy as np\n"
        "def rows():\n"
        "    yield {'x': np.ones((1, 4, 8, 8), np.float32)}\n"
        "    if 'worker' in os.environ.get('EDGEQ_TEST', ''): os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("EDGEQ_TEST", "worker")
    with pytest.raises(ToolError, match=r"worker \d of 2: killed by SIGKILL"):
        artifact(tmp_path / "out", model, "deadly:rows", workers=2)


def children(pid):
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(p) for p in found.stdout.split()]


@pytest.mark.parametrize("count", [1, 2])
def test_interrupted_leaves_neither_files_nor_processes(tmp_path, model, count):
    (tmp_path / "slow.py").write_text(
        "import time, pathlib, numpy as np\n"
        "def rows():\n"
        "    while True:\n"
        "        yield {'x': np.ones((1, 4, 8, 8), np.float32)}\n"
        "        pathlib.Path('reached').touch(); time.sleep(0.05)\n"
    )
    command = [sys.executable, "-m", "edgeq", "quantize", str(model), "--calib", "slow:rows", "-o", "out"]
    command += ["--workers", str(count), "--save-stats", "s.npz"]
    (tmp_path / "r.toml").write_text("samples = 0\n")
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    before = {p.name for p in tmp_path.iterdir()}
    child = subprocess.Popen([*command, "--recipe", "r.toml"], cwd=tmp_path, env=env, stderr=subprocess.PIPE)
    while not (tmp_path / "reached").exists():
        assert child.poll() is None, child.stderr.read()
        time.sleep(0.05)
    below = children(child.pid)
    assert len(below) == (0 if count == 1 else 2)
    child.send_signal(signal.SIGINT)
    assert child.wait(20) == 130
    assert child.stderr.read() == b"edgeq: interrupted; nothing was written\n"
    child.stderr.close()
    for pid in below:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert {p.name for p in tmp_path.iterdir()} - {"reached", "__pycache__"} == before


def test_workers_do_not_outlive_who_asked(tmp_path, model):
    (tmp_path / "endless.py").write_text(
        "import time, pathlib, numpy as np\n"
        "def rows():\n"
        "    while True:\n"
        "        yield {'x': np.ones((1, 4, 8, 8), np.float32)}\n"
        "        pathlib.Path('reached').touch(); time.sleep(0.02)\n"
    )
    asked = f"import edgeq; edgeq.quantize({str(model)!r}, calib='endless:rows', workers=2, samples=10**9)"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    child = subprocess.Popen([sys.executable, "-c", asked], cwd=tmp_path, env=env)
    below = []
    while len(below) < 2 or not (tmp_path / "reached").exists():  # one may be at work before the other has started
        assert child.poll() is None
        time.sleep(0.05)
        below = children(child.pid)
    assert len(below) == 2
    child.kill()
    child.wait()
    ends = time.monotonic() + 20
    while time.monotonic() < ends and any(Path(f"/proc/{pid}").exists() for pid in below):
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in below)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A scheduler and two worker processes on this machine, which find the modules of `tmp_path`."""
    require("distributed", DASK)
    from distributed import LocalCluster

    monkeypatch.syspath_prepend(tmp_path)
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, local_directory=str(tmp_path)
    ) as local:
        yield local


def test_a_cluster_gives_the_same_bytes_though_a_worker_is_killed(tmp_path, model, cluster):
    """Whichever worker first reaches sample 9 kills itself, as a machine that goes down would."""
    given = sources(tmp_path)
    one = artifact(tmp_path / "one", model, given["folder"], samples=0)
    address = cluster.scheduler_address
    assert artifact(tmp_path / "two", model, given["folder"], samples=0, dask=address) == one
    assert artifact(tmp_path / "two", model, given["list"], samples=0, dask=address) == one
    (tmp_path / "killing.py").write_text(
        "import os, pathlib, signal, numpy as np\n"
        f"here = pathlib.Path({str(tmp_path)!r})\n"
        "def rows():\n"
        "    for i, row in enumerate(np.load(here / 'd.npz')['x']):\n"
        "        if i == 9:\n"
        "            try:\n"
        "                (here / 'killed').open('x').write(str(os.getpid()))\n"
        "            except FileExistsError:\n"
        "                pass\n"
        "            else:\n"
        "                os.kill(os.getpid(), signal.SIGKILL)\n"
        "        yield {'x': row[None]}\n"
    )
    from distributed import Client

    with Client(address, set_as_default=False) as client:
        pids = set(client.run(os.getpid).values())
    assert artifact(tmp_path / "three", model, "killing:rows", samples=0, dask=address) == one
    assert int((tmp_path / "killed").read_text()) in pids


def test_a_cluster_that_is_not_there_is_named(tmp_path, model, monkeypatch):
    require("distributed", DASK)
    monkeypatch.setattr(workers, "_WAIT", 0.3)
    with pytest.raises(ToolError, match=r"dask at tcp://127\.0\.0\.1:9") as caught:
        artifact(tmp_path / "out", model, {"x": rows(9)}, dask="tcp://127.0.0.1:9")
    assert "\n" not in str(caught.value)
