"""Objectives: from a batch of transitions to named loss terms."""

from abc import abstractmethod
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, ClassVar, Final

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from distillzoo.core.errors import UserError
from distillzoo.core.extraction import PolicyExtraction
from distillzoo.core.logits import LogitView
from distillzoo.core.part import Part
from distillzoo.core.subset import ActionSubset, Subset, SubsetQ
from distillzoo.core.transitions import Transitions


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation over the rows of a whole optimiser step, in all its forward passes and processes."""

    mean: float = 0.0
    deviation: float = 1.0


PLAIN: Final = Moments()
"""The moments that leave returns as they are."""


@dataclass(frozen=True)
class TDBatch:
    """All that an objective may see of a batch of N transitions."""

    transitions: Transitions
    student: LogitView
    """The student's logits; the only thing here that carries a gradient."""
    subset: Subset
    extraction: PolicyExtraction
    teacher_view: LogitView | None = None
    target_view: LogitView | None = None
    moments: Moments = PLAIN
    """Those of the objective's ``returns``, for an objective that ``whitens``."""

    @property
    def target(self) -> LogitView:
        """The logits of the target network, for objectives that declare ``target_update``. No gradient."""
        if self.target_view is None:
            raise UserError("The objective reads a target network but does not declare it: give it a target_update.")
        return self.target_view

    @property
    def teacher(self) -> LogitView:
        """The teacher's logits over the whole vocabulary, for objectives that declare ``needs_teacher_view``."""
        if self.teacher_view is None:
            raise UserError(
                "The objective reads the teacher's whole distribution but does not declare it: "
                "return True from needs_teacher_view."
            )
        return self.teacher_view

    @cached_property
    def q(self) -> SubsetQ:
        """Q on the subset."""
        return SubsetQ(self.student, self.subset)

    @cached_property
    def q_action(self) -> Float[Tensor, "N"]:
        """Q(s, a) of the taken action."""
        return self.student.select(self.transitions.action)

    @cached_property
    def value(self) -> Float[Tensor, "N"]:
        """V(s), the soft value of the extraction's policy."""
        return self.extraction.value(self.q)

    @cached_property
    def inside(self) -> Float[Tensor, "N"]:
        """1 where the taken action is in the subset, 0 elsewhere."""
        return self.subset.contains(self.transitions.action).to(self.transitions.weight.dtype)

    @cached_property
    def counts(self) -> Float[Tensor, "N"]:
        """1 for the rows that a policy on the extraction's support can clone, 0 elsewhere.

        A policy projected on the subset has no probability for an action outside it.
        """
        return self.inside if self.extraction.on_subset else torch.ones_like(self.inside)


def term(**metadata: Any) -> Any:
    """A field of ``LossTerms`` that is part of the loss."""
    return field(metadata={"loss": True, **metadata})


def watched(**metadata: Any) -> Any:
    """A field of ``LossTerms`` that is logged and carries no gradient."""
    return field(metadata={"loss": False, **metadata})


TAKEN: Final = (
    "loss", "step", "support", "value", "subset_size", "subset_size_p95", "teacher_mass", "student_mass",
    "action_inside", "student_rows", "lm",
)  # fmt: skip
"""Names in the logs that the trainer gives; no term may have one of them."""


@dataclass(frozen=True)
class TargetUpdate:
    """How a target network follows the student: every so many optimiser steps, w_target += rate (w - w_target)."""

    every: int
    rate: float


