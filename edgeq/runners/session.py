"""What every runner offers: `open_session(model, **options) -> Session`, and how its options are checked.

A runner is one module of this folder with `TITLE`, `missing()`, `version()` and `open_session`; those that can be
installed by edgeq have `install(progress)`. `missing()` is None, or one line that says how to get the runtime.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from edgeq.errors import RecipeError

Feeds = Mapping[str, np.ndarray]
Outputs = dict[str, np.ndarray]

# Options that all runners of ONNX files take. optimization: how far the runtime may rewrite the graph. timeout:
# seconds for one call of `run`, or for one process of `run_many`.
COMMON: dict[str, Any] = {"optimization": "all", "threads": 1, "timeout": 600.0}
CHOICES: dict[str, tuple[str, ...]] = {"optimization": ("disabled", "basic", "all")}


class Session(Protocol):
    """One model loaded in one runtime. `run` returns the model's outputs and the values named in `taps`, by name.

    report: what the runtime says of itself, `version` and `machine` among it, from the first run on.
    """

    @property
    def outputs(self) -> tuple[str, ...]: ...

    @property
    def report(self) -> dict[str, Any]: ...

    @property
    def latency_ms(self) -> float | None:
        """Median of the inferences of the last `run` or `run_many`; None before the first."""

    def run(self, feeds: Feeds, taps: Sequence[str] = ()) -> Outputs: ...

    def run_many(self, batches: Iterable[Feeds], taps: Sequence[str] = ()) -> Iterator[Outputs]:
        """One result for each item of `batches`, in order; a runner that starts processes starts one for many."""

    def close(self) -> None: ...


def options(
    runner: str, given: Mapping[str, Any], defaults: Mapping[str, Any], choices: Mapping[str, tuple[Any, ...]] = CHOICES
) -> dict[str, Any]:
    """`defaults` updated by `given`. Raises RecipeError for an unknown name, a value of another type or not a choice.

    A default of None accepts any value; an int is taken where a float is expected; numbers must be positive.
    """
    for name, value in given.items():
        if name not in defaults:
            raise RecipeError(f"runner {runner} has no option {name!r}: choose from {', '.join(sorted(defaults))}")
        if name in choices and value not in choices[name]:
            raise RecipeError(f"runner {runner}: {name}={value!r} is not one of {', '.join(map(str, choices[name]))}")
        default = defaults[name]
        accepted = (int, float) if isinstance(default, float) else type(default)
        if default is not None and (
            not isinstance(value, accepted) or isinstance(value, bool) != isinstance(default, bool)
        ):
            raise RecipeError(f"runner {runner}: {name}={value!r} must be of type {type(default).__name__}")
        if isinstance(default, int | float) and not isinstance(default, bool) and not value > 0:
            raise RecipeError(f"runner {runner}: {name}={value!r} must be positive")
    return {**defaults, **given}


def in_streams(run: Callable[[Feeds], Outputs], batches: Iterable[Feeds], streams: int) -> Iterator[Outputs]:
    """`map(run, batches)` with so many of them under way at once."""
    if streams == 1:
        yield from map(run, batches)
        return
    with ThreadPoolExecutor(streams) as pool:
        under_way: deque[Future[Outputs]] = deque()
        for feeds in batches:
            under_way.append(pool.submit(run, feeds))
            if len(under_way) > streams:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
