"""The drift gate: nothing moved, a changed weight, other calibration data, another library, and a budget."""

import json
import math
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import yaml
from onnx import numpy_helper

from edgeq import gate, lock, pipeline
from edgeq.lock import Allowance, Lock, Locked, Seen
from edgeq.report.gate import gate_tables, junit, markdown
from edgeq.runners import cpu
from edgeq.verifying.verification import verify_files

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "sample_models"
ENTRY = Locked("digits.onnx", "generic", "digits_calib.npz", "digits.npz", "label")


def edgeq(*arguments, cwd, **env):
    command = [sys.executable, "-m", "edgeq", *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    return gate.build("digits", ENTRY, _copies(tmp_path_factory.mktemp("seen")))


def _copies(folder):
    for name in ("digits.onnx", "digits_calib.npz", "digits.npz"):
        shutil.copy(SAMPLES / name, folder / name)
    return folder


@pytest.fixture
def project(tmp_path, seen):
    """A folder with the sample, and a lock that holds what it gives."""
    _copies(tmp_path)
    lock.save(Lock({"digits": msgspec.structs.replace(ENTRY, seen=seen)}), tmp_path / "edgeq.lock")
    return tmp_path


def failed(rows):
    return {r.what for r in rows if r.verdict == "failed"}


def test_a_rebuild_moves_nothing(project):
    done = edgeq("check", "--json", cwd=project)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)
    assert found["ok"]
    assert {r["verdict"] for r in found["rows"]} == {"same"}
    assert {"model", "calib", "eval", "recipe", "artifact", "bytes", "metric on generic"} <= {
        r["what"] for r in found["rows"]
    }


def test_a_changed_weight_fails_until_it_is_locked(project):
    model = onnx.load(project / "digits.onnx")
    weight = next(t for t in model.graph.initializer if len(t.dims) == 4)
    array = numpy_helper.to_array(weight).copy()
    array.flat[0] += 0.5
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    onnx.save(model, project / "digits.onnx")
    done = edgeq("check", "--junit", "out.xml", "--markdown", "out.md", cwd=project)
    assert done.returncode == 1
    assert "not what was locked" in " ".join(done.stdout.split())
    failures = ET.parse(project / "out.xml").findall(".//failure")
    assert any("not what was locked" in f.get("message") for f in failures)
    assert "❌ digits" in (project / "out.md").read_text()
    assert edgeq("check", "--update", cwd=project).returncode == 0
    assert edgeq("check", cwd=project).returncode == 0


def test_other_calibration_data_fails(project):
    with np.load(project / "digits_calib.npz") as held:
        arrays = {k: v[::-1] for k, v in held.items()}
    np.savez(project / "digits_calib.npz", **arrays)
    done = edgeq("check", "digits", "--json", cwd=project)
    assert done.returncode == 1
    (found,) = json.loads(done.stdout)
    assert [r["what"] for r in found["rows"] if r["verdict"] == "failed"] == ["calib"]


def test_the_lock_reads_back_as_it_was_written(tmp_path, seen):
    exact = msgspec.structs.replace(seen, targets={"generic": {"a b": math.inf, "é": 1.5}})
    made = Lock({"z": msgspec.structs.replace(ENTRY, seen=exact), "a": ENTRY})
    lock.save(made, tmp_path / "edgeq.lock")
    assert lock.load(tmp_path / "edgeq.lock") == made
    assert list(lock.load(tmp_path / "edgeq.lock").artifact) == ["a", "z"]


def test_a_newer_library_explains_other_bytes_within_the_budget(seen):
    now = msgspec.structs.replace(seen, artifact="f" * 64, versions={**seen.versions, "onnxruntime": "9.0"})
    rows = list(gate.compare(ENTRY, seen, now))
    assert not failed(rows)
    (artifact,) = (r for r in rows if r.what == "artifact")
    assert (artifact.verdict, "onnxruntime" in artifact.why) == ("moved", True)


def test_other_bytes_that_nothing_explains_fail(seen):
    assert failed(gate.compare(ENTRY, seen, msgspec.structs.replace(seen, artifact="f" * 64))) == {"artifact"}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"bytes": 153000}, "bytes"),
        ({"integer": 49}, "integer nodes"),
        ({"metrics": {"generic": 0.98}}, "metric on generic"),
        ({"metrics": {}}, "metric on generic"),
        ({"targets": {"generic": {"logits": 31.0}}}, "SQNR of logits on generic"),
        ({"targets": {"generic": {}}}, "SQNR of logits on generic"),
        ({"recipe": "0"}, "recipe"),
    ],
)
def test_what_moves_beyond_the_budget_is_named(change, what):
    before = Seen(
        "a", 151143, 67, 50, "r", {"model": "m"}, {"numpy": "2"}, {"generic": {"logits": 32.2}}, {"generic": 0.9917}
    )
    assert failed(gate.compare(ENTRY, before, msgspec.structs.replace(before, **change))) == {what}
    generous = msgspec.structs.replace(ENTRY, budget=Allowance(metric=0.02, sqnr_db=3, bytes=0.1, integer=0.1))
    gone = change in ({"metrics": {}}, {"targets": {"generic": {}}}, {"recipe": "0"})
    assert bool(failed(gate.compare(generous, before, msgspec.structs.replace(before, **change)))) == gone


def test_hostile_names_stay_in_their_cells(seen):
    name = "a|b](x)\x1b[31m\n<script>"
    found = [gate.Checked(name, (gate.Row(name, "1", "2", "failed", name),), seen)]
    assert "\x1b" not in markdown(found)
    assert "<script>" not in markdown(found)
    assert [line for line in markdown(found).splitlines() if "a\\|b" in line]
    assert ET.fromstring(junit(found)).find(".//failure") is not None
    assert gate_tables(found)


