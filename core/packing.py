"""Several sequences in one row, so that a model computes hardly any padding."""

import heapq
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import torch
from jaxtyping import Int
from torch import Tensor

LITTLE: Final = 0.05
"""Share of padding that isn't worth a plan."""

PLANS: Final = 32
"""Numbers of rows that are tried for a batch."""


@dataclass(frozen=True)
class Packed:
    """The tokens of a padded batch in fewer, fuller rows.

    Attributes:
        input_ids: ``[R, W]``.
        position_ids: ``[R, W]``; each sequence begins again at 0, by which models tell the sequences of a row apart.
        slot: ``[B, T]``, the place of each real token among the R W of the rows.
    """

    input_ids: Int[Tensor, "R W"]
    position_ids: Int[Tensor, "R W"]
    slot: Int[Tensor, "B T"]


def packed(
    input_ids: Int[Tensor, "B T"], attention_mask: Int[Tensor, "B T"], hidden_size: int, longest_row: int
) -> Packed | None:
    """The batch with sequences sharing rows, or None where that saves nothing.

    Args:
        input_ids: padded on either side.
        attention_mask: 1 at real tokens.
        hidden_size: D, for the cost of long rows.
        longest_row: most tokens that a row may have.
    """
    lengths = tuple(attention_mask.sum(1).tolist())
    plan = rows_of(lengths, input_ids.shape[1], hidden_size, longest_row)
    if plan is None:
        return None
    begin, width = [0] * len(lengths), max(sum(lengths[i] for i in row) for row in plan)
    for number, row in enumerate(plan):
        filled = number * width
        for i in row:
            begin[i] = filled
            filled += lengths[i]
    real = attention_mask.bool()
    within = attention_mask.cumsum(1) - 1
    slot = torch.tensor(begin, device=input_ids.device)[:, None] + within
    places = slot[real]
    ids, positions = (input_ids.new_zeros(len(plan) * width) for _ in range(2))
    ids[places], positions[places] = input_ids[real], within[real].to(positions.dtype)
    return Packed(ids.view(-1, width), positions.view(-1, width), slot)


@lru_cache(maxsize=8)  # a target network's plan is the student's, a live teacher's often
def rows_of(lengths: tuple[int, ...], padded: int, hidden_size: int, longest_row: int) -> list[list[int]] | None:
    """Which sequences share a row, or None where one a row has little padding or is cheapest.

    R rows of width W cost R W (1 + W / 6 D) in units of a token's linear layers: those take about 24 D^2 operations a
    layer and token, attention over the row 4 W D. In a plan the longest sequence left goes to the emptiest row.

    Args:
        lengths: tokens of each sequence.
        padded: width of the batch as it is.
        hidden_size: D.
        longest_row: the largest W.
    """
    total = sum(lengths)
    most = len(lengths)
    if total >= (1 - LITTLE) * most * padded:
        return None
    least = max(1, -(-total // longest_row))
    step = max(1, (most - least) // PLANS)
    best: list[list[int]] | None = None
    lowest = _cost(most, padded, hidden_size)
    for count in range(least, most + 1, step):
        rows, width = _dealt(lengths, count)
        cost = _cost(count, width, hidden_size)
        if width <= longest_row and cost < lowest:
            best, lowest = rows, cost
    return best


def _cost(rows: int, width: int, hidden_size: int) -> float:
    return rows * width * (1 + width / (6 * hidden_size))


def _dealt(lengths: tuple[int, ...], count: int) -> tuple[list[list[int]], int]:
    """The sequences in so many rows, and the fullest row's tokens."""
    rows: list[list[int]] = [[] for _ in range(count)]
    filled = [(0, number) for number in range(count)]
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        tokens, number = heapq.heappop(filled)
        rows[number].append(i)
        heapq.heappush(filled, (tokens + lengths[i], number))
    return rows, max(tokens for tokens, _ in filled)
