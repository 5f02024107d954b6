import json
import shutil
import tempfile
import threading
import urllib.error
import urllib.request
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgeq.errors import RecipeError, ToolError
from edgeq.runners import web
from tests.require import require
from tests.runners import tiny

BROWSERS = ["none", "chromium"]


def present(browser: str) -> None:
    name = "web" if browser == "none" else browser
    require(name, "edgeq doctor --install web; apt install chromium", lambda: web.missing(browser) is None)


@pytest.mark.parametrize("browser", BROWSERS)
@pytest.mark.parametrize("external", [False, True])
def test_u8s8_is_bit_identical_to_this_machine(tmp_path: Path, browser: str, external: bool) -> None:
    present(browser)
    model = tiny.qdq_conv(tmp_path / "tiny.onnx", external)
    session = web.open_session(model, browser=browser)
    feeds = tiny.samples(2)
    for given, got in zip(feeds, session.run_many(feeds, taps=["yq"]), strict=True):
        np.testing.assert_array_equal(got["y"], tiny.here(model, given))
        assert got["yq"].dtype == np.uint8
    assert session.report["version"] == web.version()
    assert session.latency_ms > 0


@pytest.mark.parametrize("browser", BROWSERS)
def test_every_type_and_shape_comes_back_as_it_went(tmp_path: Path, browser: str) -> None:
    present(browser)
    kinds = [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
    kinds += ["float16", "float32", "float64", "bool"]
    rng = np.random.default_rng(3)
    feeds = {k: rng.integers(0, 2 if k == "bool" else 100, (2, 3, 5)).astype(k) for k in kinds}
    feeds["int16"] = np.zeros((3, 0, 2), np.int16)
    feeds["float16"] = feeds["float16"].reshape(30)
    feeds["int64"] = np.array(-(2**62) - 1, np.int64)  # rank 0, and beyond what a double holds
    tensor = {k: helper.np_dtype_to_tensor_dtype(v.dtype) for k, v in feeds.items()}
    graph = helper.make_graph(
        [helper.make_node("Identity", [k], [f"{k} out"]) for k in kinds],
        "identity",
        [helper.make_tensor_value_info(k, tensor[k], v.shape) for k, v in feeds.items()],
        [helper.make_tensor_value_info(f"{k} out", tensor[k], v.shape) for k, v in feeds.items()],
    )
    path = tmp_path / "identity.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    got = web.open_session(path, browser=browser).run(feeds)
    for k, v in feeds.items():
        assert (got[f"{k} out"].dtype, got[f"{k} out"].shape) == (v.dtype, v.shape)
        np.testing.assert_array_equal(got[f"{k} out"], v)


@pytest.mark.parametrize("browser", BROWSERS)
def test_a_model_it_cannot_run_is_one_line(tmp_path: Path, browser: str) -> None:
    present(browser)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    graph = helper.make_graph(
        [helper.make_node("Nonsense", ["x"], ["y"])], "g", [x], [helper.make_empty_tensor_value_info("y")]
    )
    path = tmp_path / "bad.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    with pytest.raises(ToolError, match=r"^web \((node|chromium)\): .*Nonsense") as raised:
        web.open_session(path, browser=browser).run({"x": np.zeros(2, np.float32)})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("browser", BROWSERS)
def test_time_limit_leaves_no_process(folder: Path, browser: str) -> None:
    present(browser)
    session = web.open_session(tiny.qdq_conv(folder / "tiny.onnx"), browser=browser, timeout=0.05)
    with pytest.raises(ToolError, match=r"stopped after 0\.05 s"):
        session.run(tiny.samples(1)[0])
    assert processes(folder) == {}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's temporary folders go, and no other test's."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def processes(folder: Path) -> dict[int, str]:
    """Those that were started in the folder or name it: process number → command line."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if line and (str(folder) in line or (entry / "cwd").resolve().is_relative_to(folder)):
                found[int(entry.name)] = line
        except OSError:  # it ended meanwhile
            continue
    return found


def test_browser_is_gone_after_a_run(folder: Path) -> None:
    present("chromium")
    seen = threading.Event()

    def look() -> None:
        while not seen.is_set() and not stop.wait(0.02):
            if processes(folder):
                seen.set()

    stop = threading.Event()
    watcher = threading.Thread(target=look)
    watcher.start()
    web.open_session(tiny.qdq_conv(folder / "tiny.onnx"), browser="chromium").run(tiny.samples(1)[0])
    stop.set()
    watcher.join()
    assert seen.is_set()  # it was there, so the next line says something
    assert processes(folder) == {}


def test_server_gives_only_the_job(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "secret").write_text("no")
    (tmp_path / "model.onnx").write_bytes(b"model")
    (tmp_path / "job.json").write_text(json.dumps({"model": "model.onnx", "data": []}))
    done = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), web.handler(tmp_path, "token", done))
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def status(path: str, data: bytes | None = None) -> int:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}{path}", data) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    try:
        assert status("/token/job/model.onnx") == 200
        for path in ("/job/model.onnx", "/other/job/model.onnx", "/token/job/secret", "/token/job/../secret",
                     "/token/ort/../../package.json", "/token/job/in/../secret", "/"):  # fmt: skip
            assert status(path) == 404, path
        assert status("/token/job/out/../model.onnx", b"overwritten") == 404
        assert status("/token/job/model.onnx", b"overwritten") == 404
        assert (tmp_path / "model.onnx").read_bytes() == b"model"
        assert not done.is_set()
        assert status("/token/job/result.json", b"{}") == 200
        assert done.wait(5)
    finally:
        server.shutdown()
        server.server_close()


def test_missing_parts_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEQ_CACHE", str(tmp_path))
    assert web.missing() == "web runtime not installed: run `edgeq doctor --install web`"
    with pytest.raises(ToolError, match="edgeq doctor --install web"):
        web.version()
    web.dist().mkdir(parents=True)
    (web.dist() / "ort.wasm.min.mjs").touch()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "install node" in str(web.missing())
    assert "install chromium" in str(web.missing("chromium"))
    with pytest.raises(ToolError, match="npm, which is not here"):
        web.install(lambda line: None)


def test_options(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="threads=2 is not one of 1"):
        web.open_session(tmp_path, threads=2)
    with pytest.raises(RecipeError, match="browser='lynx' is not one of none, chromium"):
        web.open_session(tmp_path, browser="lynx")
