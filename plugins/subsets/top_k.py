"""The k most probable tokens of the teacher."""

from collections.abc import Sequence

import torch
from pydantic import Field

from distillzoo.core.logits import LogitView
from distillzoo.core.subset import ActionSubset, Subset


class TopK(ActionSubset):
    """The k tokens with the largest teacher probability, the lower id first among equals:

        A_k(s) = {a_1, ..., a_k},  pi_T(a_1 | s) >= pi_T(a_2 | s) >= ...

    Tokens without probability (logit -inf) are left out, so a set may be smaller than k; it is the whole vocabulary
    when k reaches its size. Returns tables ``[N, k]``.

    References:
        The usual truncation of stored teacher logits; arXiv:1805.04833 for sampling.
    """

    k: int = Field(32, ge=1, description="tokens a set")

    @classmethod
    def examples(cls) -> Sequence["TopK"]:
        return [cls(k=1), cls(k=3), cls(), cls(k=2, include_action=True)]

    @classmethod
    def growing(cls) -> Sequence["TopK"]:
        return [cls(k=k) for k in (1, 2, 5, 1 << 20)]

    def select(self, teacher: LogitView) -> Subset:
        with torch.no_grad():
            logits, actions = teacher.top(self.k, torch.arange(teacher.rows, device=teacher.device))
            logprobs = logits - teacher.logsumexp()[:, None]
            mask = logprobs > float("-inf")
            mask[:, 0] = True
            mass = logprobs.exp().sum(1).clamp(max=1.0)
            return Subset(actions.where(mask, 0), mask, logprobs.where(mask, 0.0), mass)
