"""Padding is left out of what calibrates, and only of that: held against samples that were cut by hand."""

import tomllib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgeq
from edgeq.data import Dataset
from edgeq.data.padding import Padding, paddings, unpadded
from edgeq.errors import CalibrationError, ModelError, RecipeError
from tests.graph.written import draw, save, text

IDS, MASK = "input_ids", "attention_mask"
DIMS = {IDS: ("B", "T"), MASK: ("B", "T")}
BOTH = ((IDS, 1), (MASK, 1))
ROWS = ((IDS, 0), (MASK, 0))
END, ANYWHERE = (Padding(MASK, BOTH, ROWS, anywhere) for anywhere in (False, True))
LENGTHS = (5, 2, 8, 1, 7, 3, 3, 6, 4, 2)
LONG = 8


def sample(*rows, **more):
    """Ids 1, 2, 3 … and these rows of a mask."""
    mask = np.array(rows)
    return {IDS: np.arange(1, mask.size + 1).reshape(mask.shape), MASK: mask, **more}


def seen(parts):
    return [[part[IDS].tolist(), part[MASK].tolist()] for part in parts]


@pytest.mark.parametrize(
    ("padding", "rows", "wanted"),
    [
        (END, [[1, 1, 0, 0]], [[[[1, 2]], [[1, 1]]]]),
        (END, [[0, 1, 1, 0]], [[[[1, 2, 3]], [[0, 1, 1]]]]),  # what is first for the model must stay the first
        (ANYWHERE, [[0, 1, 1, 0]], [[[[2, 3]], [[1, 1]]]]),
        (ANYWHERE, [[0, 1, 0, 1]], [[[[2, 4]], [[1, 1]]]]),
        (END, [[1, 1, 0], [1, 1, 0]], [[[[1, 2], [4, 5]], [[1, 1], [1, 1]]]]),
        (END, [[1, 1, 0], [1, 0, 0], [0, 0, 0]], [[[[1, 2]], [[1, 1]]], [[[4]], [[1]]]]),
        (END, [[0, 1], [1, 1]], [[[[1, 2], [3, 4]], [[0, 1], [1, 1]]]]),  # apart they would be no shorter
        (ANYWHERE, [[0, 1], [1, 1]], [[[[2]], [[1]]], [[[3, 4]], [[1, 1]]]]),
        (Padding(MASK, BOTH), [[1, 1, 0], [1, 0, 0]], [[[[1, 2], [4, 5]], [[1, 1], [1, 0]]]]),
        (END, [[0, 0], [0, 0]], [[[[1, 2], [3, 4]], [[0, 0], [0, 0]]]]),
    ],
)
def test_what_of_a_sample_stays(padding, rows, wanted):
    given = sample(*rows)
    assert seen(unpadded(given, [padding])) == wanted
    assert seen([given]) == seen([sample(*rows)])  # it is the caller's


@given(st.integers(1, 5).flatmap(lambda n: st.lists(st.lists(st.integers(0, 1), min_size=n, max_size=n), min_size=1)))
def test_every_real_token_stays_and_no_other(rows):
    given = sample(*rows)
    tokens = [ids[mask == 1].tolist() for ids, mask in zip(given[IDS], given[MASK], strict=True) if mask.any()]
    parts = unpadded(given, [ANYWHERE])
    if tokens:
        assert [row for part in parts for row in part[IDS].tolist()] == tokens
        assert all(part[MASK].all() for part in parts)
    for part in unpadded(given, [END]):
        assert part[MASK][:, -1].all() or not tokens
    kept = [row[m == 1].tolist() for p in unpadded(given, [END]) for row, m in zip(p[IDS], p[MASK], strict=True)]
    assert kept == tokens or not tokens


def test_all_axes_of_that_length_are_cut_and_no_others():
    dims = {**DIMS, "bias": (1, 2, "T", "T"), "state": (3, "B", 4), "features": ("B", 4), "scale": ()}
    (padding,) = paddings(dims, {MASK, IDS}, None)
    more = {"bias": draw(1, 2, 4, 4), "state": draw(3, 2, 4), "features": draw(2, 4), "scale": np.float32(2)}
    first, second = unpadded(sample([1, 1, 1, 0], [1, 0, 0, 0], **more), [padding])
    np.testing.assert_array_equal(first["bias"], more["bias"][:, :, :3, :3])
    np.testing.assert_array_equal(second["bias"], more["bias"][:, :, :1, :1])
    np.testing.assert_array_equal(second["state"], more["state"][:, 1:])
    np.testing.assert_array_equal(second["features"], more["features"][1:])
    assert second["scale"] == 2


