"""onnxruntime-web's wasm build, one thread: in Node, or in a headless Chromium that loads a page from loopback."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from edgeq.errors import ToolError
from edgeq.runners import process
from edgeq.runners.jobs import JobSession
from edgeq.runners.session import CHOICES, COMMON, options

TITLE = "onnxruntime-web (wasm)"
TIMED = True
CHILD = Path(__file__).with_name("_child.mjs")
PIN = "1.30.0"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_RESULT = re.compile(r"out/\d+_\d+\.npy|result\.json|error\.txt")
_INPUT = re.compile(r"in/\d+_\d+\.npy|job\.json")
_MAX_RESULT = 2**31  # bytes of one array: a tab of wasm holds 4 GiB in all
_PAGE = """<!doctype html><meta charset="utf-8"><title>edgeq</title><script type="module">
import { httpFiles, run } from "./_child.mjs";
const files = httpFiles("./job/");
run(files, new URL("./ort/ort.wasm.min.mjs", location).href)
  .catch((error) => files.write("error.txt", new TextEncoder().encode(String(error?.message ?? error))));
</script>"""
_TYPES = {".mjs": "text/javascript", ".wasm": "application/wasm", ".html": "text/html"}


def dist() -> Path:
    return process.cache("web") / "node_modules" / "onnxruntime-web" / "dist"


def missing(browser: str = "none") -> str | None:
    """None when the runtime can be used, in Node or in that browser, else one line that says how to install it."""
    if not (dist() / "ort.wasm.min.mjs").exists():
        return "web runtime not installed: run `edgeq doctor --install web`"
    if browser == "none" and not shutil.which("node"):
        return "the web runner needs Node.js 18 or newer: install node, or choose browser=chromium"
    if browser == "chromium" and not _browser():
        return f"no browser found ({', '.join(BROWSERS)}): install chromium, or choose browser=none for Node"
    return None


def version() -> str:
    """The installed onnxruntime-web's version. Raises ToolError when it is not installed."""
    if not dist().exists():
        raise ToolError(str(missing()))
    return str(json.loads((dist().parent / "package.json").read_text())["version"])


def install(progress: Callable[[str], None]) -> None:
    """Puts onnxruntime-web into the user's cache with npm; nothing is done when this version is there already."""
    if not shutil.which("npm"):
        raise ToolError("onnxruntime-web is installed with npm, which is not here: install Node.js 18 or newer")
    if dist().exists() and version() == PIN:
        progress(f"onnxruntime-web {PIN} already installed in {process.cache('web')}")
        return
    with process.built_once(process.cache("web")) as folder:
        progress(f"fetching onnxruntime-web {PIN}")
        argv = ["npm", "install", "--silent", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(folder)]
        process.run([*argv, f"onnxruntime-web@{PIN}"], what="npm install", timeout=900)
        for source_map in folder.glob("node_modules/onnxruntime-web/dist/*.map"):
            source_map.unlink()
    progress(f"onnxruntime-web {PIN} in {process.cache('web')}")


def open_session(model: Path, **given: Any) -> JobSession:
    """Options: optimization, timeout, threads=1; browser="none" runs in Node, "chromium" in a headless browser."""
    choices = {**CHOICES, "threads": (1,), "browser": ("none", "chromium")}
    chosen = options("web", given, {**COMMON, "browser": "none"}, choices)
    if line := missing(chosen["browser"]):
        raise ToolError(line)

    def node(folder: Path) -> None:
        argv = ["node", CHILD.name, ".", (dist() / "ort.node.min.mjs").as_uri()]
        process.run(argv, what="web (node)", timeout=chosen["timeout"], cwd=folder)

    def chromium(folder: Path) -> None:
        _in_browser(folder, chosen["timeout"])

    name, launch = ("node", node) if chosen["browser"] == "none" else ("chromium", chromium)
    return JobSession(model, f"web ({name})", launch, chosen, program=CHILD, carries_model=True)


def _browser() -> str | None:
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


def _in_browser(folder: Path, timeout: float) -> None:
    """Serves the job on loopback and keeps a browser on its page until a result or an error is posted."""
    token = secrets.token_urlsafe(16)  # other programs of this machine can't guess the job's address
    done = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(folder, token, done))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with tempfile.TemporaryDirectory(prefix="edgeq-browser-", ignore_cleanup_errors=True) as profile:
            _watch(f"http://127.0.0.1:{server.server_port}/{token}/page.html", Path(profile), done, timeout)
    finally:
        server.shutdown()
        server.server_close()
    error = folder / "error.txt"
    if error.exists():
        raise ToolError(f"web (chromium): {process.last_line(error.read_text(errors='replace'))}")


def _watch(page: str, profile: Path, done: threading.Event, timeout: float) -> None:
    argv = [
        str(_browser()), "--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--disable-quic", "--disable-extensions",
        "--disable-crash-reporter", "--disable-breakpad", "--disable-dev-shm-usage",
        f"--user-data-dir={profile}/profile",
    ]  # fmt: skip
    if os.geteuid() == 0:  # Chromium refuses its own sandbox to root
        argv.append("--no-sandbox")
    env = {**os.environ, "HOME": str(profile)}
    with (profile / "stdout").open("wb") as out, (profile / "stderr").open("w+b") as err:
        browser = process.start([*argv, page], what="web (chromium)", env=env, cwd=profile, stdout=out, stderr=err)
        try:
            deadline = time.monotonic() + timeout
            while not done.wait(0.1):
                if browser.poll() is not None:
                    said = process.last_line(process.tail(err))
                    raise ToolError(f"web (chromium): {process.ending(browser.returncode)}: {said}")
                if time.monotonic() > deadline:
                    raise ToolError(f"web (chromium): stopped after {timeout:g} s; raise the timeout option")
        finally:
            process.kill_group(browser)


def handler(folder: Path, token: str, done: threading.Event) -> type[BaseHTTPRequestHandler]:
    """A request handler for one job: its page, the program, onnxruntime-web, and the job's own files, nothing else."""
    listed = json.loads((folder / "job.json").read_text())
    readable = {listed["model"], *listed["data"]}

    def file(path: str) -> Path | None:
        part, _, name = path.partition("/")
        if path == CHILD.name:
            return folder / path
        if part == "ort" and re.fullmatch(r"[\w.-]+\.(mjs|wasm)", name):
            return dist() / name
        if part == "job" and (name in readable or _INPUT.fullmatch(name)):
            return folder / name
        return None

    class Handler(BaseHTTPRequestHandler):
        def path_in_job(self) -> str | None:
            prefix = f"/{token}/"
            return self.path[len(prefix) :] if self.path.startswith(prefix) else None

        def do_GET(self) -> None:
            path = self.path_in_job()
            found = file(path) if path else None
            if path == "page.html":
                self.answer(200, _PAGE.encode(), "text/html")
            elif found and found.is_file():
                self.answer(200, found.read_bytes(), _TYPES.get(found.suffix, "application/octet-stream"))
            else:
                self.answer(404)

        def do_POST(self) -> None:
            name = (self.path_in_job() or "").removeprefix("job/")
            size = int(self.headers.get("Content-Length", -1))
            if not _RESULT.fullmatch(name) or not 0 <= size <= _MAX_RESULT:
                return self.answer(404)
            (folder / name).write_bytes(self.rfile.read(size))
            self.answer(200)
            if not name.startswith("out/"):
                done.set()

        def answer(self, status: int, body: bytes = b"", kind: str = "text/plain") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Nothing: requests are not news."""

    return Handler
