"""The tokens of two subsets."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field, model_validator

from distillzoo.core.logits import LogitView
from distillzoo.core.subset import ActionSubset, Subset, WholeVocabulary, listed


class Union(ActionSubset):
    """The tokens of either of two subsets, each of them once:

        A(s) = { a : a in A_1(s) or a in A_2(s) }

    Say, the teacher's nucleus and what the student likes best: ``first: {name: top-p, p: 0.8}`` and
    ``second: {name: student-top-k, k: 8}``, or ``--set subset.first.name=top-p`` and so on. It asks the student's
    logits if one of the two does, and is the whole vocabulary if one of the two is. One of the two may have importance
    weights; the tokens of the other then have the weight 1, whether drawn or not, which keeps sums over the set
    unbiased. Returns tables ``[N, K]`` with K the largest set, in falling order of teacher probability.

    References:
        distillzoo.
    """

    paper: ClassVar[str] = "distillzoo"

    first: ActionSubset = Field(description="a subset: name, and its parameters")
    second: ActionSubset = Field(description="another subset: name, and its parameters")

    @model_validator(mode="after")
    def _adds_the_action_itself(self) -> "Union":
        if self.first.include_action or self.second.include_action:
            raise ValueError("include_action belongs to the union: set it there, and not on first or second")
        if self.first.weighted and self.second.weighted:
            raise ValueError(
                "only one of first and second may draw with importance weights, which a token that both draw can't "
                "have at once"
            )
        return self

    @classmethod
    def examples(cls) -> Sequence["Union"]:
        from distillzoo.core.checks.world import Best

        return [cls(first=Best(k=3), second=Best(k=1)), cls(first=Best(k=1), second=Best(), include_action=True)]

    @property
    def needs_teacher(self) -> bool:
        return self.first.needs_teacher and self.second.needs_teacher

    @property
    def needs_student(self) -> bool:
        return self.needs_teacher and (self.first.needs_student or self.second.needs_student)

    @property
    def draws(self) -> bool:
        return self.needs_teacher and (self.first.draws or self.second.draws)

    @property
    def weighted(self) -> bool:
        return self.needs_teacher and (self.first.weighted or self.second.weighted)

    def select(self, teacher: LogitView) -> Subset:
        return self.choose(teacher, teacher)

    @torch.no_grad()
    def choose(self, teacher: LogitView, student: LogitView) -> Subset:
        if not self.needs_teacher:
            return WholeVocabulary(teacher, teacher)
        parts = [
            p.choose(teacher, student) if p.needs_student else p.select(teacher) for p in (self.first, self.second)
        ]
        parts.sort(key=lambda found: found.weights is not None)  # of a token that both list, the weight 1 counts
        plain, other = parts
        weights = None
        if other.weights is not None:
            weights = torch.cat([plain.mask.to(other.weights.dtype), other.weights], 1)
        return listed(
            torch.cat([plain.actions, other.actions], 1),
            torch.cat([plain.mask, other.mask], 1),
            torch.cat([plain.logprobs, other.logprobs], 1),
            weights,
        )
