"""Every check of objectives catches an objective that breaks its rule."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, computed_field
from torch import Tensor

from distillzoo.core.checks import parametrize_with_checks
from distillzoo.core.errors import UserError
from distillzoo.core.extraction import PolicyExtraction
from distillzoo.core.logits import DenseLogits
from distillzoo.core.objective import LossTerms, Objective, TDBatch, term, watched
from distillzoo.core.subset import ActionSubset
from tests.core.checks.catching import Broken, assert_caught, each


@dataclass(frozen=True)
class Terms(LossTerms):
    """The one term of the objectives here."""

    distance: Float[Tensor, "N"] = term()


@dataclass(frozen=True)
class OnlyWatched(LossTerms):
    """Terms of which none is part of the loss."""

    distance: Float[Tensor, "N"] = watched()


class Cloning(Objective):
    """Cloning, which the broken objectives vary: L(s, a) = V(s) - Q(s, a), [N] in nats.

    References:
        These tests.
    """

    def terms(self, td: TDBatch) -> LossTerms:
        return Terms(self.loss(td))

    def loss(self, td: TDBatch) -> Tensor:
        return (td.value - td.q_action) * td.counts


class Residual(Cloning):
    """Cloning with a squared Bellman residual: L(s, a, s') = V(s) - Q(s, a) + r^2 / 20, r = Q(s, a) - V(s'), [N].

    References:
        These tests.
    """

    def loss(self, td: TDBatch) -> Tensor:
        return super().loss(td) + self.residual(td).square() / 20 * td.counts

    def residual(self, td: TDBatch) -> Tensor:
        return torch.where(td.transitions.known, td.q_action - td.transitions.next_value(td.value), 0.0)


class KL(Cloning):
    """Forward KL on the renormalised subset: L(s) = sum_a p(a) (log p(a) - log q(a)), [N].

    References:
        These tests.
    """

    def needs_teacher_view(self, subset: ActionSubset) -> bool:
        return not subset.needs_teacher

    @property
    def never_negative(self) -> bool:
        return True

    @property
    def stationary_at_teacher(self) -> bool:
        return True

    @property
    def gauge_free(self) -> bool:
        return True

    def loss(self, td: TDBatch) -> Tensor:
        p, q = self.teacher(td), self.student(td)
        return torch.where(td.subset.mask & (p != -math.inf), p.exp() * (p - q), 0.0).sum(1)

    def teacher(self, td: TDBatch) -> Tensor:
        return td.subset.logprobs - td.subset.mass.log()[:, None]

    def student(self, td: TDBatch) -> Tensor:
        return td.q.values - td.q.logsumexp()[:, None]


@parametrize_with_checks([Cloning(), Residual(), KL()])
def test_the_healthy_objectives_pass(check):
    check()


class MeanOverTheBatch(Cloning):
    def loss(self, td: TDBatch) -> Tensor:
        return super().loss(td).mean()


class Detached(Cloning):
    def loss(self, td: TDBatch) -> Tensor:
        return super().loss(td).detach()


class LogOfQ(Cloning):
    def loss(self, td: TDBatch) -> Tensor:
        return -td.q_action.log()


class Hits(Cloning):
    def loss(self, td: TDBatch) -> Tensor:
        return td.student.argmax() != td.transitions.action


class ReturnsDict(Cloning):
    def terms(self, td: TDBatch) -> Any:
        return {"loss": self.loss(td)}


class NoLoss(Cloning):
    def terms(self, td: TDBatch) -> LossTerms:
        return OnlyWatched(self.loss(td))


class RefusesAll(Cloning):
    def check(self, subset: ActionSubset, extraction: PolicyExtraction) -> None:
        raise UserError("Not this extraction.")


class Rolled(Residual):
    def residual(self, td: TDBatch) -> Tensor:
        after = td.value.roll(-1)  # after an answer's last row stands the next answer's first
        return torch.where(td.transitions.known, td.q_action - after, 0.0)


class DividedByRows(Cloning):
    def loss(self, td: TDBatch) -> Tensor:
        return super().loss(td) / max(1, len(td.transitions))


class DiscountedByColumn(Cloning):
    def loss(self, td: TDBatch) -> Tensor:
        return super().loss(td) * 0.9**td.transitions.position


class HorizonInColumns(Cloning):
    def loss(self, td: TDBatch) -> Tensor:
        return super().loss(td) * (td.transitions.position < 8)  # the padded batch is 8 columns wide, or 13


class Unmasked(Cloning):
    def loss(self, td: TDBatch) -> Tensor:
        return td.q.values.logsumexp(1) - td.q_action


class InUnitsOfLogV(Cloning):
    def loss(self, td: TDBatch) -> Tensor:
        return super().loss(td) / math.log(td.student.size)


class WholeGraph(Cloning):
    def loss(self, td: TDBatch) -> Tensor:
        """A penalty on all that the model put out, prompts included, which only the graph behind td leads to."""
        node: Any = td.student.logits.grad_fn
        while not hasattr(node, "variable"):
            node = node.next_functions[0][0]
        return super().loss(td) + node.variable.square().mean()


class AttachedTeacher(Cloning):
    def needs_teacher_view(self, subset: ActionSubset) -> bool:
        return True

    def loss(self, td: TDBatch) -> Tensor:
        sure = td.teacher.select(td.transitions.action) - td.teacher.logsumexp()
        return super().loss(td) * sure.exp()


class UndeclaredLogprobs(Cloning):
    """The teacher's log-probabilities of a set that it did not choose."""

    def loss(self, td: TDBatch) -> Tensor:
        return super().loss(td) * td.subset.logprobs.masked_fill(~td.subset.mask, float("-inf")).exp().amax(1).detach()


