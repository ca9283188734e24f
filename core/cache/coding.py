"""Sets of token ids and their log-probabilities in few bytes.

Ids of a set are sorted and coded by their gaps, each as a quotient in unary and a remainder of fixed width (Golomb's
code for widths that are powers of two, as Rice chose them). Log-probabilities take a byte.
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


def quantised(logprobs: NDArray[np.float32]) -> Bytes:
    """Codes 0 to 255 of log-probabilities in nats, evenly spaced in log(1 + x / 0.05) with x = -log p.

    So log p is off by at most about 1.2% of x + 0.05: less than 0.001 nats where p is near 1.
    """
    x = np.clip(-logprobs.astype(np.float64), 0.0, LARGEST)
    return np.rint(np.log1p(x / FINEST) / STEP).astype(np.uint8)


LEVELS: Final = (-FINEST * np.expm1(STEP * np.arange(256))).astype(np.float32)
"""The log-probability of each code, in nats."""


def width(size: int, count: Ints) -> Ints:
    """Bits of the remainders in a set of ``count`` of ``size`` ids: the best power of two below the mean gap."""
    mean = np.maximum(size / (count + 1) * np.log(2), 1.0)
    bits: Ints = np.floor(np.log2(mean)).astype(np.int64)
    return bits


def packed_ids(ids: Ints, counts: Ints, size: int) -> tuple[Bytes, Bytes]:
    """Quotients and remainders of the gaps.

    Args:
        ids: ``[E]``, the sets one after the other, each in rising order.
        counts: ``[N]``, how many ids each set has; none is empty.
        size: V, more than the largest id.
    """
    start = np.cumsum(counts) - counts
    before = np.empty_like(ids)
    before[1:], before[start] = ids[:-1], -1
    gap = ids - before - 1
    bits = np.repeat(width(size, counts), counts)
    quotient = gap >> bits
    ones = np.cumsum(quotient + 1) - 1
    unary = np.zeros(int(ones[-1]) + 1 if len(ones) else 0, dtype=np.uint8)
    unary[ones] = 1
    return np.packbits(unary), np.packbits(_spread(gap & ((1 << bits) - 1), bits))


def unpacked_ids(unary: Bytes, remainders: Bytes, counts: Ints, size: int) -> Ints:
    """The ids that ``packed_ids`` got."""
    total = int(counts.sum())
    bits = np.repeat(width(size, counts), counts)
    ones = np.flatnonzero(np.unpackbits(unary))[:total]
    quotient = np.diff(ones, prepend=-1) - 1
    gap = (quotient << bits) | _gathered(np.unpackbits(remainders), bits)
    running = np.cumsum(gap + 1)
    start = np.cumsum(counts) - counts
    base = np.concatenate([[0], running])[start]
    ids: Ints = running - np.repeat(base, counts) - 1
    return ids


def _spread(values: Ints, bits: Ints) -> Bytes:
    """The values as bits, each in its own width, the highest bit first."""
    end = np.cumsum(bits)
    found = np.zeros(int(end[-1]) if len(end) else 0, dtype=np.uint8)
    for place in range(int(bits.max(initial=0))):
        wide = bits > place
        found[end[wide] - 1 - place] = (values[wide] >> place) & 1
    return found


def _gathered(found: Bytes, bits: Ints) -> Ints:
    """The values that ``_spread`` got."""
    end = np.cumsum(bits)
    values = np.zeros(len(bits), dtype=np.int64)
    for place in range(int(bits.max(initial=0))):
        wide = bits > place
        values[wide] |= found[end[wide] - 1 - place].astype(np.int64) << place
    return values
