"""A nucleus whose size follows the teacher's entropy."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from distillzoo.core.logits import LogitView
from distillzoo.core.prefixes import entropy, prefixes, reaching
from distillzoo.core.subset import ActionSubset, Subset


class AdaptiveTopP(ActionSubset):
    """A nucleus with a p of its own in each state, which follows the teacher's entropy H(s):

        A(s) = {a_1, ..., a_n},  n = min( min { m : sum_{i <= m} pi_T(a_i | s) >= target_mass },
                                          max( 1, floor( target_size * exp H(s) ) ) )

    with a_1, a_2, ... the tokens in falling order of teacher probability. exp H(s), the teacher's perplexity, is the
    number of equal tokens that a state amounts to: where the teacher is sure the set is small and its mass high, where
    it hesitates the set is as large as it hesitates, and p(s) is the mass that this gives. Either target may be null.
    Returns tables ``[N, K]`` with K the largest set; one reduction over the teacher's vocabulary for H.

    References:
        distillzoo; arXiv:2505.20335 names a p fixed by hand as a limit.
    """

    paper: ClassVar[str] = "distillzoo; arXiv:2505.20335, limits"

    target_mass: float | None = Field(0.95, gt=0, le=1, description="teacher mass at which a set ends; null for none")
    target_size: float | None = Field(2.0, gt=0, description="largest set, in teacher perplexities; null for none")
    k_max: int | None = Field(None, ge=1, description="largest set of any state; null for no limit")

    @model_validator(mode="after")
    def _has_a_target(self) -> "AdaptiveTopP":
        if self.target_mass is None and self.target_size is None:
            raise ValueError("target_mass and target_size are both null: the sets would be the whole vocabulary")
        return self

    @classmethod
    def examples(cls) -> Sequence["AdaptiveTopP"]:
        return [cls(), cls(target_mass=None), cls(target_size=None), cls(target_size=0.5), cls(k_max=2)]

    @classmethod
    def growing(cls) -> Sequence["AdaptiveTopP"]:
        sizes = [cls(target_mass=None, target_size=size) for size in (0.1, 0.5, 1.0, 3.0)]
        return [*sizes, cls(target_mass=1.0, target_size=None)]

    def select(self, teacher: LogitView) -> Subset:
        size = None if self.target_size is None else (self.target_size * teacher.rowwise(entropy).exp()).floor()

        def keep(logprobs: Tensor, rows: Tensor) -> Tensor:
            within = torch.ones_like(logprobs, dtype=torch.bool)
            if self.target_mass is not None:
                within = reaching(logprobs, self.target_mass)
            if size is not None:
                rank = torch.arange(logprobs.shape[1], device=logprobs.device)
                within = within & (rank < size[rows, None])
            return within

        return prefixes(teacher, keep, self.k_max)