class UndeclaredTeacher(Cloning):
    def loss(self, td: TDBatch) -> Tensor:
        sure = td.teacher.select(td.transitions.action) - td.teacher.logsumexp()
        return super().loss(td) * sure.exp().detach()


class UndeclaredTarget(Cloning):
    """The successor's value of a target network that nobody builds."""

    def loss(self, td: TDBatch) -> Tensor:
        return super().loss(td) + td.transitions.next_value(td.target.logsumexp()).square()


class Weighted(Cloning):
    def loss(self, td: TDBatch) -> Tensor:
        return super().loss(td) * td.transitions.weight


class BlockOfLazy(Cloning):
    def loss(self, td: TDBatch) -> Tensor:
        dense = isinstance(td.student, DenseLogits)
        z = td.student.logits if dense else td.student.block(torch.arange(td.student.rows))  # without a gradient
        return z.logsumexp(1) - td.q_action


class HeldWeight(Cloning):
    def loss(self, td: TDBatch) -> Tensor:
        nll = super().loss(td)
        return (1 - (-nll).exp().detach()).square() * nll


class ZeroTimesInfinity(KL):
    def loss(self, td: TDBatch) -> Tensor:
        p, q = self.teacher(td), self.student(td)
        return (p.exp() * (p - q) * td.subset.mask).sum(1)


class LogOfProbability(Cloning):
    def loss(self, td: TDBatch) -> Tensor:
        return -(td.q_action - td.student.logsumexp()).exp().log()


class EntropyBonus(Cloning):
    def loss(self, td: TDBatch) -> Tensor:
        negative_entropy = td.student.rowwise(lambda z: (z.softmax(1) * z.log_softmax(1)).sum(1))
        return super().loss(td) + 0.01 * negative_entropy


class NanToNum(KL):
    def teacher(self, td: TDBatch) -> Tensor:
        return super().teacher(td).nan_to_num(0.0, neginf=-math.inf)


class MeanOverAnswers(Cloning):
    def loss(self, td: TDBatch) -> Tensor:
        answers = int(td.transitions.sequence.max()) + 1
        return super().loss(td) / torch.bincount(td.transitions.sequence, minlength=answers)[td.transitions.sequence]


class FractionOfTheAnswer(Cloning):
    def loss(self, td: TDBatch) -> Tensor:
        same = td.transitions.sequence[:, None] == td.transitions.sequence
        time, length = same.tril(-1).sum(1), same.sum(1)
        return super().loss(td) * (1 - 0.5 * time / (length - 1))  # 0 / 0 at one token


class EveryEndIsTerminal(Residual):
    def residual(self, td: TDBatch) -> Tensor:
        return td.q_action - td.transitions.next_value(td.value)


class OutsideCounted(Cloning):
    @property
    def never_negative(self) -> bool:
        return True

    def loss(self, td: TDBatch) -> Tensor:
        return td.value - td.q_action  # without td.counts: an action outside the subset may have a larger Q than V


class TailOfOneOnly(KL):
    def student(self, td: TDBatch) -> Tensor:
        return td.q.values - td.student.logsumexp()[:, None]


class RawResidual(Residual):
    @property
    def gauge_free(self) -> bool:
        return True


class SignFlipped(Cloning):
    def loss(self, td: TDBatch) -> Tensor:
        return -super().loss(td)


class NumpyDropout(Cloning):
    def loss(self, td: TDBatch) -> Tensor:
        return super().loss(td) * torch.from_numpy(np.random.rand(len(td.transitions)))


class PickedByProduct(Cloning):
    def loss(self, td: TDBatch) -> Tensor:
        taken = (td.subset.actions == td.transitions.action[:, None]) & td.subset.mask
        q_action = torch.einsum("nk,nk->n", taken.to(td.q.values.dtype), td.q.values.clamp(min=-1e4))
        return (td.value - q_action) * td.inside


class ShorterWhenCompiled(Residual):
    def loss(self, td: TDBatch) -> Tensor:
        return Cloning.loss(self, td) if torch.compiler.is_compiling() else super().loss(td)


