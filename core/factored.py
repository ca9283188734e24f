"""Gather, logsumexp and row functions over a linear head, each with a backward pass that recomputes.

The three functions here never hold more than one chunk of logits. None supports a second derivative. On a CUDA device
the Triton kernels of :mod:`distillzoo.core.kernels` take over what they can; what stands here is their reference.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag

log = logging.getLogger(__name__)

PAIR_ELEMENTS: Final = 1 << 21
"""Numbers of a gathered chunk ``[pairs, D]``: 8 MiB in float32, small enough for a processor's cache."""

EXACT: Final = (torch.float32, torch.float64)
"""Types in which a product needs no wider sum."""

KERNEL_TYPES: Final = (torch.float32, torch.bfloat16, torch.float16)
"""Types that the Triton kernels take."""

WIDE_PRODUCTS: Final = hasattr(torch.ops.aten.mm, "dtype")
"""Whether this torch multiplies low-precision matrices into float32 on a GPU (from 2.8 on)."""


@dataclass(frozen=True)
class Head:
    """A linear output layer on the last hidden state.

    Attributes:
        weight: ``[V', D]``; rows from ``size`` on belong to no token and are never read.
        bias: ``[V']`` or none.
        size: V, the number of columns in use.
        holes: ids below ``size`` that hold no token; their logits are ``-inf``.
        sparse_gradient: whether the weight's gradient comes as cheaply as it can: from a gather as a sparse tensor with
            the rows of the asked tokens, from the whole vocabulary straight into the weight's ``grad``, without a
            tensor ``[V', D]`` of its own. Whoever sets it makes the sparse one dense where the optimiser needs that
            (autograd adds it to a dense one), and calls ``backward``, not ``autograd.grad``.
    """

    weight: Float[Tensor, "V_ D"]
    bias: Float[Tensor, "V_"] | None
    size: int
    holes: Int[Tensor, "H"] | None = None
    sparse_gradient: bool = False

    def logits(self, hidden: Float[Tensor, "n D"]) -> Float[Tensor, "n V"]:
        """All logits of a few states, in float32 (float64 for float64 inputs)."""
        dtype = compute_dtype(hidden)
        return _logits(hidden.to(dtype), self.used(dtype))

    def used(self, dtype: torch.dtype) -> "Head":
        """The V rows in use, the weight in the given type."""
        bias = None if self.bias is None else self.bias[: self.size]
        return Head(self.weight[: self.size].to(dtype), bias, self.size, self.holes)


def compute_dtype(hidden: Tensor) -> torch.dtype:
    """The data type of the products with the head: autocast's where it is on, else the hidden states'."""
    if torch.is_autocast_enabled(hidden.device.type):
        return torch.get_autocast_dtype(hidden.device.type)
    return hidden.dtype


def _kernels(dtype: torch.dtype, *tensors: Tensor | None) -> ModuleType | None:
    """``core.kernels`` where it can compute products of these tensors in this type, else none."""
    given = [tensor for tensor in tensors if tensor is not None]
    if dtype in KERNEL_TYPES and all(tensor.is_cuda and tensor.dtype in KERNEL_TYPES for tensor in given):
        return _kernels_on(given[0].device)
    return None


@cache
def _kernels_on(device: torch.device) -> ModuleType | None:
    """``core.kernels`` if they run there.

    It needs Triton, a C compiler for Triton's launchers, and a GPU that multiplies bfloat16.
    """
    try:
        if torch.cuda.get_device_capability(device) < (8, 0):
            return None
        from distillzoo.core import kernels  # not at the top: the start of a run without a GPU doesn't wait for Triton

        for dtype in (torch.float32, torch.bfloat16):
            kernels.try_out(device, dtype)
    except ImportError:
        return None
    except Exception as error:  # of the compiler or the driver, of many types
        log.warning("Triton's kernels cannot be used on %s (%s); PyTorch computes the same, slower.", device, error)
        return None
    return kernels


def _logits(hidden: Tensor, used: Head) -> Tensor:
    logits = _product(hidden, used.weight)
    if used.bias is not None:
        logits += used.bias
    if used.holes is not None and len(used.holes):
        logits.index_fill_(1, used.holes, float("-inf"))
    return logits


