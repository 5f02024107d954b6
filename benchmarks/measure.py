"""Timing that survives a noisy machine: everything compared is measured in turns within one run.

Ratios are taken of medians over the rounds. Every session of a comparison has the same thread counts and the same
spinning setting, so that only the model differs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

Feed = Mapping[str, np.ndarray]


def ratios(
    calls: Mapping[str, Callable[[], object]], base: str, rounds: int = 15, seconds: float = 0.05
) -> dict[str, tuple[float, float]]:
    """{name: (median seconds of one call, speed-up over `base`)}, measured round-robin.

    In each round every callable runs as often as fills about `seconds`, its mean counts as one observation, and the
    order is reversed from round to round, so that drift of the clock or the caches hits all of them alike.
    """
    repeats = {}
    for name, call in calls.items():
        call()
        start = time.perf_counter()
        call()
        repeats[name] = max(1, round(seconds / (time.perf_counter() - start)))
    observed: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(rounds):
        for name in list(calls)[:: 1 if i % 2 else -1]:
            call = calls[name]
            start = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            observed[name].append((time.perf_counter() - start) / repeats[name])
    times = {name: median(values) for name, values in observed.items()}
    return {name: (t, times[base] / t) for name, t in times.items()}


def session(model: Path, threads: int, spinning: bool = True, config: Mapping[str, str] | None = None) -> Any:
    """An onnxruntime CPU session at the default optimization level (all)."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    for key, value in (config or {}).items():
        options.add_session_config_entry(key, value)
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def latency(
    models: Mapping[str, Path], feed: Feed, threads: int, base: str = "float", rounds: int = 15, spinning: bool = False
) -> dict[str, tuple[float, float]]:
    """`ratios` of whole inferences of several models on one feed.

    Spinning is off by default: the idle workers of the sessions waiting for their turn would take the cores from the
    one being timed.
    """
    sessions = {name: session(path, threads, spinning) for name, path in models.items()}
    calls = {name: (lambda s=s: s.run(None, dict(feed))) for name, s in sessions.items()}
    return ratios(calls, base, rounds)


@dataclass(frozen=True)
class Cost:
    """What a child process took. seconds: wall time, cpu: of all its threads, peak_rss: bytes.

    output: its standard output; error: or ''.
    """

    seconds: float
    peak_rss: int
    output: str
    error: str
    cpu: float = 0.0


LAUNCH = """
import json, os, sys, threading, time

def watch(parent):
    while os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(0, 9)

threading.Thread(target=watch, args=(os.getppid(),), daemon=True).start()
start = time.perf_counter()
child = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(child, 0)
took = {"seconds": time.perf_counter() - start, "cpu": usage.ru_utime + usage.ru_stime, "rss": usage.ru_maxrss}
with open(sys.argv[1], "w") as file:
    json.dump(took, file)
sys.exit(min(abs(os.waitstatus_to_exitcode(status)), 255))
"""
"""A small process in between: Linux counts what the one that starts a program held towards the program's own peak.

It ends the program when the process that measures is gone.
"""


def peak_rss(
    cmd: Sequence[str], timeout: float = 1800, threads: int | None = None, extra_env: Mapping[str, str] | None = None
) -> Cost:
    """Run `cmd` to its end and account for it alone (wait4), whatever this process and earlier children took.

    It runs in an empty folder, since some tools leave files where they stand. The child's own children count too on
    systems that fold them in when it reaps them, as Linux does. One past `timeout` is killed with its process group.
    """
    env = {**os.environ, **(extra_env or {})}
    if threads:
        env |= {k: str(threads) for k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    with (
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
        tempfile.TemporaryDirectory() as cwd,
        tempfile.NamedTemporaryFile() as said,
    ):
        start = time.perf_counter()
        launch = [sys.executable, "-I", "-S", "-c", LAUNCH, said.name, *cmd]
        child = subprocess.Popen(launch, stdout=out, stderr=err, env=env, cwd=cwd, start_new_session=True)
        try:
            status: object = child.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, 9)
            status = child.wait() and "timeout"
        took = json.loads(said.read() or "{}")
        seconds = took.get("seconds", time.perf_counter() - start)
        out.seek(0)
        err.seek(0)
        stdout, stderr = out.read().decode(errors="replace"), err.read().decode(errors="replace")
    failed = "" if status == 0 else _last_line(stderr) or f"exit status {status}"
    peak = took.get("rss", 0) * (1 if sys.platform == "darwin" else 1024)
    return Cost(seconds, peak, stdout, failed, took.get("cpu", 0.0))


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""


def last_json(text: str) -> dict:
    """The last line of a program's output that is a JSON object; {} when there is none."""
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            return json.loads(line)
    return {}


def save_folder(feeds: Iterable[Feed], folder: Path) -> Path:
    """Feeds as a folder with one `.npz` a sample, so that nothing need hold them all."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, feed in enumerate(feeds):
        np.savez(folder / f"{i:05}.npz", allow_pickle=False, **feed)
    return folder


def save_feeds(feeds: Iterable[Feed], path: Path) -> Path:
    """Feeds of batch 1 as one `.npz` whose arrays carry the samples on axis 0."""
    listed = list(feeds)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, allow_pickle=False, **{key: np.concatenate([f[key] for f in listed]) for key in listed[0]})
    return path
