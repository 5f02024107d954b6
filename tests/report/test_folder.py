"""The output folder: whole results or none, the user's other files untouched."""

import pytest

from edgeq.errors import EdgeqError
from edgeq.report.folder import publish, work_folder


def fill(work, text, data=False):
    for name in ("model.onnx", "recipe.toml", "report.json", ".prepared.onnx", *(["model.onnx.data"] if data else [])):
        (work / name).write_text(text)


def test_results_replace_results(tmp_path):
    out = tmp_path / "a" / "out"
    for text, data in (("one", True), ("two", False)):
        with work_folder(out) as work:
            fill(work, text, data)
            publish(work, out)
        wanted = {"model.onnx", "recipe.toml", "report.json"} | ({"model.onnx.data"} if data else set())
        assert {p.name for p in out.iterdir()} == wanted
        assert {p.read_text() for p in out.iterdir()} == {text}
        assert [p.name for p in out.parent.iterdir()] == ["out"]


def test_a_folder_that_is_there_is_worked_in(tmp_path):
    (tmp_path / "out").mkdir()
    with work_folder(tmp_path / "out") as work:
        assert work.parent == tmp_path / "out"  # it may be another file system than its parent


@pytest.mark.parametrize("error", [EdgeqError("x"), OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failure_leaves_nothing(tmp_path, error):
    def fail():
        with work_folder(tmp_path / "a" / "b" / "out") as work:
            fill(work, "half")
            raise error

    with pytest.raises(EdgeqError if isinstance(error, Exception) else KeyboardInterrupt) as caught:
        fail()
    assert not list(tmp_path.iterdir())
    if isinstance(error, OSError):
        assert "No space left" in str(caught.value)


def test_a_file_in_the_way_is_named_and_kept(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(EdgeqError, match="file"), work_folder(path):
            pass
    assert [p.read_text() for p in tmp_path.iterdir()] == ["mine"]
