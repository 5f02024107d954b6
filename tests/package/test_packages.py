"""Packages hold what was verified, refuse what was changed, and their code is at least code."""

import base64
import hashlib
import json
import shutil
import struct
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

import edgeq
from edgeq.errors import EdgeqError, RecipeError, VerifyError
from edgeq.package import android
from edgeq.package.assemble import check, package
from edgeq.package.contents import SUMS, card, gather
from tests.require import kernels_like_a_targets, require

SAMPLES = Path(__file__).resolve().parents[2] / "sample_models"
PLATFORMS = ["android", "apple", "bare", "web"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("digits") / "out"
    data = {"eval_data": str(SAMPLES / "digits.npz"), "labels": "label"}
    edgeq.quantize(SAMPLES / "digits.onnx", "generic", str(SAMPLES / "digits_calib.npz"), out, **data)
    return out


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    path = tmp_path_factory.mktemp("labels") / "labels.txt"
    path.write_text("\n".join(["zero", 'o"ne', "zw\\u0041ei\\", "três", *"456789"]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def packages(made, labels, tmp_path_factory):
    java()
    base = tmp_path_factory.mktemp("packages")
    held = gather(made, labels=labels)
    for platform in PLATFORMS:
        package(held, platform, base / platform)
    return base


def java():
    require("java", "apt install default-jdk-headless", lambda: shutil.which("javac") is not None)


def tools():
    names = ("aapt", "zipalign", "apksigner", "keytool")
    require("android", "apt install aapt zipalign apksigner", lambda: all(shutil.which(n) for n in names))


def run(*command, cwd=None):
    return subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


def decoded(entry):
    raw = base64.b64decode(entry["data"])
    return np.frombuffer(raw, entry["dtype"]).reshape(entry["shape"])


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_package_is_whole_and_the_same_twice(packages, made, labels, tmp_path, platform):
    assert check(packages / platform) > 5
    listed = run("sha256sum", "--check", "--strict", SUMS, cwd=packages / platform)
    assert listed.returncode == 0, listed.stderr
    package(gather(made, labels=labels), platform, tmp_path / "new" / "again")
    assert [p.name for p in tmp_path.rglob("*again*")] == ["again"]
    assert (tmp_path / "new" / "again" / SUMS).read_text() == (packages / platform / SUMS).read_text()


@pytest.mark.parametrize("platform", PLATFORMS)
def test_every_platform_ships_the_verified_model(packages, made, platform):
    (about,) = (packages / platform).rglob("metadata.json")
    held = json.loads(about.read_text())
    file = about.parent / held["model"]["file"]
    assert hashlib.sha256(file.read_bytes()).hexdigest() == held["model"]["sha256"]
    assert file.stat().st_size == held["model"]["bytes"]
    assert held["labels"][:4] == ["zero", 'o"ne', "zw\\u0041ei\\", "três"]
    if file.suffix == ".ort":
        kernels_like_a_targets()
    options = ort.SessionOptions()
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    golden = json.loads((about.parent / "golden.json").read_text())
    with np.load(SAMPLES / "digits.npz") as data:
        for index, sample in enumerate(golden["samples"]):
            feeds = {k: decoded(v) for k, v in sample["inputs"].items()}
            np.testing.assert_array_equal(feeds["input"], data["input"][index : index + 1])
            difference = np.abs(session.run(None, feeds)[0] - decoded(sample["outputs"]["logits"])).max()
            assert difference <= golden["tolerance"]["logits"] < 0.05


def test_the_licence_goes_along(made, packages, tmp_path):
    assert "not stated" in (packages / "web" / "LICENSE").read_text()
    (tmp_path / "mine").write_text("Mine.\n")
    package(gather(made, licence=tmp_path / "mine"), "bare", tmp_path / "bare")
    assert (tmp_path / "bare" / "LICENSE").read_text() == "Mine.\n"
    with pytest.raises(RecipeError, match="give a UTF-8 text file"):
        gather(made, licence=tmp_path / "none")


def test_a_changed_package_is_refused(packages, tmp_path):
    def copy(name):
        return Path(shutil.copytree(packages / "web", tmp_path / name))

    changed = copy("changed")
    raw = bytearray((changed / "model.onnx").read_bytes())
    raw[len(raw) // 2] ^= 1
    (changed / "model.onnx").write_bytes(raw)
    with pytest.raises(VerifyError, match=r"model\.onnx: is not what"):
        check(changed)
    added = copy("added")
    (added / "extra.js").write_text("alert(1)")
    with pytest.raises(VerifyError, match=r"extra\.js: is not in"):
        check(added)
    short = copy("short")
    (short / "golden.json").unlink()
    with pytest.raises(VerifyError, match=r"golden\.json: is missing"):
        check(short)
    linked = copy("linked")
    (linked / "index.js").unlink()
    (linked / "index.js").symlink_to(packages / "web" / "index.js")
    with pytest.raises(VerifyError, match="no plain file"):
        check(linked)
    away = copy("away")
    (away / SUMS).write_text(f"{'0' * 64}  ../../etc/passwd\n")
    with pytest.raises(VerifyError, match="line 1 is not a checksum"):
        check(away)
    with pytest.raises(VerifyError, match="has no SHA256SUMS"):
        check(tmp_path)


def test_a_signed_package_names_its_signer(made, tmp_path):
    require("model_signing", "pip install 'edgeq[sign]'")
    for name in ("mine", "other"):
        run("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", tmp_path / f"{name}.pem")
        run("openssl", "ec", "-in", tmp_path / f"{name}.pem", "-pubout", "-out", tmp_path / f"{name}.pub")
    package(gather(made), "web", tmp_path / "web", key=tmp_path / "mine.pem")
    assert check(tmp_path / "web", tmp_path / "mine.pub")
    with pytest.raises(VerifyError, match="is signed; give --key"):
        check(tmp_path / "web")
    with pytest.raises(VerifyError, match="not a signature of these checksums"):
        check(tmp_path / "web", tmp_path / "other.pub")
    text = (tmp_path / "web" / SUMS).read_text()
    (tmp_path / "web" / SUMS).write_text(text.replace(text[:1], "0" if text[0] != "0" else "1", 1))
    with pytest.raises(VerifyError, match="not a signature of these checksums"):
        check(tmp_path / "web", tmp_path / "mine.pub")
    with pytest.raises(RecipeError, match="can't sign with it"):
        package(gather(made), "web", tmp_path / "bad", key=tmp_path / "mine.pub")
    assert not (tmp_path / "bad").exists()


def test_the_library_can_be_memory_mapped(packages):
    """The local header of the model's entry: stored, and its bytes lie in the file as they are."""
    aar = packages / "android" / "digits.aar"
    with zipfile.ZipFile(aar) as archive:
        assert archive.testzip() is None
        (info,) = [i for i in archive.infolist() if i.filename.endswith(".ort")]
        assert info.compress_type == zipfile.ZIP_STORED
        assert {"AndroidManifest.xml", "classes.jar", "R.txt", "proguard.txt"} <= set(archive.namelist())
        about = json.loads(archive.read("assets/digits/metadata.json"))
    raw = aar.read_bytes()
    name, extra = struct.unpack_from("<HH", raw, info.header_offset + 26)
    begin = info.header_offset + 30 + name + extra
    assert hashlib.sha256(raw[begin : begin + info.file_size]).hexdigest() == about["model"]["sha256"]


PROGRAM = """
import io.edgeq.models.digits.Digits;
import java.io.*;

public class Main {
    public static void main(String[] a) throws Exception {
        PrintStream out = new PrintStream(System.out, true, "UTF-8");
        File f = new File(a[0]);
        out.println(Digits.read(new FileInputStream(f)).length);
        out.println(Digits.map(new FileInputStream(f), 0, f.length()).remaining());
        for (String label : Digits.LABELS) out.println(label);
        out.println(Digits.INPUTS[0] + Digits.INPUT_SHAPES[0].length);
        out.println(Digits.SCALES.length + " " + Digits.ZERO_POINTS.length);
        out.println(Digits.difference(new float[]{1, 2}, new float[]{1, 4}));
        out.println(Digits.difference(new float[]{Float.NaN}, new float[]{0}));
        RandomAccessFile r = new RandomAccessFile(f, "rw");
        r.seek(100);
        int b = r.read();
        r.seek(100);
        r.write(b ^ 1);
        r.close();
        try {
            Digits.read(new FileInputStream(f));
        } catch (IOException error) {
            out.println(error.getMessage().contains("sha256"));
        }
    }
}
"""


def test_the_helper_class_does_what_it_says(packages, tmp_path):
    with zipfile.ZipFile(packages / "android" / "digits.aar") as archive:
        (tmp_path / "classes.jar").write_bytes(archive.read("classes.jar"))
        (tmp_path / "model.ort").write_bytes(archive.read("assets/digits/digits.ort"))
        about = json.loads(archive.read("assets/digits/metadata.json"))
    (tmp_path / "Main.java").write_text(PROGRAM)
    done = run("javac", "-cp", "classes.jar", "Main.java", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = run("java", "-cp", "classes.jar:.", "Main", "model.ort", cwd=tmp_path)
    lines = done.stdout.splitlines()
    size, scales = str(about["model"]["bytes"]), len(about["quantization"])
    assert lines[:2] == [size, size]
    assert lines[2:12] == about["labels"]
    assert lines[12:] == ["input4", f"{scales} {scales}", "2.0", "Infinity", "true"]


def test_an_apk_is_signed_and_keeps_the_model_stored(made, tmp_path):
    java()
    tools()
    held = gather(made)
    notes = package(held, "android", tmp_path / "android", extra=lambda folder: android.apk(held, folder, None, ""))
    assert any("debug key" in note for note in notes)
    apk = tmp_path / "android" / "digits.apk"
    verified = run("apksigner", "verify", "--verbose", apk)
    assert verified.returncode == 0, verified.stderr
    assert "v2 scheme (APK Signature Scheme v2): true" in verified.stdout
    badging = run("aapt", "dump", "badging", apk).stdout
    assert "package: name='io.edgeq.models.digits.assets'" in badging
    assert run("zipalign", "-c", "4", apk).returncode == 0
    with zipfile.ZipFile(apk) as archive:
        assert archive.getinfo("assets/digits/digits.ort").compress_type == zipfile.ZIP_STORED
    assert check(tmp_path / "android")


@pytest.mark.parametrize(
    ("platform", "language", "suffix"), [("apple", "swift", ".swift"), ("android", "kotlin", ".kt")]
)
def test_the_sources_parse(packages, platform, language, suffix):
    """What can't be compiled without Xcode or the Android SDK is at least free of syntax errors."""
    require(f"tree_sitter_{language}", f"pip install tree-sitter-{language}")
    from importlib import import_module

    from tree_sitter import Language, Parser

    parser = Parser(Language(import_module(f"tree_sitter_{language}").language()))
    assert parser.parse(b"func ( {").root_node.has_error
    files = sorted((packages / platform).rglob(f"*{suffix}"))
    assert len(files) >= 4
    for file in files:
        assert "{{" not in file.read_text().replace("${{", "")
        assert not parser.parse(file.read_bytes()).root_node.has_error, file


def test_what_can_not_be_packed_is_one_line(made, tmp_path):
    with pytest.raises(EdgeqError, match=r"report\.json: can.t be read"):
        gather(tmp_path)
    with pytest.raises(RecipeError, match="package name"):
        gather(made, name="../x")
    with pytest.raises(RecipeError, match="three numbers"):
        gather(made, version="1")
    with pytest.raises(RecipeError, match="choose one of android, apple, bare, web"):
        package(gather(made), "windows", tmp_path / "w")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    with pytest.raises(EdgeqError, match="is no package"):
        package(gather(made), "bare", tmp_path / "mine")
    with pytest.raises(VerifyError, match=r"over the 1000 allowed; the largest: model\.o"):
        package(gather(made), "bare", tmp_path / "small", max_bytes=1000)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine"]
    other = Path(shutil.copytree(made, tmp_path / "other"))
    (other / "model.onnx").write_bytes((SAMPLES / "digits.onnx").read_bytes())
    with pytest.raises(VerifyError, match="not the artifact"):
        gather(other)


def test_the_card_says_what_was_lost(made):
    report = json.loads((made / "report.json").read_text())
    text = card(gather(made))
    assert f"{report['metric']['float']:.4f} → {report['metric']['quantized']:.4f}" in text
    assert report["model"]["sha256"] in text
