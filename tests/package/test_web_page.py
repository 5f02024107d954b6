"""The npm package: `npm pack` takes it, it installs, and its self-test and demo run in Chromium and in Node."""

import functools
import json
import os
import shutil
import subprocess
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

import edgeq
from edgeq.package.assemble import check, package
from edgeq.package.contents import gather
from edgeq.runners import web
from tests.require import require

SAMPLES = Path(__file__).resolve().parents[2] / "sample_models"

PAGE = """<!doctype html><script type="importmap">{"imports":
{"onnxruntime-web": "./onnxruntime-web/dist/ort.wasm.min.mjs", "digits": "./digits/index.js"}}</script>
<body><pre id="said">waiting</pre><script type="module">
const said = document.getElementById("said");
try {
  const { load, selfTest } = await import("digits");
  const model = await load();
  const seen = await model.classify({ input: new Float32Array(ONES.split(",").map(Number)) });
  said.textContent = JSON.stringify({ test: await selfTest(), seen });
} catch (error) { said.textContent = JSON.stringify({ error: String(error) }); }
</script>"""


class Quiet(SimpleHTTPRequestHandler):
    extensions_map: ClassVar = {
        **SimpleHTTPRequestHandler.extensions_map,
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with the package installed by npm from its tarball, and onnxruntime-web beside it."""
    require("web", "edgeq doctor --install web", lambda: web.missing("none") is None)
    base = tmp_path_factory.mktemp("npm")
    data = {"eval_data": str(SAMPLES / "digits.npz"), "labels": "label"}
    edgeq.quantize(SAMPLES / "digits.onnx", "generic", str(SAMPLES / "digits_calib.npz"), base / "out", **data)
    package(gather(base / "out"), "web", base / "package")
    npm("pack", str(base / "package"), cwd=base)
    (tarball,) = base.glob("digits-1.0.0.tgz")
    (base / "app").mkdir()
    (base / "app" / "package.json").write_text('{"name": "app", "private": true, "type": "module"}')
    npm("install", "--offline", "--legacy-peer-deps", "--no-audit", str(tarball), cwd=base / "app")
    modules = base / "app" / "node_modules"
    for name in ("onnxruntime-web", "onnxruntime-common"):
        (modules / name).symlink_to(web.dist().parent.parent / name)
    return base / "app"


def npm(*arguments, cwd):
    done = subprocess.run(["npm", *arguments], cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_what_npm_installs_is_what_was_packed(project):
    modules = project / "node_modules"
    assert check(modules / "digits") > 8


def self_test(project):
    """What the package's self-test says in Node."""
    code = 'import { selfTest } from "digits"; console.log(JSON.stringify(await selfTest()))'
    done = subprocess.run(
        ["node", "--input-type=module", "-e", code],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_it_runs_in_node(project):
    assert self_test(project)["ok"]


def dump(project, page, wait):
    """The page's DOM and what the console said, from headless Chromium over a server on loopback."""
    require("chromium", "apt install chromium", lambda: shutil.which("chromium") is not None)
    handler = functools.partial(Quiet, directory=str(project / "node_modules"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
        url = f"http://127.0.0.1:{server.server_address[1]}/{page}"
        done = subprocess.run(
            [*command, f"--virtual-time-budget={wait}", url],
            env={**os.environ, "no_proxy": "127.0.0.1"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        server.shutdown()
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_it_runs_in_chromium(project):
    import numpy as np

    with np.load(SAMPLES / "digits.npz") as data:
        picture, label = data["input"][0].ravel(), int(data["label"][0])
    ones = ",".join(map(str, picture))
    (project / "node_modules" / "test.html").write_text(PAGE.replace("ONES", json.dumps(ones)))
    dom, complaints = dump(project, "test.html", 30000)
    said = json.loads(dom.split('<pre id="said">')[1].split("</pre>")[0])
    assert said["test"]["ok"], said
    assert said["test"]["samples"] == 4
    assert said["seen"]["index"] == label
    assert complaints == []


def test_the_demo_says_that_its_self_test_passed(project):
    dom, complaints = dump(project, "digits/demo/index.html", 30000)
    assert "Self-test passed: 4 golden vectors" in dom
    assert complaints == []
    assert '<section id="drawing" class="draw">' in dom


def test_a_drifting_device_is_named(project):
    """Golden vectors that this device can't meet: the first output that is off is named."""
    golden = project / "node_modules" / "digits" / "golden.json"
    held = json.loads(golden.read_text())
    kept = golden.read_text()
    held["samples"][2]["outputs"]["logits"]["data"] = held["samples"][0]["outputs"]["logits"]["data"]
    golden.write_text(json.dumps(held))
    try:
        found = self_test(project)
    finally:
        golden.write_text(kept)
    assert not found["ok"]
    assert (found["drift"]["sample"], found["drift"]["output"]) == (2, "logits")
