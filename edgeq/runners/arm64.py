"""The real aarch64 onnxruntime, under qemu's user emulation, with the CPU model of a chosen Arm core.

The runtime is a folder of the user's cache: Debian or Ubuntu arm64 packages of Python unpacked with `dpkg -x`, and
the aarch64 wheels of onnxruntime and numpy. onnxruntime picks its kernels from /proc/cpuinfo and from the CPU's
own registers, so each CPU model has a cpuinfo file of its own, whose part number is that of qemu's `-cpu`.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgeq.errors import ToolError
from edgeq.runners import aarch64, jobs, process
from edgeq.runners.jobs import CHILD, JobSession
from edgeq.runners.session import CHOICES, COMMON, Feeds, options

TITLE = "onnxruntime for arm64, emulated"
TIMED = False  # an emulator's seconds say nothing about a board's
_RECIPE = 1  # raised when what `install` builds changes


@dataclass(frozen=True)
class Cpu:
    """qemu: its name for `-cpu`. part: the core's part number in MIDR_EL1 (Arm's technical reference manuals).

    kernels: the widest int8 multiply-accumulate instruction that it has.
    """

    qemu: str
    part: str
    kernels: str


# Plain `max` is not among them: SVE and SME are slow to emulate, and int8 kernels of other runtimes fail there. Its own
# registers name no vendor, which onnxruntime can't stand; Neoverse N2 is an Arm core with the same int8 instructions.
CPUS = {
    "a53": Cpu("cortex-a53", "0xd03", "SMLAL"),
    "a72": Cpu("cortex-a72", "0xd08", "SMLAL"),
    "a76": Cpu("cortex-a76", "0xd0b", "UDOT"),
    "i8mm": Cpu("max,sve=off,sme=off", "0xd49", "UMMLA"),
}


def root() -> Path:
    return process.cache("arm64")


def missing() -> str | None:
    """None when the runtime can be used, else one line that says how to install it."""
    if not _stamp():
        return "arm64 runtime not installed: run `edgeq doctor --install arm64`"
    if not _qemu():
        return "arm64 runtime needs qemu-aarch64: run `apt install qemu-user`"
    return None


def version() -> str:
    """The emulated onnxruntime's version. Raises ToolError when it is not installed."""
    if line := missing():
        raise ToolError(line)
    return str(_stamp()["onnxruntime"])


def open_session(model: Path, **given: Any) -> JobSession:
    """Options: optimization, threads, timeout; cpu, one of `CPUS`; proof=True, which adds to the session's `report`

    ops, the operators of the graph as this runtime rewrote it, and instructions, the integer multiply-accumulate
    instructions that were executed (see `aarch64`), both as {name: count}. Raises RecipeError, ToolError.
    """
    chosen = options("arm64", given, {**COMMON, "cpu": "a76", "proof": False}, {**CHOICES, "cpu": tuple(CPUS)})
    if line := missing():
        raise ToolError(line)
    what = f"arm64 ({chosen['cpu']})"
    python = next(root().glob("usr/bin/python3.[0-9]*"))
    prefix = root() / "cpus" / chosen["cpu"]

    def launch(folder: Path) -> dict[str, Any]:
        log = folder / "executed.log"
        trace = ["-d", "in_asm", "-D", str(log)] if chosen["proof"] else []
        argv = [_qemu(), *trace, "-cpu", CPUS[chosen["cpu"]].qemu, "-L", str(prefix), str(python), "-S", "-s", "-B"]
        process.run([*argv, CHILD.name, "."], what=what, timeout=chosen["timeout"], env=_env(root()), cwd=folder)
        return {"instructions": aarch64.integer_instructions(log)} if chosen["proof"] else {}

    return JobSession(model, what, launch, chosen, proof=chosen["proof"])


def optimized(model: Path, feeds: Feeds, **given: Any) -> ir.Model:
    """The graph that this runtime really runs, after every optimization. Raises what `open_session` and `run` raise."""
    return jobs.optimized(open_session(model, proof=True, **given), feeds)


def install(progress: Callable[[str], None]) -> None:
    """Builds the runtime in the user's cache, whole or not at all; does nothing when it is there already.

    Needs apt-get and dpkg-deb (Debian, Ubuntu); installs qemu-user too when run as root. Raises ToolError.
    """
    for program in ("apt-get", "dpkg-deb"):
        if not shutil.which(program):
            raise ToolError(
                f"the arm64 runtime is built with {program}, which is not here: install it on Debian or Ubuntu"
            )
    if not _qemu():
        if os.geteuid() != 0:
            raise ToolError("qemu-aarch64 is missing: run `sudo apt install qemu-user`, then this command again")
        progress("installing qemu-user")
        apt = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq"]
        process.run([*apt, "update"], what="apt-get update", timeout=600)
        process.run(
            [*apt, "install", "-y", "--no-install-recommends", "qemu-user"], what="apt-get install", timeout=600
        )
    wanted = metadata.version("onnxruntime")
    if _stamp().get("wanted") == wanted:
        progress(f"arm64 runtime already installed in {root()}")
        return
    with process.built_once(root()) as folder:
        progress("fetching Python for arm64")
        libc = _packages(folder)
        progress(f"fetching onnxruntime {wanted} for arm64")
        _wheels(folder, wanted, libc)
        for name, cpu in CPUS.items():
            _cpu_model(folder / "cpus" / name, cpu)
        progress("starting it once")
        stamp = _first_run(folder)
        (folder / "stamp.json").write_text(json.dumps({**stamp, "wanted": wanted, "recipe": _RECIPE}))
    progress(f"arm64 runtime: onnxruntime {stamp['onnxruntime']} in {root()}")


