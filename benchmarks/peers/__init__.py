"""Peers in their own virtual environments, so that their pins never meet edgeq's.

`ensure(name)` returns the interpreter of a peer, creating its environment under the cache on first use (EDGEQ_CACHE,
else ~/.cache/edgeq). `run` quantizes a model with a peer in a process of its own and accounts for that process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from benchmarks.measure import Cost, last_json, peak_rss

ROOT = Path(__file__).resolve().parents[2]

# What edgeq's training loop needs, which all that are trained go through.
LOOP = ["onnx==1.23.2", "onnxruntime==1.32.0", "onnxscript==0.7.2", "msgspec", "tomli-w", "scikit-learn"]
# What to install, in order: a CPU build of torch must be there before a package that would pull another one.
PACKAGES: dict[str, list[list[str]]] = {
    "nncf": [["torch==2.13.0"], ["nncf==3.4.0", "onnx==1.23.2", "onnxruntime==1.32.0"]],
    "quark": [["torch==2.13.0"], ["amd-quark==0.13", "onnxruntime==1.32.0"]],
    "aeq": [["ai-edge-quantizer==0.10.0"]],
    "brevitas": [
        ["torch==2.13.0"],
        ["--no-deps", "brevitas==0.13.4"],
        ["dependencies==2.0.1", "setuptools<81", *LOOP],
    ],
    "torchao": [["torch==2.13.0"], ["torchao==0.18.0", *LOOP]],
}
PEERS = ("ort", "nncf", "quark")  # of ONNX files; aeq is LiteRT's
CALIBRATORS = ("minmax", "percentile", "entropy")


def cache() -> Path:
    return Path(os.environ.get("EDGEQ_CACHE", Path.home() / ".cache" / "edgeq"))


def ensure(name: str) -> Path:
    """The peer's Python. onnxruntime's quantizer runs in this environment; the others get one each."""
    if name == "ort":
        return Path(sys.executable)
    folder = cache() / "venvs" / name
    python = folder / "bin" / "python"
    ready = folder / "ready.txt"
    wanted = "\n".join(" ".join(step) for step in PACKAGES[name])
    if not ready.exists() or ready.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        for step in PACKAGES[name]:
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", *step], check=True)
        ready.write_text(wanted)
    return python


def run(
    name: str, model: Path, feeds: Path, out: Path, calibrator: str = "minmax", samples: int = 128, threads: int = 2,
    timeout: float = 1800, way: str = "quantize", env: Mapping[str, str] | None = None,
) -> Cost:  # fmt: skip
    """Quantize `model` into `out` with a peer. Cost.error is the peer's own first line, or '' when it worked.

    way: which of the peer's scripts, which may want something of the environment.
    """
    script = ROOT / "benchmarks" / "peers" / f"{name}_{way}.py"
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [str(ensure(name)), str(script), str(model), str(feeds), str(out)]
    command += ["--calibrator", calibrator, "--samples", str(samples)]
    cost = peak_rss(command, timeout, threads, {"PYTHONPATH": str(ROOT), **(env or {})})
    said = last_json(cost.output)
    return replace(cost, error=said.get("error", "") or cost.error)
