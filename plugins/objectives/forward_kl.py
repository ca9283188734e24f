"""KL(teacher || student)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from distillzoo.core.divergence import kl
from distillzoo.core.objective import LossTerms, Objective, TDBatch, term
from distillzoo.core.subset import ActionSubset, Subset

FLOOR: Final = 64
"""Least mass outside the subset, in units of the data type's precision, below which 1 - mass is noise."""


@dataclass(frozen=True)
class ForwardKLTerms(LossTerms):
    """Terms of ``ForwardKL``, ``[N]``, in nats."""

    forward_kl: Float[Tensor, "N"] = term()


class ForwardKL(Objective):
    """Forward KL divergence from the student to the teacher, in every visited state:

        KL(pi_T || pi)(s) = sum_a pi_T(a|s) (log pi_T(a|s) - log pi(a|s))

    With the subset ``full`` the sum runs over the vocabulary, in chunks. On another subset A(s) the tail is

    - ``renormalise``: both policies are renormalised on A(s); mass outside the subset is free;
    - ``bucket``: one further action holds the rest of the mass of each, so the student's mass on A(s) is held too.
      It is a lower bound of the full divergence (data processing inequality).

    pi is the softmax of the student's logits at temperature 1. ``[N]`` terms in nats a token, never negative.

    References:
        arXiv:1503.02531 (knowledge distillation) without the temperature.
    """

    paper: ClassVar[str] = "arXiv:1503.02531"

    tail: Literal["renormalise", "bucket"] = Field("bucket", description="what becomes of the mass outside the subset")

    @classmethod
    def examples(cls) -> Sequence["ForwardKL"]:
        return [cls(tail="bucket"), cls(tail="renormalise")]

    @property
    def never_negative(self) -> bool:
        return True

    @property
    def stationary_at_teacher(self) -> bool:
        return True

    @property
    def gauge_free(self) -> bool:
        return True

    def needs_teacher_view(self, subset: ActionSubset) -> bool:
        return not subset.needs_teacher

    def terms(self, td: TDBatch) -> ForwardKLTerms:
        if td.subset.full:
            return ForwardKLTerms(
                forward_kl=td.student.rowwise(lambda student, teacher: kl(teacher, student), td.teacher)
            )
        return ForwardKLTerms(forward_kl=self._on_subset(td))

    def _on_subset(self, td: TDBatch) -> Float[Tensor, "N"]:
        subset = td.subset
        if self.tail == "renormalise":
            teacher = subset.logprobs - subset.mass.log()[:, None]
            return _expectation(subset, teacher, td.q.values - td.q.logsumexp()[:, None])
        inside = _expectation(subset, subset.logprobs, td.q.values - td.student.logsumexp()[:, None])
        log_mass = td.q.logsumexp() - td.student.logsumexp()
        # a floor on the mass outside, in value only: the gradient must go on pulling the mass back there
        floor = -FLOOR * torch.finfo(inside.dtype).eps
        log_mass = log_mass + (log_mass.clamp(max=floor) - log_mass).detach()
        rest = torch.where(subset.size < td.student.tokens, 1.0 - subset.mass, 0.0).clamp(min=0.0)
        tail = torch.xlogy(rest, rest) - rest * torch.log(-torch.expm1(log_mass))
        return inside + torch.where(rest == 0, 0.0, tail)  # a NaN of the teacher must show


def _expectation(subset: Subset, log_p: Float[Tensor, "N K"], log_q: Float[Tensor, "N K"]) -> Float[Tensor, "N"]:
    """sum over the subset of p (log p - log q)."""
    some = subset.mask & (log_p != float("-inf"))  # an included action may have no probability: 0 log 0 = 0
    return torch.where(some, log_p.exp() * (log_p - log_q), 0.0).sum(1)
