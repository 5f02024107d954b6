"""Recipes round-trip through TOML as Python's own parser reads it, and wrong ones name what is wrong."""

import math
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeq import recipe
from edgeq.errors import RecipeError
from edgeq.recipe import Override, Preprocess, Recipe

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
MAYBE = st.none() | TEXT
OVERRIDES = st.builds(
    Override,
    nodes=st.lists(TEXT, max_size=3).map(tuple),
    ops=st.lists(TEXT, max_size=3).map(tuple),
    float=st.none() | st.booleans(),
    calibrator=MAYBE,
    weight=MAYBE,
    act_type=MAYBE,
    weight_type=MAYBE,
)
SIZES = st.none() | st.integers(1, 4096) | st.tuples(st.integers(1, 4096), st.integers(1, 4096))
POSITIVE = st.lists(st.floats(min_value=0, exclude_min=True, allow_infinity=False), min_size=1, max_size=3).map(tuple)
PREPROCESSES = st.builds(
    Preprocess, resize=SIZES, crop=SIZES, mean=POSITIVE, std=POSITIVE, layout=st.none() | st.just("NHWC")
)
RECIPES = st.builds(
    Recipe,
    target=TEXT,
    samples=st.integers(0, 1 << 40),
    seed=st.integers(-(1 << 40), 1 << 40),
    elementwise_sqnr=st.floats(allow_nan=False),
    attention=st.booleans(),
    state=st.lists(st.tuples(TEXT, TEXT), max_size=2).map(tuple),
    preprocess=st.none() | PREPROCESSES,
    padding=st.none() | st.lists(TEXT, max_size=2).map(tuple),
    rule=st.lists(OVERRIDES, max_size=3).map(tuple),
)


@given(RECIPES)
def test_what_is_written_is_what_is_read(tmp_path_factory, made):
    text = recipe.dump(made)
    table = tomllib.loads(text)
    assert table["samples"] == made.samples
    assert math.isclose(table["elementwise_sqnr"], made.elementwise_sqnr)
    path = tmp_path_factory.mktemp("r") / "recipe.toml"
    path.write_text(text, encoding="utf-8", newline="")
    again = recipe.load(path)
    assert again == made
    assert recipe.dump(again) == text


def test_every_field_is_written():
    absent = {"rule", "preprocess", "padding", "bits", "block", "weight_settings"}  # None and empty ones
    assert set(tomllib.loads(recipe.dump(Recipe()))) == set(Recipe.__struct_fields__) - absent


def test_no_padding_is_not_the_same_as_nothing_said_of_it(tmp_path):
    for made, line in ((Recipe(padding=()), "padding = []"), (Recipe(padding=("mask",)), 'padding = ["mask"]')):
        (tmp_path / "recipe.toml").write_text(recipe.dump(made))
        assert line in recipe.dump(made).splitlines()
        assert recipe.load(tmp_path / "recipe.toml").padding == made.padding
        assert recipe.changed(made) == {"padding": made.padding}
    assert Recipe().padding is None


def test_the_last_override_wins_field_by_field():
    made = Recipe(
        rule=(
            Override(calibrator="minmax", weight="mse"),
            Override(nodes=("head*",), weight="rtn"),
            Override(ops=("Conv",), nodes=("*stem", "x"), float=True),
        )
    )
    merged = made.override("head.0", "Gemm")
    assert (merged.calibrator, merged.weight, merged.float) == ("minmax", "rtn", None)
    assert made.override("a.stem", "Conv").float is True
    assert made.override("a.stem", "Gemm").float is None
    assert made.override("X", "Conv").float is None  # patterns tell upper from lower case


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("samples = 'many'", "samples"),
        ("samples = -3", "samples"),
        ("attention = 1", "attention"),
        ("method = 'magic'", "method"),
        ("schema_version = 2", "schema_version"),
        ("colour = 'red'", "colour"),
        ("[preprocess]\nstd = [0.0]", "std"),
        ("[preprocess]\nresize = [0, 3]", "resize"),
        ("[preprocess]\ncrop = 0", "crop"),
        ("state = ['h']", "state"),
        ("padding = 'mask'", "padding"),
        ("[[rule]]\ncolour = 'red'", "colour"),
        ("target = ", "recipe.toml"),
    ],
)
def test_a_wrong_recipe_names_the_field(tmp_path, text, named):
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(RecipeError, match=named) as caught:
        recipe.load(tmp_path / "recipe.toml")
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "recipe.toml").write_bytes(b"target = '\xff\xfe'")
    with pytest.raises(RecipeError, match=r"recipe\.toml"):
        recipe.load(tmp_path / "recipe.toml")
