"""Sets of ids and log-probabilities in few bytes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillzoo.core.cache.coding import (
    FINEST,
    LARGEST,
    LEVELS,
    ORDERS,
    RELATIVE,
    gaps,
    ids_of,
    order,
    packed,
    quantised,
    unpacked,
)


def ints(values):
    return np.array(values, dtype=np.int64)


def bits(values, k):
    """Of the code of order k, by its definition."""
    return sum(2 * int(v // 2**k + 1).bit_length() - 1 + k for v in values)


@st.composite
def tables(draw):
    size = draw(st.integers(1, 70_000))
    sets = draw(st.lists(st.sets(st.integers(0, size - 1), min_size=1, max_size=40), max_size=6))
    return size, [sorted(ids) for ids in sets]


@given(tables())
@settings(max_examples=200, deadline=None)
def test_gaps_give_the_ids_and_are_as_small_as_can_be(table):
    size, sets = table
    ids, counts = ints([i for ids in sets for i in ids]), ints([len(ids) for ids in sets])
    found = gaps(ids, counts)
    assert ids_of(found, counts).tolist() == ids.tolist()
    for part, own in zip(np.split(found, np.cumsum(counts)[:-1]), sets, strict=False):
        assert 0 <= part.sum() == own[-1] + 1 - len(own) <= size - len(own)


@given(st.lists(st.tuples(st.integers(0, 2**32), st.integers(0, ORDERS[-1])), max_size=60))
@settings(max_examples=200, deadline=None)
def test_numbers_come_back_whatever_their_orders(pairs):
    values, orders = ints([v for v, _ in pairs]), ints([k for _, k in pairs])
    unary, remainders = packed(values, orders)
    assert unpacked(unary, remainders, orders).tolist() == values.tolist()
    assert 0 <= 8 * (len(unary) + len(remainders)) - sum(bits([v], k) for v, k in pairs) < 16


@given(st.lists(st.integers(0, 70_000), min_size=1))
@settings(deadline=None)
def test_the_order_is_the_best(values):
    found = order(ints(values))
    assert bits(values, found) == min(bits(values, k) for k in ORDERS)


@pytest.mark.parametrize(
    ("k", "codes"),
    [
        (0, [("1", ""), ("01", "0"), ("01", "1"), ("001", "00"), ("001", "01")]),
        (1, [("1", "0"), ("1", "1"), ("01", "00"), ("01", "01"), ("01", "10")]),
    ],
)
def test_the_code_is_that_of_its_name(k, codes):
    """The numbers from 0 on; behind the unary part are the bits of v + 2^k but its highest."""
    for value, parts in enumerate(codes):
        for stream, wanted in zip(packed(ints([value]), ints([k])), parts, strict=True):
            assert "".join(map(str, np.unpackbits(stream))) == wanted.ljust(8 * len(stream), "0")


def test_the_whole_vocabulary_takes_a_bit_a_token():
    gap = gaps(np.arange(1000), ints([1000]))
    unary, remainders = packed(gap, np.full(1000, order(gap)))
    assert len(unary) == 125
    assert len(remainders) == 0


def test_random_sets_come_near_their_entropy():
    """log2 C(V, k) bits a set is the least that any code needs for them on average; ours is within 6%."""
    from scipy.special import gammaln

    generator, size, k, n = np.random.default_rng(0), 49_152, 23, 400
    sets = [np.sort(generator.choice(size, k, replace=False)) for _ in range(n)]
    gap = gaps(np.concatenate(sets), np.full(n, k))
    least = (gammaln(size + 1) - gammaln(k + 1) - gammaln(size - k + 1)) / np.log(2) * n
    assert least <= bits(gap.tolist(), order(gap)) <= 1.06 * least


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
