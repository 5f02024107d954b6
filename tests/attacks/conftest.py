import pytest

from tests.attacks.sandbox import Sandbox
from tests.command import matmul, samples


@pytest.fixture(scope="session")
def sandbox():
    made = Sandbox()
    yield made
    made.close()


@pytest.fixture(scope="module")
def made(sandbox, tmp_path_factory):
    """A folder with a model, data, statistics, an artifact and a package."""
    folder = tmp_path_factory.mktemp("made")
    model, data = matmul(folder / "m.onnx"), samples(folder / "d.npz")
    found = sandbox("quantize", model, "--calib", data, "-o", folder / "out", "--save-stats", folder / "s.npz", "-q")
    assert found.code == 0, found
    found = sandbox("package", folder / "out", "--platform", "bare", "-o", folder / "package")
    assert found.code == 0, found
    return folder
