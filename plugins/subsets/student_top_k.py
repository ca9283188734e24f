"""The k most probable tokens of the student."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field

from distillzoo.core.logits import LogitView
from distillzoo.core.subset import ActionSubset, Subset, listed


class StudentTopK(ActionSubset):
    """The k tokens with the largest student probability, the lower id first among equals, at the current weights:

        A_k(s) = {a_1, ..., a_k},  pi(a_1 | s) >= pi(a_2 | s) >= ...

    It holds what the student would say, also where the teacher wouldn't: on-policy objectives and the reverse KL look
    there. Tables ``[N, k]`` stand in the teacher's order and hold the teacher's log-probabilities, which may be -inf.
    The choice gives no gradient. Tokens without student probability are left out. The teacher's logits are asked at
    the k tokens and for one reduction over the vocabulary, in every step, so they can't be stored beforehand.

    References:
        arXiv:2306.13649, which distils where the student goes; the truncation is distillzoo's.
    """

    paper: ClassVar[str] = "distillzoo; arXiv:2306.13649"

    k: int = Field(32, ge=1, description="tokens a set")

    @classmethod
    def examples(cls) -> Sequence["StudentTopK"]:
        return [cls(k=1), cls(k=3), cls(), cls(k=2, include_action=True)]

    @classmethod
    def growing(cls) -> Sequence["StudentTopK"]:
        return [cls(k=k) for k in (1, 2, 5, 1 << 20)]

    @property
    def needs_student(self) -> bool:
        return True

    def select(self, teacher: LogitView) -> Subset:
        return self.choose(teacher, teacher)

    @torch.no_grad()
    def choose(self, teacher: LogitView, student: LogitView) -> Subset:
        logits, actions = student.top(self.k, torch.arange(student.rows, device=student.device))
        mask = logits > float("-inf")
        mask[:, 0] = True
        return listed(actions, mask, teacher.gather(actions) - teacher.logsumexp()[:, None])
