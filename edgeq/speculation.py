"""Trials before their turn: what a search may ask for next is run into its cache, in processes or on a Dask cluster.

A search says which recipes come next if nothing changes the best (`Trials.expect`), then asks for the first of them. A
worker does what `Trials.run` does in its turn, so the search finds what it would have made itself, and goes the way
that it goes alone. What is expected no longer is given up. A trial whose worker died or raised is simply not there: it
is run, and raises, in its turn.

Processes of this machine share its processors; see `edgeq.processors`, also for why that changes nothing of a trial.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from edgeq import target as targets
from edgeq.collecting.crews import Crew, Running, crew
from edgeq.collecting.observation import Ways
from edgeq.errors import RecipeError
from edgeq.graph import io
from edgeq.recipe import Recipe
from edgeq.report.build import versions
from edgeq.trials import Trials, content


@contextlib.contextmanager
def ahead(trials: Trials, workers: int = 1, dask: str | None = None) -> Iterator[None]:
    """What the trials expect is run before its turn, by so many processes or a cluster, as long as this is open.

    Raises RecipeError for what can't be sent to them or can't be measured side by side, ToolError for the cluster.
    """
    Ways(workers, dask)
    if workers == 1 and dask is None:
        yield
        return
    if trials.goal.min_speedup is not None:
        raise RecipeError("--min-speedup is measured, by one trial at a time: leave out --workers and --dask")
    for what, given in (("metric", trials.metric), ("data", trials.calib), ("data", trials.eval_data)):
        _check(what, given)
    trials.processes = workers
    with crew(workers, dask) as hands:
        trials.expect = expected = _Expected(trials, hands)
        try:
            yield
        finally:
            expected.give_up(expected.running.copy())


@dataclass
class _Expected:
    """See `edgeq.trials.Expect`. When it returns, the first of the recipes has been run."""

    trials: Trials
    hands: Crew
    running: dict[str, Running] = field(default_factory=dict)
    asked: bool = False

    def __call__(self, recipes: Iterable[Recipe], sure: bool) -> None:
        wanted: dict[str, Recipe] = {}
        missing = 0
        for recipe in recipes:
            digest = self.trials.digest(recipe)
            missing += digest not in wanted and not self._there(digest)
            wanted[digest] = recipe
            if missing == self.hands.room:
                break
        for digest in [digest for digest in self.running if self._there(digest)]:
            self._collect(digest)
        self.give_up(self.running.keys() - wanted.keys())
        for digest, recipe in wanted.items():
            if not (digest in self.running or self._there(digest) or self.trials.late):
                self._start(digest, pickle.dumps((self.trials, recipe, sure)))
        first = next(iter(wanted), "")
        if first in self.running:
            self.trials.progress("trials", len(self.trials.made), None)
            self._collect(first)

    def _collect(self, digest: str) -> None:
        seconds = self.running[digest].result()
        self.give_up([digest])
        if seconds is not None:
            self.trials.ahead[digest] = seconds

    def give_up(self, digests: Iterable[str]) -> None:
        for digest in digests:
            self.running.pop(digest).stop()

    def _start(self, digest: str, job: bytes) -> None:
        if not self.asked:
            self.hands.ask(partial(_differs, job))
            self.asked = True
        self.running[digest] = self.hands.start(partial(_perform, job), str(self.trials.folder(f".{digest}.*")))

    def _there(self, digest: str) -> bool:
        return (self.trials.folder(digest) / "report.json").exists()


def _perform(job: bytes) -> float:
    """Run the trial of a job into the cache, and give the seconds that it took. Raises what the trial raises."""
    start = time.monotonic()
    trials, recipe, sure = pickle.loads(job)
    trials.run(recipe, sure)
    return time.monotonic() - start


def _differs(job: bytes) -> str:
    """What is not here as it is where the search is, nothing if all is; for a worker on whatever machine."""
    try:
        trials: Trials = pickle.loads(job)[0]
        targets.load(trials.recipe.target)
        model = io.sha256(io.files(trials.model))
    except Exception as error:  # of files that are not there, and of modules
        return f"can't begin ({io.one_line(error)}); workers need the same files under the same paths"
    if versions() != trials.about[-1]:
        return "has other versions of packages, or another processor; only the same give the same figures"
    needed: list[tuple[Any, bool]] = [(trials.model, model == trials.about[0])]
    for given, known in ((trials.calib, trials.about[1]), (trials.eval_data, trials.about[2])):
        if isinstance(given, (str, os.PathLike)):
            needed.append((given, content(given) == known))
    if trials.best is not None:
        needed.append((trials.output, (trials.folder(trials.best.digest) / "report.json").exists()))
    other = next((path for path, same in needed if not same), None)
    return "" if other is None else f"has another {other}; workers need the same files under the same paths"


def _check(what: str, given: Any) -> None:
    """Raises RecipeError for what other processes can't get."""
    try:
        why = "it is of __main__, which is another one there" if b"__main__" in pickle.dumps(given) else ""
    except Exception as error:  # of whatever `given` is made of
        why = io.one_line(error)
    if why:
        raise RecipeError(
            f"{what} {getattr(given, '__qualname__', type(given).__name__)} can't be sent to workers ({why}): "
            "give a path or MODULE:FUNCTION, or leave out --workers and --dask"
        )
