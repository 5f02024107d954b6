"""Trials of recipes on one model: each is quantized and verified as `edgeq quantize` does it, once.

A trial lies in a folder named by the hash of all that it depends on, so one that is there already is not run again.
What float answers and what calibration saw are kept beside them, and serve every trial. A trial is looked at on `FEW`
samples before it is verified on all of them: the metric is for those that are nearer to float than the best so far, in
decibels or in how often the greatest element is the same.
What is found is judged as what is run, so the trials of a tuning don't depend on what lies there already.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgeq import target as targets
from edgeq.collecting.observation import statistics_key
from edgeq.data import Dataset
from edgeq.errors import EdgeqError
from edgeq.files import replacing
from edgeq.graph import io
from edgeq.pipeline import quantize
from edgeq.planning.coverage import integer_share
from edgeq.planning.energy import energy
from edgeq.processors import processors, shared
from edgeq.recipe import Recipe, dump
from edgeq.report.build import versions
from edgeq.report.schema import Report, Sensitivity, Trial, load
from edgeq.report.schema import dump as encoded
from edgeq.request import open_samples, with_images
from edgeq.runners.feedback import with_state
from edgeq.runners.places import of_target
from edgeq.runners.recorded import Recorded
from edgeq.search.goal import Goal
from edgeq.types import Progress, silent
from edgeq.verifying.bench import bench
from edgeq.verifying.glimpse import Glimpse, glimpse
from edgeq.verifying.levels import worst_at_levels
from edgeq.verifying.scores import Agreement, MetricFunction

FOLDER = ".trials"
FEW = 24
STREAMS = 8  # samples under way at once, of a trial's verification, as far as there are processors
ROUNDS = 5  # of timing

Expect = Callable[[Iterable[Recipe], bool], None]
"""Told of the recipes that may be asked for next, in that order, and whether they are `sure`."""


def unprepared(recipes: Iterable[Recipe], sure: bool) -> None:
    """The Expect that leaves each trial to its turn."""


@dataclass
class Trials:
    """The trials of one model, and the best recipe so far.

    expect: see `edgeq.speculation`; ahead: seconds that trials took which were run before their turn, by digest.
    processes: that run trials at once on this machine, each with its share of the processors.
    """

    model: Path
    calib: Any
    eval_data: Any
    labels: str | None
    metric: str | MetricFunction | None
    goal: Goal
    output: Path
    progress: Progress
    recipe: Recipe
    made: list[Trial] = field(default_factory=list)
    best: Trial | None = None
    began: float = field(default_factory=time.monotonic)
    expect: Expect = unprepared
    ahead: dict[str, float] = field(default_factory=dict)
    processes: int = 1
    _seen: dict[Path, Glimpse] = field(default_factory=dict)

    def __post_init__(self) -> None:
        data = (content(self.calib), content(self.eval_data))
        self.about = [io.sha256(io.files(self.model)), *data, self.labels, name_of(self.metric), versions()]
        self.few = self._few()

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which runs a trial and tells nobody how far it is."""
        return self.__dict__ | {"progress": silent, "expect": unprepared, "few": None, "made": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.few = self._few()

    def judges(self) -> Dataset | None:
        """The samples that trials are judged by."""
        source = io.load(self.model)
        given = self.calib if self.eval_data is None else self.eval_data
        return open_samples(given, with_images(self.recipe, source), source)

    def _few(self) -> Dataset | None:
        samples = self.judges()
        many = samples is not None and samples.count is not None and samples.count >= 2 * FEW
        return samples.sample(FEW, 0) if many and samples is not None else None

    @property
    def late(self) -> bool:
        return bool(self.made) and time.monotonic() - self.began > self.goal.time_budget

    @property
    def done(self) -> bool:
        return self.best is not None and not self.goal.misses(self.best)

    @property
    def accurate(self) -> bool:
        return self.best is not None and not self.goal.inaccuracies(self.best)

    def attempt(self, step: str, recipe: Recipe, sure: bool = False) -> Trial | None:
        """Run or find a trial, and keep it where it is better; None when time is up, or for one that has no figures.

        sure: the metric is asked whatever a few samples say.
        """
        digest, start = self.digest(recipe), time.monotonic()
        if self.late and digest not in self.ahead:  # that one began in time
            return None
        folder = self.folder(digest)
        try:
            report, fresh = self.run(recipe, sure)
        except EdgeqError as error:
            self.made.append(Trial(step, digest, problem=str(error), seconds=time.monotonic() - start))
            return None
        seconds = time.monotonic() - start if fresh else self.ahead.pop(digest, 0.0)
        if report.verification is None:
            found, best = (self._glimpse(recipe, d / report.artifact.file) for d in (folder, self._best_folder))
            seen = f"{found.sqnr_db:.1f} dB and {found.agreement:.1%} agreement on {FEW} samples"
            why = f"{seen}, the best has {best.sqnr_db:.1f} and {best.agreement:.1%}: not measured further"
            self.made.append(Trial(step, digest, problem=why, seconds=seconds))
            return None
        trial = _trial(step, digest, report, folder, seconds)
        if self.goal.min_speedup is not None:
            speedup, latency = self._timed(recipe, folder / report.artifact.file)
            trial = msgspec.structs.replace(trial, speedup=speedup, latency_ms=latency)
        kept = self.best is None or self.goal.order(trial) < self.goal.order(self.best)
        self.made.append(msgspec.structs.replace(trial, kept=kept, misses=tuple(self.goal.misses(trial))))
        if kept:
            self.best, self.recipe = self.made[-1], recipe
        return self.made[-1]

    def note(self, step: str, problem: str) -> None:
        """What could not be tried, for the table."""
        self.made.append(Trial(step, "", problem=problem))

    def built(self, recipe: Recipe) -> Path:
        """The artifact of a recipe, made or found, not verified."""
        folder = self.folder(self.digest(recipe, "built"))
        report = load(folder) if (folder / "report.json").exists() else self._run(recipe, folder, check=False)
        return folder / report.artifact.file

    def run(self, recipe: Recipe, sure: bool) -> tuple[Report, bool]:
        """The report of a trial, and whether it was run for it; without a verification where it is not worth one."""
        folder = self.folder(self.digest(recipe))
        if (folder / "report.json").exists():
            report = load(folder)
            if not sure and not self._worth(recipe, folder / report.artifact.file):
                return msgspec.structs.replace(report, verification=None), False
            if report.verification is not None:
                return report, False
        return self._run(recipe, folder, worth=None if sure else partial(self._worth, recipe)), True

    def digest(self, recipe: Recipe, *more: str) -> str:
        """Of all that a trial depends on."""
        parts = [*self.about, dump(recipe), *more]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]

    def folder(self, digest: str) -> Path:
        return self.output / FOLDER / digest

    def sensitivity(self, recipe: Recipe, step: str = "sensitivity") -> tuple[Sensitivity, ...]:
        """What the rounding of each node alone does to the outputs, measured or found; nothing when time is up."""
        if self.late:
            return ()
        digest, start = self.digest(recipe, "sensitivity"), time.monotonic()
        folder = self.folder(digest)
        fresh = not (folder / "report.json").exists()
        rows = (self._run(recipe, folder, rank=True, check=False) if fresh else load(folder)).sensitivity
        whole = sum(row.error for row in rows) or 1.0
        worst = ", ".join(f"{row.name} ({row.op}) {row.error / whole:.0%}" for row in rows[:3])
        seconds = time.monotonic() - start if fresh else 0.0
        self.made.append(Trial(step, digest, problem=f"of the error: {worst}", seconds=seconds))
        return rows

    def settle(self) -> None:
        """Of the trials that meet the goal, take the one that gives least up to float; it may not be the last."""
        met = [t for t in self.made if not t.problem and not self.goal.misses(t)]
        self.best = min(met, key=lambda t: (-t.integer, t.bytes, t.drop, -t.sqnr_db), default=self.best)

    def complete(self) -> None:
        """Write into the best one's report what a trial goes without: the levels of onnxruntime's optimization."""
        report, judges = load(self._best_folder), self.judges()
        artifact, found = self._best_folder / report.artifact.file, report.verification
        if found is None or found.levels or judges is None or artifact.suffix != ".onnx":
            return
        fed = partial(with_state, model=self.model, pairs=self.recipe.state)
        reference = Recorded(self.model, self.answers, 1)
        levels, lines = worst_at_levels(artifact, reference, judges, targets.load(self.recipe.target), 1, fed)
        reference.close()
        found = msgspec.structs.replace(found, levels=levels, warnings=(*found.warnings, *lines))
        report = msgspec.structs.replace(report, verification=found, warnings=(*report.warnings, *lines))
        with replacing(self._best_folder / "report.json") as path:
            path.write_bytes(encoded(report))

    @property
    def answers(self) -> Path:
        """The folder of what float answers."""
        return self.output / FOLDER / "answers"

    @property
    def _best_folder(self) -> Path:
        assert self.best is not None
        return self.folder(self.best.digest)

    def _run(self, recipe: Recipe, folder: Path, **ways: Any) -> Report:
        stats = self.output / FOLDER / f"{statistics_key(self.about, recipe)}.stats"
        stats.parent.mkdir(parents=True, exist_ok=True)
        if recipe.method == "static":
            ways |= {"stats": stats} if stats.exists() else {"save_stats": stats}
        metric = self.metric or (Agreement() if self.labels is None else None)
        with shared(self.processes):
            return quantize(
                self.model, recipe.target, self.calib, folder, recipe=recipe, eval_data=self.eval_data,
                labels=self.labels, metric=metric, recorded=self.answers, at_levels=False,
                streams=min(processors(), STREAMS), progress=self.progress, **ways,
            ).report  # fmt: skip

    def _timed(self, recipe: Recipe, artifact: Path) -> tuple[float, float]:
        """Times as fast as float, and ms, in turns with it; 0 where this machine's seconds say nothing."""
        place, judges = of_target(targets.load(recipe.target)), self.judges()
        if not place.timed or judges is None:
            return 0.0, 0.0
        row = bench([self.model, artifact], place, [next(iter(judges))], rounds=ROUNDS).rows[1]
        return row.ratio, row.latency_ms

    def _worth(self, recipe: Recipe, artifact: Path) -> bool:
        """Is an artifact nearer to float than the best, as far as a few samples tell?"""
        if self.best is None or self.few is None:
            return True
        best = self._best_folder / load(self._best_folder).artifact.file
        return self._glimpse(recipe, artifact).beats(self._glimpse(recipe, best))

    def _glimpse(self, recipe: Recipe, artifact: Path) -> Glimpse:
        if artifact not in self._seen:
            assert self.few is not None
            self.progress("glimpse", 0, None)
            aim = targets.load(recipe.target)
            self._seen[artifact] = glimpse(self.model, artifact, aim, self.few, recipe.state, self.answers)
        return self._seen[artifact]


