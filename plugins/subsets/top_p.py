"""The nucleus of the teacher."""

from collections.abc import Sequence
from typing import ClassVar, Final

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from distillzoo.core.logits import LogitView
from distillzoo.core.subset import ActionSubset, Subset

FIRST_LOOK: Final = 64
"""Tokens looked at first; most sets are smaller."""

GROWTH: Final = 8
"""Factor by which the look grows for the states whose mass isn't reached."""

ROUNDING: Final = 16
"""Units in the last place that a running sum of probabilities may be off, so that two tokens of 1/4 do reach 1/2."""


class TopP(ActionSubset):
    """The nucleus: the smallest set of tokens, in order of teacher probability, whose teacher mass reaches p.

    With pi_T the teacher's distribution and a_1, a_2, ... the tokens in falling order of pi_T(. | s), the lower id
    first among equals,

        A_p(s) = {a_1, ..., a_n},  n = min { m : sum_{i <= m} pi_T(a_i | s) >= p }.

    The set is never empty. At p = 1 it is the whole support of the teacher. ``k_max`` cuts the largest sets, whose mass
    then stays below p; the logged ``teacher_mass`` shows it. Returns tables ``[N, K]`` with K the largest set.

    References:
        arXiv:2505.20335, section on the top-p subset; arXiv:1904.09751 for the nucleus.
    """

    paper: ClassVar[str] = "arXiv:2505.20335"

    p: float = Field(0.8, gt=0, le=1, description="teacher mass that a set must reach")
    k_max: int | None = Field(None, ge=1, description="largest set; null for no limit")

    @classmethod
    def examples(cls) -> Sequence["TopP"]:
        return [cls(), cls(p=0.3), cls(p=1.0), cls(p=0.95, k_max=2), cls(p=0.5, include_action=True)]

    @classmethod
    def growing(cls) -> Sequence["TopP"]:
        return [cls(p=p) for p in (0.1, 0.4, 0.7, 0.9, 0.99, 1.0)]

    def select(self, teacher: LogitView) -> Subset:
        with torch.no_grad():
            return self._select(teacher)

    def _select(self, teacher: LogitView) -> Subset:
        limit = min(teacher.size, self.k_max or teacher.size)
        total = teacher.logsumexp()
        rows = torch.arange(teacher.rows, device=teacher.device)
        found: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        look = min(FIRST_LOOK, limit)
        while True:
            logits, actions = teacher.top(look, rows)
            logprobs = logits - total[rows, None]
            keep = self._nucleus(logprobs)
            done = ~keep[:, -1] if look < limit else torch.ones_like(rows, dtype=torch.bool)
            found.append((rows[done], actions[done], logprobs[done], keep[done]))
            rows = rows[~done]
            if not len(rows):
                break
            look = min(look * GROWTH, limit)
        return _padded(teacher.rows, found)

    def _nucleus(self, logprobs: Float[Tensor, "M k"]) -> Bool[Tensor, "M k"]:
        """Which of the sorted tokens are in the set: those before which the mass is below p."""
        if self.p == 1.0:  # a sum of floats may reach 1 before the last token with a probability
            keep = logprobs > float("-inf")
            keep[:, 0] = True  # also where it is NaN, which must show
            return keep
        probs = logprobs.exp()
        before = probs.cumsum(1) - probs
        reach = self.p * (1 - ROUNDING * torch.finfo(probs.dtype).eps)
        keep = (before < reach) & (logprobs > float("-inf"))
        keep[:, 0] = True
        return keep


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