class Computed(Cloning):
    alpha: float = Field(0.1, description="strength")

    @computed_field
    def weight(self) -> float:
        return 1 / (4 * self.alpha)


def local() -> Objective:
    class Local(Cloning):
        pass

    return Local()


class Undocumented(Cloning):
    pass


class NoFormula(Cloning):
    """Behaviour cloning."""


class NoShapes(Cloning):
    """Behaviour cloning: L(s, a) = V(s) - Q(s, a)."""


class NoSource(Cloning):
    """Behaviour cloning: L(s, a) = V(s) - Q(s, a), [N] in nats."""


BROKEN: list[Broken] = [
    ("terms", MeanOverTheBatch(), r"has the shape \[\] and should be \[N\] .* sum or mean runs over the rows"),
    ("terms", Detached(), r"no gradient for the student\. Most likely a detach"),
    ("terms", LogOfQ(), "'distance' is not finite on ordinary logits"),
    ("terms", Hits(), r"is torch\.bool and should be a floating point tensor"),
    ("terms", ReturnsDict(), r"terms\(\) returns dict: return a frozen dataclass"),
    ("terms", NoLoss(), r"make at least one with term\(\)"),
    ("terms", RefusesAll(), r"check\(\) refuses every extraction"),
    ("batch-order", Rolled(), r"a shift or roll by one row .* Use transitions\.successor"),
    ("batch-split", DividedByRows(), "every answer is a batch of its own.* its number of rows"),
    ("padding-side", DiscountedByColumn(), r"padded on the left.* transitions\.position, a column .* used as a time"),
    ("padding-width", HorizonInColumns(), r"padded to a larger width.* transitions\.position, enters the terms"),
    ("table-padding", Unmasked(), r"masked entries enter a sum, a mean or a logsumexp.* apply td\.subset\.mask first"),
    ("vocabulary-rows", InUnitsOfLogV(), "ids without a token are added.* number of columns"),
    ("masked-positions", WholeGraph(), "Positions outside the answer get a gradient"),
    ("teacher-constant", AttachedTeacher(), r"The teacher's logits get a gradient.* used without detach\(\)"),
    ("declared-teacher", UndeclaredTeacher(), r"reads the whole teacher, and needs_teacher_view\(\) is false"),
    ("declared-teacher", UndeclaredLogprobs(), "log-probabilities of the whole vocabulary but does not declare it"),
    ("declared-target", UndeclaredTarget(), r"reads td\.target, and target_update is none"),
    ("weights", Weighted(), r"change with transitions\.weight"),
    ("lazy-logits", BlockOfLazy(), r"gradient changes .* block\(\), which has no gradient"),
    ("gradcheck", HeldWeight(), "a part of the loss is detached.* return True from stops_gradient"),
    ("one-hot-teacher", ZeroTimesInfinity(), r"loss is not finite at a one-hot teacher.* 0 \* log 0"),
    ("one-hot-teacher", LogOfProbability(), "loss is not finite .* instead of the log of a probability"),
    ("infinite-logits", EntropyBonus(), r"-inf in both models makes the loss .* 0 \* -inf"),
    ("infinite-logits", NanToNum(), r"At a teacher's logit of \+inf the loss is .* Let NaN through"),
    ("short-answers", MeanOverAnswers(), r"A batch of 0 answer\(s\) .* an index or a maximum over no rows"),
    ("short-answers", FractionOfTheAnswer(), r"The loss of a batch of 1 answer\(s\) of one token is \[nan\]"),
    ("truncation", EveryEndIsTerminal(), r"not terminal but unknown: leave the term out where transitions\.known"),
    ("never-negative", OutsideCounted(), "claims never_negative.* mass outside the subset is dropped"),
    ("stationary", TailOfOneOnly(), "claims stationary_at_teacher.* tail .* is dropped for one of the two"),
    ("gauge", RawResidual(), "claims gauge_free: subtract a level from Q and V alike"),
    ("learns", SignFlipped(), "Most likely a sign is flipped"),
    ("deterministic", NumpyDropout(), "randomness comes from somewhere else than torch's generator"),
    ("low-precision", PickedByProduct(), r"off under bfloat16 autocast: .* a matrix product \(@, einsum\)"),
    ("compiles", ShorterWhenCompiled(), r"Under torch\.compile the values differ"),
    ("round-trip", Computed(), r"can't be built from its own configuration: 'part\.weight' is not a known field"),
    ("picklable", local(), "its class is made inside a function"),
    ("documented", Undocumented(), "Undocumented has no docstring"),
    ("documented", NoFormula(), "NoFormula holds no formula"),
    ("shapes-documented", NoShapes(), r"names no shape, such as \[N, K\]"),
    ("source-documented", NoSource(), "no 'References:'"),
]


@each(BROKEN)
def test_a_broken_objective_is_caught(name, part, message):
    assert_caught(name, part, message)
