"""Triton kernels of the lazy head: what :mod:`distillzoo.core.factored` computes, without its chunks of float32.

The plain version of each is in that module, which also decides where these run. Sums and results are float32.
"""

from typing import Any, Final

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

PAIRS: Final = 16
"""Pairs that a program of ``pair_products`` takes, and summands that one of ``weighted_sums`` adds at a time."""

PAIR_DEPTH: Final = 128
"""Of these the part of the hidden size held at a time."""

ROWS: Final = 128
COLUMNS: Final = 128
"""States and tokens of a tile of logits."""

DEPTH_BYTES: Final = 128
"""Of a tile's factors the bytes of a row held at a time; three stages take 96 KiB, which every GPU since Ampere has."""

TRIAL_WIDTH: Final = 4 * DEPTH_BYTES
"""Numbers in a row of what ``try_out`` multiplies: more than all stages hold, so that all are used."""

PROGRAMS: Final = 1024
"""Programs among which ``logsumexp`` divides its tiles: several for each processor of the largest GPUs."""


@triton.jit
def _pair_products(
    values: tl.tensor,
    hidden: tl.tensor,
    weight: tl.tensor,
    row: tl.tensor,
    action: tl.tensor,
    pairs: int,
    depth: int,
    hidden_stride: int,
    weight_stride: int,
    DTYPE: tl.constexpr,
    PAIRS: tl.constexpr,
    DEPTH: tl.constexpr,
) -> None:
    pair = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    known = pair < pairs
    states = hidden + tl.load(row + pair, mask=known, other=0)[:, None] * hidden_stride
    tokens = weight + tl.load(action + pair, mask=known, other=0)[:, None] * weight_stride
    products = tl.zeros((PAIRS, DEPTH), tl.float32)
    for begin in range(0, depth, DEPTH):
        place = (begin + tl.arange(0, DEPTH))[None, :]
        asked = known[:, None] & (place < depth)
        state = tl.load(states + place, mask=asked, other=0.0).to(DTYPE).to(tl.float32)
        token = tl.load(tokens + place, mask=asked, other=0.0).to(DTYPE).to(tl.float32)
        products += state * token
    tl.store(values + pair, tl.sum(products, 1), mask=known)


@triton.jit
def _weighted_sums(
    sums: tl.tensor,
    table: tl.tensor,
    index: tl.tensor,
    start: tl.tensor,
    factor: tl.tensor,
    groups: int,
    pairs: int,
    depth: int,
    table_stride: int,
    DTYPE: tl.constexpr,
    PAIRS: tl.constexpr,
    DEPTH: tl.constexpr,
) -> None:
    group = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * DEPTH + tl.arange(0, DEPTH)
    inside = place < depth
    first = tl.load(start + group)
    end = tl.load(start + group + 1, mask=group + 1 < groups, other=pairs)
    total = tl.zeros((PAIRS, DEPTH), tl.float32)
    for begin in range(first, end, PAIRS):
        pair = begin + tl.arange(0, PAIRS)
        known = pair < end
        rows = table + tl.load(index + pair, mask=known, other=0)[:, None] * table_stride
        values = tl.load(rows + place[None, :], mask=known[:, None] & inside[None, :], other=0.0)
        scale = tl.load(factor + pair, mask=known, other=0.0).to(tl.float32)
        total += scale[:, None] * values.to(DTYPE).to(tl.float32)
    tl.store(sums + group * depth + place, tl.sum(total, 0), mask=inside)


@triton.jit
def _tile(
    hidden: tl.tensor,
    weight: tl.tensor,
    offset: tl.tensor,
    row: tl.tensor,
    column: tl.tensor,
    rows: int,
    size: int,
    depth: int,
    hidden_stride: int,
    weight_stride: int,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
) -> tl.tensor:
    """z of some rows and columns, ``-inf`` in columns that hold no token or lie beyond the last."""
    states = hidden + row.to(tl.int64)[:, None] * hidden_stride
    tokens = weight + column.to(tl.int64)[None, :] * weight_stride
    z = tl.zeros((ROWS, COLUMNS), tl.float32)
    for begin in range(0, depth, DEPTH):
        place = begin + tl.arange(0, DEPTH)
        state = tl.load(states + place[None, :], mask=(row[:, None] < rows) & (place[None, :] < depth), other=0.0)
        token = tl.load(tokens + place[:, None], mask=(column[None, :] < size) & (place[:, None] < depth), other=0.0)
        z = tl.dot(state, token, z, input_precision="ieee")  # TF32 keeps ten bits
    shift = tl.load(offset + column, mask=column < size, other=float("-inf"))[None, :]
    return tl.where(shift == float("-inf"), float("-inf"), z + shift)


