"""What `edgeq` offers has types from outside: a strict checker takes right use of it, and not wrong use."""

import importlib.resources
import subprocess
import sys

import edgeq
from tests.require import require

RIGHT = """
import edgeq
from edgeq.pipeline import Result
from edgeq.planning.plan import Plan

recipe: edgeq.Recipe = edgeq.Recipe(method="dynamic")
made: Plan = edgeq.plan("m.onnx", "x86_64", recipe)
found: Result = edgeq.quantize("m.onnx", "x86_64", None, "out", recipe=recipe)
edgeq.save(edgeq.prepare(edgeq.load("m.onnx"), 21), "p.onnx")
"""
WRONG = """
import edgeq
edgeq.quantize(1)
edgeq.plan("m.onnx", "x86_64")
edgeq.verify("a.onnx", "b.onnx").nothing
"""


def checked(folder, source):
    require("mypy", "pip install 'edgeq[dev]'")
    (folder / "user.py").write_text(source)
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--ignore-missing-imports"]
    root = str(importlib.resources.files("edgeq").parent)
    env = {"MYPYPATH": root, "PATH": "/usr/bin:/bin"}
    return subprocess.run([*command, "user.py"], cwd=folder, env=env, capture_output=True, text=True, check=False)


def test_every_public_name_is_found_and_listed():
    assert set(edgeq.__all__) == {*edgeq._LAZY, "__version__"}
    assert all(getattr(edgeq, name) is not None for name in edgeq.__all__)


def test_right_use_is_green_and_wrong_use_is_not(tmp_path):
    right = checked(tmp_path, RIGHT)
    assert right.returncode == 0, right.stdout + right.stderr
    wrong = checked(tmp_path, WRONG).stdout
    assert [f"user.py:{line}:" in wrong for line in (3, 4, 5)] == [True] * 3, wrong
