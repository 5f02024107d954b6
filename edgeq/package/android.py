"""An Android library (AAR) with the model stored so that it can be memory-mapped, and a Gradle sample that uses it.

The library's one class is compiled with `javac` and needs nothing of Android. The sample is Kotlin source: compiling
it takes the Android SDK, which isn't asked for here. On request an asset-only APK, signed, carries the model alone.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgeq.errors import ToolError
from edgeq.formats import ort_format
from edgeq.graph.io import one_line
from edgeq.package.contents import Contents, card, template, write_common

NOTES = ("the Kotlin sample was not compiled here: that takes the Android SDK",)
FRAMEWORK = Path("/usr/share/android-framework-res/framework-res.apk")
TIMEOUT = 300
EPOCH = (1980, 1, 1, 0, 0, 0)
MIN_SDK, TARGET_SDK = 24, 35
# One small class: a JVM left to itself reserves addresses by the machine's memory, and fails where `ulimit -v` is set
JVM = ("-J-Xmx128m", "-J-XX:+UseSerialGC", "-J-XX:TieredStopAtLevel=1",
       "-J-XX:CompressedClassSpaceSize=64m", "-J-XX:ReservedCodeCacheSize=32m")  # fmt: skip
RUNTIMES = {  # suffix of the model: what runs it, its Gradle dependency, the class that the sample's code is in
    ".ort": ("onnxruntime-android", "com.microsoft.onnxruntime:onnxruntime-android:1.22.0", "Onnx"),
    ".tflite": ("LiteRT", "com.google.ai.edge.litert:litert:1.4.0", "LiteRt"),
}


def build(contents: Contents, output: Path) -> None:
    """Write NAME.aar and sample/ into the folder `output`. Raises ToolError when a tool is missing or fails."""
    identifier = f"io.edgeq.models.{contents.name.replace('-', '_')}"
    with tempfile.TemporaryDirectory(prefix="edgeq-android-") as folder:
        work = Path(folder)
        assets = work / "assets" / contents.name
        assets.mkdir(parents=True)
        model = _model(contents, assets)
        runtime, dependency, flavour = RUNTIMES[model.suffix]
        write_common(contents, assets, model, runtime)
        values = {"package": identifier, "name": contents.name, "class": contents.camel, "dependency": dependency}
        values |= {"min_sdk": str(MIN_SDK), "target_sdk": str(TARGET_SDK), "version": contents.version}
        classes = _compiled(contents, values, json.loads((assets / "metadata.json").read_text()), work)
        entries: dict[str, bytes | Path] = {
            "AndroidManifest.xml": template("android/AndroidManifest.xml", **values).encode(),
            "classes.jar": classes,
            "R.txt": b"",
            "proguard.txt": template("android/proguard.txt", **values).encode(),
            **{f"assets/{contents.name}/{p.name}": p for p in sorted(assets.iterdir())},
        }
        write_zip(output / f"{contents.name}.aar", entries, stored=(model.suffix,))
        shutil.copytree(work / "assets", output / "assets")
    (output / "MODEL_CARD.md").write_text(card(contents), encoding="utf-8")
    _sample(contents, output, values, flavour)


def _model(contents: Contents, folder: Path) -> Path:
    if contents.artifact.suffix == ".tflite":
        return Path(shutil.copy(contents.artifact, folder / f"{contents.name}.tflite"))
    with tempfile.TemporaryDirectory(prefix="edgeq-ort-") as work:
        made = ort_format.convert(contents.artifact, Path(work))
        return Path(shutil.copy(made, folder / f"{contents.name}.ort"))


def _compiled(contents: Contents, values: Mapping[str, str], about: dict[str, object], work: Path) -> bytes:
    """classes.jar. Strings reach the source as JSON literals, which are Java's too."""
    text = template("android/Model.java", **values, **_constants(contents, about))
    source = work / "java" / Path(*values["package"].split(".")) / f"{contents.camel}.java"
    source.parent.mkdir(parents=True)
    source.write_text(text, encoding="ascii")
    run(["javac", *JVM, "--release", "8", "-Xlint:-options", "-g:none", "-d", str(work / "classes"), str(source)],
        "apt install default-jdk-headless")  # fmt: skip
    jar = work / "classes.jar"
    classes = sorted((work / "classes").rglob("*.class"))
    write_zip(jar, {p.relative_to(work / "classes").as_posix(): p for p in classes})
    return jar.read_bytes()