def _trial(step: str, digest: str, report: Report, folder: Path, seconds: float) -> Trial:
    metric, runtime = report.metric, report.runtime
    assert metric is not None
    speed = latency = 0.0
    if runtime is not None and runtime.latency_ms and runtime.float_latency_ms:
        speed, latency = runtime.float_latency_ms / runtime.latency_ms, runtime.latency_ms
    decibels = [999.0 if o.sqnr_db is None else o.sqnr_db for o in report.outputs]
    made = io.read_graph(folder / report.artifact.file) if report.artifact.file.endswith(".onnx") else None
    share, joules = (integer_share(made), energy(made)) if made is not None else (1.0, 0.0)
    return Trial(
        step, digest, metric.name, metric.reference, metric.quantized, metric.drop, min(decibels, default=999.0),
        report.artifact.bytes, share, speed, joules, seconds, latency_ms=latency,
    )  # fmt: skip


def name_of(metric: str | MetricFunction | None) -> str:
    """Of a function where it is defined; what it computes is taken to be the same as long as that is."""
    if metric is None or isinstance(metric, str):
        return metric or ""
    return f"{getattr(metric, '__module__', '')}:{getattr(metric, '__qualname__', type(metric).__name__)}"


def content(data: Any) -> str:
    """A hash of what the data holds; of a callable its name, of other objects what they are at this moment."""
    if isinstance(data, (str, os.PathLike)):
        return io.content(Path(data)) or str(data)
    rows: Iterable[Any] = [data] if isinstance(data, Mapping) else data if isinstance(data, Sequence) else ()
    if rows and all(isinstance(row, Mapping) for row in rows):
        digest = hashlib.sha256()
        for row in rows:
            for name, array in sorted(row.items()):
                digest.update(f"{name} {np.asarray(array).dtype} {np.shape(array)}".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()
    return str(data)