def test_without_names_the_length_in_the_sample_decides():
    dims = {IDS: ("ids_1", "ids_2"), MASK: (None, None), "kinds": (None, None), "other": (None, None), "fixed": (1, 4)}
    (padding,) = paddings(dims, {MASK}, None)
    given = sample([1, 1, 0, 0], kinds=np.ones((1, 4)), other=np.ones((1, 5)), fixed=np.ones((1, 4)))
    (got,) = unpadded(given, [padding])
    assert {k: v.shape[1] for k, v in got.items()} == {IDS: 2, MASK: 2, "kinds": 2, "other": 5, "fixed": 4}
    for lone in (sample([1, 0]) | {IDS: np.ones((1, 3))}, {MASK: np.array([[1, 0]])}, {IDS: np.ones((1, 2))}):
        assert unpadded(lone, [padding]) == [lone]
    whole = sample([1, 1, 0], [1, 0, 0], other=np.ones((5, 3)))  # five rows belong to two sequences, who knows how
    assert [p[IDS].shape for p in unpadded(whole, [padding])] == [(2, 2)]


def test_names_tell_the_encoder_from_the_decoder():
    other = {"decoder_input_ids": ("B", "D"), "decoder_mask": ("B", "D")}
    found = paddings(DIMS | other, {MASK, "decoder_mask"}, [MASK, "decoder_mask"])
    decoder = {"decoder_input_ids": np.array([[1, 2, 3], [4, 5, 6]]), "decoder_mask": np.array([[1, 1, 1], [1, 1, 0]])}
    first, second = unpadded(sample([1, 1, 0], [1, 1, 0], **decoder), found)
    assert (first[IDS].tolist(), first["decoder_input_ids"].tolist()) == ([[1, 2]], [[1, 2, 3]])
    assert (second[IDS].tolist(), second["decoder_input_ids"].tolist()) == ([[4, 5]], [[4, 5]])
    assert paddings(DIMS | other, {MASK}, None) == (Padding(MASK, BOTH, (*ROWS, *((k, 0) for k in other))),)


@pytest.mark.parametrize(
    ("dims", "wanted"),
    [
        (DIMS, (Padding(MASK, BOTH, ROWS),)),
        (DIMS | {"position_ids": ("B", "T")}, True),
        (DIMS | {"position_ids": ("B", "P")}, False),
        ({IDS: (1, "T"), MASK: (1, "T")}, (Padding(MASK, BOTH),)),
        (DIMS | {"pixels": ("pictures", 3)}, (Padding(MASK, BOTH),)),  # which of them are a row's?
        ({IDS: ("B", 8), MASK: ("B", 8)}, ()),
        ({IDS: ("B", "T"), MASK: ("B", "past + T"), "past": ("B", 2, "past", 4)}, None),
        ({IDS: ("B", "T")}, ()),
        ({IDS: ("B", "T"), MASK: None}, ()),
        ({IDS: ("B", "T"), MASK: ("B", 1, 1, "T")}, ()),
    ],
)
def test_which_inputs_have_padding(dims, wanted):
    found = paddings(dims, {MASK}, None)
    if isinstance(wanted, bool):
        assert [padding.anywhere for padding in found] == [wanted]
    elif wanted is None:  # the tokens are shorter than the mask, unless nothing is past
        given = sample([1, 1, 0]) | {IDS: np.ones((1, 1)), "past": np.ones((1, 2, 2, 4))}
        assert unpadded(given, found) == [given]
    else:
        assert found == wanted
    assert paddings(dims, {IDS}, None) == paddings(dims, {MASK}, ()) == ()
    if dims.get(MASK) is None or len(dims[MASK]) != 2:
        with pytest.raises(RecipeError, match="no integer input 'attention_mask' of rank 2"):
            paddings(dims, {MASK}, [MASK])


BATCHES = [sample([1, 1, 0], [1, 0, 0]), sample([1, 1, 1]), sample([1, 0, 0])]
INDEXED = Dataset.indexed("d", BATCHES.__getitem__, len(BATCHES), {"label": np.arange(3)}, "source")


@pytest.mark.parametrize("data", [INDEXED, Dataset("d", lambda: iter(BATCHES)), Dataset("d", lambda: iter(BATCHES), 3)])
def test_data_counts_the_samples_that_it_becomes(data):
    assert data.unpadded() is data  # of which nothing says that it is padded
    data = replace(data, padding=(END,))
    bare, shapes = data.unpadded(), [(1, 2), (1, 1), (1, 3), (1, 1)]
    assert [feeds[IDS].shape for feeds in bare] == [feeds[IDS].shape for feeds in bare] == shapes
    assert bare.count == (4 if data.get is not None else None)
    assert bare.source is None  # which holds other samples
    if bare.get is not None:
        assert [bare.get(i)[IDS].shape for i in range(4)] == shapes
    for drawn in (bare.take(3), data.take(2).unpadded(), data.part(0, 2).unpadded().take(3)):
        assert [feeds[IDS].shape for feeds in drawn] == shapes[:3]
    assert all(feeds[MASK].all() for feeds in data.sample(2, 0).unpadded())


BODY = (
    "e = Gather(table, input_ids) a = MatMul(e, w) m = Cast<to=1>(attention_mask) u = Unsqueeze(m, last) y = Mul(a, u)"
)
TABLE = np.concatenate([np.full((1, 16), 50, np.float32), draw(30, 16)])  # padding, id 0, stretches every range
INITS = {"table": TABLE, "w": draw(16, 16), "last": np.array([2])}
INPUTS = "int64[B,T] input_ids, int64[B,T] attention_mask"


