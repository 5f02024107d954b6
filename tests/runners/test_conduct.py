"""How runners behave when their runtime is missing, hangs or dies; the same for every module of the folder."""

import os
import signal
import threading
import time
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgeq import registry
from edgeq.errors import EdgeqError, ToolError
from edgeq.runners import cpu, web
from tests.require import require
from tests.runners import tiny
from tests.runners.test_litert import two_layers
from tests.runners.test_ssh import board  # noqa: F401 (a fixture)
from tests.runners.test_web import folder, processes  # noqa: F401 (a fixture)

RUNNERS = registry.names("edgeq.runners", "open_session")
HERE = ("cpu", "halves", "emulator")  # always, and in this process
CHILDREN = [*(n for n in RUNNERS if n not in (*HERE, "cuda")), "chromium"]
INSTALL = {"chromium": "apt install chromium", "ssh": "apt install openssh-server", "qnn": "edgeq doctor --install qnn"}

# Each starts a child of its own, says so beside the job, and then hangs or dies.
PYTHON = """
import os, signal, subprocess, sys, time
child = subprocess.Popen(["sleep", "600.{mark}"])
open("{started}", "w").close()
{end}
"""
NODE = """
import {{ spawn }} from "node:child_process";
import {{ closeSync, openSync }} from "node:fs";
spawn("sleep", ["600.{mark}"]);
closeSync(openSync("{started}", "w"));
{end}
"""
HANG = {"py": "time.sleep(600)", "mjs": "await new Promise((r) => setTimeout(r, 600000));"}
DIE = {"py": "os.kill(os.getpid(), signal.SIGKILL)", "mjs": 'process.kill(process.pid, "SIGKILL");'}


def session_of(name: str, tmp_path: Path, more: dict[str, Any]) -> tuple[Any, dict[str, np.ndarray]]:
    module = registry.load("edgeq.runners", "web" if name == "chromium" else name)
    require(name, INSTALL.get(name, f"edgeq doctor --install {name}"), lambda: module.missing() is None)
    if name == "litert":
        return module.open_session(two_layers(tmp_path / "t.tflite"), **more), {"x": np.zeros((1, 8), np.int8)}
    if name == "chromium":
        require(name, INSTALL[name], lambda: web.missing("chromium") is None)
        more = {**more, "browser": "chromium"}
    return module.open_session(tiny.qdq_conv(tmp_path / "t.onnx"), **more), tiny.samples(1)[0]


def spoil(session: Any, tmp_path: Path, end: dict[str, str], mark: int) -> Path:
    """Replaces the program that the session runs; the file that it makes when it has started."""
    kind = session.program.suffix[1:]
    started = tmp_path / "started"
    program = tmp_path / session.program.name
    text = PYTHON if kind == "py" else NODE
    program.write_text(text.format(mark=mark, started=started, end=end[kind]))
    session.program = program
    return started


def left(mark: int) -> dict[int, str]:
    """Processes of the spoiled program that still run, after a moment for those that are just ending."""
    found: dict[int, str] = {}
    for _ in range(50):
        found = processes(Path(f"600.{mark}"))
        if not found:
            break
        time.sleep(0.1)
    return found


@pytest.mark.parametrize("name", [n for n in CHILDREN if n != "chromium"])
def test_a_hang_is_stopped_with_all_that_it_started(name: str, tmp_path: Path, board: dict[str, str]) -> None:  # noqa: F811
    session, feeds = session_of(name, tmp_path, {"timeout": 4.0, **(board if name == "ssh" else {})})
    mark = os.getpid() * 100 + CHILDREN.index(name)
    started = spoil(session, tmp_path, HANG, mark)
    with pytest.raises(ToolError, match=rf"^{name}.*: .*stopped after 4 s") as raised:
        session.run(feeds)
    assert "\n" not in str(raised.value)
    assert started.exists()
    assert left(mark) == {}


@pytest.mark.parametrize("name", [n for n in CHILDREN if n != "chromium"])
def test_a_death_is_one_line(name: str, tmp_path: Path, board: dict[str, str]) -> None:  # noqa: F811
    session, feeds = session_of(name, tmp_path, board if name == "ssh" else {})
    mark = os.getpid() * 100 + 50 + CHILDREN.index(name)
    started = spoil(session, tmp_path, DIE, mark)
    with pytest.raises(ToolError, match=rf"^{name}.*: (killed by SIGKILL|failed with exit status 137)") as raised:
        session.run(feeds)
    assert "\n" not in str(raised.value)
    assert started.exists()
    assert left(mark) == {}


def test_a_browser_that_dies_or_hangs(folder: Path) -> None:  # noqa: F811
    session, feeds = session_of("chromium", folder, {"timeout": 6.0})
    program = folder / session.program.name
    program.write_text("export const httpFiles = () => null; export const run = () => new Promise(() => {});")
    session.program = program
    with pytest.raises(ToolError, match=r"^web \(chromium\): stopped after 6 s"):
        session.run(feeds)

    def kill() -> None:
        for _ in range(200):
            for number, line in processes(folder).items():
                if "--headless" in line and "--type=" not in line:
                    os.kill(number, signal.SIGKILL)
                    return
            time.sleep(0.02)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(ToolError, match=r"^web \(chromium\): killed by SIGKILL"):
        session.run(feeds)
    killer.join()
    assert processes(folder) == {}


def endless(path: Path) -> Path:
    """x (4) → y, which a Loop doubles without end."""
    info = helper.make_tensor_value_info
    inner = [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["v", "v"], ["w"])]
    scalars = [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, [])]
    ends = [info("on", TensorProto.BOOL, []), info("w", TensorProto.FLOAT, [4])]
    body = helper.make_graph(inner, "body", [*scalars, info("v", TensorProto.FLOAT, [4])], ends)
    loop = helper.make_node("Loop", ["n", "c", "x"], ["y"], body=body)
    constants = [helper.make_tensor("n", TensorProto.INT64, [], [10**12])]
    constants += [helper.make_tensor("c", TensorProto.BOOL, [], [True])]
    x, y = (info(name, TensorProto.FLOAT, [4]) for name in "xy")
    graph = helper.make_graph([loop], "g", [x], [y], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_an_inference_in_this_process_is_stopped_too(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"endless\.onnx: stopped after 0\.3 s; raise the timeout option"):
        cpu.open_session(endless(tmp_path / "endless.onnx"), timeout=0.3).run({"x": np.ones(4, np.float32)})


@pytest.mark.parametrize("name", [n for n in RUNNERS if n not in HERE])
def test_a_missing_runtime_is_one_line_that_says_what_to_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No runtime in the cache, no program on the path, no optional package, no GPU."""
    module = registry.load("edgeq.runners", name)
    found = util.find_spec
    monkeypatch.setenv("EDGEQ_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    optional = ("openvino", "ai_edge_litert")
    monkeypatch.setattr(util, "find_spec", lambda n, *rest: None if n in optional else found(n, *rest))
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    line = module.missing()
    assert line is not None
    assert "`" in line
    assert any(command in line for command in ("pip install", "apt install", "edgeq doctor --install"))
    for call in (module.version, lambda: module.open_session(tiny.qdq_conv(tmp_path / "t.onnx"))):
        with pytest.raises(EdgeqError) as raised:
            call()
        assert str(raised.value) == line
        assert raised.value.exit_code == 2
