"""CONTRIBUTING's recipes, followed to the letter in a copy of the checkout: its files are written, its commands run."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ("--calib", "sample_models/digits_calib.npz", "--eval", "sample_models/digits.npz", "--labels", "label")
RECIPES = {
    title: (
        re.findall(r"^`([\w./]+)`\n\n```\w+\n(.*?)^```", text, re.M | re.S),
        "".join(re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)).splitlines(),
    )
    for title, text in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", (ROOT / "CONTRIBUTING.md").read_text(), re.M | re.S)
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("copy") / "edgeq"
    left = shutil.ignore_patterns(".*", "out", "__pycache__", "benchmarks")
    shutil.copytree(ROOT, folder, ignore=left)
    for files, _ in RECIPES.values():
        for name, content in files:
            assert not (folder / name).exists()
            (folder / name).write_text(content)
    return folder


def spelled_out(line):
    """A line of a recipe as this Python runs it; make would set up an environment first."""
    words = shlex.split(line)
    if words[0] == ".venv/bin/edgeq":
        return ["-m", "edgeq", *words[1:]]
    assert words[0] == "make"
    variables = dict(word.split("=", 1) for word in words[2:])
    if words[1] == "test":
        return ["-m", "pytest", "-q", "-p", "no:cacheprovider", *shlex.split(variables["ARGS"])]
    assert words[1] == "quantize"
    target = ["--target", variables.get("TARGET", "x86_64"), "-o", "out"]
    return [
        "-m",
        "edgeq",
        "quantize",
        "sample_models/digits.onnx",
        *SAMPLES,
        *target,
        *shlex.split(variables.get("ARGS", "")),
    ]


def test_there_are_four():
    assert list(RECIPES) == ["A calibrator", "A weight algorithm", "A pass", "A target"]
    assert all(files and commands for files, commands in RECIPES.values())


@pytest.mark.parametrize("title", RECIPES)
def test_recipe(copy, title):
    env = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    for line in RECIPES[title][1]:
        done = subprocess.run(
            [sys.executable, *spelled_out(line)], cwd=copy, env=env, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, (line, done.stdout[-3000:], done.stderr[-3000:])
        assert "quantize" not in line or "top-1 (label)" in done.stdout, line
