"""Policy gradient with a reward that the teacher's logits imply."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from distillzoo.core.divergence import NEVER
from distillzoo.core.objective import LossTerms, TDBatch, term, watched
from distillzoo.core.returns import PolicyGradient, accumulated
from distillzoo.core.transitions import UNKNOWN


@dataclass(frozen=True)
class LLMRTerms(LossTerms):
    """Terms of ``LLMR``, ``[N]``. ``reinforce`` makes the loss; the others are watched."""

    reinforce: Float[Tensor, "N"] = term()
    """-log pi(a|s) times a constant weight."""
    reward: Float[Tensor, "N"] = watched()
    """r, in units of the teacher's logits; 0 in a truncated answer."""
    importance: Float[Tensor, "N"] = watched()
    """rho."""


class LLMR(PolicyGradient):
    """REINFORCE on the student's own samples with the reward that makes the teacher's logits a Q function.

    With f(s,a) = z_T(s,a) - mean_v z_T(s,v), the teacher's logits centred over the tokens that exist,

        r_t = f(s_t,a_t) - max_a f(s_{t+1},a),   the next value being 0 after the end
        L_t = -log pi(a_t|s_t) * w_t,   w_t = clip( rho_t sum_{t' >= t} r_t' / scale, +-clip ), without gradient
        rho_t = pi(a_t|s_t) / (probability under the policy that sampled a_t), 1 where that isn't known

    ``next_value: softmax`` takes sum_a softmax(f)(a) f(a) for the maximum. The sum telescopes: it is the value of s_t
    plus the advantages f(s,a) - max_a f(s,a) of the actions from t on. There is no baseline, so the value stays in it.

    A truncated answer does not count: what its return lacks is the largest logit of a state that the batch doesn't
    hold, and to leave it out would put a penalty of that size on every token before. The released program drops such
    answers too. A token that the teacher never gives counts as one with f = -10,000. The subset plays no role, except
    in the support term. ``[N]`` terms.

    Unknown: the paper's settings of ``scale``, ``clip`` and the softmax are in neither the paper's program nor its
    scripts, whose values are commented out. The defaults here are the plainest: no division, no clip, the maximum. The
    program's optional entropy bonus is left out.

    References:
        arXiv:2409.12500 (LREC-COLING 2024); the reward is that of arXiv:2210.08708.
    """

    paper: ClassVar[str] = "arXiv:2409.12500"
    known_failures: ClassVar[Mapping[str, str]] = {
        "learns": "it seeks the largest return, on the student's samples, and not the teacher's distribution"
    }

    next_value: Literal["max", "softmax"] = Field("max", description="value of the next state, from f")
    scale: float = Field(1.0, gt=0, description="returns are divided by it")
    clip: float | None = Field(None, gt=0, description="largest weight, either way; null for none")

    @classmethod
    def examples(cls) -> Sequence["LLMR"]:
        return [cls(), cls(next_value="softmax", scale=5.0, clip=2.0)]

    def terms(self, td: TDBatch) -> LLMRTerms:
        table = td.transitions
        log_pi = self.log_policy(td)
        importance = self.importance(td, log_pi.detach())
        reward = self._reward(td)
        weight = importance * accumulated(table, reward) / self.scale
        if self.clip is not None:
            weight = weight.clamp(-self.clip, self.clip)
        return LLMRTerms(reinforce=-log_pi * weight, reward=reward, importance=importance)

    @torch.no_grad()
    def _reward(self, td: TDBatch) -> Float[Tensor, "N"]:
        table, teacher = td.transitions, td.teacher
        mean = teacher.rowwise(_mean)
        taken = (teacher.select(table.action) - mean).clamp(min=NEVER)
        value = (teacher.max() if self.next_value == "max" else teacher.rowwise(_expected)) - mean
        whole = accumulated(table, (table.successor == UNKNOWN).to(taken.dtype)) == 0
        return torch.where(whole, taken - table.next_value(value), 0.0)


def _mean(logits: Float[Tensor, "n V"]) -> Float[Tensor, "n"]:
    """Mean of each row over its tokens with a finite logit, which leaves out the columns that hold no token."""
    finite = logits > -torch.inf
    return torch.where(finite, logits, 0.0).sum(1) / finite.sum(1)


def _expected(logits: Float[Tensor, "n V"]) -> Float[Tensor, "n"]:
    """Mean of each row under its own softmax."""
    return (logits.softmax(1) * logits.clamp(min=NEVER)).sum(1)
