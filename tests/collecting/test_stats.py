"""Statistics survive the file, serve other recipes without the data, and refuse what they don't fit."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgeq
from edgeq.calibrate.histogram import Histogram
from edgeq.calibrate.summary import Summary
from edgeq.collecting import stats
from edgeq.collecting.stats import Statistics
from edgeq.errors import CalibrationError, RecipeError
from tests.graph.written import CONV, draw, save, text

ROOT = Path(__file__).resolve().parents[2]
BODY = "c = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(c) y = Add(r, x)"


def counted(seed, *names):
    summaries = {}
    for i, name in enumerate(names):
        summaries[name] = Summary(histogram=Histogram())
        summaries[name].update(draw(50, seed=seed + i) * 10.0**i)
    return summaries


def held(found):
    """All that summaries hold, as bytes."""
    return {n: {k: v.tobytes() for k, v in s.state().items()} for n, s in found.summaries.items()}


@given(st.lists(st.text(max_size=8), unique=True, max_size=3), st.integers(0, 9))
def test_what_is_written_is_what_is_read(names, samples):
    made = Statistics(
        counted(1, *names), (*names, "never/reached"), samples, "ab", "d ü", {"seed": 3, "preprocess": None}
    )
    content = stats.dump(made)
    again = stats.parse(content)
    assert held(again) == held(made)
    assert stats.dump(again) == content
    assert (again.values, again.samples, again.data, again.settings) == (
        made.values, samples, "d ü", {"seed": 3, "preprocess": None}
    )  # fmt: skip


def test_parts_are_the_whole():
    whole = Summary(histogram=Histogram())
    for seed in (1, 2):
        whole.update(draw(50, seed=seed))
    parts = [Statistics(counted(seed, "v"), ("v",), 1) for seed in (1, 2)]
    together = parts[0].merged(parts[1])
    assert together.samples == 2
    assert held(together) == held(Statistics({"v": whole}, ("v",), 2))


@given(st.integers(0, 3000), st.integers(0, 255))
def test_no_damaged_byte_escapes(at, value):
    content = bytearray(stats.dump(Statistics(counted(1, "v"), ("v",), 1)))
    content[at % len(content)] = value
    for damaged in (content, content[: at % len(content)]):
        try:
            found = stats.parse(bytes(damaged), "s.npz")
        except CalibrationError as error:
            assert str(error).startswith("s.npz: ")  # noqa: PT017
        else:
            assert found.values == ("v",)


def test_another_recipe_without_the_data(tmp_path):
    model = save(tmp_path, text(BODY), CONV)
    data = {"x": draw(12, 4, 8, 8)}
    file = tmp_path / "s.npz"
    edgeq.quantize(model, "x86_64", data, tmp_path / "out", save_stats=file, check=False)
    first = file.read_bytes()
    edgeq.quantize(model, "x86_64", data, tmp_path / "out", save_stats=file, calibrator="minmax", check=False)
    assert file.read_bytes() == first  # whatever the recipe needs, all is there
    for asked in (
        {}, {"calibrator": "percentile"}, {"calibrator": "minmax", "elementwise": "none"}, {"elementwise": "all"}
    ):  # fmt: skip
        seen = edgeq.quantize(model, "x86_64", data, tmp_path / "a", check=False, **asked)
        again = edgeq.quantize(model, "x86_64", data, tmp_path / "b", stats=file, check=False, **asked)
        assert seen.artifact.read_bytes() == again.artifact.read_bytes(), asked
        assert again.report.calibration == seen.report.calibration | {"statistics": "s.npz"}
        bare = edgeq.quantize(model, "x86_64", data, tmp_path / "a", check=False, passes=(), **asked)
        unseen = edgeq.quantize(model, "x86_64", None, tmp_path / "b", stats=file, check=False, passes=(), **asked)
        assert bare.artifact.read_bytes() == unseen.artifact.read_bytes(), asked
        assert not unseen.report.warnings
    assert unseen.report.verification is None
    unseen = edgeq.quantize(model, "x86_64", None, tmp_path / "b", stats=file)
    assert any("biases are not corrected" in line for line in unseen.report.warnings)


def test_on_the_command_line(tmp_path):
    model = save(tmp_path, text(BODY), CONV)
    np.savez(tmp_path / "d.npz", x=draw(12, 4, 8, 8))
    found = []
    for asked in (["--calib", "d.npz", "--save-stats", "s.npz"], ["--stats", "s.npz", "--calib", "d.npz"]):
        command = [sys.executable, "-m", "edgeq", "quantize", str(model), "-o", "out", "--no-verify", *asked]
        subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, timeout=120)
        found.append((tmp_path / "out" / "model.onnx").read_bytes())
    assert found[0] == found[1]


def test_what_does_not_fit_is_one_line(tmp_path):
    model = save(tmp_path, text(BODY), CONV)
    data = {"x": draw(12, 4, 8, 8)}
    file = tmp_path / "s.npz"
    made = edgeq.quantize(model, "x86_64", data, tmp_path / "out", save_stats=file, check=False)
    whole = stats.load(file)

    def refused(message, kind=CalibrationError, **asked):
        with pytest.raises(kind, match=message) as caught:
            edgeq.quantize(model, "x86_64", None, tmp_path / "bad", **{"stats": file} | asked)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "bad").exists()

    values = tuple(v for v in whole.values if v != "x")
    stats.save(replace(whole, summaries={}, values=values), tmp_path / "few.npz")
    refused(r"few\.npz: has nothing of x, which the plan needs", stats=tmp_path / "few.npz")
    stats.save(replace(whole, model="0" * 64), tmp_path / "other.npz")
    refused(r"other\.npz: statistics of another model", stats=tmp_path / "other.npz")
    refused(r"absent\.npz: can't be read", stats=tmp_path / "absent.npz")
    refused("not a readable", stats=made.artifact)
    np.savez(tmp_path / "plain.npz", x=np.zeros(3))
    refused(r"plain\.npz: not a file of statistics", stats=tmp_path / "plain.npz")
    stats.save(replace(whole, settings={"preprocess": {"crop": 8}}), tmp_path / "crop.npz")
    refused("another preprocess", stats=tmp_path / "crop.npz")
    refused("--stats runs on no data", RecipeError, workers=2)
    refused("method dynamic has no statistics", RecipeError, method="dynamic")
    refused("--stats runs on no data", RecipeError, save_stats=tmp_path / "t.npz")
