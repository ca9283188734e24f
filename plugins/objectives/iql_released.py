"""Bellman Distill as its authors' released program computes it, which is not the paper's formula."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from distillzoo.core.objective import LossTerms, Objective, TDBatch, term


@dataclass(frozen=True)
class IQLReleasedTerms(LossTerms):
    """Terms of ``IQLReleased``, ``[N]``, in nats."""

    linear: Float[Tensor, "N"] = term()
    """V(s) - gamma V(s') - mean_v R(s,v)."""
    penalty: Float[Tensor, "N"] = term()
    """mean_v R(s,v)^2 / (4 alpha)."""


Triple = tuple[Float[Tensor, "N"], Float[Tensor, "N"], Float[Tensor, "N"]]


class IQLReleased(Objective):
    """The loss of the program that the authors of Bellman Distill released.

    With z the student's logits and m(s) = 1 for a state whose action is an ordinary token, 0 where it is the
    end-of-sequence token, which that program takes for padding,

        Q = max( z - max_v z, q_min ),    pihat(a|s) proportional to softmax(Q)(a) 1[a in A(s)] + epsilon
        V(s) = m(s) sum_v pihat(v|s) ( Q(s,v) - log pihat(v|s) )
        R(s,v) = 1[v in A(s)] Q(s,v) - gamma V(s')
        L(s) = m(s) { V(s) - gamma V(s') - mean_v R(s,v) + mean_v R(s,v)^2 / (4 alpha) }

    where sum, mean and maximum over v run over the whole vocabulary, outside the subset too. The dataset's action never
    enters, only where it leads, and the end-of-sequence action is never learnt. The last row of a truncated sequence is
    left out, but the value of its state enters the row before. The gradient flows through the maximum and V(s').
    The policy is this program's own: the run's extraction is not asked. Three reductions over the
    vocabulary.

    By itself it trains no usable student: the mean over the vocabulary makes the reward's part vanish against the
    value's. The program adds a language-modelling term, the ``lm`` section of a run. ``[N]`` terms, nats a token.

    Differs from the program:
        1. It divides by its own number of rows, those with m(s) = 1 and a successor; here the trainer divides by all
           response tokens of the optimiser step.
        2. epsilon is not in the release. There the probabilities are divided by p before it is added, which only makes
           it a p-th of what it is here.

    References:
        The program released with arXiv:2505.20335.
    """

    paper: ClassVar[str] = "arXiv:2505.20335, released program"
    family: ClassVar[str] = "temporal difference"
    known_failures: ClassVar[Mapping[str, str]] = {
        "truncation": "the program drops the last row of a truncated answer, and that of an ended one as padding",
        "learns": "by itself the loss trains no usable student; the program adds a language-modelling term",
    }

    gamma: float = Field(0.99, ge=0, le=1, description="discount of the successor's value")
    alpha: float = Field(0.1, gt=0, description="chi-squared strength is 1 / (4 alpha)")
    epsilon: float = Field(1e-6, gt=0, description="added to every token's probability before normalising")
    q_min: float = Field(-10.0, lt=0, description="floor of Q below its maximum")

    @property
    def gauge_free(self) -> bool:
        return True

    def terms(self, td: TDBatch) -> IQLReleasedTerms:
        real = ~td.transitions.terminal
        mean, square, value = self._whole(td) if td.subset.full else self._subset(td)
        value = torch.where(real, value, 0.0)
        ahead = self.gamma * td.transitions.next_value(value)
        rows = real & td.transitions.known
        linear = value - ahead - (mean - ahead)
        penalty = (square - 2 * ahead * mean + ahead.square()) / (4 * self.alpha)
        return IQLReleasedTerms(torch.where(rows, linear, 0.0), torch.where(rows, penalty, 0.0))

    def _subset(self, td: TDBatch) -> Triple:
        """Mean over the vocabulary of 1[v in A] Q and of its square, and V; all but two sums over A alone."""
        count, mask = td.student.tokens, td.subset.mask
        q = (td.q.values - td.student.max()[:, None]).clamp(min=self.q_min)
        inside = torch.where(mask, q, 0.0)
        held = self._held(td)
        log_total = td.student.rowwise(lambda z: self._floored(z).masked_fill(~held, -math.inf).logsumexp(1))
        outside = td.student.rowwise(lambda z: torch.where(held, self._floored(z), 0.0).sum(1)) - inside.sum(1)
        share = torch.where(mask, (q - log_total[:, None]).exp(), 0.0)
        log_norm = (share.sum(1) + self.epsilon * count).log()
        log_pi = (share + self.epsilon).log() - log_norm[:, None]
        value = torch.where(mask, log_pi.exp() * (q - log_pi), 0.0).sum(1)
        log_rest = math.log(self.epsilon) - log_norm  # log pihat of each token outside
        value = value + log_rest.exp() * (outside - (count - td.subset.size) * log_rest)
        return inside.sum(1) / count, inside.square().sum(1) / count, value

    def _whole(self, td: TDBatch) -> Triple:
        """The same with A the whole vocabulary."""
        held, count = self._held(td), td.student.tokens

        def value(z: Float[Tensor, "n V"]) -> Float[Tensor, "n"]:
            q = self._floored(z)
            share = q.masked_fill(~held, -math.inf).softmax(1) + self.epsilon
            share = torch.where(held, share, 0.0)
            log_pi = torch.where(held, share, 1.0).log() - share.sum(1, keepdim=True).log()
            return torch.where(held, log_pi.exp() * (q - log_pi), 0.0).sum(1)

        total = td.student.rowwise(lambda z: torch.where(held, self._floored(z), 0.0).sum(1))
        squares = td.student.rowwise(lambda z: torch.where(held, self._floored(z), 0.0).square().sum(1))
        return total / count, squares / count, td.student.rowwise(value)

    def _floored(self, z: Float[Tensor, "n V"]) -> Float[Tensor, "n V"]:
        """Q of a chunk of logits."""
        return (z - z.max(1, keepdim=True).values).clamp(min=self.q_min)

    def _held(self, td: TDBatch) -> Bool[Tensor, "V"]:
        """The columns that hold a token."""
        held = torch.ones(td.student.size, dtype=torch.bool, device=td.student.device)
        return held if td.student.holes is None else held.index_fill(0, td.student.holes, False)
