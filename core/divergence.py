"""Divergences between teacher and student in a state: over the vocabulary, or over a subset with a word on the tail."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from distillzoo.core.errors import UserError
from distillzoo.core.extraction import PolicyExtraction
from distillzoo.core.objective import LossTerms, Objective, TDBatch, term
from distillzoo.core.subset import ActionSubset

NEVER: Final = -1e4
"""Log-probability, in nats, that stands for -inf: exp of it is 0 in every data type, and 0 times it is 0."""

FLOOR: Final = 64
"""Least mass outside the subset, in units of the data type's precision, below which 1 - mass is noise."""


def kl(p: Float[Tensor, "n V"], q: Float[Tensor, "n V"]) -> Float[Tensor, "n"]:
    """KL(softmax(p) || softmax(q)) of each row of logits, in nats; columns that are -inf in p count 0."""
    log_p, log_q = p.log_softmax(1), q.log_softmax(1)
    return (log_p.exp() * torch.where(log_p == float("-inf"), 0.0, log_p - log_q)).sum(1)


def relative_entropy(log_p: Float[Tensor, "n K"], log_q: Float[Tensor, "n K"]) -> Float[Tensor, "n K"]:
    """p (log p - log q) of each action, whose sum is KL(p || q), in nats; 0 where p is 0 and log q is finite."""
    return log_p.exp() * (log_p - log_q)


@dataclass(frozen=True)
class DivergenceTerms(LossTerms):
    """The term of a ``Divergence``, ``[N]``, in nats."""

    divergence: Float[Tensor, "N"] = term()


class Divergence(Objective):
    """Base of the objectives D(pi_T, pi)(s) in every visited state. A divergence implements ``contributions``.

    With the subset ``full`` both distributions run over the vocabulary, in chunks. On another subset A(s) the tail is

    - ``renormalise``: both policies are renormalised on A(s); mass outside the subset is free;
    - ``bucket``: one further action holds the rest of the mass of each, so the student's mass on A(s) is held too.
      For an f-divergence it is a lower bound of the full one (data processing inequality).
    - ``weighted``: for a subset with importance weights w, which no other tail counts and which this one demands. The
      sum over A(s) of w(a) d(a), with d(a) the contribution of a token to D and pi normalised over the vocabulary (one
      reduction), has D over the vocabulary as its mean over the draws, and so has its gradient.

    pi is the softmax of the student's logits at temperature 1. ``[N]`` terms, never negative, 0 only where the two
    agree; a ``weighted`` estimate is so on average, and may be negative in a state.
    """

    family: ClassVar[str] = "divergence"

    tail: Literal["renormalise", "bucket", "weighted"] = Field(
        "bucket", description="what becomes of the mass outside the subset; weighted for subsets drawn with weights"
    )

    @classmethod
    def examples(cls) -> Sequence["Divergence"]:
        return [cls(tail="bucket"), cls(tail="renormalise")]

    @property
    def never_negative(self) -> bool:
        return self.tail != "weighted"

    @property
    def stationary_at_teacher(self) -> bool:
        return self.tail != "weighted"

    @property
    def gauge_free(self) -> bool:
        return True

    def needs_teacher_view(self, subset: ActionSubset) -> bool:
        return not subset.needs_teacher

    @property
    def counts_weights(self) -> bool:
        return self.tail == "weighted"

    def check(self, subset: ActionSubset, extraction: PolicyExtraction) -> None:
        """Refuse a composition that cannot train, or that would be something else than it seems.

        Raises:
            UserError: the subset has importance weights and ``tail`` is not ``weighted``, or the other way round.
        """
        super().check(subset, extraction)
        if self.tail == "weighted" and not subset.weighted:
            raise UserError(
                f"objective.tail=weighted counts the importance weights of a subset that is drawn at random, and "
                f"{type(subset).__name__} has none. Use objective.tail=bucket, or a subset such as sampled."
            )

    @abstractmethod
    def contributions(self, log_p: Float[Tensor, "n K"], log_q: Float[Tensor, "n K"]) -> Float[Tensor, "n K"]:
        """What each action adds to D, from the teacher's and the student's log-probabilities, action by action.

        Their sum over the actions is D wherever the probabilities of both sum to 1. An action that one of them never
        takes has ``NEVER``, so that products with its probability are 0; one that neither takes adds 0.
        """

    def terms(self, td: TDBatch) -> DivergenceTerms:
        """D of each state."""
        if td.subset.full:
            return DivergenceTerms(td.student.rowwise(self._whole, td.teacher))
        if self.tail == "weighted":
            assert td.subset.weights is not None, "check() refuses a subset without weights"
            return DivergenceTerms((td.subset.weights * self.contributions(*over_vocabulary(td))).sum(1))
        log_p, log_q = renormalised(td) if self.tail == "renormalise" else bucketed(td)
        return DivergenceTerms(self.contributions(log_p, log_q).sum(1))

    def _whole(self, student: Float[Tensor, "n V"], teacher: Float[Tensor, "n V"]) -> Float[Tensor, "n"]:
        log_p, log_q = teacher.log_softmax(1).clamp(min=NEVER), student.log_softmax(1).clamp(min=NEVER)
        return self.contributions(log_p, log_q).sum(1)


def over_vocabulary(td: TDBatch) -> tuple[Float[Tensor, "N K"], Float[Tensor, "N K"]]:
    """Log-probabilities of teacher and student on the subset, over the vocabulary; ``NEVER`` where masked."""
    return _masked(td.subset.logprobs, td), _masked(td.q.values - td.student.logsumexp()[:, None], td)


def renormalised(td: TDBatch) -> tuple[Float[Tensor, "N K"], Float[Tensor, "N K"]]:
    """Log-probabilities of teacher and student, renormalised on the subset; ``NEVER`` where masked."""
    listed = td.subset.logprobs.masked_fill(~td.subset.mask, float("-inf"))
    log_p = td.subset.logprobs - listed.logsumexp(1, keepdim=True)  # the mass itself may round to 0
    log_q = td.q.values - td.q.logsumexp()[:, None]
    return _masked(log_p, td), _masked(log_q, td)


def bucketed(td: TDBatch) -> tuple[Float[Tensor, "N K1"], Float[Tensor, "N K1"]]:
    """Log-probabilities of teacher and student on the subset, and those of all other tokens as one more action."""
    level = td.student.logsumexp()
    log_q = td.q.values - level[:, None]
    log_mass = td.q.logsumexp() - level
    # a floor on the mass outside, in value only: the gradient must go on pulling the mass back there
    floor = -FLOOR * torch.finfo(log_mass.dtype).eps
    log_mass = log_mass + (log_mass.clamp(max=floor) - log_mass).detach()
    some = td.subset.size < td.student.tokens
    rest_p = torch.where(some, 1.0 - td.subset.mass, 0.0).clamp(min=0.0).log().clamp(min=NEVER)
    rest_q = torch.where(some, torch.log(-torch.expm1(log_mass)), NEVER)
    return (
        torch.cat([_masked(td.subset.logprobs, td), rest_p[:, None].to(log_q.dtype)], 1),
        torch.cat([_masked(log_q, td), rest_q[:, None]], 1),
    )


def _masked(logprobs: Float[Tensor, "N K"], td: TDBatch) -> Float[Tensor, "N K"]:
    return logprobs.masked_fill(~td.subset.mask, NEVER).clamp(min=NEVER)
