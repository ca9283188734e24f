"""Behaviour cloning."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from distillzoo.core.objective import LossTerms, Objective, TDBatch, term


@dataclass(frozen=True)
class NLLTerms(LossTerms):
    """Terms of ``NLL``, ``[N]``, in nats."""

    nll: Float[Tensor, "N"] = term()


class NLL(Objective):
    """Negative log-likelihood of the taken action, that is behaviour cloning:

        L(s, a) = -log pi(a|s)

    with pi the extraction's policy. With ``softmax`` (or the subset ``full``) it is supervised fine-tuning; with
    ``projected-softmax`` on a subset it is cloning inside the subset, where a row whose action the subset misses does
    not count. ``[N]`` terms in nats a token.

    References:
        Pomerleau 1991; arXiv:1606.07947 when the trajectories are the teacher's.
    """

    family: ClassVar[str] = "cloning"
    needs_logprobs: ClassVar[bool] = True

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
        action = td.transitions.action[:, None]
        return NLLTerms(nll=-td.extraction.log_policy(td.q, action)[:, 0] * td.counts)
