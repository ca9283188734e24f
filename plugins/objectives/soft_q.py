"""Soft Q-learning on given trajectories, with the teacher's implied reward or with SQIL's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from distillzoo.core.objective import LossTerms, TDBatch, term, watched
from distillzoo.core.subset import ActionSubset
from distillzoo.core.temporal import FixedTarget


@dataclass(frozen=True)
class SoftQTerms(LossTerms):
    """Terms of ``SoftQ``, ``[N]``. ``bellman`` is the loss; the other is watched."""

    bellman: Float[Tensor, "N"] = term()
    """(Q(s,a) - y)^2 / 2, in nats squared."""
    bellman_target: Float[Tensor, "N"] = watched()
    """y, in nats; 0 where the row doesn't count."""


class SoftQ(FixedTarget):
    """Soft Q-learning with the student's logits as Q, off policy on the given trajectories:

        L(s, a, s') = ( Q(s,a) - y )^2 / 2,    y = r(s,a) + gamma Vbar(s')

    with V the extraction's soft value on the subset; no gradient flows through y. ``reward`` is

        teacher  r = Q_T(s,a) - gamma V_T(s'), for which the teacher's own logits, in the same gauge, are the soft Q
        expert   ``scale`` for an action of the expert and 0 for one of the student, as in SQIL; needs both

    Where the data holds every action of the subset in every state, the fixed point with the teacher's reward and the
    gauge ``raw`` is Q = Q_T: the logits are regressed on the teacher's, along the path instead of one by one. With
    ``expert`` it is then the soft-optimal Q of the mean reward, ``scale`` times the share of the expert in the rows of
    (s,a); the trajectories must mix the expert's and the student's, half of each as in the paper. An action that nobody
    took keeps any Q, and V(s') counts it: on few data there are other tables with the loss 0.

    Vbar is 0 after the end-of-sequence action. The loss is 0 in a row that doesn't count: the last one of a truncated
    sequence, whose successor is not known, one whose action the subset misses, and with the teacher's reward one whose
    action the teacher never takes. In multi-step targets, with ``steps`` or ``trace``, the residuals after the first
    are barred as a whole.

    Nothing here holds the mass outside the subset: set ``support_weight``. ``[N]`` terms, nats squared.

    Differs from the paper:
        1. SQIL's target is the network itself without its gradient, or a target network; both are here.
        2. On trajectories that are not sampled anew from the student this is a variant of SQIL.

    References:
        arXiv:1702.08165, eq. 7 to 11 (soft Q-learning); arXiv:1905.11108 (SQIL: the reward ``expert``);
        arXiv:2505.20335 (the subset's soft Bellman operator).
    """

    paper: ClassVar[str] = "arXiv:1702.08165"

    reward: Literal["teacher", "expert"] = Field(
        "teacher", description="what the reward is: implied by the teacher, or SQIL's"
    )
    scale: float = Field(1.0, gt=0, description="reward of the expert's actions, with reward expert")

    @classmethod
    def examples(cls) -> Sequence["SoftQ"]:
        return [
            cls(),
            cls(gauge="max", steps=3),
            cls(gauge="subset-max", target="network", trace=0.9),
            cls(reward="expert", scale=2.0, gamma=0.9),
        ]

    def needs_teacher_view(self, subset: ActionSubset) -> bool:
        return self.reward == "teacher"

    @property
    def never_negative(self) -> bool:
        return True

    @property
    def stationary_at_teacher(self) -> bool:
        return self.reward == "teacher"

    @property
    def gauge_free(self) -> bool:
        return self.gauge != "raw"

    @property
    def needs_student_rows(self) -> bool:
        return self.reward == "expert"

    @property
    def needs_expert_rows(self) -> bool:
        return self.reward == "expert"

    def terms(self, td: TDBatch) -> SoftQTerms:
        q, _ = self.student(td)
        q_bar, v_bar = self.held_fixed(td)
        reward, counted = self._reward(td)
        residual = reward - self.implied_reward(td, q_bar, v_bar)
        y = q_bar + self.along(td, residual, counted)
        return SoftQTerms(
            bellman=torch.where(counted, q - y, 0.0).square() / 2, bellman_target=torch.where(counted, y, 0.0)
        )

    def _reward(self, td: TDBatch) -> tuple[Float[Tensor, "N"], Bool[Tensor, "N"]]:
        """The reward of each row, and the rows that count."""
        if self.reward == "expert":
            return self.scale * td.transitions.expert.to(td.value.dtype), self.counted(td)
        q, v, taken = self.teacher(td)
        return self.implied_reward(td, q, v), self.counted(td) & taken
