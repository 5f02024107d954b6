"""Hostile recipes, targets, locks, reports, packages, arrays, statistics, GGUF and TFLite files."""

import hashlib
import json
import os
import shutil
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from onnx import helper

from tests.attacks.models import DEEP, constant, value, write
from tests.attacks.sandbox import ROOT
from tests.command import samples

TEXTS = {
    "empty": b"",
    "binary": bytes(range(256)),
    "not UTF-8": b'name = "\xff\xfe"\n',
    "deep": b"a = " + b"[" * DEEP,
    "deep tables": b"a = " + b"{b=" * DEEP,
    "dotted": b"a" + b".a" * DEEP + b" = 1\n",
    "huge number": b"samples = 1" + b"0" * 5000 + b"\n",
    "date": b"samples = 1979-05-27\n",
    "control": b'name = "\\u001b[2J"\n"\\u001b[31m\\n" = 1\n',
}
RECIPES = {
    "samples of words": 'samples = "all"',
    "samples beyond 64 bits": f"samples = {10**30}",
    "a rule that is none": "rule = 5",
    "rules of numbers": "rule = [1, 2]",
    "patterns of numbers": "[[rule]]\nnodes = 7",
    "block": f"method = 'weight_only'\nblock = {2**62}",
    "state": 'state = [["a"]]',
    "shapes": 'shapes = [["x", ["eight"]]]',
    "shape of petabytes": f'shapes = [["x", [{2**50}, 8]]]',
    "shape below": 'shapes = [["x", [-1, 8]]]',
    "seed": "seed = 1e308",
    "seed below": "seed = -5\nsamples = 3",
    "preprocess": "preprocess = []",
    "target": "target = 3",
    "target elsewhere": 'target = "../../etc/passwd"',
    "calibrator elsewhere": 'calibrator = "../os"',
    "calibrator that is a package": 'calibrator = "os.path"',
    "weight private": 'weight = "__init__"',
    "passes": "passes = {a = 1}",
    "not a number": "elementwise_sqnr = nan\noutlier_sqnr = inf",
}
TARGETS = {
    "types": "types = 5",
    "rules": "rule = 5",
    "types of a base": 'extends = "generic"\ntypes = [1]',
    "rules of a base": 'extends = "generic"\nrule = {a = 1}',
    "base of a number": "extends = 5",
    "base in a circle": 'extends = "t"',
    "base far away": 'extends = "../../../../etc/passwd"',
    "base with NUL": 'extends = "a\\u0000"',
    "long base": f'extends = "{"a" * 5000}"',
    "compiler": 'extends = "generic"\ncompiler = "os"',
    "format": 'extends = "generic"\nformat = "../os"',
    "runner": 'extends = "generic"\nrunner = "../_child"',
    "private runner": 'extends = "generic"\nrunner = "_child"',
    "passes": 'extends = "generic"\npasses_after = ["os.path"]',
    "rewrites": 'extends = "generic"\nrewrites = {static = "subprocess"}',
    "opset": 'extends = "generic"\nopset = 99999',
    "opset below": 'extends = "generic"\nopset = -1',
    "session": 'extends = "generic"\nsession_config = {"\\u0000" = "\\u001b[2J"}',
    "dtype": 'extends = "generic"\n[types.act]\ndtype = "int99999"',
    "block": 'extends = "generic"\n[types.act]\ndtype = "int8"\nper = "block"\nblock_size = 999999999999',
}


@pytest.mark.parametrize("kind", [*TEXTS, *RECIPES])
def test_recipes(sandbox, made, tmp_path, kind):
    path = tmp_path / "r.toml"
    path.write_bytes(TEXTS[kind] if kind in TEXTS else RECIPES[kind].encode())
    sandbox.refuses("quantize", made / "m.onnx", "--calib", made / "d.npz", "--recipe", path, "-o", tmp_path / "out",
                    codes=(0, 2))  # fmt: skip


@pytest.mark.parametrize("kind", [*TEXTS, *TARGETS])
def test_targets(sandbox, made, tmp_path, kind):
    shutil.copy(ROOT / "targets" / "generic.toml", tmp_path)
    path = tmp_path / "t.toml"
    path.write_bytes(TEXTS[kind] if kind in TEXTS else b'name = "t"\ntitle = "t"\n' + TARGETS[kind].encode())
    if "runner =" not in TARGETS.get(kind, "runner ="):
        path.write_bytes(b'runner = "cpu"\n' + path.read_bytes())
    sandbox.refuses("quantize", made / "m.onnx", "--calib", made / "d.npz", "-t", path, "-o", tmp_path / "out",
                    codes=(0, 2))  # fmt: skip


