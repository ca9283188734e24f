"""Least-squares inverse Q-learning: the expert's Q at its bound, the student's by soft Q-learning."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from distillzoo.core.objective import LossTerms, TDBatch, term, watched
from distillzoo.core.temporal import FixedTarget


@dataclass(frozen=True)
class LSIQTerms(LossTerms):
    """Terms of ``LSIQ``, ``[N]``, in nats squared. The first two make the loss, the other is watched."""

    expert: Float[Tensor, "N"] = term()
    """(Q(s,a) - y)^2 / 2 on the expert's rows, 0 on the others."""
    student: Float[Tensor, "N"] = term()
    """(Q(s,a) - y)^2 / 2 on the student's rows, 0 on the others."""
    bellman_target: Float[Tensor, "N"] = watched()
    """y, in nats; 0 where the row doesn't count."""


class LSIQ(FixedTarget):
    """Least-squares inverse Q-learning with the student's logits as Q.

    IQ-Learn's chi-squared term of strength c, taken over the expert's and the student's states alike, bounds the reward
    by r_max = 1/c and r_min = -1/c, and so Q by Q_max = 1 / (c (1 - gamma)) and Q_min = -Q_max. The loss a row is

        L(s, a, s') = ( Q(s,a) - y )^2 / 2
        y = Q_max                                           the expert's rows, ``expert_target: fixed``
        y = r_max + gamma clip( Vbar(s'), Q_min, Q_max )    the same, ``bootstrap``
        y = r_min + gamma clip( Vbar(s'), Q_min, Q_max )    the student's rows

    with V the extraction's soft value on the subset; no gradient flows through y.

    After the end-of-sequence action the state is absorbing, and its value the row's own reward for ever after,
    r / (1 - gamma): Q_max after the expert's, Q_min after the student's. Were it 0 as elsewhere, then with a reward of
    changing sign to end would be better or worse than to go on for no reason that is in the data. So y = Q_max for the
    expert's last row with either target, and y = Q_min for the student's.

    With ``steps`` or ``trace`` y looks further ahead: the residuals y - Qbar of the rows after are added along the
    path, all barred, as in soft Q-learning; the fixed target looks nowhere.

    A row whose action the subset misses does not count, nor does the last row of a truncated sequence, whose successor
    is not known; the fixed target needs no successor, so with it the expert's does. Trajectories must mix the expert's
    and the student's, half of each as in the paper. The targets are absolute, so the logits are taken as they are.

    The gap between the targets, 2 / (c (1 - gamma)) or 400 nats with the defaults, is far wider than that between a
    language model's logits: the policy becomes nearly greedy. With a smaller gamma or a larger c it is softer.

    Nothing here holds the mass outside the subset: set ``support_weight``. ``[N]`` terms, nats squared.

    Differs from the paper:
        1. Vbar holds the policy's entropy, and the clip is on the whole; the paper learns the entropy's part with a
           critic of its own.
        2. The policy's term is on Q(s,a) of the taken action, as in SQIL, and not on V(s); the paper's learning from
           states alone, with an inverse dynamics model, is left out.

    References:
        arXiv:2303.00599.
    """

    paper: ClassVar[str] = "arXiv:2303.00599"
    known_failures: ClassVar[Mapping[str, str]] = {
        "learns": "targets of up to 1 / (c (1 - gamma)) nats make the policy far sharper than the teacher's",
    }

    gamma: float = Field(0.99, ge=0, lt=1, description="discount of the successor's value")
    gauge: Literal["raw"] = Field("raw", description="the logits as they are: the targets are absolute")
    regulariser: float = Field(0.5, gt=0, description="c, strength of the chi-squared term; rewards are 1/c and -1/c")
    expert_target: Literal["fixed", "bootstrap"] = Field(
        "fixed", description="target of the expert's Q: its largest value, or r_max and the successor's value"
    )

    @classmethod
    def examples(cls) -> Sequence["LSIQ"]:
        return [cls(), cls(gamma=0.9, expert_target="bootstrap"), cls(gamma=0.9, target="network", steps=3)]

    @property
    def never_negative(self) -> bool:
        return True

    @property
    def needs_student_rows(self) -> bool:
        return True

    @property
    def needs_expert_rows(self) -> bool:
        return True

    def terms(self, td: TDBatch) -> LSIQTerms:
        expert, known = td.transitions.expert, td.transitions.known
        reward = torch.where(expert, 1 / self.regulariser, -1 / self.regulariser).to(td.value.dtype)
        largest = 1 / (self.regulariser * (1 - self.gamma))
        q_bar, v_bar = self.held_fixed(td)
        ahead = td.transitions.next_value(v_bar.clamp(-largest, largest))
        ahead = torch.where(td.transitions.terminal, reward / (1 - self.gamma), ahead)
        y = q_bar + self.along(td, reward + self.gamma * ahead - q_bar, self.counted(td))
        if self.expert_target == "fixed":
            y, known = torch.where(expert, largest, y), known | expert
        counted = known & (td.counts > 0)
        error = torch.where(counted, td.q_action - y, 0.0).square() / 2
        return LSIQTerms(
            expert=torch.where(expert, error, 0.0),
            student=torch.where(expert, 0.0, error),
            bellman_target=torch.where(counted, y, 0.0),
        )