def _product(hidden: Tensor, weight: Tensor) -> Tensor:
    """h W^T with sums, and results, in float32 at least.

    A logit rounded to bfloat16 is off by up to 0.1 nats, and ``gather`` would not agree with ``logsumexp``.
    """
    with torch.autocast(hidden.device.type, enabled=False):  # it would round the result again
        if hidden.dtype in (torch.float32, torch.float64):
            return hidden @ weight.T
        if hidden.is_cuda and WIDE_PRODUCTS:
            return torch.mm(hidden, weight.T, out_dtype=torch.float32)
        if hidden.is_cuda:
            return _in_tf32(hidden.float(), weight.float().T)
        return hidden.float() @ weight.float().T


def _in_tf32(left: Tensor, right: Tensor) -> Tensor:
    """The product on tensor cores. TF32 keeps 10 bits behind the point: it rounds no bfloat16 or float16 number."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        return left @ right
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


class _HeadFunction(torch.autograd.Function):
    """What the vocabulary-wide functions share: the chain from dL/dlogits of a chunk to hidden states and head."""

    @staticmethod
    def backpropagate(
        ctx: Any, chunks: Sequence[Tensor | slice], grad_of_chunk: Callable[[Any, Tensor, Head], Tensor]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        hidden, weight, bias = ctx.inputs
        used, dtype = Head(weight, bias, ctx.size, ctx.holes).used(ctx.dtype), ctx.dtype
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        d_hidden = torch.zeros_like(hidden) if wants_hidden else None
        own = _own_gradient(weight) if wants_weight and ctx.direct else None
        d_weight = torch.zeros_like(weight) if wants_weight and own is None else own
        d_bias = torch.zeros_like(bias) if wants_bias else None
        for rows in chunks:
            states = hidden[rows].to(dtype)
            grad = grad_of_chunk(rows, states, used)
            low = grad.to(dtype)
            if d_hidden is not None:
                d_hidden[rows] = (low @ used.weight).to(hidden.dtype)
            if d_weight is not None and d_weight.dtype == dtype:
                d_weight[: ctx.size].addmm_(low.T, states)
            elif d_weight is not None:
                d_weight[: ctx.size] += low.T @ states
            if d_bias is not None:
                d_bias[: ctx.size] += grad.sum(0, dtype=torch.promote_types(grad.dtype, torch.float32)).to(d_bias.dtype)
            del grad, low  # before the next chunk's are made
        return d_hidden, d_weight if own is None else None, d_bias


def _own_gradient(weight: Tensor) -> Tensor | None:
    """The weight's ``grad``, made if there is none; nothing where only autograd can add to it.

    What a function returns for a weight that is tied to the embedding waits in memory, beside the activations, until
    the backward pass has come to the embedding.
    """
    if not weight.is_leaf or weight._backward_hooks:  # hooks are to see what is added
        return None
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return weight.grad if weight.grad.layout == torch.strided else None


def _remember(ctx: Any, head: Head, hidden: Tensor, *extra: Tensor | None) -> None:
    ctx.save_for_backward(hidden, head.weight, head.bias, *extra)
    ctx.size, ctx.holes, ctx.dtype, ctx.direct = head.size, head.holes, compute_dtype(hidden), head.sparse_gradient


class _LogSumExp(_HeadFunction):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, head: Head, step: int, part: int
    ) -> Tensor:
        dtype = compute_dtype(hidden)
        used = head.used(dtype)
        kernels = _kernels(dtype, hidden, weight, bias)
        kept = None
        if kernels is not None:
            result: Tensor = kernels.logsumexp(hidden.to(dtype), used.weight, used.size, used.bias, used.holes)
        elif len(hidden) <= step and any(ctx.needs_input_grad):  # one block may wait for the backward pass
            kept = _logits(hidden.to(dtype), used)
            result = reduced(kept, part)
        else:
            result = torch.cat([reduced(_logits(states.to(dtype), used), part) for states in hidden.split(step)])
        _remember(ctx, head, hidden, result, kept)
        ctx.step = step
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        hidden, weight, bias, result, kept = ctx.saved_tensors
        ctx.inputs = (hidden, weight, bias)
        chunks = [slice(start, start + ctx.step) for start in range(0, len(hidden), ctx.step)]

        kernels = _kernels(ctx.dtype, hidden, weight, bias)

        def softmax(rows: slice, states: Tensor, used: Head) -> Tensor:
            if kernels is None:
                relative = _logits(states, used).sub_(result[rows, None]) if kept is None else kept - result[:, None]
                return relative.exp_().mul_(grad[rows, None])
            chunk: Tensor = kernels.softmax_gradient(
                states, used.weight, used.size, used.bias, used.holes, result[rows], grad[rows], ctx.dtype
            )
            return chunk

        return (*_HeadFunction.backpropagate(ctx, chunks, softmax), None, None, None)


def reduced(logits: Tensor, step: int) -> Tensor:
    """logsumexp of each row; torch makes a copy of what it is given, so it gets ``step`` rows at a time."""
    return torch.cat([rows.logsumexp(1) for rows in logits.split(step)])


class _Rowwise(_HeadFunction):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: Head,
        fn: Callable[..., Tensor],
        other: Callable[[Tensor], Tensor] | None,
        chunks: list[Tensor],
        step: int,
    ) -> Tensor:
        _remember(ctx, head, hidden)
        ctx.fn, ctx.other, ctx.chunks, ctx.step = fn, other, chunks, step
        dtype = compute_dtype(hidden)
        used = head.used(dtype)  # in its type once and not for each chunk
        return torch.cat([_values(fn, _logits(hidden[rows].to(dtype), used), other, rows, step) for rows in chunks])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        ctx.inputs = ctx.saved_tensors

        def gradient(rows: Tensor, states: Tensor, used: Head) -> Tensor:
            logits = _logits(states, used)
            parts = _arguments(logits, ctx.other, rows, ctx.step)
            for (part, *theirs), slope in zip(parts, grad[rows].split(ctx.step), strict=True):
                with torch.enable_grad():
                    leaf = part.detach().requires_grad_()
                    value = ctx.fn(leaf, *theirs)
                part.copy_(torch.autograd.grad(value, leaf, slope)[0])  # the logits are not needed any more
            return logits

        return (*_HeadFunction.backpropagate(ctx, ctx.chunks, gradient), None, None, None, None, None)


def _values(
    fn: Callable[..., Tensor],
    logits: Tensor,
    other: Callable[[Tensor], Tensor] | None,
    rows: Tensor,
    step: int,
) -> Tensor:
    return torch.cat([fn(*part) for part in _arguments(logits, other, rows, step)])


def _arguments(
    logits: Tensor, other: Callable[[Tensor], Tensor] | None, rows: Tensor, step: int
) -> Iterator[tuple[Tensor, ...]]:
    """What a row function gets of a chunk, ``step`` rows at a time."""
    if other is None:
        return zip(logits.split(step))
    return zip(logits.split(step), other(rows).split(step), strict=True)


class _Gather(torch.autograd.Function):
    """h[row] . W[action] of pairs in the order of their rows; ``start[n]`` is the first pair of row n."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, start: Tensor, action: Tensor, sparse: bool
    ) -> Tensor:
        dtype = compute_dtype(hidden)
        ctx.save_for_backward(hidden, weight, bias, start, action)
        ctx.dtype, ctx.sparse = dtype, sparse
        kernels = _kernels(dtype, hidden, weight)
        if kernels is not None:
            values: Tensor = kernels.pair_products(hidden, weight, _rows(start, len(action)), action, dtype)
        elif hidden.device.type == "cpu" and hidden.dtype == weight.dtype == dtype and dtype in EXACT:
            values = _sampled_product(hidden, weight, start, action)
        else:
            values = _chunked_product(hidden, weight, _rows(start, len(action)), action, dtype)
        return values if bias is None else values + bias[action]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        hidden, weight, bias, start, action = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        d_hidden = d_weight = None
        if wants_hidden:
            d_hidden = _weighted_sums(weight, action, start, grad, ctx.dtype).to(hidden.dtype)
        if wants_weight:
            ordered, pair = action.sort(stable=True)
            touched, counts = ordered.unique_consecutive(return_counts=True)
            row = _rows(start, len(action))[pair]
            sums = _weighted_sums(hidden, row, counts.cumsum(0) - counts, grad[pair], ctx.dtype).to(weight.dtype)
            if ctx.sparse:
                d_weight = torch.sparse_coo_tensor(
                    touched[None], sums, weight.shape, is_coalesced=True, check_invariants=False
                )
            else:
                d_weight = torch.zeros_like(weight).index_copy_(0, touched, sums)
        d_bias = torch.zeros_like(bias).index_add_(0, action, grad.to(bias.dtype)) if wants_bias else None
        return d_hidden, d_weight, d_bias, None, None, None


