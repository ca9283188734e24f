"""Logits that are computed only where an objective asks for them."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from distillzoo.core.factored import Head, gather_pairs, head_logsumexp, head_rowwise, reduced

BLOCK_ELEMENTS: Final = 1 << 24
"""Logits that a vocabulary-wide reduction holds at a time on a CPU, of all its models: 64 MiB in float32.

Products with the head want large blocks, since each reads the whole head.
"""

PART_ELEMENTS: Final = 1 << 19
"""Of a block, logits that a function of rows gets at a time on a CPU: it makes a handful of tensors of that size."""

WIDE_BLOCK_ELEMENTS: Final = 1 << 27
"""The same on a GPU, where small products leave it idle: 512 MiB."""

BLOCK_SHARE: Final = 1 / 16
"""Of a GPU's free memory that such a block may take; a few of them live at a time."""


def block_elements(device: torch.device, views: int = 1) -> int:
    """Logits that a vocabulary-wide reduction of so many views holds at a time of each.

    Fewer where a GPU's memory is short. The last bits of a gradient depend on it.
    """
    if device.type != "cuda":
        return BLOCK_ELEMENTS // views
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + cached
    return max(1, min(WIDE_BLOCK_ELEMENTS, int(BLOCK_SHARE * free) // 4))


def part_elements(device: torch.device) -> int:
    """Of a block's logits, those that a function of rows gets at a time."""
    return block_elements(device) if device.type == "cuda" else PART_ELEMENTS


RowFunction = Callable[..., Tensor]
"""``fn(chunk [n, V]) -> [n]`` or ``fn(chunk [n, V], other's chunk [n, V]) -> [n]``."""


class LogitView(ABC):
    """The logits z of N states over the V tokens of the shared vocabulary, computed when asked.

    An objective can't tell whether it has a tensor or hidden states and a head, so it is fast as soon as it asks for
    little. Columns without a token are ``-inf`` and never picked.
    """

    rows: int
    """N, the number of states."""
    size: int
    """V, the number of columns: one more than the largest token id of the shared vocabulary."""
    holes: Tensor | None
    """Columns that hold no token, if any."""
    device: torch.device

    @property
    def tokens(self) -> int:
        """Number of columns that hold a token."""
        return self.size - (0 if self.holes is None else len(self.holes))

    @abstractmethod
    def gather(self, actions: Int[Tensor, "N K"], mask: Bool[Tensor, "N K"] | None = None) -> Float[Tensor, "N K"]:
        """z(s, a) of the asked pairs; 0 where ``mask`` is false. Differentiable."""

    @abstractmethod
    def logsumexp(self, rows: Int[Tensor, "M"] | None = None) -> Float[Tensor, "M"]:
        """log sum over V of exp z(s, .), of all rows or of the asked ones. Differentiable."""

    @abstractmethod
    def rowwise(self, fn: RowFunction, other: "LogitView | None" = None) -> Float[Tensor, "N"]:
        """``fn`` over chunks of rows, recomputed in the backward pass.

        ``fn(chunk)``, or ``fn(chunk, other's chunk)`` where ``other`` is given, turns ``[n, V]`` into ``[n]``, row by
        row. The result is differentiable with respect to this view's logits; ``other`` is a constant.
        """

    @abstractmethod
    def block(self, rows: Int[Tensor, "M"]) -> Float[Tensor, "M V"]:
        """All logits of some rows, without gradient."""

    def select(self, action: Int[Tensor, "N"]) -> Float[Tensor, "N"]:
        """z(s, a) of one action a state. Differentiable."""
        return self.gather(action[:, None])[:, 0]

    def tempered_logsumexp(self, temperature: float) -> Float[Tensor, "N"]:
        """log sum over V of exp(z(s, .) / temperature). Differentiable."""
        if temperature == 1.0:
            return self.logsumexp()
        return self.rowwise(lambda z: (z / temperature).logsumexp(1))

    def chunks(self, views: int = 1) -> list[Tensor]:
        """Row numbers, cut so that a block of each of so many views stays within ``block_elements``."""
        step = max(1, block_elements(self.device, views) // max(1, self.size))
        return list(torch.arange(self.rows, device=self.device).split(step)) if self.rows else []

    @torch.no_grad()
    def argmax(self) -> Int[Tensor, "N"]:
        """The token with the largest logit, the lowest id among equals. No gradient."""
        found = [self.block(rows).argmax(1) for rows in self.chunks()]
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.long, device=self.device)

    def max(self) -> Float[Tensor, "N"]:
        """max over V of z(s, .). Differentiable: the gradient goes to the largest logit."""
        return self.select(self.argmax())

    @torch.no_grad()
    def top(self, k: int, rows: Int[Tensor, "M"]) -> tuple[Float[Tensor, "M k"], Int[Tensor, "M k"]]:
        """The k largest logits of some rows and their tokens, in falling order, the lower id first among equals."""
        values, tokens = zip(*(_top(self.block(part), k) for part in self._parts(rows)), strict=True)
        return torch.cat(values), torch.cat(tokens)

    def _parts(self, rows: Int[Tensor, "M"]) -> tuple[Tensor, ...]:
        return tuple(rows.split(max(1, block_elements(self.device) // max(1, self.size))))


def _top(block: Float[Tensor, "M V"], k: int) -> tuple[Float[Tensor, "M k"], Int[Tensor, "M k"]]:
    if 4 * k > block.shape[1]:  # a selection of so many costs more than a sort
        values, tokens = block.sort(dim=1, descending=True, stable=True)
        return values[:, :k], tokens[:, :k]
    values, tokens = block.topk(k + 1, dim=1)
    tied = values[:, k - 1] == values[:, k]
    tokens, order = tokens[:, :k].sort(dim=1)
    values, by_value = values[:, :k].gather(1, order).sort(dim=1, descending=True, stable=True)
    tokens = tokens.gather(1, by_value)
    if bool(tied.any()):  # topk picks any of the equals at its edge; a set must not depend on that
        at_edge = values[tied] == values[tied][:, -1:]
        equal = block[tied] == values[tied][:, -1:]
        lowest = equal & (equal.cumsum(1) <= at_edge.sum(1, keepdim=True))
        tokens[tied] = tokens[tied].masked_scatter(at_edge, lowest.nonzero()[:, 1])
    return values, tokens


class DenseLogits(LogitView):
    """A view on a tensor of logits, for models whose head is not a plain linear layer and for tests.

    Args:
        logits: ``[N, V']``; columns from ``size`` on are left out.
        size: V, all columns if not given.
        holes: columns below ``size`` that hold no token.
    """

    def __init__(
        self, logits: Float[Tensor, "N V_"], size: int | None = None, holes: Int[Tensor, "H"] | None = None
    ) -> None:
        logits = logits[:, :size]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if holes is not None and len(holes):
            logits = logits.index_fill(1, holes, float("-inf"))
        self.logits = logits
        self.rows, self.size = logits.shape
        self.holes = holes
        self.device = logits.device

    def gather(self, actions: Int[Tensor, "N K"], mask: Bool[Tensor, "N K"] | None = None) -> Float[Tensor, "N K"]:
        values = self.logits.gather(1, actions)
        return values if mask is None else values.masked_fill(~mask, 0.0)

    def logsumexp(self, rows: Int[Tensor, "M"] | None = None) -> Float[Tensor, "M"]:
        return (self.logits if rows is None else self.logits[rows]).logsumexp(1)

    def rowwise(self, fn: RowFunction, other: LogitView | None = None) -> Float[Tensor, "N"]:
        parts = [fn(self.logits[r]) if other is None else fn(self.logits[r], other.block(r)) for r in self.chunks()]
        return torch.cat(parts) if parts else self.logits.sum(1)

    def block(self, rows: Int[Tensor, "M"]) -> Float[Tensor, "M V"]:
        return self.logits.detach()[rows]


class FactoredLogits(LogitView):
    """Logits as hidden states times a head, z = h W^T + b: nothing of shape ``[N, V]`` exists outside a chunk.

    Args:
        hidden: ``[N, D]``, the last hidden states of the N positions.
        head: weight ``[V', D]``, bias, number of columns and columns without a token.

    The matrix products run in the autocast data type where autocast is on, else in that of the inputs; sums run in
    float32 (float64 for float64 inputs).
    """

    def __init__(self, hidden: Float[Tensor, "N D"], head: Head) -> None:
        self.hidden, self.head = hidden, head
        self.rows, self.size, self.holes = hidden.shape[0], head.size, head.holes
        self.device = hidden.device
        self._logsumexp: Tensor | None = None

    def gather(self, actions: Int[Tensor, "N K"], mask: Bool[Tensor, "N K"] | None = None) -> Float[Tensor, "N K"]:
        return gather_pairs(self.hidden, self.head, actions, mask)

    def logsumexp(self, rows: Int[Tensor, "M"] | None = None) -> Float[Tensor, "M"]:
        if rows is not None and self._logsumexp is not None:
            return self._logsumexp[rows]
        if rows is not None:
            return self._reduced(self.hidden[rows])
        if self._logsumexp is None:  # several terms may need it; the vocabulary is read once
            self._logsumexp = self._reduced(self.hidden)
        return self._logsumexp

    def _reduced(self, hidden: Float[Tensor, "M D"]) -> Float[Tensor, "M"]:
        return head_logsumexp(hidden, self.head, block_elements(self.device), part_elements(self.device))

    def rowwise(self, fn: RowFunction, other: LogitView | None = None) -> Float[Tensor, "N"]:
        theirs, chunks = (None, self.chunks()) if other is None else (other.block, self.chunks(views=2))
        return head_rowwise(self.hidden, self.head, fn, theirs, chunks, part_elements(self.device))

    @torch.no_grad()
    def block(self, rows: Int[Tensor, "M"]) -> Float[Tensor, "M V"]:
        return self.head.logits(self.hidden[rows])

    @torch.no_grad()
    def top(self, k: int, rows: Int[Tensor, "M"]) -> tuple[Float[Tensor, "M k"], Int[Tensor, "M k"]]:
        trained = self.hidden.requires_grad or self.head.weight.requires_grad
        if trained or self._logsumexp is not None or not torch.equal(rows, torch.arange(self.rows, device=self.device)):
            return super().top(k, rows)
        step = max(1, part_elements(self.device) // max(1, self.size))
        found = []
        for part in self._parts(rows):  # who asks for these asks for the sums next, and the product is the dear part
            block = self.block(part)
            found.append((*_top(block, k), reduced(block, step)))
        values, tokens, self._logsumexp = (torch.cat(one) for one in zip(*found, strict=True))
        return values, tokens
