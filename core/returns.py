"""Sums along the rest of a sequence, and the policy gradients that weigh actions by them."""

from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from distillzoo.core.objective import Objective, TDBatch
from distillzoo.core.subset import ActionSubset
from distillzoo.core.transitions import Transitions


def accumulated(
    table: Transitions,
    x: Float[Tensor, "N"],
    factor: float = 1.0,
    counted: Bool[Tensor, "N"] | None = None,
    steps: int | None = None,
) -> Float[Tensor, "N"]:
    """Discounted sums along each sequence, y_t = sum over k < steps of factor^k x_{t+k}. Differentiable in ``x``.

    A sum ends with its sequence, that of a truncated one with what was seen, and before the first row that doesn't
    count; a row that doesn't count gives 0. The rows are joined by doubling, in log2(steps) gathers.

    Args:
        table: the transitions, whose ``successor`` is followed.
        x: what is summed.
        factor: weight of a row against the one before it.
        counted: the rows that enter; all if not given.
        steps: number of rows in a sum; to the end if not given.
    """
    if counted is None:
        counted = torch.ones_like(table.terminal)
    x = torch.where(counted, x, 0.0)
    after = table.successor.clamp(min=0)
    after = torch.where((table.successor >= 0) & counted & counted[after], table.successor, -1)
    total, cursor = torch.zeros_like(x), torch.arange(len(table), device=x.device)  # the sum so far, its next row
    block, leap = x, after  # the sum over the next 2^i rows, and the row behind them
    reach, weight, left = factor, 1.0, len(table) if steps is None else min(steps, len(table))
    while left:
        if left & 1:
            total = total + weight * _at(block, cursor)
            cursor, weight = _follow(leap, cursor), weight * reach
        block = block + reach * _at(block, leap)
        leap, reach, left = _follow(leap, leap), reach * reach, left >> 1
    return total


def _at(values: Float[Tensor, "N"], row: Int[Tensor, "N"]) -> Float[Tensor, "N"]:
    """The values at the given rows, 0 for row -1."""
    return torch.where(row >= 0, values[row.clamp(min=0)], 0.0)


def _follow(leap: Int[Tensor, "N"], row: Int[Tensor, "N"]) -> Int[Tensor, "N"]:
    return torch.where(row >= 0, leap[row.clamp(min=0)], -1)


class PolicyGradient(Objective):
    """Base of the objectives that weigh log pi(a|s) of the student's own actions by what came after them.

    pi is the softmax of the student's logits over the vocabulary, whatever the subset. An action that was drawn from
    another policy counts rho = pi(a|s) / behaviour(a|s) times; where that isn't known it counts as the student's own,
    with rho = 1.
    """

    family: ClassVar[str] = "policy gradient"

    @property
    def gauge_free(self) -> bool:
        return True

    @property
    def stops_gradient(self) -> bool:
        return True

    @property
    def needs_student_rows(self) -> bool:
        return True

    def needs_teacher_view(self, subset: ActionSubset) -> bool:
        return True

    def log_policy(self, td: TDBatch) -> Float[Tensor, "N"]:
        """log pi(a|s) of the taken actions, in nats."""
        return td.q_action - td.student.logsumexp()

    def importance(self, td: TDBatch, log_policy: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
        """rho of the taken actions; its gradient is rho times that of log pi."""
        behaviour = td.transitions.behaviour
        return (log_policy - torch.where(behaviour.isnan(), log_policy.detach(), behaviour)).exp()
