"""Sequence-level reverse KL by policy gradient."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from distillzoo.core.divergence import NEVER, relative_entropy
from distillzoo.core.objective import LossTerms, TDBatch, term, watched
from distillzoo.core.returns import PolicyGradient, accumulated


@dataclass(frozen=True)
class MiniLLMTerms(LossTerms):
    """Terms of ``MiniLLM``, ``[N]``. The first two make the loss; the others are watched."""

    policy_gradient: Float[Tensor, "N"] = term()
    """max(-A rho, -A clip(rho)); its value says little, its gradient is the policy gradient."""
    single_step: Float[Tensor, "N"] = term()
    """KL(pi || pi_T)(s), in nats."""
    log_ratio: Float[Tensor, "N"] = watched()
    """log pi_T(a|s) - log pi(a|s), in nats: minus it is an unbiased estimate of the reverse KL on the student's
    own samples."""
    importance: Float[Tensor, "N"] = watched()
    """rho."""


class MiniLLM(PolicyGradient):
    """Reverse KL of whole answers, KL(pi(y|x) || pi_T(y|x)), by policy gradient on the student's own samples.

    With the reward of the student as it is, without gradient,

        r_t = clip( (log pi_T(a_t|s_t) - log pi(a_t|s_t)) / reward_scale, +-reward_clip )
        R_t = sum_{t' >= t} gamma^(t' - t) r_t' / (T - t)        (T - t: the tokens that remain, t's own among them)

    and the advantage A_t, the whitened return over all tokens of the optimiser step, the loss a row is

        L_t = max( -A_t rho_t, -A_t clip(rho_t, 1 +- ratio_clip) )  +  KL(pi || pi_T)(s_t)
        rho_t = pi(a_t|s_t) / (probability under the policy that sampled a_t)

    The last term is the first step of the gradient, computed exactly, so A_t is made of R_{t+1}, 0 after the last
    token (``first_reward: next``). The gradient is then that of the sequence's reverse KL, up to whitening, clipping,
    the discount and the normalisation by length.

    Where it isn't known what sampled an action, rho is pi / pi: 1, with the gradient of log pi. That is right for
    samples of the student as it is, and treats an expert's answers as if the student had given them: keep those out of
    the mixture. A truncated answer has the return of what was seen: the divergence is that of the answers up to the
    length limit. A token that the teacher never gives counts as one with log-probability -10,000. The subset plays no
    role, except in the support term: rewards and single step read the whole distributions. ``[N]`` terms; the paper's
    language-modelling term on a plain corpus is the run's ``lm`` section.

    Where the student equals the teacher every reward is 0, and the gradient vanishes in every row, not only in
    expectation.

    Differs from the paper:
        1. gamma, reward_scale and reward_clip are of the released program, with the values of its scripts.
        2. The released program's return holds r_t too, so the single step counts twice: ``first_reward: current``.

    References:
        arXiv:2306.08543, the gradient's decomposition and its three strategies: the single step, teacher-mixed sampling
        (here a trajectory source) and the normalisation by length.
    """

    paper: ClassVar[str] = "arXiv:2306.08543"
    known_failures: ClassVar[Mapping[str, str]] = {
        "truncation": "the divergence is that of the answers up to the length limit, so what follows it has no reward"
    }

    gamma: float = Field(0.95, ge=0, le=1, description="discount of later rewards")
    reward_scale: float = Field(0.5, gt=0, description="rewards are divided by it")
    reward_clip: float = Field(100.0, gt=0, description="largest reward, either way, after the division")
    ratio_clip: float = Field(0.2, gt=0, description="how far rho may leave 1 to the advantage's good")
    length_normalise: bool = Field(True, description="divide a return by the number of tokens that it sums over")
    first_reward: Literal["next", "current"] = Field(
        "next", description="where a row's return begins: at the next token as in the paper, or at its own"
    )

    @classmethod
    def examples(cls) -> Sequence["MiniLLM"]:
        return [cls(), cls(first_reward="current", length_normalise=False)]

    @property
    def stationary_at_teacher(self) -> bool:
        return True

    @property
    def whitens(self) -> bool:
        return True

    def returns(self, td: TDBatch) -> Float[Tensor, "N"]:
        table = td.transitions
        reward = _log_ratio(td, self.log_policy(td).detach()) / self.reward_scale
        found = accumulated(table, reward.clamp(-self.reward_clip, self.reward_clip), self.gamma)
        if self.length_normalise:
            found = found / accumulated(table, torch.ones_like(found))
        return table.next_value(found) if self.first_reward == "next" else found

    def terms(self, td: TDBatch) -> MiniLLMTerms:
        log_pi = self.log_policy(td)
        importance = self.importance(td, log_pi)
        # a deviation of 0, as of a single token, must not blow the rounding of the mean up
        scale = (td.moments.deviation**2 + 1e-8) ** 0.5
        advantage = (self.returns(td) - td.moments.mean) / scale
        clipped = importance.clamp(1 - self.ratio_clip, 1 + self.ratio_clip)
        return MiniLLMTerms(
            policy_gradient=torch.maximum(-advantage * importance, -advantage * clipped),
            single_step=td.student.rowwise(_reverse_kl, td.teacher),
            log_ratio=_log_ratio(td, log_pi),
            importance=importance,
        )


def _log_ratio(td: TDBatch, log_pi: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
    teacher = (td.teacher.select(td.transitions.action) - td.teacher.logsumexp()).detach()
    return teacher.clamp(min=NEVER) - log_pi


def _reverse_kl(student: Float[Tensor, "n V"], teacher: Float[Tensor, "n V"]) -> Float[Tensor, "n"]:
    return relative_entropy(student.log_softmax(1).clamp(min=NEVER), teacher.log_softmax(1).clamp(min=NEVER)).sum(1)
