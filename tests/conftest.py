"""What tests of the command line share."""

import importlib
import signal
import sys
import tempfile
from pathlib import Path

import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import HealthCheck, settings

from edgeq import cli
from edgeq.graph.unsigned import unsigned_weights
from edgeq.runners import cpu
from tests.require import SATURATES

COPIES = tempfile.TemporaryDirectory(prefix="edgeq-exact-")


class Exact(onnxruntime.InferenceSession):
    """Gives what a processor with VNNI does, or an Arm one, on one without too."""

    def __init__(self, model, *args, **kwargs):
        if SATURATES and isinstance(model, bytes):
            made = ir.from_proto(onnx.load_from_string(model))
            model = ir.to_proto(made).SerializeToString() if unsigned_weights(made) else model
        elif SATURATES:
            model = str(cpu.exact(Path(model), Path(COPIES.name)))
        super().__init__(model, *args, **kwargs)


if SATURATES:
    onnxruntime.InferenceSession = Exact
with pytest.MonkeyPatch.context() as patch:
    patch.setattr(cpu, "saturates", bool)
    importlib.import_module("edgeq.runners.avx2")  # which asks that once, and emulates on machines with VNNI


@pytest.fixture(autouse=True)
def no_word_of_vnni(monkeypatch):
    """Warnings are those of any machine."""
    monkeypatch.setattr(cpu, "saturates", bool)


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command line in this process: (exit code, stdout, stderr)."""
    before = signal.getsignal(signal.SIGTERM)

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["edgeq", *map(str, args)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        return stopped.value.code, out, err

    yield call
    signal.signal(signal.SIGTERM, before)


# A loaded machine is no fault of a strategy.
settings.register_profile("edgeq", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("edgeq")
