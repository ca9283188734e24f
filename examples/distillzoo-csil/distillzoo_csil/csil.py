"""The objective csil: coherent soft imitation learning."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from distillzoo.core.objective import LossTerms, Objective, TDBatch, term, watched
from distillzoo.core.subset import ActionSubset


@dataclass(frozen=True)
class CSILTerms(LossTerms):
    """Terms of ``CSIL``, ``[N]``. ``clone`` and ``bellman`` make the loss; the others are watched."""

    clone: Float[Tensor, "N"] = term()
    """clone_weight * -log pi(a|s), in nats."""
    bellman: Float[Tensor, "N"] = term()
    """delta^2 / 2."""
    coherent_reward: Float[Tensor, "N"] = watched()
    """r(s,a), in nats; 0 in the rows without a Bellman term."""
    soft_value: Float[Tensor, "N"] = watched()
    """V(s), in nats; with the gauge ``raw`` it goes to 0."""


class CSIL(Objective):
    """Coherent soft imitation learning, with the white-box teacher in the place of the cloned policy.

    Soft policy improvement on a critic Q, from a prior p, gives pi = p exp((Q - V) / alpha). Inverted, it gives a
    reward for which a known policy is soft-optimal, so that cloning it and reinforcement learning agree. With p uniform
    on the subset A(s) and pi_T the teacher renormalised on A(s), the coherent reward is

        r(s,a) = alpha log( pi_T(a|s) / p(a|s) ) = alpha ( log pi_T(a|s) + log |A(s)| )

    and with Q the student's logits, value and policy under the same prior are

        V(s) = alpha log( 1/|A(s)| sum_{b in A(s)} exp(Q(s,b) / alpha) )
        pi(a|s) = exp((Q(s,a) - V(s)) / alpha) / |A(s)|

    The loss a row is cloning plus the soft Bellman residual, half its square, with the successor's value held fixed:

        L(s, a, s') = clone_weight * ( -log pi(a|s) )  +  delta^2 / 2
        delta = Q(s,a) - r(s,a) - gamma stopgrad V(s')

    Coherence: at Q = r in every state V(s) = alpha log sum_b pi_T(b|s) = 0, so delta = 0 for every gamma, and pi = pi_T
    minimises the cloning term over the teacher's answers. No other Q has delta = 0 for all actions of all sets: V = 0
    after the end of sequence, so Q = r where every action ends, so V = 0 there, and so on back to the first state.

    Q = r also fixes the level of the logits, a constant a state that the policy does not show, and a pretrained student
    starts with another one (V is about 15 in the micro world). Only the taken action's logit is in delta, so while the
    level falls the policy goes astray. The gauge ``subset-max`` therefore compares both critics with their maximum over
    the subset as zero: with m(s) = max_{b in A(s)} Q(s,b) and m_T(s) = max_{b in A(s)} r(s,b),

        delta = Q(s,a) - m(s) - [ r(s,a) - m_T(s) + gamma m_T(s') ] - gamma stopgrad( V(s') - m(s') )

    The bracket is the coherent reward shaped by the potential m_T, which changes no optimal policy; delta is 0 at
    Q = r plus any constant a state. ``raw`` is the formula above, with Q as it is.

    V(s') = m(s') = m_T(s') = 0 after the end-of-sequence action. A row whose action the subset misses does not count;
    one without a known successor, at the end of a truncated sequence, keeps its cloning term only, and so does one
    whose action the teacher never takes, r = -inf. V is not the extraction's value: reward, prior and value must share
    one set and one temperature, else V is not 0 at Q = r. The extraction decodes only; give its temperature alpha's
    value.

    Nothing here holds the mass outside the subset: set ``support_weight``. ``[N]`` terms, nats a token.

    Differs from the paper:
        1. The reward comes from the teacher's log-probabilities, not from a policy cloned beforehand and then refined.
        2. Both phases are one loss on the given trajectories, Q is the policy too, and V is the exact logsumexp: there
           is no actor, no second critic, no target network, no penalty on dQ/da and no sampling from the student.
        3. The gauge.

    References:
        arXiv:2305.16498 (NeurIPS 2023), the coherent reward; Ng et al. 1999 for shaping by a potential.
    """

    paper: ClassVar[str] = "arXiv:2305.16498"

    alpha: float = Field(1.0, gt=0, description="temperature of reward, value and policy")
    gamma: float = Field(0.99, ge=0, le=1, description="discount of the successor's value")
    clone_weight: float = Field(1.0, ge=0, description="weight of -log pi(a|s)")
    gauge: Literal["raw", "subset-max"] = Field(
        "subset-max", description="constant subtracted from both critics in each state"
    )

    @classmethod
    def examples(cls) -> Sequence["CSIL"]:
        return [cls(), cls(gauge="raw"), cls(alpha=0.5, gamma=0.5), cls(clone_weight=0.0)]

    @property
    def never_negative(self) -> bool:
        return True

    @property
    def stationary_at_teacher(self) -> bool:
        return self.clone_weight == 0 and self.alpha == 1 and self.gauge_free

    @property
    def gauge_free(self) -> bool:
        return self.gauge != "raw"

    @property
    def stops_gradient(self) -> bool:
        return True

    def needs_teacher_view(self, subset: ActionSubset) -> bool:
        return not subset.needs_teacher

    def terms(self, td: TDBatch) -> CSILTerms:
        inside = td.inside > 0
        q = torch.where(inside, td.q_action, 0.0)
        log_sum = td.q.logsumexp(self.alpha)
        log_size = td.subset.size.to(log_sum.dtype).log()
        value = self.alpha * (log_sum - log_size)
        taken, best = (self.alpha * (logprob + log_size) for logprob in _teacher(td))
        counts = inside & td.transitions.known & (taken != float("-inf"))
        reward = torch.where(counts, taken, 0.0)
        if self.gauge == "raw":
            delta = q - reward - self.gamma * td.transitions.next_value(value.detach())
        else:
            level = td.q.max()
            ahead = td.transitions.next_value((value - level).detach() + best)
            delta = (q - level) - (reward - best) - self.gamma * ahead
        return CSILTerms(
            clone=self.clone_weight * torch.where(inside, log_sum - q / self.alpha, 0.0),
            bellman=torch.where(counts, delta, 0.0).square() / 2,
            coherent_reward=reward,
            soft_value=value,
        )


@torch.no_grad()
def _teacher(td: TDBatch) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
    """log pi_T of the taken action and of the likeliest one, renormalised on the subset."""
    action = td.transitions.action
    if td.subset.full:
        total = td.teacher.logsumexp()
        return td.teacher.select(action) - total, td.teacher.max() - total
    taken = (td.subset.actions == action[:, None]) & td.subset.mask
    log_mass = td.subset.mass.log()
    logprobs = td.subset.logprobs
    return torch.where(taken, logprobs, 0.0).sum(1) - log_mass, logprobs[:, :1].sum(1) - log_mass
