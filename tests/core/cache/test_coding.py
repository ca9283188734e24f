"""Sets of ids and log-probabilities in few bytes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillzoo.core.cache.coding import (
    FINEST,
    LARGEST,
    LEVELS,
    RELATIVE,
    packed_ids,
    quantised,
    unpacked_ids,
    width,
)


@st.composite
def tables(draw):
    size = draw(st.integers(1, 70_000))
    sets = draw(st.lists(st.sets(st.integers(0, size - 1), min_size=1, max_size=40), max_size=6))
    return size, [sorted(ids) for ids in sets]


@given(tables())
@settings(max_examples=200, deadline=None)
def test_ids_come_back(table):
    size, sets = table
    ids = np.array([i for ids in sets for i in ids], dtype=np.int64)
    counts = np.array([len(ids) for ids in sets], dtype=np.int64)
    unary, remainders = packed_ids(ids, counts, size)
    assert unpacked_ids(unary, remainders, counts, size).tolist() == ids.tolist()


def test_the_whole_vocabulary_takes_a_bit_a_token():
    """Gaps are 0 and remainders have no bits: a unary 1 each."""
    counts = np.array([1000])
    unary, remainders = packed_ids(np.arange(1000), counts, 1000)
    assert len(unary) == 125
    assert len(remainders) == 0


def test_random_sets_come_near_their_entropy():
    """log2 C(V, k) bits a set is the least that any code needs on average; ours is within 4%."""
    from scipy.special import gammaln

    generator, size, k, n = np.random.default_rng(0), 49_152, 23, 400
    sets = [np.sort(generator.choice(size, k, replace=False)) for _ in range(n)]
    unary, remainders = packed_ids(np.concatenate(sets), np.full(n, k), size)
    least = (gammaln(size + 1) - gammaln(k + 1) - gammaln(size - k + 1)) / np.log(2) * n
    assert least <= 8 * (len(unary) + len(remainders)) <= 1.04 * least


def test_the_width_is_half_the_mean_gap_rounded_down():
    """log2(V ln 2 / (k + 1)): a geometric gap of mean m is best split at m ln 2."""
    assert width(49_152, np.array([1, 23, 64, 49_152])).tolist() == [14, 10, 9, 0]


@given(st.lists(st.floats(-LARGEST, 0.0, width=32), min_size=1))
def test_a_log_probability_is_off_by_the_stated_bound_at_most(values):
    exact = np.array(values, dtype=np.float32)
    error = np.abs(LEVELS[quantised(exact)].astype(np.float64) - exact)
    assert (error <= RELATIVE * (FINEST - exact) + 1e-6).all()


def test_the_ends_of_the_scale():
    assert LEVELS[0] == 0.0
    assert LEVELS[255] == pytest.approx(-LARGEST)
    assert quantised(np.array([0.0, -LARGEST, -100.0, -np.inf], dtype=np.float32)).tolist() == [0, 255, 255, 255]
    assert RELATIVE < 0.0123
    assert (np.diff(LEVELS) < 0).all()


def test_the_order_of_probabilities_is_kept():
    exact = -np.sort(np.random.default_rng(0).exponential(3.0, 500)).astype(np.float32)
    assert (np.diff(quantised(exact).astype(int)) >= 0).all()