@triton.jit
def _logsumexp(
    parts: tl.tensor,
    hidden: tl.tensor,
    weight: tl.tensor,
    offset: tl.tensor,
    rows: int,
    size: int,
    depth: int,
    hidden_stride: int,
    weight_stride: int,
    tiles: int,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
) -> None:
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    begin = tl.program_id(1) * tiles * COLUMNS
    largest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    for tile in range(0, tiles):
        column = begin + tile * COLUMNS + tl.arange(0, COLUMNS)
        z = _tile(
            hidden, weight, offset, row, column, rows, size, depth, hidden_stride, weight_stride, ROWS, COLUMNS, DEPTH
        )
        previous = largest
        largest = tl.maximum(previous, tl.max(z, 1))
        shift = tl.where(tl.abs(largest) == float("inf"), 0.0, largest)  # inf - inf is no number
        total = total * tl.exp(previous - shift) + tl.sum(tl.exp(z - shift[:, None]), 1)
    shift = tl.where(tl.abs(largest) == float("inf"), 0.0, largest)
    tl.store(parts + tl.program_id(1).to(tl.int64) * rows + row, shift + tl.log(total), mask=row < rows)


@triton.jit
def _softmax_gradient(
    result: tl.tensor,
    hidden: tl.tensor,
    weight: tl.tensor,
    offset: tl.tensor,
    logsumexp: tl.tensor,
    grad: tl.tensor,
    rows: int,
    size: int,
    depth: int,
    hidden_stride: int,
    weight_stride: int,
    result_stride: int,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
) -> None:
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    z = _tile(
        hidden, weight, offset, row, column, rows, size, depth, hidden_stride, weight_stride, ROWS, COLUMNS, DEPTH
    )
    known = row < rows
    shift = tl.load(logsumexp + row, mask=known, other=0.0)[:, None]
    scale = tl.load(grad + row, mask=known, other=0.0)[:, None]
    place = result + row.to(tl.int64)[:, None] * result_stride + column[None, :]
    value = scale * tl.exp(z - shift)
    tl.store(place, value.to(result.dtype.element_ty), mask=known[:, None] & (column[None, :] < result_stride))


def pair_products(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    row: Int[Tensor, "P"],
    action: Int[Tensor, "P"],
    dtype: torch.dtype,
) -> Float[Tensor, "P"]:
    """h[row_p] . W[action_p] for each pair p, float32; nothing of shape ``[P, D]`` exists.

    Args:
        hidden: ``[N, D]``.
        weight: ``[V, D]``.
        row: ``[P]``, rows of ``hidden``.
        action: ``[P]``, rows of ``weight``.
        dtype: what the factors are rounded to.
    """
    hidden, weight = _with_whole_rows(hidden), _with_whole_rows(weight)
    values = hidden.new_empty(len(row), dtype=torch.float32)
    _launch(
        _pair_products,
        (triton.cdiv(len(row), PAIRS),),
        *(values, hidden, weight, row.contiguous(), action.contiguous()),
        *(len(row), hidden.shape[1], hidden.stride(0), weight.stride(0)),
        DTYPE=_named(dtype),
        PAIRS=PAIRS,
        DEPTH=PAIR_DEPTH,
    )
    return values


def weighted_sums(
    table: Float[Tensor, "R D"],
    index: Int[Tensor, "P"],
    start: Int[Tensor, "G"],
    factor: Float[Tensor, "P"],
    dtype: torch.dtype,
) -> Float[Tensor, "G D"]:
    """sum over p in group g of factor_p table[index_p] for each group g, float32, always in the same order.

    Args:
        table: ``[R, D]``.
        index: ``[P]``, rows of ``table`` in the order of their groups.
        start: ``[G]``, rising; group g is the pairs from ``start[g]`` to the next start, the last one to the end.
        factor: ``[P]``.
        dtype: what the table is rounded to; the factors are not.
    """
    table = _with_whole_rows(table)
    groups, depth = len(start), table.shape[1]
    sums = table.new_empty((groups, depth), dtype=torch.float32)
    _launch(
        _weighted_sums,
        (groups, triton.cdiv(depth, PAIR_DEPTH)),
        *(sums, table, index.contiguous(), start.contiguous(), factor.contiguous()),
        *(groups, len(index), depth, table.stride(0)),
        DTYPE=_named(dtype),
        PAIRS=PAIRS,
        DEPTH=PAIR_DEPTH,
    )
    return sums


