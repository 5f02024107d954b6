"""Models timed in turns: what is counted and in which order, with clocks that are known."""

import json
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgeq import target as targets
from edgeq.errors import CalibrationError, RecipeError
from edgeq.graph import io
from edgeq.runners.places import Place, of_target
from edgeq.verifying.bench import bench, drawn
from tests.runners import tiny


class Clock:
    """A session whose inferences take the given milliseconds, one a turn, and which keeps a diary of its turns."""

    def __init__(self, name, times, diary):
        self.name, self.times, self.diary = name, iter(times), diary
        self.report = {"version": "1.0", "machine": "m"}
        self.closed = False

    def run_many(self, batches):
        batches = list(batches)
        self.latency_ms = next(self.times)
        self.diary.append((self.name, len(batches)))
        yield from batches

    def close(self):
        self.closed = True


def runner(times, diary, timed=True):
    """A runner whose model `NAME.onnx` takes the times of NAME, the first for the turn that finds the length."""
    opened = []

    def open_session(model, threads):
        opened.append(Clock(model.stem, times[model.stem], diary))
        return opened[-1]

    return SimpleNamespace(TITLE="clock", TIMED=timed, open_session=open_session, opened=opened)


@pytest.fixture
def models(tmp_path):
    return [tiny.qdq_conv(tmp_path / f"{name}.onnx") for name in "ab"]


def test_medians_of_turns_whose_order_alternates(models):
    diary, done = [], []
    clock = runner({"a": [10, 8, 9, 50], "b": [1000, 4, 3, 2]}, diary)
    found = bench(models, Place("t", clock, {}), rounds=3, progress=lambda *step: done.append(step))
    a, b = found.rows
    assert [(r.latency_ms, r.ratio) for r in (a, b)] == [(9, 1), (3, 3)]
    assert (b.low_ms, b.high_ms) == (2.5, 3.5)
    assert diary == [("a", 5), ("b", 5), ("a", 10), ("b", 5), ("b", 5), ("a", 10), ("a", 10), ("b", 5)]
    assert done == [("bench", n, 3) for n in (1, 2, 3)]
    assert all(session.closed for session in clock.opened)
    assert a.bytes == models[0].stat().st_size
    assert found.inputs == {"x": (1, 3, 12, 12)}


def test_each_thread_count_has_its_own_first(models):
    clock = runner({"a": [10, 8, 10, 6], "b": [10, 4, 10, 2]}, [])
    clock.open_session = lambda model, threads, opened=clock.opened, times={}: times.setdefault(
        (model.stem, threads), Clock(model.stem, [10.0, {"a": 8.0, "b": 4.0}[model.stem] / threads**2], [])
    )
    found = bench(models, Place("t", clock, {}), threads=[1, 2], rounds=1)
    assert [(r.threads, r.latency_ms, r.ratio) for r in found.rows] == [(1, 8, 1), (1, 4, 2), (2, 2, 1), (2, 1, 2)]


def test_an_emulator_or_a_stand_in_gives_no_time(models):
    for place in (Place("arm64", runner({}, [], timed=False), {}), Place("x", runner({}, []), {}, "stands in")):
        with pytest.raises(RecipeError, match=f"^{place.name}: clock tells no speed: give --host"):
            bench(models, place)


def test_drawn_inputs_fit_the_model(tmp_path):
    inputs = [
        helper.make_tensor_value_info("f", TensorProto.FLOAT, ["N", 3]),
        helper.make_tensor_value_info("i", TensorProto.INT64, [2, None]),
        helper.make_tensor_value_info("h", TensorProto.FLOAT16, []),
        helper.make_tensor_value_info("b", TensorProto.BOOL, [4]),
    ]
    nodes = [helper.make_node("Identity", [i.name], [f"{i.name}o"]) for i in inputs]
    outputs = [helper.make_empty_tensor_value_info(f"{i.name}o") for i in inputs]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    feeds = drawn(io.load(path))
    assert {k: (v.dtype, v.shape) for k, v in feeds.items()} == {
        "f": (np.float32, (1, 3)), "i": (np.int64, (2, 1)), "h": (np.float16, ()), "b": (np.bool_, (4,)),
    }  # fmt: skip
    assert set(feeds["i"].ravel()) <= {0, 1}
    for name, array in drawn(io.load(path)).items():
        np.testing.assert_array_equal(array, feeds[name])
    untyped = helper.make_graph(nodes[:1], "g", [helper.make_empty_tensor_value_info("f")], outputs[:1])
    onnx.save(helper.make_model(untyped, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    with pytest.raises(CalibrationError, match="input 'f' has no declared type and rank to draw it by: give --data"):
        drawn(io.load(path))


def test_on_this_machine_with_data(models):
    place = of_target(targets.load("x86_64"))
    found = bench(models, place, tiny.samples(2), rounds=1)
    assert [r.model for r in found.rows] == [str(m) for m in models]
    assert all(0 < r.latency_ms < 1000 for r in found.rows)
    with pytest.raises(CalibrationError, match="holds no sample to time"):
        bench(models, place, lambda: iter(()))


def test_command(models, tmp_path, run):
    code, out, _ = run("bench", *map(str, models), "--rounds", "1", "--threads", "1,2", "--json")
    found = json.loads(out)
    assert code == 0
    assert [(r["threads"], r["model"]) for r in found["rows"]] == [(t, str(m)) for t in (1, 2) for m in models]
    code, out, _ = run("bench", *map(str, models), "--rounds", "1")
    assert code == 0
    assert "speed-up" in out and "1.00×" in out  # noqa: PT018
    for arguments, message in (
        ([str(models[0]), "--threads", "two"], "--threads 'two': give counts"),
        ([str(tmp_path / "no.onnx")], "no.onnx"),
        ([str(models[0]), "--host", "pi:x"], "'pi:x' is not a board"),
        ([str(models[0]), "-t", "nnapi"], "nnapi: NNAPI's arithmetic, emulated tells no speed"),
    ):
        code, _, err = run("bench", *arguments)
        assert code == 2
        assert message in err
        assert len(err.splitlines()) == 1
