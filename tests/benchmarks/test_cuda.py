"""The GPU benchmark on a CPU that poses as one: what is made, where nodes ran, and how the table reads."""

import json
import sys

import pytest

from benchmarks import cuda as benchmark
from edgeq.runners import cuda
from edgeq.runners.jobs import JobSession, local
from edgeq.runners.session import COMMON


@pytest.fixture
def posing(monkeypatch):
    """onnxruntime's CPU in place of the CUDA provider; the list of TF32 settings that sessions were opened with."""
    opened = []

    def open_session(model, tf32=False, proof=False, **given):
        opened.append(tf32)
        return JobSession(model, "cuda", local([sys.executable], "cuda", 60), {**COMMON, **given}, proof=proof)

    monkeypatch.setattr(cuda, "missing", lambda: None)
    monkeypatch.setattr(cuda, "version", lambda: "1.0")
    monkeypatch.setattr(cuda, "open_session", open_session)
    monkeypatch.setattr(cuda, "PROVIDER", "CPUExecutionProvider")
    return opened


def test_rows(posing, tmp_path, capsys):
    assert benchmark.main(["--models", "tinypy", "--rounds", "1", "--json", str(tmp_path / "rows.json")]) == 0
    found = {row["artifact"]: row for row in json.loads((tmp_path / "rows.json").read_text())}
    assert list(found) == ["float32", "float32 without TF32", "bfloat16", "float16", "weight_only", "int8 QDQ"]
    assert "NOT_IMPLEMENTED" in found.pop("bfloat16")["failed"]  # only a GPU has its kernels
    assert [row["failed"] for row in found.values()] == [""] * 5
    assert found["float32"]["sqnr_db"] is None
    assert 40 < found["float16"]["sqnr_db"] < 90
    assert 10 < found["weight_only"]["sqnr_db"] < 40
    assert found["float16"]["megabytes"] == pytest.approx(found["float32"]["megabytes"] / 2, rel=0.1)
    assert found["weight_only"]["megabytes"] < found["float32"]["megabytes"] / 5
    for name, row in found.items():
        if name != "float32 without TF32":
            assert row["ratio"] == pytest.approx(found["float32"]["milliseconds"] / row["milliseconds"])
        assert (row["gpu_nodes"] > 0, row["cpu_nodes"]) == (True, 0)
    assert {True, False} == set(posing)
    table = capsys.readouterr().out
    assert table.count("\n") == 8
    assert "| tinypy | float32 | " in table


def test_without_a_gpu_it_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(cuda, "missing", lambda: "no GPU")
    assert benchmark.main([]) == 2
    assert capsys.readouterr().err == "target cuda can't be verified here: no GPU\n"
    with pytest.raises(SystemExit):
        benchmark.main(["--models", "vgg"])