LOCKS = {
    "artifact of words": 'artifact = "a"',
    "no model": '[artifact.a]\nmodel = ""\ntarget = "x86_64"',
    "model of a number": '[artifact.a]\nmodel = 1\ntarget = "x86_64"',
    "a folder": '[artifact.a]\nmodel = "."\ntarget = "x86_64"\ncalib = "."',
    "device": '[artifact.a]\nmodel = "/dev/zero"\ntarget = "x86_64"\ncalib = "/dev/zero"',
    "NUL": '[artifact.a]\nmodel = "a\\u0000b"\ntarget = "x86_64"\ncalib = "a\\u0000b"',
    "callable": '[artifact.a]\nmodel = "m.onnx"\ntarget = "x86_64"\ncalib = ":"\nmetric = "::"',
    "recipe": '[artifact.a]\nmodel = "m.onnx"\ntarget = "x86_64"\ncalib = "d.npz"\n[artifact.a.recipe]\nsamples = "x"',
    "names": '["artifact"."\\u001b[2J\\n<script>"]\nmodel = "m.onnx"\ntarget = "\\u001b[31m"\ncalib = "d.npz"',
}


@pytest.mark.parametrize("kind", [*TEXTS, *LOCKS])
def test_locks(sandbox, made, kind):
    path = made / "edgeq.lock"
    path.write_bytes(TEXTS[kind] if kind in TEXTS else LOCKS[kind].encode())
    sandbox.refuses("check", "--lock", path, codes=(0, 2))


def report(change):
    def wrong(folder):
        held = json.loads((folder / "report.json").read_text())
        change(held)
        (folder / "report.json").write_text(json.dumps(held))

    return wrong


def raw(content):
    return lambda folder: (folder / "report.json").write_bytes(content)


def npz(name, **arrays):
    return lambda folder: np.savez(folder / name, **arrays)


REPORTS = {
    "empty": raw(b""),
    "binary": raw(bytes(range(256))),
    "deep": raw(b"[" * DEEP),
    "deep field": lambda folder: raw(b'{"recipe": {"a":' + b"[" * DEEP)(folder),
    "artifact elsewhere": report(lambda r: r["artifact"].update(file="../m.onnx")),
    "artifact anywhere": report(lambda r: r["artifact"].update(file="/etc/passwd")),
    "artifact of NUL": report(lambda r: r["artifact"].update(file="a\0b")),
    "artifact of nothing": report(lambda r: r["artifact"].update(file="")),
    "long artifact": report(lambda r: r["artifact"].update(file="a" * 5000)),
    "model of nothing": report(lambda r: r["model"].update(file="")),
    "versions": report(lambda r: r.update(versions={})),
    "calibration": report(lambda r: r.update(calibration={"samples": {"a": [1]}})),
    "reads of later nodes": report(lambda r: r["graph"][0].update(reads=[10**9, -7])),
    "sizes": report(lambda r: r["artifact"].update(bytes=-(2**62))),
    "ranges": report(lambda r: r["ranges"][0].update(scale=[0.0], zero_point=[])),
    "no golden samples": npz("golden.npz"),
    "golden of words": npz("golden.npz", **{"0/in/x": np.array(["a"]), "0/out/y": np.array([b"b"])}),
    "golden without sides": npz("golden.npz", **{"0/in/x": np.ones(3)}),
    "golden of names": npz("golden.npz", **{"0/in/../../x": np.ones(3), "1/out/\x1b": np.ones(3)}),
}  # fmt: skip


@pytest.mark.parametrize("kind", REPORTS)
def test_reports_and_artifact_folders(sandbox, made, tmp_path, kind):
    folder = tmp_path / "out"
    shutil.copytree(made / "out", folder)
    shutil.copy(made / "m.onnx", tmp_path)
    REPORTS[kind](folder)
    sandbox.refuses("report", folder, codes=(0, 2))
    for platform in ("bare", "web", "android", "apple"):
        sandbox.refuses("package", folder, "--platform", platform, "-o", tmp_path / platform, codes=(0, 1, 2))
    assert not (tmp_path / "x").exists()


def test_a_report_names_a_file_in_its_own_folder(sandbox, made, tmp_path):
    shutil.copytree(made / "out", tmp_path / "out")
    shutil.copy(made / "m.onnx", tmp_path)
    digest = hashlib.sha256((tmp_path / "m.onnx").read_bytes()).hexdigest()
    report(lambda r: r["artifact"].update(file="../m.onnx", sha256=digest))(tmp_path / "out")
    sandbox.refuses("package", tmp_path / "out", "--platform", "bare", "-o", tmp_path / "p", names="../m.onnx")
    sandbox.refuses("report", tmp_path / "out", names="../m.onnx")


def changed_package(kind, folder):
    sums = folder / "SHA256SUMS"
    line = f"{'0' * 64}  "
    if kind == "control characters":
        sums.write_text(f"{line}\x1b[2J\n{line}a\x9bb\n")
    elif kind == "climbing":
        sums.write_text(f"{line}a/../../../etc/passwd\n")
    elif kind == "absolute":
        sums.write_text(f"{line}/etc/passwd\n")
    elif kind == "binary":
        sums.write_bytes(os.urandom(4096))
    elif kind == "large":
        sums.write_text(f"{line}{'a' * 2_000_000}\n")
    elif kind == "pipe":
        os.mkfifo(folder / "pipe")
    elif kind == "sums are a pipe":
        sums.unlink()
        os.mkfifo(sums)
    elif kind == "link to itself":
        (folder / "loop").symlink_to(folder)
    elif kind == "link":
        (folder / "metadata.json").unlink()
        (folder / "metadata.json").symlink_to("/dev/zero")
    elif kind == "deep folders":
        at = folder
        for _ in range(80):
            at = at / "d"
        at.mkdir(parents=True)
        (at / "f").write_text("")