def test_a_lock_that_is_wrong_is_one_line(tmp_path):
    for text, said in (
        ("[artifact.x]\nmodel = 1\ntarget = 'generic'", "artifact"),
        ("[[", "edgeq.lock"),
        ("[artifact.x]\nmodel = 'm.onnx'\ntarget = 'generic'", "`eval` or `calib`"),
        ("[artifact.x]\nmodel='m.onnx'\ntarget='generic'\ncalib='c.npz'\n[artifact.x.recipe]\nspeed = 3", "speed"),
    ):
        (tmp_path / "edgeq.lock").write_text(text)
        done = edgeq("check", cwd=tmp_path)
        assert done.returncode == 2, done.stdout
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert "no artifact 'y'" in edgeq("check", "y", cwd=tmp_path).stderr
    assert edgeq("check", "--lock", "none.lock", cwd=tmp_path).returncode == 2


def test_the_action_runs(project):
    """The shell steps of action.yml, as a runner would run them."""
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    step = next(s for s in action["runs"]["steps"] if s.get("id") == "check")
    defaults = {name: row.get("default", "") for name, row in action["inputs"].items()}
    env = {k: defaults[v.strip("${} ").removeprefix("inputs.")] for k, v in step["env"].items()}
    binary = project / "bin"
    binary.mkdir()
    (binary / "edgeq").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m edgeq "$@"\n')
    (binary / "edgeq").chmod(0o755)
    env |= {
        "PATH": f"{binary}:{os.environ['PATH']}",
        "RUNNER_TEMP": str(project),
        "GITHUB_OUTPUT": str(project / "output"),
        "GITHUB_STEP_SUMMARY": str(project / "summary"),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", step["run"]], cwd=project, env=env, check=False, timeout=300
    )
    assert done.returncode == 0
    assert "✅ digits" in (project / "summary").read_text()
    assert (project / "output").read_text().startswith("markdown=")
    assert ET.parse(project / "edgeq-junit.xml").getroot().find("testsuite").get("failures") == "0"


def test_the_documented_workflow_fits_the_action():
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    text = (ROOT / "docs" / "ci.md").read_text().split("```yaml\n")[1].split("```")[0]
    workflow = yaml.safe_load(text)
    step = next(s for s in workflow["jobs"]["drift"]["steps"] if s.get("id") == "edgeq")
    assert set(step["with"]) <= set(action["inputs"])
    assert "steps.edgeq.outputs.markdown" in text
    assert "markdown" in action["outputs"]


def test_pytest_checks_the_lock(project):
    (project / "test_mine.py").write_text(
        "def test_small(edgeq_drift):\n    assert edgeq_drift('digits').bytes < 200_000\n"
    )
    run = [sys.executable, "-m", "pytest", "-q", "-p", "edgeq.pytest_plugin", "--edgeq", "--rootdir", str(project)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(run, cwd=project, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert "2 passed" in done.stdout, done.stdout
    with np.load(project / "digits_calib.npz") as held:
        arrays = {k: v[::-1] for k, v in held.items()}
    np.savez(project / "digits_calib.npz", **arrays)
    done = subprocess.run(run, cwd=project, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert "2 failed" in done.stdout, done.stdout
    assert "not what was locked" in done.stdout


def test_with_a_cache_the_float_model_runs_once(project, monkeypatch):
    """The second check answers the same without opening the float model in the runtime; a damaged file is made anew."""
    locked, cache = lock.load(project / "edgeq.lock").artifact["digits"], project / "cache"
    first = gate.check("digits", locked, project, cache=cache)
    opened = []
    real = cpu.open_session
    monkeypatch.setattr(cpu, "open_session", lambda model, **given: opened.append(model.name) or real(model, **given))
    second = gate.check("digits", locked, project, cache=cache)
    assert first == second
    assert first.ok
    assert "digits.onnx" not in opened
    assert "observed.onnx" not in opened
    (next((cache / "answers").iterdir())).write_bytes(b"PK damaged")
    assert gate.check("digits", locked, project, cache=cache) == first
    assert opened.count("digits.onnx") == 1


def test_a_cache_knows_statistics_of_a_repaired_model_apart(project):
    """Passes change the model that statistics are of: they may not be taken for those of the plain one."""
    locked, cache = lock.load(project / "edgeq.lock").artifact["digits"], project / "cache"
    gate.build("digits", locked, project, cache=cache)
    repaired = msgspec.structs.replace(locked, recipe={"passes": ["bias_correct"]})
    wanted = gate.build("digits", repaired, project)
    assert [gate.build("digits", repaired, project, cache=cache) for _ in range(2)] == [wanted, wanted]


def test_further_targets_are_seen_as_verify_sees_them(project):
    locked = msgspec.structs.replace(lock.load(project / "edgeq.lock").artifact["digits"], also=("x86_64", "web"))
    made = pipeline.quantize(
        project / "digits.onnx", "generic", project / "digits_calib.npz", project / "out", check=False
    )
    wanted = verify_files(project / "digits.onnx", made.artifact, "web", project / "digits.npz", labels="label")
    seen = gate.build("digits", locked, project)
    assert list(seen.targets) == list(seen.metrics) == ["generic", "x86_64", "web"]
    assert seen.targets["web"] == {o.name: round(o.sqnr_db, 3) for o in wanted.outputs}
    assert seen.metrics["web"] == wanted.metric.quantized
