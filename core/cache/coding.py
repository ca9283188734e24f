"""Sets of token ids and their log-probabilities in few bytes.

Ids of a set are sorted and coded by their gaps; log-probabilities take one of 256 levels and are coded by how far they
lie above the lowest level of their set. Both are small numbers with a long tail: the exponential Golomb code of order k
takes k bits and twice the logarithm of what is beyond them. It fits numbers whose scale varies, as the gaps do: the ids
of likely tokens are dense where ids are low.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]

FINEST: Final = 0.05
"""c in the scale of log-probabilities, nats."""

LARGEST: Final = 24.0
"""Largest -log p that has a code, nats; smaller probabilities are stored as this one, e^-24."""

STEP: Final = float(np.log1p(LARGEST / FINEST)) / 255

RELATIVE: Final = float(np.expm1(STEP / 2))
"""A stored log p in range is off by at most this share of (-log p + 0.05)."""

ORDERS: Final = range(24)
"""Orders of the code that are tried."""


def quantised(logprobs: NDArray[np.float32]) -> Bytes:
    """Codes 0 to 255 of log-probabilities in nats, evenly spaced in log(1 + x / 0.05) with x = -log p.

    So log p is off by at most about 1.2% of x + 0.05: less than 0.001 nats where p is near 1.
    """
    x = np.clip(-logprobs.astype(np.float64), 0.0, LARGEST)
    return np.rint(np.log1p(x / FINEST) / STEP).astype(np.uint8)


LEVELS: Final = (-FINEST * np.expm1(STEP * np.arange(256))).astype(np.float32)
"""The log-probability of each code, in nats."""


def gaps(ids: Ints, counts: Ints) -> Ints:
    """Ids left out before each one, sets of ``counts`` ids one after the other, each in rising order and not empty."""
    before = np.empty_like(ids)
    before[1:], before[np.cumsum(counts) - counts] = ids[:-1], -1
    return ids - before - 1


def ids_of(gap: Ints, counts: Ints) -> Ints:
    """The ids that ``gaps`` got."""
    running = np.cumsum(gap + 1)
    base = np.concatenate([[0], running])[np.cumsum(counts) - counts]
    ids: Ints = running - np.repeat(base, counts) - 1
    return ids


def order(values: Ints) -> int:
    """The order k in which the values take the fewest bits."""
    total = [int((2 * _extra(values, k) + 1 + k).sum()) for k in ORDERS]
    return int(np.argmin(total))


def packed(values: Ints, orders: Ints) -> tuple[Bytes, Bytes]:
    """Numbers from 0 on, each in the code of its order.

    With b the number of bits of v / 2^k + 1, rounded down, but one: b zeros and a one in the first stream, the b + k
    lowest bits of v + 2^k in the second.
    """
    extra = _extra(values, orders)
    ones = np.cumsum(extra + 1) - 1
    unary = np.zeros(int(ones[-1]) + 1 if len(ones) else 0, dtype=np.uint8)
    unary[ones] = 1
    return np.packbits(unary), np.packbits(_spread(values + (1 << orders), extra + orders))


def unpacked(unary: Bytes, remainders: Bytes, orders: Ints) -> Ints:
    """The values that ``packed`` got."""
    ones = np.flatnonzero(np.unpackbits(unary))
    bits = np.diff(ones, prepend=-1) - 1 + orders
    values: Ints = (1 << bits) + _gathered(remainders, bits) - (1 << orders)
    return values


def _extra(values: Ints, orders: Ints | int) -> Ints:
    """b in the code of each value."""
    bits: Ints = np.frexp((values >> orders) + 1)[1].astype(np.int64) - 1
    return bits


def _spread(values: Ints, bits: Ints) -> Bytes:
    """The lowest bits of the values, to each its own number of them, the highest first."""
    end = np.cumsum(bits)
    found = np.zeros(int(end[-1]) if len(end) else 0, dtype=np.uint8)
    for place in range(int(bits.max(initial=0))):
        wide = bits > place
        found[end[wide] - 1 - place] = (values[wide] >> place) & 1
    return found


def _gathered(data: Bytes, bits: Ints) -> Ints:
    """The values that ``_spread`` got, without what it left out: each from the eight bytes that it begins in."""
    start = np.cumsum(bits) - bits
    padded = np.concatenate([data, np.zeros(8, dtype=np.uint8)])
    words = np.ndarray(len(data) + 1, dtype=">u8", buffer=padded, strides=(1,))
    window = words[start >> 3].astype(np.uint64) << (start & 7).astype(np.uint64)
    values: Ints = (window >> 1 >> (63 - bits).astype(np.uint64)).astype(np.int64)  # a shift by 64 is undefined
    return values
