"""What tests of the command line share."""

import signal
import sys

import pytest
from hypothesis import HealthCheck, settings

from edgeq import cli


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
