"""Trials before their turn: the search goes the way that it goes alone, whatever happens to those who run ahead."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

import edgeq
from edgeq import speculation, target, trials, tune
from edgeq.collecting import workers
from edgeq.errors import EdgeqError, RecipeError, ToolError
from edgeq.search.goal import Goal
from edgeq.trials import Trials
from tests.collecting.test_workers import DASK, children
from tests.graph.written import samples, save, text
from tests.require import require
from tests.search.test_recovery import BODY, unequal
from tests.test_tune import PER_TENSOR

ROOT = Path(__file__).resolve().parents[1]
OFTEN = Goal(min_sqnr=300.0, min_integer=0.2)
"""Never met, so that everything is tried."""
METRIC = """
import os, pathlib, signal, time
here = pathlib.Path(__file__).parent
def plain(outputs, extras):
    return float(sum(next(iter(out.values())).max() for out in outputs))
def deadly(outputs, extras):
    if os.getpid() != int(os.environ["EDGEQ_TEST"]) and not (here / "killed").exists():
        (here / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(outputs, extras)
def slow(outputs, extras):
    if os.environ.setdefault("EDGEQ_TEST", str(os.getpid())) != str(os.getpid()):
        (here / f"reached{os.getpid()}").touch()
        time.sleep(60)
    return plain(outputs, extras)
"""


@pytest.fixture
def case(tmp_path, monkeypatch):
    """A model that collapses with one scale a weight, such a target, its data as a file, and metrics in a module."""
    path = save(tmp_path, text(BODY), unequal())
    shutil.copy(target.folder() / "generic.toml", tmp_path / "generic.toml")
    (tmp_path / "whole.toml").write_text(PER_TENSOR)
    np.savez(tmp_path / "d.npz", x=np.concatenate([feed["x"] for feed in samples(4, 4, 8, 8, count=60)]))
    (tmp_path / "judge.py").write_text(METRIC)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("EDGEQ_TEST", str(os.getpid()))
    return path, str(tmp_path / "whole.toml"), tmp_path / "d.npz"


def outcome(found, output):
    """All of a tuning but what depends on the clock, and the artifact's bytes."""
    same = [msgspec.structs.replace(trial, seconds=0.0, speedup=0.0, latency_ms=0.0) for trial in found.trials]
    return same, found.best, found.sentence, found.front, (output / "model.onnx").read_bytes()


def leftovers(output):
    return [p for p in (output / ".trials").rglob("*") if p.name.startswith(".")]


def test_processes_go_the_way_of_one_though_one_is_killed(case, tmp_path, monkeypatch):
    path, aim, data = case
    monkeypatch.setattr(tune, "ROUNDINGS", ("gptq",))
    monkeypatch.setattr(tune, "CALIBRATORS", ("entropy",))
    ways = {"goal": OFTEN, "metric": "judge:deadly"}
    one = outcome(tune.tune(path, aim, data, tmp_path / "one", **ways), tmp_path / "one")
    assert not (tmp_path / "killed").exists()
    here, really = [], trials.quantize
    monkeypatch.setattr(trials, "quantize", lambda *args, **more: (here.append(args[3].name), really(*args, **more))[1])
    two = outcome(tune.tune(path, aim, data, tmp_path / "two", workers=2, **ways), tmp_path / "two")
    assert (tmp_path / "killed").exists()
    assert two == one
    ran = [t.digest for t in one[0] if t.step in ("as given", "sensitivity", "dynamic")]
    killed = set(here) - set(ran)
    assert len(killed) <= 1  # no other trial was run here; a stale one may be who died
    assert leftovers(tmp_path / "two") == []
    assert any("of 4 nodes" in t.step or "nodes float" in t.step for t in one[0])


class Later:
    """A crew that runs a call when its result is asked for, and notes what happens."""

    def __init__(self, room, fails=False):
        self.room, self.fails, self.log = room, fails, []

    def ask(self, question):
        assert question() == ""
        self.log.append("ask")

    def start(self, call, work):
        sure = pickle.loads(call.args[0])[2]
        name = Path(work).name[1:-2]
        self.log.append(("start", name, sure))
        crew = self

        class Running:
            def result(self):
                crew.log.append(("result", name))
                return None if crew.fails else call()

            def stop(self):
                crew.log.append(("stop", name))

        return Running()


@pytest.fixture
def prepared(case, tmp_path):
    """Trials of which the first was made, and the recipes of three steps after it."""
    path, aim, data = case
    made = Trials(path, data, None, None, None, OFTEN, tmp_path / "out", edgeq.types.silent, edgeq.Recipe(target=aim))
    assert made.attempt("as given", made.recipe)
    recipes = [msgspec.structs.replace(made.recipe, calibrator=name) for name in ("lp", "minmax", "entropy")]
    return made, recipes, [made.digest(recipe) for recipe in recipes]


def test_what_is_expected_is_begun_once_and_given_up_when_it_is_stale(prepared):
    made, recipes, names = prepared
    crew = Later(2)
    expected = speculation._Expected(made, crew)
    expected([made.recipe, *recipes], False)  # the first is there: nothing is waited for
    assert crew.log == ["ask", ("start", names[0], False), ("start", names[1], False)]
    crew.log.clear()
    expected(recipes, False)
    assert crew.log == [("result", names[0]), ("stop", names[0])]
    assert made.ahead.keys() == {names[0]}
    crew.log.clear()
    expected(recipes, False)
    assert crew.log == [("start", names[2], False)]
    crew.log.clear()
    expected(recipes[2:], True)
    assert crew.log == [("stop", names[1]), ("result", names[2]), ("stop", names[2])]
    assert not (made.folder(names[1]) / "report.json").exists()
    seconds = made.ahead[names[2]]
    made.attempt("entropy", recipes[2])
    assert made.made[-1].seconds == seconds > 0


def test_a_trial_that_failed_elsewhere_is_run_in_its_turn(prepared):
    made, recipes, names = prepared
    speculation._Expected(made, Later(1, fails=True))(recipes, True)
    assert made.ahead == {}
    assert made.attempt("lp", recipes[0], sure=True)
    assert (made.folder(names[0]) / "report.json").exists()


def test_what_began_in_time_counts_and_nothing_begins_later(prepared):
    made, recipes, names = prepared
    expected = speculation._Expected(made, crew := Later(2))
    expected([made.recipe, *recipes], True)
    made.began -= 10
    made.goal = Goal(min_sqnr=300.0, time_budget=5)
    crew.log.clear()
    expected(recipes, True)
    assert crew.log == [("result", names[0]), ("stop", names[0])]
    assert made.attempt("lp", recipes[0], sure=True)
    expected(recipes[2:], True)
    assert crew.log[2:] == [("stop", names[1])]
    assert made.attempt("entropy", recipes[2], sure=True) is None


def test_what_is_found_is_judged_as_what_is_run(prepared):
    """Figures that another best asked for don't count where this one would not have asked."""
    made, recipes, _ = prepared
    given = made.recipe
    best = made.attempt("entropy", recipes[2])
    assert best.kept
    again = Trials(made.model, made.calib, None, None, None, OFTEN, made.output, made.progress, given)
    assert again.attempt("entropy", recipes[2]).value == best.value
    assert again.attempt("as given", given) is None
    assert "not measured further" in again.made[-1].problem
    assert again.attempt("as given", given, sure=True).value == made.made[0].value


def test_probes_are_those_that_a_bisection_could_ask():
    assert list(tune._probes(0, 6, 6)) == [6, 2, 0, 4, 1, 3, 5]
    assert list(tune._probes(3, 3, 3)) == [3]
    assert list(tune._probes(4, 3, 3)) == []


def test_refusals(case, tmp_path):
    path, aim, data = case

    def refusal(kind, **ways):
        given = {"goal": OFTEN, "workers": 2, "calib": data} | ways
        with pytest.raises(kind) as caught:
            tune.tune(path, aim, output=tmp_path / "out", **given)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "--min-speedup" in refusal(RecipeError, goal=Goal(min_sqnr=300.0, min_speedup=2.0))
    assert "--workers 0" in refusal(RecipeError, workers=0)
    assert "leave out --workers" in refusal(RecipeError, dask="127.0.0.1:9")
    assert "metric test_refusals.<locals>.<lambda> can't be sent" in refusal(RecipeError, metric=lambda *_: 1.0)
    assert "<genexpr> can't be sent" in refusal(RecipeError, calib=(feed for feed in samples(4, 4, 8, 8, count=2)))
    assert not (tmp_path / "out").exists()
    script = f"import edgeq.tune as t\ndef own(*_): return 1.0\nt.tune({str(path)!r}, {aim!r}, {str(data)!r}, 'o', "
    script += "goal=t.Goal(min_sqnr=300.0), workers=2, metric=own)"
    ran = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
                         capture_output=True, text=True, check=False)  # fmt: skip
    assert "RecipeError: metric own can't be sent to workers (it is of __main__" in ran.stderr.splitlines()[-1]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_process_is_left(case, tmp_path, how):
    path, aim, data = case
    command = [sys.executable, "-m", "edgeq", "tune", str(path), "-t", aim, "--calib", str(data), "--min-sqnr", "300"]
    env = {k: v for k, v in os.environ.items() if k != "EDGEQ_TEST"} | {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    asked = [*command, "--metric", "judge:slow", "--workers", "2", "-o", "out"]
    child = subprocess.Popen(asked, cwd=tmp_path, env=env, stderr=subprocess.PIPE)
    while not list(tmp_path.glob("reached*")):
        assert child.poll() is None, child.stderr.read()
        time.sleep(0.05)
    below = children(child.pid)
    assert len(below) == 2
    child.send_signal(how)
    assert child.wait(30) == (130 if how == signal.SIGINT else -signal.SIGKILL)
    child.stderr.close()
    ends = time.monotonic() + 20
    while time.monotonic() < ends and any(Path(f"/proc/{pid}").exists() for pid in below):
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in below)
    assert leftovers(tmp_path / "out") == []


