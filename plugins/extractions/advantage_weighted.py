"""The teacher's policy weighed by exponentiated advantage."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from distillzoo.core.divergence import NEVER
from distillzoo.core.errors import UserError
from distillzoo.core.extraction import Decoding, PolicyExtraction
from distillzoo.core.logits import LogitView
from distillzoo.core.subset import SubsetQ, WholeVocabulary


class AdvantageWeighted(PolicyExtraction):
    """The best policy near the teacher's: what maximises E_pi[Q(s,.)] - beta KL(pi || pi_T) on the subset, with its
    value:

        pi(a|s) = pi_T(a|s) exp( (Q(s,a) - V(s)) / beta )
        V(s) = beta log sum_{a in A(s)} pi_T(a|s) exp(Q(s,a) / beta)

    Advantage weighting multiplies a behaviour policy by exp(advantage / beta) and clones the result; here the behaviour
    policy is the teacher itself and its probabilities are known, so no model of it is fitted. With Q = 0, or beta ever
    larger, it is the teacher renormalised on the subset; with beta ever smaller the greedy policy. Importance weights
    of a subset drawn at random count in the sum. ``[N]`` values and ``[N, M]`` log-probabilities, in nats.

    At use there is no teacher: decoding samples from exp(Q / beta), the student alone at the temperature beta, which is
    this policy only where the teacher is flat. A student that shall carry the teacher's factor too must learn it.

    On the whole vocabulary it needs the teacher's view, which a run has if its objective reads it.

    References:
        arXiv:1910.00177 (advantage-weighted regression), the policy that its regression projects on; arXiv:2006.09359.
    """

    paper: ClassVar[str] = "arXiv:1910.00177"
    value_is_potential: ClassVar[bool] = True

    beta: float = Field(1.0, gt=0, description="price of leaving the teacher, nats of Q a nat of KL; sharper below 1")

    @classmethod
    def examples(cls) -> Sequence["AdvantageWeighted"]:
        return [cls(), cls(beta=0.5)]

    def value(self, q: SubsetQ) -> Float[Tensor, "N"]:
        return self.beta * self._log_normaliser(q)

    def log_policy(self, q: SubsetQ, actions: Int[Tensor, "N M"]) -> Float[Tensor, "N M"]:
        return self._prior(q, actions) + q.view.gather(actions) / self.beta - self._log_normaliser(q)[:, None]

    def decoding(self) -> Decoding:
        return Decoding(temperature=self.beta)

    def _log_normaliser(self, q: SubsetQ) -> Float[Tensor, "N"]:
        """log sum over A(s) of pi_T(a|s) exp(Q(s,a) / beta)."""
        if q.subset.full:
            return q.view.rowwise(lambda z, t: (t.log_softmax(1) + z / self.beta).logsumexp(1), _teacher(q))
        scaled = q.values / self.beta + q.subset.logprobs
        return scaled.masked_fill(~q.subset.mask, -math.inf).logsumexp(1)

    def _prior(self, q: SubsetQ, actions: Int[Tensor, "N M"]) -> Float[Tensor, "N M"]:
        """log pi_T(a|s), and ``NEVER`` outside the subset."""
        if q.subset.full:
            teacher = _teacher(q)
            return (teacher.gather(actions) - teacher.logsumexp()[:, None]).detach().clamp(min=NEVER)
        nowhere = torch.iinfo(q.subset.actions.dtype).max
        known, order = q.subset.actions.masked_fill(~q.subset.mask, nowhere).sort(1)
        place = torch.searchsorted(known, actions.contiguous()).clamp(max=max(0, known.shape[1] - 1))
        found = q.subset.logprobs.gather(1, order).gather(1, place)
        return torch.where(known.gather(1, place) == actions, found, NEVER)


def _teacher(q: SubsetQ) -> LogitView:
    teacher = q.subset.teacher if isinstance(q.subset, WholeVocabulary) else None
    if teacher is None:
        raise UserError(
            "The extraction advantage-weighted reads the teacher's probabilities, and this run asks no teacher: its "
            "subset is the whole vocabulary and its objective needs none. Use a subset such as top-p."
        )
    return teacher
