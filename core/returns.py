"""Returns: sums of rewards over the rest of a sequence."""

import torch
from jaxtyping import Float
from torch import Tensor

from distillzoo.core.transitions import Transitions


def to_go(table: Transitions, reward: Float[Tensor, "N"], discount: float = 1.0) -> Float[Tensor, "N"]:
    """R_t = sum over t' >= t of discount^(t' - t) reward_t', along the rows of each row's sequence, ``[N]``.

    The return of a truncated sequence is that of what was seen. Differentiable in ``reward``. Each round joins two
    stretches of equal length, so log2 N rounds reach the end of the longest sequence.
    """
    total, hop, factor = reward, table.successor, discount
    for _ in range(len(table).bit_length()):
        ahead, inside = hop.clamp(min=0), hop >= 0
        total = total + factor * torch.where(inside, total[ahead], 0.0)
        hop = torch.where(inside, hop[ahead], hop)
        factor = factor * factor
    return total
