import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeq.errors import RecipeError
from edgeq.runners import cpu
from edgeq.runners.session import COMMON, Feeds, Outputs, in_streams, options
from tests.graph.written import draw, samples, save, text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"thread": 2}, "runner r has no option 'thread': choose from optimization, threads, timeout"),
        ({"threads": "2"}, "threads='2' must be of type int"),
        ({"threads": True}, "threads=True must be of type int"),
        ({"threads": 0}, "threads=0 must be positive"),
        ({"timeout": -1}, "timeout=-1 must be positive"),
        ({"timeout": float("nan")}, "timeout=nan must be positive"),
        ({"optimization": "most"}, "optimization='most' is not one of disabled, basic, all"),
    ],
)
def test_bad_options_are_refused_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as raised:
        options("r", given, COMMON)
    assert message in str(raised.value)


def test_given_options_replace_defaults() -> None:
    assert options("r", {"timeout": 5, "host": "pi"}, {**COMMON, "host": None}) == {
        "optimization": "all", "threads": 1, "timeout": 5, "host": "pi",
    }  # fmt: skip


@pytest.mark.parametrize("streams", [1, 3])
def test_so_many_samples_are_under_way_and_come_back_in_order(streams: int) -> None:
    together, lock, most = threading.Barrier(streams), threading.Lock(), [0, 0]

    def run(feeds: Feeds) -> Outputs:
        with lock:
            most[0] += 1
            most[1] = max(most)
        together.wait(10)  # broken, and the test with it, where fewer run at once
        with lock:
            most[0] -= 1
        return dict(feeds)

    fed = [{"x": np.full(1, i)} for i in range(4 * streams)]
    assert [int(out["x"][0]) for out in in_streams(run, fed, streams)] == list(range(4 * streams))
    assert most[1] == streams


def test_a_session_gives_the_same_in_streams_and_times_the_first_samples_alone(tmp_path: Path) -> None:
    model = save(tmp_path, text("y = MatMul(x, w)", "float[N,16] x"), {"w": draw(16, 8)})
    fed = samples(3 * cpu.ROUNDS, 16)
    alone, several = cpu.open_session(model), cpu.open_session(model, streams=3)
    for one, other in zip(alone.run_many(fed), several.run_many(iter(fed)), strict=True):
        np.testing.assert_array_equal(one["y"], other["y"])
    assert len(alone._times) == len(fed)
    assert len(several._times) == cpu.ROUNDS