def sources(os_release: dict[str, str]) -> str | None:
    """The apt sources of arm64 packages; None where the host's own sources list them (Debian)."""
    if os_release.get("ID") != "ubuntu":
        return None
    suite = os_release["VERSION_CODENAME"]
    archive = "http://ports.ubuntu.com/ubuntu-ports"  # Ubuntu keeps arm64 apart from its amd64 archive
    return "".join(f"deb {archive} {suite}{pocket} main universe\n" for pocket in ("", "-updates", "-security"))


def _packages(folder: Path) -> int:
    """Unpacks arm64 Python and its libraries, with an apt that knows nothing of the host's; glibc's minor version."""
    apt = folder / "apt"
    for part in ("state/lists/partial", "cache/archives/partial", "log"):
        (apt / part).mkdir(parents=True)
    (apt / "status").touch()
    lines = [
        'APT::Architecture "arm64"; APT::Architectures { "arm64"; }; APT::Sandbox::User "root";',
        f'Dir::State "{apt}/state"; Dir::State::status "{apt}/status"; Dir::Cache "{apt}/cache"; Dir::Log "{apt}/log";',
        'Acquire::Languages "none"; APT::Install-Recommends "false";',
    ]
    if text := sources(platform.freedesktop_os_release()):
        (apt / "sources.list").write_text(text)
        lines.append(f'Dir::Etc::sourcelist "{apt}/sources.list"; Dir::Etc::sourceparts "-";')
    (apt / "apt.conf").write_text("\n".join(lines))
    env = {**os.environ, "APT_CONFIG": str(apt / "apt.conf")}
    with contextlib.suppress(ToolError):  # a third party's source without arm64; what is really missing fails below
        process.run(["apt-get", "-qq", "update"], what="apt-get update for arm64", timeout=600, env=env)
    process.run(
        ["apt-get", "-qq", "install", "-y", "--download-only", "python3", "libstdc++6"],
        what="apt-get download for arm64", timeout=600, env=env,
    )  # fmt: skip
    archives = sorted((apt / "cache" / "archives").glob("*.deb"))
    for package in archives:
        process.run(["dpkg-deb", "-x", str(package), str(folder)], what=f"unpacking {package.name}", timeout=120)
    if not (folder / "lib").exists():  # distributions with a merged /usr, where a link of base-files stands for it
        (folder / "lib").symlink_to("usr/lib")
    libc = next((m for p in archives if (m := re.match(r"libc6_2\.(\d+)", p.name))), None)
    if libc is None:
        raise ToolError("apt-get download for arm64: no libc6 among the packages; check that apt's sources offer arm64")
    shutil.rmtree(apt)
    shutil.rmtree(folder / "usr" / "share", ignore_errors=True)
    return int(libc[1])


def _wheels(folder: Path, wanted: str, libc: int) -> None:
    """Unpacks aarch64 wheels of numpy and onnxruntime (the host's version, else the newest for this Python)."""
    python = next(folder.glob("usr/bin/python3.[0-9]*")).name.removeprefix("python")
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in range(libc, 16, -1)]
    command = [
        sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", *platforms,
        "--platform=manylinux2014_aarch64", "--implementation=cp",
        f"--python-version={python}", f"--dest={folder}/wheels",
    ]  # fmt: skip
    try:
        process.run([*command, f"onnxruntime=={wanted}", "numpy"], what="pip download", timeout=900)
    except ToolError:  # this version may have no wheel for the distribution's Python
        process.run([*command, "onnxruntime", "numpy"], what="pip download", timeout=900)
    for wheel in sorted((folder / "wheels").glob("*.whl")):
        shutil.unpack_archive(wheel, folder / "site", format="zip")
    shutil.rmtree(folder / "wheels")


def _cpu_model(folder: Path, cpu: Cpu) -> None:
    """A prefix for `qemu -L`: the sysroot's libraries, and a /proc/cpuinfo of this CPU."""
    (folder / "proc").mkdir(parents=True)
    for part in ("lib", "usr"):
        (folder / part).symlink_to(f"../../{part}")
    fields = {
        "processor": "0", "BogoMIPS": "50.00", "Features": "fp asimd", "CPU implementer": "0x41",
        "CPU architecture": "8", "CPU variant": "0x0", "CPU part": cpu.part, "CPU revision": "0",
    }  # fmt: skip
    (folder / "proc" / "cpuinfo").write_text("".join(f"{k}\t: {v}\n" for k, v in fields.items()) + "\n")


def _first_run(folder: Path) -> dict[str, str]:
    """Imports both packages under emulation, which also compiles them to bytecode; their versions."""
    python = next(folder.glob("usr/bin/python3.[0-9]*"))
    code = "import numpy, onnxruntime; print(onnxruntime.__version__, numpy.__version__)"
    argv = [_qemu(), "-cpu", CPUS["a76"].qemu, "-L", str(folder / "cpus" / "a76"), str(python), "-S", "-s", "-c", code]
    printed = process.run(argv, what="the new arm64 runtime", timeout=300, env=_env(folder))
    return dict(zip(("onnxruntime", "numpy"), printed.split()[-2:], strict=True))


def _env(folder: Path) -> dict[str, str]:
    return {"PYTHONPATH": str(folder / "site"), "LC_ALL": "C.UTF-8", "HOME": "/nonexistent", "PATH": "/usr/bin:/bin"}


def _qemu() -> str:
    return shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static") or ""


def _stamp() -> dict[str, Any]:
    try:
        stamp = json.loads((root() / "stamp.json").read_text())
    except (OSError, ValueError):
        return {}
    return stamp if stamp.get("recipe") == _RECIPE else {}
