"""Behaviour cloning."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from distillzoo.core.divergence import bucketed
from distillzoo.core.objective import LossTerms, Objective, TDBatch, term


@dataclass(frozen=True)
class NLLTerms(LossTerms):
    """Terms of ``NLL``, ``[N]``, in nats."""

    nll: Float[Tensor, "N"] = term()


class NLL(Objective):
    """Negative log-likelihood of the taken action, that is behaviour cloning:

        L(s, a) = -log pi(a|s)

    with pi the extraction's policy. With ``softmax`` (or the subset ``full``) it is supervised fine-tuning. On a subset
    A(s) the tail is

    - ``renormalise``: with ``projected-softmax`` it is cloning inside the subset, where a row whose action the subset
      misses does not count;
    - ``bucket``: one further action stands for all tokens outside, -log(1 - pi(A|s)) where the action is one of them,
      with pi the softmax over the vocabulary whatever the extraction (one reduction).

    ``[N]`` terms in nats a token.

    References:
        Pomerleau 1991; arXiv:1606.07947 when the trajectories are the teacher's.
    """

    family: ClassVar[str] = "cloning"
    needs_logprobs: ClassVar[bool] = True

    tail: Literal["renormalise", "bucket"] = Field(
        "renormalise", description="what becomes of actions outside the subset: left out, or one action for all of them"
    )

    @classmethod
    def examples(cls) -> Sequence["NLL"]:
        return [cls(), cls(tail="bucket")]

    @property
    def needs_expert_rows(self) -> bool:
        return True

    @property
    def never_negative(self) -> bool:
        return True

    @property
    def gauge_free(self) -> bool:
        return True

    def terms(self, td: TDBatch) -> NLLTerms:
        if self.tail == "bucket" and not td.subset.full:
            log_policy = td.student.select(td.transitions.action) - td.student.logsumexp()
            return NLLTerms(nll=-torch.where(td.inside > 0, log_policy, bucketed(td)[1][:, -1]))
        action = td.transitions.action[:, None]
        return NLLTerms(nll=-td.extraction.log_policy(td.q, action)[:, 0] * td.counts)