def test_what_a_worker_has_otherwise_is_named(prepared, monkeypatch):
    made, recipes, _ = prepared
    job = pickle.dumps((made, recipes[0], False))
    assert speculation._differs(job) == ""
    with monkeypatch.context() as patch:
        patch.setattr(speculation, "versions", dict)
        assert "other versions" in speculation._differs(job)
    shutil.move(made.output, f"{made.output}2")
    assert f"another {made.output};" in speculation._differs(job)
    np.savez(made.calib, x=np.zeros((60, 4, 8, 8), np.float32))
    assert f"another {made.calib};" in speculation._differs(job)
    made.model.unlink()
    assert "can't begin" in speculation._differs(job)


def test_a_cluster_goes_the_same_way(case, tmp_path, monkeypatch):
    require("distributed", DASK)
    from distributed import LocalCluster

    path, aim, data = case
    ways = {"goal": Goal(min_sqnr=24.0), "metric": "judge:plain"}
    one = outcome(tune.tune(path, aim, data, tmp_path / "one", **ways), tmp_path / "one")
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, local_directory=str(tmp_path / "w")
    ) as cluster:
        address = cluster.scheduler_address
        two = outcome(tune.tune(path, aim, data, tmp_path / "two", dask=address, **ways), tmp_path / "two")
        assert two == one
        monkeypatch.chdir(tmp_path)  # where the cluster's workers are not
        with pytest.raises(ToolError, match=r"dask at .* can't begin \(d\.npz: no such file.* same files") as caught:
            tune.tune(path, aim, "d.npz", tmp_path / "three", dask=address, **ways)
        assert "\n" not in str(caught.value)
    monkeypatch.setattr(workers, "_WAIT", 0.3)
    with pytest.raises(EdgeqError, match=r"dask at tcp://127\.0\.0\.1:9"):
        tune.tune(path, aim, data, tmp_path / "four", dask="tcp://127.0.0.1:9", **ways)