@pytest.mark.parametrize("kind", ["control characters", "climbing", "absolute", "binary", "large", "pipe",
                                  "sums are a pipe", "link to itself", "link", "deep folders"])  # fmt: skip
def test_packages(sandbox, made, tmp_path, kind):
    shutil.copytree(made / "package", tmp_path / "p")
    changed_package(kind, tmp_path / "p")
    sandbox.refuses("verify-package", tmp_path / "p", codes=(1,))
    bad = tmp_path / "key.pem"
    bad.write_bytes(b"-----BEGIN PUBLIC KEY-----\n" + bytes(range(256)))
    sandbox.refuses("verify-package", tmp_path / "p", "--key", bad, codes=(1, 2))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", ["gguf", "tflite", "golden", "stats"])
def test_damaged_files(sandbox, made, tmp_path, kind, seed):
    path = tmp_path / f"bad.{kind}"
    if kind in ("golden", "stats"):
        shutil.copy(made / {"golden": "out/golden.npz", "stats": "s.npz"}[kind], path)
    else:
        {"gguf": gguf, "tflite": tflite}[kind](path)
    content, rng = bytearray(path.read_bytes()), np.random.default_rng(seed)
    if seed < 2:
        content = content[: rng.integers(0, len(content))]
    else:
        for at in rng.integers(0, len(content), 2**seed):
            content[at] ^= 1 << int(rng.integers(8))
    path.write_bytes(content)
    sandbox.refuses("read", kind, path, codes=(0, 2))


def gguf(path):
    from edgeq.formats.gguf import Source
    from edgeq.formats.gguf import write as write_gguf

    weights = np.arange(512, dtype=np.float32).reshape(2, 256)
    tensors = [Source(k, (2, 256), k, lambda: weights) for k in ("Q4_0", "Q8_0", "Q4_K", "F16")]
    write_gguf(path, {"general.name": "a", "tokens": ["a", "b"], "n": np.arange(9)}, tensors)


def tflite(path):
    pytest.importorskip("ai_edge_litert")
    from edgeq.formats.tflite_file import TfModel, TfOp, TfTensor, build

    tensors = (
        TfTensor("x", (1, 4), "int8", None, np.array([0.1], "f"), np.array([0])),
        TfTensor("w", (3, 4), "int8", np.ones((3, 4), np.int8), np.ones(3, "f"), np.zeros(3, np.int64)),
        TfTensor("y", (1, 3), "int8", None, np.array([0.1], "f"), np.array([0])),
    )
    op = TfOp("FULLY_CONNECTED", ("x", "w", ""), ("y",), {"fusedActivationFunction": "RELU"})
    path.write_bytes(build(TfModel(tensors, (op,), ("x",), ("y",), (), {"about": b"text"})))


HOSTILE = "\x1b[2J\x1b]0;t\x07\r\n</title><script>alert(1)</script>]]>|`@a\u202e\x9b"


def test_names_reach_out_of_no_report(sandbox, tmp_path):
    """Into HTML, a terminal, JUnit XML, Markdown and packages."""
    weight = np.random.default_rng(0).normal(size=(8, 4)).astype("f")
    model = write(tmp_path, [helper.make_node("MatMul", ["x", "w" + HOSTILE], ["y" + HOSTILE], name=HOSTILE)],
                  [value("x")], [value("y" + HOSTILE, ("n", 4))], [constant("w" + HOSTILE, weight)])  # fmt: skip
    data = samples(tmp_path / "d.npz")
    shown = [sandbox("inspect", model), sandbox("plan", model)]
    shown.append(sandbox("quantize", model, "--calib", data, "-o", tmp_path / "out"))
    shown.append(sandbox("verify", model, tmp_path / "out" / "model.onnx", "--data", data, "--layers"))
    shown.append(sandbox("report", tmp_path / "out"))
    lock, files = tmp_path / "edgeq.lock", [tmp_path / "j.xml", tmp_path / "t.md"]
    add = ("--add", HOSTILE, "--model", model.name, "--calib", "d.npz")
    shown.append(sandbox("check", "--lock", lock, *add, "--junit", files[0], "--markdown", files[1]))
    shown.append(sandbox("package", tmp_path / "out", "--platform", "web", "-o", tmp_path / "web", "--name", "m"))
    for found in shown:
        assert found.code == 0, found
        assert not set("\x1b\x07\r\u202e\x9b") & set(found.out + found.err), found
    html = (tmp_path / "out" / "report.html").read_text()
    for text in (html, files[0].read_text(), files[1].read_text()):
        assert "<script>alert" not in text
        assert not set("\x1b\x07\r\u202e\x9b") & set(text)
    ET.fromstring(files[0].read_bytes())
    for page in (tmp_path / "web").rglob("*.html"):
        assert "<script>alert" not in page.read_text()
    assert not set("\x1b\u202e") & set((tmp_path / "web" / "MODEL_CARD.md").read_text())
