import getpass
import io
import itertools
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeq.errors import RecipeError, ToolError
from edgeq.runners import ssh
from edgeq.runners.session import COMMON
from tests.require import kernels_like_a_targets, require
from tests.runners import tiny

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A real sshd on loopback that accepts one throwaway key; the options that reach it."""
    require("ssh", "apt install openssh-server", lambda: SSHD is not None)
    home = tmp_path_factory.mktemp("sshd")
    for key in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(home / key)], check=True)
    shutil.copyfile(home / "user_key.pub", home / "authorized_keys")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd, as root, puts itself in jail
    (home / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {home}/host_key\nAuthorizedKeysFile {home}/authorized_keys\n"
        f"PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
    )
    host_key = (home / "host_key.pub").read_text().split()
    (home / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key[0]} {host_key[1]}\n")
    (home / "config").write_text(
        f"Host board\n  HostName 127.0.0.1\n  Port {port}\n  User {getpass.getuser()}\n  IdentityFile {home}/user_key\n"
        f"  IdentitiesOnly yes\n  UserKnownHostsFile {home}/known_hosts\n  StrictHostKeyChecking yes\n"
    )
    server = subprocess.Popen([str(SSHD), "-D", "-e", "-f", str(home / "sshd_config")], stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield {"host": "board", "config": str(home / "config"), "python": sys.executable}
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(autouse=True)
def own_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders on the board begin with this process's number, since others may be testing beside it."""
    count = itertools.count()
    monkeypatch.setattr("edgeq.runners.ssh.secrets.token_hex", lambda size: f"{os.getpid()}-{next(count)}")


def left_behind() -> list[Path]:
    return [p for p in Path("/tmp").glob(f"edgeq-{os.getpid()}-*") if (p / "_child.py").exists()]


@pytest.mark.parametrize("external", [False, True])
def test_outputs_and_latency_come_back(board: dict[str, str], tmp_path: Path, external: bool) -> None:
    kernels_like_a_targets()
    model = tiny.qdq_conv(tmp_path / "tiny.onnx", external)
    session = ssh.open_session(model, **board, proof=True)
    feeds = tiny.samples(3)
    for given, got in zip(feeds, session.run_many(feeds), strict=True):
        np.testing.assert_array_equal(got["y"], tiny.here(model, given))
    assert 0 < (session.latency_ms or 0) < 1000
    assert session.report["ops"]["QLinearConv"] == 1
    np.testing.assert_array_equal(
        session.run(feeds[0], taps=["yq"])["yq"] * np.float32(0.05), tiny.here(model, feeds[0])
    )
    session.close()
    assert left_behind() == []


def test_time_limit_holds_on_the_board(board: dict[str, str], tmp_path: Path) -> None:
    session = ssh.open_session(tiny.qdq_conv(tmp_path / "tiny.onnx"), **board, timeout=0.05)
    with pytest.raises(ToolError, match=r"^ssh \(board\): .*stopped after 0\.05 s on the board"):
        session.run(tiny.samples(1)[0])
    assert left_behind() == []


def test_a_hung_connection_is_given_up(board: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program there ignores the request to end."""
    monkeypatch.setattr(ssh, "_GRACE", 1.0)
    slow = tmp_path / "slow python"
    slow.write_text("#!/bin/sh\ntrap '' TERM\nsleep 4\n")
    slow.chmod(0o755)
    session = ssh.open_session(tiny.qdq_conv(tmp_path / "tiny.onnx"), **{**board, "python": str(slow)}, timeout=0.5)
    with pytest.raises(ToolError, match=r"^ssh \(board\): stopped after 1\.5 s"):
        session.run(tiny.samples(1)[0])
    for _ in range(100):  # the board notices when its program ends
        if not left_behind():
            break
        time.sleep(0.1)
    assert left_behind() == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"python": "/nowhere/python3"}, "/nowhere/python3"),
        ({"host": "nobody@127.0.0.1", "port": 1}, "onnection refused"),
    ],
)
def test_failures_are_one_line(board: dict[str, str], tmp_path: Path, change: dict[str, object], message: str) -> None:
    session = ssh.open_session(tiny.qdq_conv(tmp_path / "tiny.onnx"), **{**board, **change})
    with pytest.raises(ToolError, match=message) as raised:
        session.run(tiny.samples(1)[0])
    assert "\n" not in str(raised.value)


def test_a_stranger_key_is_refused(board: dict[str, str], tmp_path: Path) -> None:
    config = tmp_path / "config"
    key = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    text = Path(board["config"]).read_text()
    config.write_text(
        "\n".join(f"  IdentityFile {key}" if "IdentityFile" in line else line for line in text.splitlines())
    )
    session = ssh.open_session(tiny.qdq_conv(tmp_path / "tiny.onnx"), **{**board, "config": str(config)})
    with pytest.raises(ToolError, match="Permission denied"):
        session.run(tiny.samples(1)[0])


def test_nothing_of_the_options_is_read_by_a_shell(board: dict[str, str], tmp_path: Path) -> None:
    trap = tmp_path / "touched"
    python = f"python3; touch {trap}; $(touch {trap}) `touch {trap}` '\" x"
    session = ssh.open_session(tiny.qdq_conv(tmp_path / "tiny.onnx"), **{**board, "python": python})
    with pytest.raises(ToolError):
        session.run(tiny.samples(1)[0])
    assert not trap.exists()
    chosen = {**COMMON, "host": "a@b", "port": None, "config": None, "python": python, "proof": False}
    outer = shlex.split(ssh.command(chosen)[-1])
    assert outer[:3] == ["exec", "sh", "-c"]
    assert shlex.quote(python) in outer[3]


@pytest.mark.parametrize("host", ["", "-oProxyCommand=touch x", "pi; touch x", "pi x", "pi\nx", "$(x)"])
def test_hosts_that_are_none(tmp_path: Path, host: str) -> None:
    with pytest.raises(RecipeError, match="give host=user@name"):
        ssh.open_session(tiny.qdq_conv(tmp_path / "tiny.onnx"), host=host)


def test_ports_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="port=70000 is not a port"):
        ssh.open_session(tiny.qdq_conv(tmp_path / "tiny.onnx"), host="pi", port=70000)


def test_a_board_can_write_results_only(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    (folder / "out").mkdir(parents=True)
    packed = io.BytesIO()
    names = ["./out/0_0.npy", "./../escaped", "/tmp/escaped", "./model.onnx", "./out/../../escaped", "./result.json"]
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 4
            archive.addfile(member, io.BytesIO(b"data"))
        link = tarfile.TarInfo("./optimized.onnx")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    packed.seek(0)
    ssh.unpack(packed, folder, "ssh (pi)")
    found = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if not p.is_dir())
    assert found == ["job/out/0_0.npy", "job/result.json"]
    with pytest.raises(ToolError, match=r"ssh \(pi\): what came back is no archive"):
        ssh.unpack(io.BytesIO(b"Welcome to pi\n" * 99), folder, "ssh (pi)")