@dataclass(frozen=True)
class LossTerms:
    """Named terms a row, ``[N]`` each, in nats. The loss is the sum of the fields made by ``term()``.

    An objective returns its own frozen subclass, whose field names are the names in the logs.
    """

    def __init_subclass__(cls) -> None:
        for name in cls.__annotations__:
            if name in TAKEN:
                raise TypeError(
                    f"{cls.__name__} names a term '{name}', which the trainer logs itself: choose another name."
                )

    def losses(self) -> dict[str, Float[Tensor, "N"]]:
        """The terms that make the loss."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.metadata.get("loss", True)}

    def diagnostics(self) -> dict[str, Float[Tensor, "N"]]:
        """The terms that are only logged."""
        return {f.name: getattr(self, f.name).detach() for f in fields(self) if not f.metadata.get("loss", True)}


class Objective(Part):
    """Base of the objectives.

    An objective implements ``terms``. It knows nothing of training: the trainer weighs the rows, divides by the number
    of response tokens of the whole optimiser step and logs each term by its name.
    """

    family: ClassVar[str] = "other"
    """What kind of algorithm it makes, for lists: cloning, divergence, temporal difference, policy gradient."""

    needs_logprobs: ClassVar[bool] = False
    """Whether the objective trains through ``extraction.log_policy``."""

    support_weight: float = Field(
        0.0, ge=0, description="weight of -log pi(A|s), which keeps the student's mass on the subset"
    )
    support_fraction: float = Field(
        1.0, gt=0, le=1, description="share of the states, drawn at random, on which the support term is computed"
    )

    @abstractmethod
    def terms(self, td: TDBatch) -> LossTerms:
        """The loss terms of each row."""

    def needs_teacher_view(self, subset: ActionSubset) -> bool:
        """Whether ``terms`` reads ``td.teacher`` when it works on this subset.

        One that reads ``td.subset.logprobs`` needs the view too where ``subset.needs_teacher`` is false, as with
        ``full``: a set chosen without the teacher brings none of its log-probabilities along.
        """
        return False

    @property
    def never_negative(self) -> bool:
        """Whether no row's loss can fall below 0."""
        return False

    @property
    def stationary_at_teacher(self) -> bool:
        """Whether the gradient vanishes in every state, whatever its action, where the student equals the teacher and
        the policy lives on the subset."""
        return False

    @property
    def gauge_free(self) -> bool:
        """Whether a constant a state on the student's logits, which the policy doesn't show, leaves the loss alone."""
        return False

    @property
    def stops_gradient(self) -> bool:
        """Whether a part of the loss is held fixed on purpose, so that the gradient isn't that of the value."""
        return False

    @property
    def needs_student_rows(self) -> bool:
        """Whether the objective cannot do without the student's own trajectories."""
        return False

    @property
    def needs_expert_rows(self) -> bool:
        """Whether the objective cannot do without the expert's trajectories."""
        return False

    @property
    def target_update(self) -> TargetUpdate | None:
        """How the target network that ``terms`` reads follows the student; none without such a network."""
        return None

    @property
    def whitens(self) -> bool:
        """Whether ``terms`` reads ``td.moments``, the mean and deviation of ``returns`` over the optimiser step."""
        return False

    def returns(self, td: TDBatch) -> Float[Tensor, "N"]:
        """What an objective that ``whitens`` wants the moments of. Called without gradient before the step."""
        raise NotImplementedError

    @property
    def counts_weights(self) -> bool:
        """Whether ``terms`` counts the importance weights of a subset that has them."""
        return False

    def check(self, subset: ActionSubset, extraction: PolicyExtraction) -> None:
        """Refuse a composition that cannot train, or that would be something else than it seems.

        Raises:
            UserError: the objective trains through log-probabilities and the extraction has none, or the subset has
                importance weights and the objective doesn't count them.
        """
        if subset.weighted and not self.counts_weights:
            raise UserError(
                f"The subset {type(subset).__name__} draws tokens with importance weights, which the objective "
                f"{type(self).__name__} would not count. Use a divergence with objective.tail=weighted, or a subset "
                f"such as top-p."
            )
        if self.needs_logprobs and not extraction.has_logprobs:
            raise UserError(
                f"The objective trains through the policy's log-probabilities, and the extraction "
                f"{type(extraction).__name__} gives none that carry a gradient. Use an extraction such as softmax."
            )


def support_term(q: SubsetQ, rows: Tensor | None = None) -> Float[Tensor, "N"]:
    """-log pi(A|s) = logsumexp over V of Q - logsumexp over A of Q, in nats: what holds the mass outside the subset.

    Args:
        q: Q on the subset.
        rows: the states to compute it on, all if not given; the others get 0 and the computed ones are scaled by
            N / len(rows), so that the sum stays unbiased when the rows are drawn at random.

    On a whole vocabulary it is 0 and nothing is computed.
    """
    if q.subset.full:
        return torch.zeros(q.view.rows, device=q.view.device)
    inside = q.logsumexp()
    if rows is None:
        return q.view.logsumexp() - inside
    part = q.view.logsumexp(rows) - inside[rows]
    scale = q.view.rows / max(1, len(rows))
    return inside.new_zeros(inside.shape).index_put((rows,), part * scale)
