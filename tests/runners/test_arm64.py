from pathlib import Path

import numpy as np
import pytest

from edgeq.errors import RecipeError, ToolError
from edgeq.runners import arm64
from tests.require import require
from tests.runners import tiny


@pytest.fixture
def model(tmp_path: Path) -> Path:
    require("arm64", "edgeq doctor --install arm64", lambda: arm64.missing() is None)
    return tiny.qdq_conv(tmp_path / "tiny.onnx")


@pytest.mark.parametrize(
    ("cpu", "instruction"), [("a53", "smlal"), ("a72", "smlal"), ("a76", "udot"), ("i8mm", "ummla")]
)
def test_u8s8_is_bit_identical_to_this_machine_and_runs_in_integers(model: Path, cpu: str, instruction: str) -> None:
    session = arm64.open_session(model, cpu=cpu, proof=True)
    feeds = tiny.samples(3)
    for given, got in zip(feeds, session.run_many(feeds), strict=True):
        np.testing.assert_array_equal(got["y"], tiny.here(model, given))
    assert session.report["ops"]["QLinearConv"] == 1  # in the graph that the Arm runtime made
    assert "Conv" not in session.report["ops"]
    assert session.report["machine"] == "aarch64"
    assert set(session.report["instructions"]) & {"smlal", "udot", "ummla"} == {instruction}
    session.close()


def test_a_float_graph_runs_no_integer_instruction(model: Path) -> None:
    session = arm64.open_session(model, optimization="disabled", proof=True)
    session.run(tiny.samples(1)[0])
    assert session.report["ops"]["Conv"] == 1
    assert session.report["instructions"] == {}


def test_values_inside_the_graph_can_be_read(model: Path) -> None:
    session = arm64.open_session(model, optimization="disabled")
    got = session.run(tiny.samples(1)[0], taps=["yq", "xq"])
    assert list(got) == ["y", "yq", "xq"]
    np.testing.assert_array_equal(got["yq"].astype(np.float32) * np.float32(0.05), got["y"])
    expected = np.clip(np.rint(tiny.samples(1)[0]["x"] / np.float32(0.03)) + 117, 0, 255)
    np.testing.assert_array_equal(got["xq"], expected)


def test_time_limit_is_one_line(model: Path) -> None:
    with pytest.raises(ToolError, match=r"arm64 \(a76\): stopped after 0\.2 s"):
        arm64.open_session(model, timeout=0.2).run(tiny.samples(1)[0])


def test_unknown_cpu_and_option_list_the_valid_ones(model: Path) -> None:
    with pytest.raises(RecipeError, match="cpu='m4' is not one of a53, a72, a76, i8mm"):
        arm64.open_session(model, cpu="m4")
    with pytest.raises(RecipeError, match="no option 'gpu': choose from cpu, optimization, proof"):
        arm64.open_session(model, gpu=1)


def test_not_installed_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEQ_CACHE", str(tmp_path))
    assert arm64.missing() == "arm64 runtime not installed: run `edgeq doctor --install arm64`"
    with pytest.raises(ToolError, match="edgeq doctor --install arm64"):
        arm64.open_session(tiny.qdq_conv(tmp_path / "tiny.onnx"))


def test_install_without_its_tools_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolError, match="apt-get, which is not here"):
        arm64.install(lambda line: None)


def test_failed_install_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("apt-get", "dpkg-deb", "qemu-aarch64"):
        (programs / name).write_text("#!/bin/sh\necho 'E: no such package' >&2\nexit 100\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("EDGEQ_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ToolError, match="apt-get download for arm64: failed with exit status 100: E: no such package"):
        arm64.install(lambda line: None)
    assert list((tmp_path / "cache").iterdir()) == []


def test_ubuntu_takes_arm64_from_its_ports_archive() -> None:
    assert arm64.sources({"ID": "debian", "VERSION_CODENAME": "bookworm"}) is None
    lines = (arm64.sources({"ID": "ubuntu", "VERSION_CODENAME": "noble"}) or "").splitlines()
    assert [line.split()[2] for line in lines] == ["noble", "noble-updates", "noble-security"]
    assert all("ubuntu-ports" in line for line in lines)