def model(folder, body=BODY, inputs=INPUTS):
    return save(folder, text(body, inputs), INITS)


def padded():
    """Arrays of one sequence a row, with zeros behind it."""
    ids = np.random.default_rng(0).integers(1, 31, (len(LENGTHS), LONG))
    mask = (np.arange(LONG) < np.array(LENGTHS)[:, None]).astype(np.int64)
    return {IDS: ids * mask, MASK: mask}


def cut():
    return [{k: v[i : i + 1, :n] for k, v in padded().items()} for i, n in enumerate(LENGTHS)]


def artifact(folder, path, data, **asked):
    result = edgeq.quantize(path, "x86_64", data, folder, **{"check": False} | asked)
    return result.artifact.read_bytes()


@pytest.mark.parametrize("method", ["static", "weight_only"])
def test_the_artifact_is_that_of_samples_without_padding(tmp_path, method):
    path, weight = model(tmp_path), "gptq" if method == "weight_only" else "rtn"
    asked = {"method": method, "weight": weight}
    wanted = artifact(tmp_path / "a", path, cut(), padding=(), **asked)
    assert artifact(tmp_path / "b", path, padded(), **asked) == wanted
    assert artifact(tmp_path / "c", path, [padded()], **asked) == wanted
    assert artifact(tmp_path / "d", path, padded(), padding=(MASK,), **asked) == wanted
    assert artifact(tmp_path / "e", path, padded(), recipe=tmp_path / "b" / "recipe.toml") == wanted
    assert artifact(tmp_path / "f", path, padded(), padding=(), **asked) != wanted
    for folder, said in (("b", [MASK]), ("e", [MASK]), ("f", [])):
        assert tomllib.loads((tmp_path / folder / "recipe.toml").read_text())["padding"] == said


def test_statistics_of_repairs_are_without_padding_too(tmp_path):
    path, asked = model(tmp_path), {"passes": ("smooth",), "weight": "gptq"}
    wanted = artifact(tmp_path / "a", path, cut(), padding=(), **asked)
    assert artifact(tmp_path / "b", path, padded(), **asked) == wanted


def test_what_is_verified_keeps_its_padding(tmp_path):
    lengths = set()

    def metric(outputs, extras):
        lengths.update(output["y"].shape[1] for output in outputs)
        return 1.0

    artifact(tmp_path / "a", model(tmp_path), padded(), check=True, metric=metric)
    assert lengths == {LONG}


@pytest.mark.parametrize("asked", [{"padding": None}, {"padding": (MASK,)}])
def test_where_the_length_is_fixed_nothing_is_left_out(tmp_path, asked):
    path, shapes = model(tmp_path), ((IDS, (1, LONG)), (MASK, (1, LONG)))
    fixed = artifact(tmp_path / "a", path, padded(), shapes=shapes, padding=())
    assert artifact(tmp_path / "b", path, padded(), shapes=shapes, **asked) == fixed
    assert tomllib.loads((tmp_path / "b" / "recipe.toml").read_text())["padding"] == []


@pytest.mark.parametrize(
    ("inputs", "asked", "problem"),
    [
        (INPUTS, {"padding": ("mask",)}, "no integer input 'mask' of rank 2: the model has input_ids, attention_mask"),
        (INPUTS.replace("int64[B,T] att", "float[B,T] att"), {"padding": (MASK,)}, "no integer input 'attention_mask'"),
        ("int64[1,8] input_ids, int64[B,T] attention_mask", {"padding": (MASK,)}, "no other input has the length"),
        (INPUTS, {"padding": (MASK,), "state": (("y", IDS),)}, "padding and state"),
    ],
)
def test_a_wrong_mask_is_named(tmp_path, inputs, asked, problem):
    with pytest.raises(RecipeError, match=problem) as caught:
        artifact(tmp_path / "a", model(tmp_path, BODY, inputs), padded(), **asked)
    assert "\n" not in str(caught.value)


def test_statistics_with_padding_are_others(tmp_path):
    path, file = model(tmp_path), tmp_path / "s.npz"
    one = artifact(tmp_path / "a", path, padded(), save_stats=file)
    assert artifact(tmp_path / "b", path, None, stats=file) == one
    with pytest.raises(CalibrationError, match="with another padding"):
        artifact(tmp_path / "c", path, None, stats=file, padding=())


def test_a_model_that_only_says_that_its_length_is_free(tmp_path):
    body = BODY.replace("y = Mul(a, u)", "v = Mul(a, u) y = Reshape(v, flat)")
    path = save(tmp_path, text(body, INPUTS), INITS | {"flat": np.array([1, 8, 16])})
    with pytest.raises(ModelError, match=r"padding = \[\] in the recipe"):
        artifact(tmp_path / "a", path, padded())
    artifact(tmp_path / "a", path, padded(), padding=())
