"""Subsets that are the first tokens of each state in falling order of teacher probability."""

from collections.abc import Callable
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from distillzoo.core.logits import LogitView
from distillzoo.core.subset import Subset

FIRST_LOOK: Final = 64
"""Tokens looked at first by ``prefixes``; most sets are smaller."""

GROWTH: Final = 8
"""Factor by which the look grows for the states whose set doesn't end within it."""

ROUNDING: Final = 16
"""Units in the last place that a running sum of probabilities may be off, so that two tokens of 1/4 do reach 1/2."""

Keep = Callable[[Tensor, Tensor], Tensor]
"""``keep(logprobs [M, k], rows [M]) -> [M, k]``: which of the k likeliest tokens of some rows are in their sets."""


@torch.no_grad()
def prefixes(teacher: LogitView, keep: Keep, k_max: int | None = None) -> Subset:
    """Sets that are the first tokens of each state in falling order of teacher probability, without sorting the rest.

    Args:
        teacher: the teacher's logits.
        keep: says which of the sorted tokens are in the set, a prefix of each row. The first is always kept, also
            where it is NaN, which must show; a token without probability never is.
        k_max: largest set, none for no limit.

    Returns:
        Tables ``[N, K]`` with K the largest set.
    """
    limit = min(teacher.size, k_max or teacher.size)
    rows = torch.arange(teacher.rows, device=teacher.device)
    found: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    look, total = min(FIRST_LOOK, limit), None
    while True:
        logits, actions = teacher.top(look, rows)
        total = teacher.logsumexp() if total is None else total  # a lazy view has summed beside the first look
        logprobs = logits - total[rows, None]
        kept = keep(logprobs, rows) & (logprobs > float("-inf"))
        kept[:, 0] = True
        done = ~kept[:, -1] if look < limit else torch.ones_like(rows, dtype=torch.bool)
        found.append((rows[done], actions[done], logprobs[done], kept[done]))
        rows = rows[~done]
        if not len(rows):
            break
        look = min(look * GROWTH, limit)
    return _padded(teacher.rows, found)


def _padded(n: int, found: list[tuple[Tensor, Tensor, Tensor, Tensor]]) -> Subset:
    """One table from parts of different widths, cut to the largest set."""
    first = found[0]
    width = max((int(keep.sum(1).max()) for rows, _, _, keep in found if len(rows)), default=0)
    actions = first[1].new_zeros((n, width))
    logprobs = first[2].new_zeros((n, width))
    mask = torch.zeros((n, width), dtype=torch.bool, device=actions.device)
    for rows, part_actions, part_logprobs, keep in found:
        columns = min(width, keep.shape[1])
        mask[rows, :columns] = keep[:, :columns]
        actions[rows, :columns] = part_actions[:, :columns].where(keep[:, :columns], 0)
        logprobs[rows, :columns] = part_logprobs[:, :columns].where(keep[:, :columns], 0.0)
    mass = torch.where(mask, logprobs.exp(), 0.0).sum(1).clamp(max=1.0)
    return Subset(actions, mask, logprobs, mass)


def reaching(logprobs: Tensor, p: float) -> Tensor:
    """Which of the sorted tokens ``[M, k]`` are needed to reach the mass p: those before which the mass is below it."""
    if p == 1.0:  # a sum of floats may reach 1 before the last token with a probability
        return torch.ones_like(logprobs, dtype=torch.bool)
    probs = logprobs.exp()
    before = probs.cumsum(1) - probs
    return before < p * (1 - ROUNDING * torch.finfo(probs.dtype).eps)


def entropy(logits: Float[Tensor, "n V"]) -> Float[Tensor, "n"]:
    """Entropy H of softmax(logits) of each row, in nats, without gradient; for ``LogitView.rowwise``.

    From the weights w_a = pi(a) / pi(a_1) of all tokens but the likeliest,

        H = log(1 + W) + U / (1 + W),  W = sum_a w_a,  U = -sum_a w_a log w_a,

    sums of positive numbers, so that float32 keeps its relative precision on the sharpest rows too.
    """
    top, first = logits.max(1, keepdim=True)
    relative = logits - top
    weight = relative.exp().scatter(1, first, 0.0)
    rest = weight.sum(1)
    return (rest.log1p() + torch.where(weight > 0, -weight * relative, 0.0).sum(1) / (1 + rest)).detach()
