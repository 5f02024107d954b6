"""The laws of a runner, for every module of the folder that is one."""

import inspect
from pathlib import Path

import pytest

from edgeq import registry
from edgeq.errors import EdgeqError, RecipeError
from edgeq.runners.session import COMMON
from tests.runners import tiny

RUNNERS = registry.names("edgeq.runners", "open_session")


def test_all_are_here() -> None:
    assert set(RUNNERS) >= {"arm64", "cuda", "litert", "openvino", "qnn", "ssh", "web"}


@pytest.mark.parametrize("name", RUNNERS)
def test_says_what_it_is_and_what_it_lacks(name: str) -> None:
    runner = registry.load("edgeq.runners", name)
    assert runner.TITLE
    line = runner.missing()
    if line is None:
        assert runner.version()
    else:
        assert "\n" not in line
        with pytest.raises(EdgeqError):
            runner.version()


@pytest.mark.parametrize("name", RUNNERS)
def test_refuses_options_that_it_does_not_know(name: str, tmp_path: Path) -> None:
    runner = registry.load("edgeq.runners", name)
    with pytest.raises(RecipeError, match="nonsense"):
        runner.open_session(tiny.qdq_conv(tmp_path / "tiny.onnx"), nonsense=1)


@pytest.mark.parametrize("name", RUNNERS)
def test_documents_the_options_that_all_have(name: str) -> None:
    documented = inspect.getdoc(registry.load("edgeq.runners", name).open_session) or ""
    assert [option for option in COMMON if option not in documented] == []
