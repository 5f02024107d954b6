"""Target files: those that there are, inheritance, and what a wrong file is told."""

import tomllib

import pytest

from edgeq import target
from edgeq.errors import RecipeError
from edgeq.types import PerBlock, PerChannel, PerTensor

BASE = """
name = "base"
title = "Base"
runner = "cpu"
opset = 15
[types.a]
dtype = "uint8"
[types.w]
dtype = "int8"
symmetric = true
per = "channel"
[[rule]]
ops = ["Conv", "Gemm"]
act = "a"
weight = "w"
[[refuse]]
ops = ["Softmax"]
reason = "no kernel"
"""
CHILD = """
name = "child"
title = "Child"
extends = "base"
[types.w]
dtype = "int4"
per = "block"
block_size = 32
[[rule]]
ops = ["Gemm"]
act = "a"
weight = "w"
max_rank = 2
[[refuse]]
ops = ["Softmax"]
reason = "slower than float"
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEQ_TARGETS", str(tmp_path))
    (tmp_path / "base.toml").write_text(BASE)
    (tmp_path / "child.toml").write_text(CHILD)
    return tmp_path


def test_every_target_that_there_is():
    assert {"arm64", "generic", "x86_64"} <= set(target.names())
    for name in target.names():
        found = target.load(name)
        table = tomllib.loads((target.folder() / f"{name}.toml").read_text())
        assert found.name == name == table["name"]
        for field in ("title", "runner", "opset"):
            assert getattr(found, field) == table.get(field, getattr(found, field))
        assert (found.find("Conv", "static") is None) == ("static" in found.refuse_method)
        assert found.find("NoSuchOperator", "static") is None


def test_a_child_inherits_what_it_does_not_say(folder):
    assert target.names() == ["base", "child"]
    child = target.load("child")
    assert (child.title, child.runner, child.opset) == ("Child", "cpu", 15)
    assert child.types["a"].spec().granularity == PerTensor()
    assert child.types["w"].spec(axis=1).granularity == PerBlock(1, 32)
    assert target.load(str(folder / "base.toml")).types["w"].spec(axis=1).granularity == PerChannel(1)
    assert child.types["w"].spec(axis=1, channel=False).granularity == PerTensor()
    assert child.find("Gemm", "static").max_rank == 2  # the last rule that names an operator wins
    assert child.find("Conv", "static").max_rank == 0
    assert child.find("Conv", "dynamic") is None
    assert child.refusal("Softmax") == "slower than float"
    assert child.refusal("Conv") is None


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('extends = "base"', 'extends = "nobody"', "nobody"),
        ('extends = "base"', 'extends = "child"', "child"),
        ('"int4"', '"int5"', "int5"),
        ("block_size = 32", "block_size = 0", "block_size"),
        ('weight = "w"', 'weight = "v"', "'v'"),
        ("max_rank", "max_rang", "max_rang"),
        ('title = "Child"', "title = 3", "title"),
        ('title = "Child"', "title = ", "child.toml"),
    ],
)
def test_a_wrong_file_names_what_is_wrong(folder, old, new, named):
    assert old in CHILD
    (folder / "child.toml").write_text(CHILD.replace(old, new))
    with pytest.raises(RecipeError, match=named) as caught:
        target.load("child")
    assert "child.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_name_lists_those_that_there_are(folder):
    for name in ("toaster", "../child", "toaster.toml", ""):
        with pytest.raises(RecipeError, match="choose one of base, child"):
            target.load(name)
