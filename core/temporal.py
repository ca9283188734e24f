"""Temporal-difference objectives: gauge, the teacher's implied reward, multi-step paths, targets held fixed."""

from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor

from distillzoo.core.objective import Objective, TargetUpdate, TDBatch
from distillzoo.core.returns import accumulated
from distillzoo.core.subset import SubsetQ

Pair = tuple[Float[Tensor, "N"], Float[Tensor, "N"]]
"""Q(s,a) of the taken action and V(s)."""


class TemporalDifference(Objective):
    """Base of the objectives that compare Q(s,a) with what follows, r(s,a) + gamma V(s').

    Q is the student's logits less a constant a state, the gauge, which the policy does not show and the loss does:
    ``raw`` leaves the logits as they are, so that a state's level can carry the future; ``max`` subtracts the maximum
    over the vocabulary (one more reduction), ``subset-max`` the maximum over the subset. V, and where they are needed
    the teacher's Q and V, are in the same gauge. The gradient flows through the maximum.

    Multi-step targets. With the one-step residual d_t = r_t + gamma V(s_{t+1}) - Q(s_t, a_t), the n-step target of soft
    Q-learning,

        sum_{k<n} gamma^k r_{t+k} + sum_{0<k<n} gamma^k [ V(s_{t+k}) - Q(s_{t+k}, a_{t+k}) ] + gamma^n V(s_{t+n})

    is Q(s_t, a_t) + sum_{k<n} gamma^k d_{t+k}: the terms telescope. V - Q = -log pi(a|s) is the entropy of the later
    actions; it makes the target right for whatever policy took them (path consistency). The mean of all n-step targets
    with weights (1 - trace) trace^(n-1) is, likewise, Q(s_t, a_t) + sum_k (gamma trace)^k d_{t+k}. A path ends with its
    sequence and before a row that doesn't count, where it takes V.

    References:
        arXiv:1702.08892, eq. 10 to 15 (path consistency).
    """

    family: ClassVar[str] = "temporal difference"

    gamma: float = Field(0.99, ge=0, le=1, description="discount of the successor's value")
    gauge: Literal["raw", "max", "subset-max"] = Field("raw", description="constant subtracted from Q in each state")
    steps: int = Field(1, ge=1, description="n of n-step targets")
    trace: float = Field(0.0, ge=0, le=1, description="lambda, the decay of longer targets; 1 for the whole path")

    @model_validator(mode="after")
    def _one_length(self) -> "TemporalDifference":
        if self.steps > 1 and self.trace > 0:
            raise ValueError(
                f"steps={self.steps} and trace={self.trace:g} both say how far a target looks; set only one of them"
            )
        return self

    def counted(self, td: TDBatch) -> Bool[Tensor, "N"]:
        """Rows with a known successor whose action the policy can take."""
        return td.transitions.known & (td.counts > 0)

    def student(self, td: TDBatch) -> Pair:
        """Q(s,a) and V(s) of the student, in the gauge."""
        return self._in_gauge(td.q, td.q_action, td.value)

    def teacher(self, td: TDBatch) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"], Bool[Tensor, "N"]]:
        """Q(s,a) and V(s) with the teacher's logits as Q, in the gauge, and the rows whose action it ever takes.

        No gradient. The logit of an action that the teacher never takes, -inf, implies no reward.
        """
        with torch.no_grad():
            q = SubsetQ(td.teacher, td.subset)
            taken, value = td.teacher.select(td.transitions.action), td.extraction.value(q)
            return *self._in_gauge(q, taken, value), taken - value != float("-inf")

    def barred(self, q: SubsetQ, td: TDBatch) -> Pair:
        """Q(s,a) and V(s) of a target network, in the gauge. No gradient."""
        with torch.no_grad():
            return self._in_gauge(q, q.view.select(td.transitions.action), td.extraction.value(q))

    def _in_gauge(self, q: SubsetQ, taken: Float[Tensor, "N"], value: Float[Tensor, "N"]) -> Pair:
        if self.gauge == "raw":
            return taken, value
        level = q.view.max() if self.gauge == "max" else q.max()
        return taken - level, value - level

    def implied_reward(self, td: TDBatch, q: Float[Tensor, "N"], value: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
        """Q(s,a) - gamma V(s'), the reward for which Q would be right; gamma V(s') is 0 where s' is unknown."""
        return q - self.gamma * td.transitions.next_value(value)

    def along(self, td: TDBatch, x: Float[Tensor, "N"], counted: Bool[Tensor, "N"]) -> Float[Tensor, "N"]:
        """The sum of x over the path that ``steps`` and ``trace`` ask for; 0 for a row that doesn't count."""
        if self.trace == 0.0:
            return accumulated(td.transitions, x, self.gamma, counted, self.steps)
        return accumulated(td.transitions, x, self.gamma * self.trace, counted)


class FixedTarget(TemporalDifference):
    """Base of those whose target, written with a bar, is held fixed: no gradient flows through it.

    ``stop-gradient`` takes it from the student itself, ``network`` from a copy that follows the student slowly
    (arXiv:1509.02971), which costs the student's memory and one more forward pass.
    """

    target: Literal["stop-gradient", "network"] = Field(
        "stop-gradient", description="where the successor's value is from"
    )
    target_every: int = Field(1, ge=1, description="optimiser steps between two updates of the target network")
    target_rate: float = Field(0.005, gt=0, le=1, description="share of the way to the student, at each update")

    def held_fixed(self, td: TDBatch) -> Pair:
        """Q(s,a) and V(s) for the target, in the gauge. No gradient."""
        if self.target == "network":
            return self.barred(SubsetQ(td.target, td.subset), td)
        q, v = self.student(td)
        return q.detach(), v.detach()

    @property
    def stops_gradient(self) -> bool:
        return True

    @property
    def target_update(self) -> TargetUpdate | None:
        return TargetUpdate(self.target_every, self.target_rate) if self.target == "network" else None
