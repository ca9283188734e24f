"""The nucleus of the teacher."""

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from distillzoo.core.logits import LogitView
from distillzoo.core.prefixes import prefixes, reaching
from distillzoo.core.subset import ActionSubset, Subset


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
        return prefixes(teacher, lambda logprobs, rows: reaching(logprobs, self.p), self.k_max)
