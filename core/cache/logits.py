"""The teacher's likeliest tokens as logits: what a subset can be chosen from without the teacher."""

from typing import NoReturn

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from distillzoo.core.errors import UserError
from distillzoo.core.logits import LogitView, RowFunction
from distillzoo.core.subset import ActionSubset, Subset

BEYOND = -1
"""Stands for the tokens that the cache doesn't hold."""


class CachedLogits(LogitView):
    """The first tokens of each state in falling order of teacher probability, with log-probabilities for logits.

    After a state's last token comes ``BEYOND`` with the most that any further token can have: the last one's
    log-probability, or all of the mass that is left. A set that would hold it is larger than what is stored.

    Args:
        subset: what is stored.
        size: V.
    """

    def __init__(self, subset: Subset, size: int) -> None:
        self.rows, self.size, self.holes = len(subset.actions), size, None
        self.device = subset.actions.device
        last = subset.mask.sum(1, keepdim=True) - 1
        left = (1 - subset.mass).clamp(min=torch.finfo(subset.mass.dtype).tiny).log()[:, None]
        least = torch.minimum(subset.logprobs.gather(1, last), left)
        self._logits = torch.cat([subset.logprobs.where(subset.mask, least), least], 1)
        self._tokens = torch.cat([subset.actions.where(subset.mask, BEYOND), torch.full_like(last, BEYOND)], 1)

    def top(self, k: int, rows: Int[Tensor, "M"]) -> tuple[Float[Tensor, "M k"], Int[Tensor, "M k"]]:
        return self._logits[rows, :k], self._tokens[rows, :k]

    def logsumexp(self, rows: Int[Tensor, "M"] | None = None) -> Float[Tensor, "M"]:
        return torch.zeros(self.rows if rows is None else len(rows), device=self.device)

    def gather(self, actions: Int[Tensor, "N K"], mask: Bool[Tensor, "N K"] | None = None) -> NoReturn:
        _refuse("asks for the teacher's logits of other tokens than the likeliest")

    def rowwise(self, fn: RowFunction, other: LogitView | None = None) -> NoReturn:
        _refuse("asks for the teacher's whole distribution")

    def block(self, rows: Int[Tensor, "M"]) -> NoReturn:
        _refuse("asks for the teacher's whole distribution")


def _refuse(what: str) -> NoReturn:
    raise UserError(f"The subset {what}, which a teacher cache doesn't hold. Leave --teacher-cache out.")


def served(subset: ActionSubset, stored: Subset, size: int) -> Subset:
    """The subset's sets, from those that are stored.

    Raises:
        UserError: some set is larger than what is stored, or needs more of the teacher than its likeliest tokens.
    """
    found = subset.select(CachedLogits(stored, size))
    short = ((found.actions == BEYOND) & found.mask).any(1)
    if bool(short.any()):
        raise UserError(
            f"The cache holds too few tokens for the subset {type(subset).__name__} in {int(short.sum())} of "
            f"{len(short)} states: {int(stored.size[short].max())} at most there. Build one with a larger subset."
        )
    return found
