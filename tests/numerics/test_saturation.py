"""The bound against the instruction itself, computed in wide integers at the corners of its input."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgeq.numerics.saturation import saturating_pairs

EVERY = np.arange(-128, 128)


def test_every_pair_of_weights():
    first, second = (a.reshape(-1) for a in np.meshgrid(EVERY, EVERY))
    sums = np.stack([a * first + b * second for a, b in itertools.product((0, 255), repeat=2)])
    outside = ((sums > np.iinfo(np.int16).max) | (sums < np.iinfo(np.int16).min)).any(axis=0)
    found = saturating_pairs(np.stack([first, second]).astype(np.int8))
    assert np.array_equal(found, outside.astype(int))
    assert 0 < outside.sum() < outside.size


def test_seven_bits_are_enough_and_eight_are_not():
    codes = np.random.default_rng(0).integers(-64, 64, (64, 100)).astype(np.int8)
    assert not saturating_pairs(codes).any()
    assert saturating_pairs(np.array([[127], [1], [127]], np.int8)) == [0]  # the third has no neighbour
    assert saturating_pairs(np.array([[1], [127], [127], [1]], np.int8)) == [0]  # two pairs, not the two in the middle
    assert saturating_pairs(np.array([[127], [2]], np.int8)) == [1]


@given(st.lists(st.integers(-128, 127), min_size=1, max_size=9), st.data())
def test_a_column_without_such_a_pair_is_summed_exactly(column, data):
    codes = np.array(column)[:, None]
    a = np.array(data.draw(st.lists(st.integers(0, 255), min_size=len(column), max_size=len(column))))
    products = np.append(a * codes[:, 0], [0] * (len(column) % 2)).reshape(-1, 2).sum(axis=1)
    saturated = np.clip(products, -32768, 32767).sum()
    if not saturating_pairs(codes.astype(np.int8))[0]:
        assert saturated == products.sum()


def test_every_column_is_counted_by_itself():
    rng = np.random.default_rng(4)
    for rows in (1, 2, 5, 8):
        codes = rng.integers(-128, 128, (rows, 6)).astype(np.int8)
        padded = np.concatenate([codes, np.zeros((rows % 2, 6), np.int8)]).astype(int)
        want = []
        for column in padded.T:
            corners = [[a * u + b * v for a in (0, 255) for b in (0, 255)] for u, v in column.reshape(-1, 2)]
            want.append(sum(max(c) > 32767 or min(c) < -32768 for c in corners))
        assert saturating_pairs(codes).tolist() == want