def logsumexp(
    hidden: Float[Tensor, "n D"],
    weight: Float[Tensor, "V_ D"],
    size: int,
    bias: Float[Tensor, "V_"] | None,
    holes: Int[Tensor, "H"] | None,
) -> Float[Tensor, "n"]:
    """log sum over v < V of exp z_v with z = h W^T + b, float32; no tensor of shape ``[n, V]`` exists.

    The vocabulary is divided among programs; each keeps a running maximum and sum over its tiles.

    Args:
        hidden: ``[n, D]``.
        weight: ``[V', D]`` in the type of ``hidden``; rows from ``size`` on are never read.
        size: V.
        bias: ``[V']`` or none.
        holes: ids below V that hold no token: z = -inf.
    """
    hidden, weight = _with_whole_rows(hidden), _with_whole_rows(weight)
    rows, blocks = len(hidden), _blocks(hidden)
    row_blocks, tiles = triton.cdiv(rows, blocks["ROWS"]), triton.cdiv(size, blocks["COLUMNS"])
    tiles_each = max(1, triton.cdiv(tiles * row_blocks, PROGRAMS))
    parts = hidden.new_empty((triton.cdiv(tiles, tiles_each), rows), dtype=torch.float32)
    _launch(
        _logsumexp,
        (row_blocks, len(parts)),
        *(parts, hidden, weight, _offset(weight, size, bias, holes)),
        *(rows, size, hidden.shape[1], hidden.stride(0), weight.stride(0), tiles_each),
        **blocks,
    )
    return parts.logsumexp(0)


def softmax_gradient(
    hidden: Float[Tensor, "n D"],
    weight: Float[Tensor, "V_ D"],
    size: int,
    bias: Float[Tensor, "V_"] | None,
    holes: Int[Tensor, "H"] | None,
    logsumexp: Float[Tensor, "n"],
    grad: Float[Tensor, "n"],
    dtype: torch.dtype,
) -> Float[Tensor, "n V"]:
    """grad exp(z - logsumexp) with z = h W^T + b: the gradient with respect to the logits of a chunk of rows.

    Args:
        hidden: ``[n, D]``.
        weight: ``[V', D]`` in the type of ``hidden``; rows from ``size`` on are never read.
        size: V.
        bias: ``[V']`` or none.
        holes: ids below V that hold no token: 0.
        logsumexp: ``[n]``, what :func:`logsumexp` gave for these rows.
        grad: ``[n]``, the gradient with respect to it.
        dtype: of the result, in which alone it is ever written.
    """
    hidden, weight = _with_whole_rows(hidden), _with_whole_rows(weight)
    rows, blocks = len(hidden), _blocks(hidden)
    # rows that begin at multiples of 16 bytes: cuBLAS is slow on others
    result = hidden.new_empty((rows, triton.cdiv(size, 16) * 16), dtype=dtype)
    _launch(
        _softmax_gradient,
        (triton.cdiv(rows, blocks["ROWS"]), triton.cdiv(size, blocks["COLUMNS"])),
        *(result, hidden, weight, _offset(weight, size, bias, holes), logsumexp.contiguous(), grad.contiguous()),
        *(rows, size, hidden.shape[1], hidden.stride(0), weight.stride(0), result.shape[1]),
        **blocks,
    )
    return result[:, :size]


def try_out(device: torch.device, dtype: torch.dtype) -> None:
    """Compile and run all kernels once, on tiles of full size and deep enough for all their stages.

    Raises:
        Exception: of the compiler or the driver, where this device can't.
    """
    states, tokens = (torch.ones(n, TRIAL_WIDTH, device=device, dtype=dtype) for n in (ROWS, COLUMNS))
    first = torch.zeros(1, dtype=torch.long, device=device)
    values = pair_products(states, tokens, first, first, dtype)
    weighted_sums(states, first, first, values, dtype)
    total = logsumexp(states, tokens, COLUMNS, None, None)
    softmax_gradient(states, tokens, COLUMNS, None, None, total, total, dtype)


def _launch(kernel: Any, grid: tuple[int, ...], *arguments: Tensor | int, **options: Any) -> None:
    if all(grid):  # CUDA refuses an empty grid
        with torch.cuda.device_of(arguments[0]):  # Triton launches on the current device, whatever that of the tensors
            kernel[grid](*arguments, **options)


def _blocks(hidden: Tensor) -> dict[str, int]:
    """The size of a tile, no taller than the rows need, and the warps and stages that go with it."""
    tall = min(ROWS, max(16, triton.next_power_of_2(len(hidden))))
    depth = DEPTH_BYTES // hidden.element_size()
    return {"ROWS": tall, "COLUMNS": COLUMNS, "DEPTH": depth, "num_warps": 8 if tall > 64 else 4, "num_stages": 3}


def _offset(weight: Tensor, size: int, bias: Tensor | None, holes: Tensor | None) -> Tensor:
    """What the kernels add to the product, ``[V]`` float32: the bias, ``-inf`` for ids without a token."""
    offset = weight.new_zeros(size, dtype=torch.float32)
    if bias is not None:
        offset.copy_(bias[:size])
    return offset if holes is None else offset.index_fill_(0, holes, float("-inf"))


def _with_whole_rows(matrix: Tensor) -> Tensor:
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()


def _named(dtype: torch.dtype) -> Any:
    return getattr(tl, str(dtype).removeprefix("torch."))