def _rows(start: Tensor, pairs: int) -> Tensor:
    """The row of each pair."""
    ends = torch.cat([start[1:], start.new_full((1,), pairs)])
    numbers = torch.arange(len(start), device=start.device)
    return torch.repeat_interleave(numbers, ends - start, output_size=pairs)


def _sampled_product(hidden: Tensor, weight: Tensor, start: Tensor, action: Tensor) -> Tensor:
    """The pairs as the entries of a sparse matrix."""
    if not len(action):  # the entries of a matrix that has none
        return hidden.new_zeros(0)
    rows = torch.cat([start, start.new_full((1,), len(action))])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        pattern = torch.sparse_csr_tensor(
            rows, action, hidden.new_zeros(len(action)), (len(hidden), len(weight)), check_invariants=False
        )
        product: Tensor = torch.sparse.sampled_addmm(pattern, hidden.detach(), weight.detach().T, beta=0.0)
        return product.values()


def _chunked_product(hidden: Tensor, weight: Tensor, row: Tensor, action: Tensor, dtype: torch.dtype) -> Tensor:
    """The pairs in chunks of ``PAIR_ELEMENTS``, factors in the given type, sums in float32 at least."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    values = torch.empty(len(row), dtype=wide, device=hidden.device)
    for pairs in _parts(len(row), hidden.shape[1]):
        states, columns = hidden[row[pairs]].to(dtype).to(wide), weight[action[pairs]].to(dtype).to(wide)
        values[pairs] = (states * columns).sum(1)
    return values


def _weighted_sums(table: Tensor, index: Tensor, start: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """sum over i in group g of factor_i table[index_i], ``[groups, D]``; group g begins at ``start[g]``."""
    kernels = _kernels(dtype, table, factor)
    if kernels is not None:
        found: Tensor = kernels.weighted_sums(table, index, start, factor, dtype)
        return found
    if len(index) and table.dtype == dtype == factor.dtype:
        return embedding_bag(index, table, start, mode="sum", per_sample_weights=factor)
    sums = factor.new_zeros((len(start), table.shape[1]))
    group = _rows(start, len(index))
    for part in _parts(len(index), table.shape[1]):
        sums.index_add_(0, group[part], factor[part, None] * table[index[part]].to(dtype))
    return sums


def _parts(pairs: int, width: int) -> list[slice]:
    step = max(1, PAIR_ELEMENTS // width)
    return [slice(begin, begin + step) for begin in range(0, pairs, step)]


def head_logsumexp(
    hidden: Float[Tensor, "N D"], head: Head, block_elements: int, part_elements: int
) -> Float[Tensor, "N"]:
    """log sum over the vocabulary of exp z, in chunks of at most ``block_elements`` logits.

    A copy is made of at most ``part_elements`` at a time.
    """
    step, part = (max(1, elements // max(1, head.size)) for elements in (block_elements, part_elements))
    return _LogSumExp.apply(hidden, head.weight, head.bias, head, step, part)  # type: ignore[no-any-return]


def head_rowwise(
    hidden: Float[Tensor, "N D"],
    head: Head,
    fn: Callable[..., Tensor],
    other: Callable[[Tensor], Tensor] | None,
    chunks: list[Tensor],
    part_elements: int,
) -> Float[Tensor, "N"]:
    """``fn`` over each chunk of rows, at most ``part_elements`` logits at a time.

    ``other(rows)`` gives the second argument where there is one. Products with the head are as large as the chunks;
    what ``fn`` leaves in memory is as large as a part.
    """
    if not chunks:
        return hidden.sum(1)
    step = max(1, part_elements // max(1, head.size))
    return _Rowwise.apply(hidden, head.weight, head.bias, head, fn, other, chunks, step)  # type: ignore[no-any-return]


def gather_pairs(
    hidden: Float[Tensor, "N D"], head: Head, actions: Int[Tensor, "N K"], mask: Bool[Tensor, "N K"] | None
) -> Float[Tensor, "N K"]:
    """z of the pairs where ``mask`` is true, 0 elsewhere; nothing with the hidden size is computed for the others.

    A pair costs D multiplications; memory beyond the result is a chunk of ``PAIR_ELEMENTS`` numbers.
    """
    asked = torch.ones_like(actions, dtype=torch.bool) if mask is None else mask
    counts = asked.sum(1)
    row, column = asked.nonzero(as_tuple=True)
    action = actions[row, column]
    start = counts.cumsum(0) - counts
    values = _Gather.apply(hidden, head.weight, head.bias, start, action, head.sparse_gradient)
    if head.holes is not None and len(head.holes):
        values = values.masked_fill(torch.isin(action, head.holes), float("-inf"))
    table: Tensor = values.new_zeros(actions.shape)
    return table.index_put((row, column), values)
