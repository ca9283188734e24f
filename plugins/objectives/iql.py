"""Inverse soft-Q learning on a subset, the objective of Bellman Distill."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from distillzoo.core.objective import LossTerms, TDBatch, term, watched
from distillzoo.core.subset import ActionSubset
from distillzoo.core.temporal import TemporalDifference

STEEPEST: Final = 4.0
"""Slope of phi from which on, towards smaller rewards, it goes on as its tangent."""


@dataclass(frozen=True)
class IQLTerms(LossTerms):
    """Terms of ``IQL``, ``[N]``. ``imitation`` and ``penalty`` make the loss; the other is watched."""

    imitation: Float[Tensor, "N"] = term()
    """The part of the loss that is linear in Q and V, in nats; V(s) - Q(s,a) with ``samples: expert``."""
    penalty: Float[Tensor, "N"] = term()
    """psi of the implied reward."""
    implied_reward: Float[Tensor, "N"] = watched()
    """r(s,a) = Q(s,a) - gamma V(s'), in nats."""


class IQL(TemporalDifference):
    """Inverse soft-Q learning (IQ-Learn) with the student's logits as Q; never implicit Q-learning.

    With V the extraction's soft value on the subset, the implied reward r(s,a) = Q(s,a) - gamma V(s') and a concave
    phi, phi(0) = 0, phi'(0) = 1, IQ-Learn maximises E_expert[ phi(r) ] - E[ V(s) - gamma V(s') ]. With both
    expectations over the expert's data gamma V(s') cancels from the linear part. The loss a row is, in nats, ``[N]``,

        L(s, a, s') = [ V(s) - Q(s,a) ]  +  psi(r(s,a)),    psi(x) = x - phi(x) >= 0

    The first bracket is -log proj(pi)(a|s): without psi this is behaviour cloning. ``divergence`` names phi:

        chi2       x - x^2 / (4 alpha), so psi(x) = x^2 / (4 alpha)
        hellinger  x / (1 + x)
        js         log(2 - exp(-x))
        kl         1 - exp(-x)
        tv         x where |x| <= 1/2, 1/2 above
        none       x

    The slope of hellinger, js and kl grows without bound towards small x, and tv is -inf below -1/2; from the point
    where the slope would pass 4 they go on with that slope, so that phi is concave and finite everywhere.

    ``samples`` says where E[ V(s) - gamma V(s') ] is from; for a policy's own states it is a telescoping sum:

        expert   the expert's states, as above
        initial  V(s_0): L = gamma^t [ -phi(r) ] + 1[t=0] V(s_0)
        mixed    all states, the student's too: L = V(s) - gamma V(s') - 1[expert] phi(r) / expert_share

    In ``expert`` and ``initial`` every row is taken for the expert's. ``first_term: expected`` puts the teacher's mean
    of Q in the place of Q(s,a) in the linear part, sum over A(s) of proj(pi_T)(a|s) Q(s,a): then it is the forward KL
    on the subset up to the teacher's entropy. ``centre: teacher`` takes psi of r - r_T, where r_T is Q_T(s,a) - gamma
    V_T(s'), the same with the teacher's logits: it pulls towards the teacher's reward and not towards 0. With ``steps``
    or ``trace`` psi is taken of the discounted sum of these rewards over a path.

    V(s') = 0 after the end-of-sequence action. The last row of a truncated sequence has no known successor: it loses
    its psi, and with ``mixed`` all; with ``initial`` its linear part stays, where gamma V(s') cancels against the rest
    of the telescoping sum. A row whose action the subset misses does not count: its psi is 0, and its first term too
    unless that is expected. Gradient flows through V(s').

    psi depends on the gauge. Nothing here holds the mass outside the subset: set ``support_weight``.

    Differs from the paper:
        1. Q is clipped at ``q_min`` inside psi only. In the first bracket the clip would stop the gradient just where
           the student is most wrong, and is not needed for numerical stability. With ``raw`` there is no clip: the
           logits of some models lie around -100 as a whole.
        2. The paper's objective is chi2, expert, sampled, zero; the rest is IQ-Learn's, or white-box distillation's.

    References:
        arXiv:2505.20335, the Bellman Distill objective with phi(x) = x - x^2 / (4 alpha); arXiv:2106.12142, section 4.2
        and the table of divergences (its kl corrected so that phi(0) = 0 and phi'(0) = 1).
    """

    paper: ClassVar[str] = "arXiv:2505.20335"

    gauge: Literal["raw", "max", "subset-max"] = Field("max", description="constant subtracted from Q in each state")
    alpha: float = Field(0.1, gt=0, description="chi-squared strength is 1 / (4 alpha)")
    divergence: Literal["chi2", "hellinger", "js", "kl", "tv", "none"] = Field(
        "chi2", description="regulariser of the implied reward"
    )
    q_min: float | None = Field(
        -10.0, description="floor of Q in psi, below the gauge's maximum; null for none, and unused with raw"
    )
    samples: Literal["expert", "initial", "mixed"] = Field(
        "expert", description="states on which V(s) - gamma V(s') is taken"
    )
    expert_share: float = Field(0.5, gt=0, le=1, description="share of the expert's rows in the data, for mixed")
    first_term: Literal["sampled", "expected"] = Field(
        "sampled", description="Q in the linear part: of the taken action, or the teacher's mean on the subset"
    )
    centre: Literal["zero", "teacher"] = Field("zero", description="the reward at which psi is 0")

    @classmethod
    def examples(cls) -> Sequence["IQL"]:
        gauges = [cls(gauge=gauge, alpha=5.0) for gauge in ("raw", "max", "subset-max")]
        return [
            cls(),
            *gauges,
            cls(divergence="none"),
            cls(divergence="kl", gauge="raw", samples="initial"),
            cls(divergence="js", samples="mixed"),
            cls(divergence="hellinger", first_term="expected", steps=3),
            cls(divergence="tv", trace=1.0),
            cls(alpha=5.0, first_term="expected", centre="teacher", gauge="raw"),
            cls(alpha=5.0, first_term="expected", centre="teacher", samples="initial", trace=0.9),
        ]

    def needs_teacher_view(self, subset: ActionSubset) -> bool:
        return self._centred or (self.first_term == "expected" and not subset.needs_teacher)

    @property
    def never_negative(self) -> bool:
        return self.samples == "expert"

    @property
    def stationary_at_teacher(self) -> bool:
        pulled = self.divergence != "none" and self.centre == "zero"
        return self.first_term == "expected" and not pulled and self.samples != "mixed"

    @property
    def gauge_free(self) -> bool:
        return self.gauge != "raw" or (self.samples == "expert" and self.divergence == "none")

    @property
    def needs_student_rows(self) -> bool:
        return self.samples == "mixed"

    @property
    def needs_expert_rows(self) -> bool:
        return True

    @property
    def _centred(self) -> bool:
        return self.centre == "teacher" and self.divergence != "none"

    def terms(self, td: TDBatch) -> IQLTerms:
        blind = self.samples == "expert" and self.divergence == "none"  # then no gauge is worth its reduction
        q, v = (td.q_action, td.value) if blind else self.student(td)
        counted = self.counted(td)
        reward = self.implied_reward(td, self._clipped(q), v)
        x = reward
        if self._centred:
            q_teacher, v_teacher, taken = self.teacher(td)
            x, counted = x - self.implied_reward(td, self._clipped(q_teacher), v_teacher), counted & taken
        share = self._share(td, v)
        psi = x_less_phi(self.divergence, self.alpha)
        return IQLTerms(
            imitation=self._linear(td, v, share),
            penalty=share * psi(self.along(td, x, counted)),
            implied_reward=torch.where(counted, reward, 0.0),
        )

    def _clipped(self, q: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
        return q if self.q_min is None or self.gauge == "raw" else q.clamp(min=self.q_min)

    def _share(self, td: TDBatch, v: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
        """The weight of -phi(r) in each row."""
        if self.samples == "initial":
            return v.new_full((), self.gamma) ** td.transitions.time
        if self.samples == "mixed":
            return td.transitions.expert.to(v.dtype) / self.expert_share
        return torch.ones_like(v)

    def _linear(self, td: TDBatch, v: Float[Tensor, "N"], share: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
        """The loss with phi(x) = x. An action that doesn't count has Q(s,a) = V(s) here, so that the sums telescope."""
        first = self._first(td)
        if self.samples == "expert":
            return first
        flow = self.implied_reward(td, v, v)
        if self.samples == "initial":
            return share * (first - flow) + torch.where(td.transitions.first, v, 0.0)
        return torch.where(td.transitions.known, flow + share * (first - flow), 0.0)

    def _first(self, td: TDBatch) -> Float[Tensor, "N"]:
        """V(s) - Q(s,a), or with the teacher's mean of Q(s,.)."""
        if self.first_term == "sampled":
            return (td.value - td.q_action) * td.counts
        if td.subset.full:
            return td.value - td.student.rowwise(_mean, td.teacher)
        return td.value - _mean(td.q.values, td.subset.logprobs.masked_fill(~td.subset.mask, -math.inf))


def _mean(q: Float[Tensor, "n K"], teacher: Float[Tensor, "n K"]) -> Float[Tensor, "n"]:
    """Mean of Q under the softmax of the teacher's row; a token that it never gives counts 0, whatever its Q."""
    weight = teacher.softmax(1)
    return (weight * torch.where(weight == 0, 0.0, q)).sum(1)


Function = Callable[[Tensor], Tensor]

STEEP: Final[dict[str, tuple[Function, float]]] = {
    "hellinger": (lambda x: x / (1 + x), STEEPEST**-0.5 - 1),
    "js": (lambda x: torch.log1p(-torch.expm1(-x)), -math.log(2 * STEEPEST / (1 + STEEPEST))),
    "kl": (lambda x: -torch.expm1(-x), -math.log(STEEPEST)),
}
"""phi, and the x at which its slope is ``STEEPEST``."""


def x_less_phi(divergence: str, alpha: float) -> Function:
    """psi(x) = x - phi(x) of a divergence, ``[N]`` to ``[N]``."""
    if divergence in STEEP:
        phi, edge = STEEP[divergence]

        def psi(x: Tensor) -> Tensor:
            inside = x.clamp(min=edge)
            return x - phi(inside) - STEEPEST * (x - inside)

        return psi
    return {
        "chi2": lambda x: x.square() / (4 * alpha),
        "tv": lambda x: (x - 0.5).clamp(min=0) + (STEEPEST - 1) * (-0.5 - x).clamp(min=0),
        "none": torch.zeros_like,
    }[divergence]
