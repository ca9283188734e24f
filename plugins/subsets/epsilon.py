"""Tokens above a probability."""

import math
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from distillzoo.core.logits import LogitView
from distillzoo.core.prefixes import prefixes
from distillzoo.core.subset import ActionSubset, Subset


class Epsilon(ActionSubset):
    """Tokens whose teacher probability is at least epsilon, and always the likeliest one:

        A(s) = { a : pi_T(a|s) >= epsilon }

    A set holds at most 1 / epsilon tokens. At epsilon = 0 it is the whole support of the teacher. Returns tables
    ``[N, K]`` with K the largest set.

    References:
        arXiv:2210.15191 (epsilon sampling).
    """

    paper: ClassVar[str] = "arXiv:2210.15191"

    epsilon: float = Field(0.01, ge=0, le=1, description="least teacher probability of a token")
    k_max: int | None = Field(None, ge=1, description="largest set; null for no limit")

    @classmethod
    def examples(cls) -> Sequence["Epsilon"]:
        return [cls(), cls(epsilon=0.9), cls(epsilon=0.2, include_action=True), cls(epsilon=0.001, k_max=2)]

    @classmethod
    def growing(cls) -> Sequence["Epsilon"]:
        return [cls(epsilon=epsilon) for epsilon in (0.5, 0.1, 0.01, 1e-6, 0.0)]

    def select(self, teacher: LogitView) -> Subset:
        least = math.log(self.epsilon) if self.epsilon > 0 else -math.inf
        return prefixes(teacher, lambda logprobs, rows: logprobs >= least, self.k_max)