def _constants(contents: Contents, about: dict[str, object]) -> dict[str, str]:
    def names(rows: object) -> str:
        assert isinstance(rows, list)
        return ", ".join(json.dumps(row["name"] if isinstance(row, dict) else row) for row in rows)

    def shapes(rows: object) -> str:
        assert isinstance(rows, list)
        return ", ".join(f"{{{', '.join(map(str, row['shape']))}}}" for row in rows)

    model, quantized = about["model"], about["quantization"]
    assert isinstance(model, dict)
    assert isinstance(quantized, list)
    return {
        "asset": json.dumps(f"{contents.name}/{model['file']}"),
        "sha256": json.dumps(model["sha256"]),
        "inputs": names(about["inputs"]),
        "outputs": names(about["outputs"]),
        "input_shapes": shapes(about["inputs"]),
        "output_shapes": shapes(about["outputs"]),
        "labels": names(about["labels"]),
        "quantized": names(quantized),
        "scales": ", ".join(f"{row['scale']!r}f" for row in quantized),
        "zero_points": ", ".join(str(row["zero_point"]) for row in quantized),
    }


def _sample(contents: Contents, output: Path, values: Mapping[str, str], flavour: str) -> None:
    sample = output / "sample"
    code = Path("src/main/kotlin", *values["package"].split("."), "sample")
    files = {
        "settings.gradle.kts": Path("settings.gradle.kts"),
        "build.gradle.kts": Path("build.gradle.kts"),
        "SampleManifest.xml": Path("src/main/AndroidManifest.xml"),
        f"{flavour}Runner.kt": code / "Runner.kt",
        "Golden.kt": code / "Golden.kt",
        "MainActivity.kt": code / "MainActivity.kt",
        "SelfTest.kt": Path("src/androidTest/kotlin", *values["package"].split("."), "sample", "SelfTest.kt"),
    }
    for source, place in files.items():
        (sample / place).parent.mkdir(parents=True, exist_ok=True)
        (sample / place).write_text(template(f"android/sample/{source}", **values), encoding="utf-8")
    (sample / "libs").mkdir()
    shutil.copy(output / f"{contents.name}.aar", sample / "libs")


def apk(contents: Contents, package: Path, keystore: Path | None, password: str) -> str:
    """Add NAME.apk, assets alone, aligned and signed, to a package; gives a note. keystore None: a fresh debug key."""
    if not FRAMEWORK.is_file():
        raise ToolError("an APK needs Android's framework resources: apt install android-framework-res")
    target = package / f"{contents.name}.apk"
    with tempfile.TemporaryDirectory(prefix="edgeq-apk-") as folder:
        work = Path(folder)
        values = {"package": f"io.edgeq.models.{contents.name.replace('-', '_')}", "version": contents.version}
        values |= {"min_sdk": str(MIN_SDK), "target_sdk": str(TARGET_SDK)}
        (work / "AndroidManifest.xml").write_text(template("android/ApkManifest.xml", **values))
        run(["aapt", "package", "-f", "-M", str(work / "AndroidManifest.xml"), "-A", str(package / "assets"),
             "-I", str(FRAMEWORK), "-F", str(work / "raw.apk"), "-0", ".ort", "-0", ".tflite"],
            "apt install aapt")  # fmt: skip
        run(["zipalign", "-f", "4", str(work / "raw.apk"), str(work / "aligned.apk")], "apt install zipalign")
        note = ""
        if keystore is None:
            keystore, password, note = work / "debug.p12", "android", "the APK is signed with a debug key"
            run(["keytool", "-genkeypair", "-keystore", str(keystore), "-storepass", password, "-alias", "debug",
                 "-keyalg", "RSA", "-keysize", "2048", "-validity", "10000", "-dname", "CN=Debug"],
                "apt install default-jre-headless")  # fmt: skip
        secret = work / "password"  # not on the command line, where every process could read it
        secret.write_text(f"{password}\n")
        run(["apksigner", "sign", "--ks", str(keystore), "--ks-pass", f"file:{secret}", "--min-sdk-version",
             str(MIN_SDK), "--out", str(target), str(work / "aligned.apk")], "apt install apksigner")  # fmt: skip
        target.with_name(f"{target.name}.idsig").unlink(missing_ok=True)
    return note


def write_zip(path: Path, entries: Mapping[str, bytes | Path], stored: Sequence[str] = ()) -> None:
    """A zip with no time in it: the same entries give the same bytes. stored: suffixes that are not compressed."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            info = zipfile.ZipInfo(name, EPOCH)
            info.external_attr = 0o644 << 16
            info.compress_type = zipfile.ZIP_STORED if name.endswith(tuple(stored) or "\0") else zipfile.ZIP_DEFLATED
            archive.writestr(info, content.read_bytes() if isinstance(content, Path) else content)


def run(command: Sequence[str], install: str) -> None:
    """Run a tool. Raises ToolError that says how to install it, or what it complained of."""
    if shutil.which(command[0]) is None:
        raise ToolError(f"an Android package needs {command[0]}: {install}")
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise ToolError(f"{command[0]} failed: {one_line(ToolError(said[0]))}")
