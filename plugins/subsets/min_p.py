"""Tokens near the likeliest one."""

import math
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from distillzoo.core.logits import LogitView
from distillzoo.core.prefixes import prefixes
from distillzoo.core.subset import ActionSubset, Subset


class MinP(ActionSubset):
    """Tokens that are at least p times as probable as the teacher's likeliest one:

        A(s) = { a : pi_T(a|s) >= p max_b pi_T(b|s) }

    Sharp states get few tokens, flat ones many. At p = 0 it is the whole support of the teacher. Returns tables
    ``[N, K]`` with K the largest set.

    References:
        arXiv:2407.01082 (min-p sampling).
    """

    paper: ClassVar[str] = "arXiv:2407.01082"

    p: float = Field(0.1, ge=0, le=1, description="least share of the largest probability")
    k_max: int | None = Field(None, ge=1, description="largest set; null for no limit")

    @classmethod
    def examples(cls) -> Sequence["MinP"]:
        return [cls(), cls(p=1.0), cls(p=0.5, include_action=True), cls(p=0.01, k_max=2)]

    @classmethod
    def growing(cls) -> Sequence["MinP"]:
        return [cls(p=p) for p in (1.0, 0.5, 0.1, 0.001, 0.0)]

    def select(self, teacher: LogitView) -> Subset:
        below = math.log(self.p) if self.p > 0 else -math.inf
        return prefixes(teacher, lambda logprobs, rows: logprobs >= logprobs[:, :1] + below, self.k_max)
