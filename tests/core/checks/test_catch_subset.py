"""Every check of subsets catches a subset that breaks its rule."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from distillzoo.core.checks import parametrize_with_checks
from distillzoo.core.logits import DenseLogits, LogitView
from distillzoo.core.subset import ActionSubset, Subset, listed
from tests.core.checks.catching import Broken, assert_caught, each

END = 2


def table(actions: Tensor, mask: Tensor, logprobs: Tensor) -> Subset:
    """The subset of a table, as it should be made."""
    mass = torch.where(mask, logprobs.exp(), 0.0).sum(1)
    return Subset(actions.where(mask, 0), mask, logprobs.where(mask, 0.0), mass)


class Ranked(ActionSubset):
    """The k likeliest tokens, which the broken subsets vary: A_k(s) = {a_1, ..., a_k}, in tables [N, V].

    References:
        These tests.
    """

    k: int = Field(3, ge=1, description="tokens a set")

    def select(self, teacher: LogitView) -> Subset:
        with torch.no_grad():
            return self.chosen(teacher)

    def ranked(self, teacher: LogitView) -> tuple[Tensor, Tensor]:
        logits, actions = teacher.top(teacher.size, torch.arange(teacher.rows))
        return logits - teacher.logsumexp()[:, None], actions

    def chosen(self, teacher: LogitView) -> Subset:
        logprobs, actions = self.ranked(teacher)
        return table(actions, self.keep(logprobs), logprobs)

    def keep(self, logprobs: Tensor) -> Tensor:
        mask = logprobs > -math.inf
        mask[:, self.k :] = False
        mask[:, 0] = True
        return mask


class Liked(Ranked):
    """The student's k likeliest tokens: A_k(s) = {a_1, ..., a_k}, in tables [N, K].

    References:
        These tests.
    """

    @property
    def needs_student(self) -> bool:
        return True

    def chosen(self, teacher: LogitView) -> Subset:
        return self.choose(teacher, teacher)

    def choose(self, teacher: LogitView, student: LogitView) -> Subset:
        with torch.no_grad():
            logits, actions = student.top(self.k, torch.arange(student.rows))
            mask = logits > -math.inf
            mask[:, 0] = True
            return listed(actions, mask, teacher.gather(actions) - teacher.logsumexp()[:, None])


class Drawn(Ranked):
    """The k likeliest tokens, and m ~ pi_T of the others with their weights, in tables [N, K].

    References:
        These tests.
    """

    m: int = Field(3, ge=1, description="draws")

    @property
    def draws(self) -> bool:
        return True

    @property
    def weighted(self) -> bool:
        return True

    def chosen(self, teacher: LogitView) -> Subset:
        sure = super().chosen(teacher)
        logits = teacher.block(torch.arange(teacher.rows))
        others = logits.scatter(1, sure.actions.where(sure.mask, sure.actions[:, :1]), -math.inf)
        some = others.amax(1, keepdim=True) > -math.inf
        probs = others.softmax(1).where(some, 1.0)
        actions = self.drawn(probs)
        logprobs = logits.gather(1, actions) - teacher.logsumexp()[:, None]
        count = (actions[:, :, None] == actions[:, None]).sum(2)
        return listed(
            torch.cat([sure.actions, actions], 1),
            torch.cat([sure.mask, some.expand_as(actions)], 1),
            torch.cat([sure.logprobs, logprobs], 1),
            torch.cat([self.weight_of_sure(sure), self.weight(count, probs.gather(1, actions), logprobs.exp())], 1),
        )

    def drawn(self, probs: Tensor) -> Tensor:
        return probs.multinomial(self.m, replacement=True)

    def weight_of_sure(self, sure: Subset) -> Tensor:
        return sure.mask.to(sure.logprobs.dtype)

    def weight(self, count: Tensor, proposal: Tensor, teacher: Tensor) -> Tensor:
        return count / (self.m * proposal)


@parametrize_with_checks([Ranked(), Liked(), Drawn()])
def test_a_healthy_subset_passes(check):
    check()


class UntypedParameter(Ranked):
    places: Any = Field((0, 1, 2), description="ranks that are kept")  # YAML gives a list back


class LambdaParameter(Ranked):
    score: Callable[[Tensor], Tensor] = Field(lambda z: -z, description="what tokens are ranked by")


class Undocumented(Ranked):
    k: int = Field(2, description="tokens a set")


class NoFormula(Ranked):
    """The k likeliest tokens."""


class NoDescription(Ranked):
    """The k likeliest tokens: A_k(s) = {a_1, ..., a_k}."""

    k: int = 2


class NoShapes(Ranked):
    """The k likeliest tokens: A_k(s) = {a_1, ..., a_k}."""


class NoSource(Ranked):
    """The k likeliest tokens: A_k(s) = {a_1, ..., a_k}, in tables [N, V]."""


class Attached(Ranked):
    def select(self, teacher: LogitView) -> Subset:
        return self.chosen(teacher)  # without no_grad()


class WeightsForMask(Ranked):
    def chosen(self, teacher: LogitView) -> Subset:
        found = super().chosen(teacher)
        return Subset(found.actions, found.mask.double(), found.logprobs, found.mass)


class Transposed(Ranked):
    def chosen(self, teacher: LogitView) -> Subset:
        found = super().chosen(teacher)
        return Subset(found.actions.T, found.mask.T, found.logprobs.T, found.mass)


class Threshold(Ranked):
    def keep(self, logprobs: Tensor) -> Tensor:
        return logprobs.exp() >= 0.2  # a flat teacher gives every token less


class EndJoined(Ranked):
    def chosen(self, teacher: LogitView) -> Subset:
        found = super().chosen(teacher)
        end = torch.full((teacher.rows, 1), END)
        logprobs = teacher.gather(end) - teacher.logsumexp()[:, None]
        return table(
            torch.cat([found.actions[:, : self.k], end], 1),
            torch.cat([found.mask[:, : self.k], end == END], 1),
            torch.cat([found.logprobs[:, : self.k], logprobs], 1),
        )


class RawLogits(Ranked):
    def chosen(self, teacher: LogitView) -> Subset:
        found = super().chosen(teacher)
        logits = teacher.gather(found.actions).where(found.mask, 0.0)
        return Subset(found.actions, found.mask, logits, found.mass)


class Renormalised(Ranked):
    def chosen(self, teacher: LogitView) -> Subset:
        found = super().chosen(teacher)
        logprobs = found.logprobs - found.mass.log()[:, None]
        return Subset(found.actions, found.mask, logprobs.where(found.mask, 0.0), found.mass)


class ProbabilitiesWhereMasked(Ranked):
    def chosen(self, teacher: LogitView) -> Subset:
        found = super().chosen(teacher)
        return Subset(found.actions, found.mask, self.ranked(teacher)[0], found.mass)


class MassBeforeTheCut(Ranked):
    def chosen(self, teacher: LogitView) -> Subset:
        found = super().chosen(teacher)
        mass = self.ranked(teacher)[0].exp().sum(1)
        return Subset(found.actions, found.mask, found.logprobs, mass)


class Argsorted(Ranked):
    def ranked(self, teacher: LogitView) -> tuple[Tensor, Tensor]:
        logprobs = teacher.block(torch.arange(teacher.rows)).log_softmax(1)
        actions = logprobs.argsort(dim=1, stable=True).flip(1)  # the higher id first among equals
        return logprobs.gather(1, actions), actions


class EndStruckOut(Ranked):
    def chosen(self, teacher: LogitView) -> Subset:
        logprobs, actions = self.ranked(teacher)
        return table(actions, self.keep(logprobs) & (actions != END), logprobs)


class MinP(Ranked):
    floor: float = Field(0.1, description="least probability, as a share of the likeliest token's")

    @classmethod
    def growing(cls) -> Sequence["MinP"]:
        return [cls(floor=floor) for floor in (0.0, 0.1, 0.5)]  # a higher floor keeps less

    def keep(self, logprobs: Tensor) -> Tensor:
        mask = (logprobs > -math.inf) & (logprobs.exp() >= self.floor * logprobs[:, :1].exp())
        mask[:, 0] = True
        return mask


class Nucleus(Ranked):
    p: float = Field(0.8, description="mass that a set must reach")

    @classmethod
    def growing(cls) -> Sequence["Nucleus"]:
        return [cls(p=0.5), cls(p=1.0)]

    def keep(self, logprobs: Tensor) -> Tensor:
        probs = logprobs.exp()
        mask = (probs.cumsum(1) - probs < self.p) & (logprobs > -math.inf)  # the sum rounds to 1 too early
        mask[:, 0] = True
        return mask


class WidthOfTheBatch(Ranked):
    def keep(self, logprobs: Tensor) -> Tensor:
        needed = (logprobs.exp().cumsum(1) < 0.8).sum(1) + 1
        mask = (logprobs > -math.inf) & (torch.arange(logprobs.shape[1]) < needed.double().mean())
        mask[:, 0] = True
        return mask


class ShareOfTheColumns(Ranked):
    share: float = Field(0.35, description="tokens a set, as a share of the vocabulary")

    def chosen(self, teacher: LogitView) -> Subset:
        return Ranked(k=round(self.share * teacher.size)).select(teacher)


class DenseOnly(Ranked):
    def chosen(self, teacher: LogitView) -> Subset:
        k = 3 if isinstance(teacher, DenseLogits) else 2
        return Ranked(k=k).select(teacher)


class PositiveLogits(Ranked):
    def chosen(self, teacher: LogitView) -> Subset:
        logprobs, actions = self.ranked(teacher)
        mask = teacher.gather(actions) > 0.0
        mask[:, 0] = True
        return table(actions, mask, logprobs)


class Typical(Ranked):
    def ranked(self, teacher: LogitView) -> tuple[Tensor, Tensor]:
        logprobs = teacher.block(torch.arange(teacher.rows)).log_softmax(1)
        entropy = -(logprobs.exp() * logprobs).sum(1, keepdim=True)  # 0 * -inf
        nearest = (-logprobs - entropy).abs().argsort(dim=1, stable=True)[:, : self.k]
        actions = nearest.sort(dim=1).values
        logprobs, order = logprobs.gather(1, actions).sort(dim=1, descending=True, stable=True)
        return logprobs, actions.gather(1, order)


class NanToNum(Ranked):
    def ranked(self, teacher: LogitView) -> tuple[Tensor, Tensor]:
        probs = teacher.block(torch.arange(teacher.rows)).softmax(1).nan_to_num()
        probs, actions = probs.sort(dim=1, descending=True, stable=True)
        return probs.log(), actions


class CutToTheWidest(Ranked):
    def chosen(self, teacher: LogitView) -> Subset:
        logprobs, actions = self.ranked(teacher)
        mask = self.keep(logprobs)
        width = int(mask.sum(1).max())
        return table(actions[:, :width], mask[:, :width], logprobs[:, :width])


class IgnoresTheTaken(Ranked):
    def with_action(self, subset: Subset, teacher: LogitView, action: Tensor) -> Subset:
        return subset


class AlwaysAddsTheTaken(Ranked):
    def with_action(self, subset: Subset, teacher: LogitView, action: Tensor) -> Subset:
        return ActionSubset.with_action(self.model_copy(update={"include_action": True}), subset, teacher, action)


class NumpyDraw(Ranked):
    def keep(self, logprobs: Tensor) -> Tensor:
        width = torch.from_numpy(np.random.randint(1, 4, size=(len(logprobs), 1)))
        return super().keep(logprobs) & (torch.arange(logprobs.shape[1]) < width)


class MassByProduct(Ranked):
    def chosen(self, teacher: LogitView) -> Subset:
        found = super().chosen(teacher)
        probs = found.logprobs.exp()
        mass = torch.einsum("nk,nk->n", probs, found.mask.to(probs.dtype))
        return Subset(found.actions, found.mask, found.logprobs, mass)


class FixedWidthWhenCompiled(Ranked):
    def keep(self, logprobs: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return logprobs > -math.inf
        return super().keep(logprobs)


class IgnoresTheStudent(Liked):
    def choose(self, teacher: LogitView, student: LogitView) -> Subset:
        return super().choose(teacher, teacher)


class UndeclaredStudent(Liked):
    @property
    def needs_student(self) -> bool:
        return False


class AttachedToTheStudent(Liked):
    def choose(self, teacher: LogitView, student: LogitView) -> Subset:
        found = super().choose(teacher, student)
        mass = (student.gather(found.actions, found.mask) - student.logsumexp()[:, None]).exp().sum(1)
        return Subset(found.actions, found.mask, found.logprobs, mass)


class StudentsOrder(Liked):
    def choose(self, teacher: LogitView, student: LogitView) -> Subset:
        with torch.no_grad():
            logits, actions = student.top(self.k, torch.arange(student.rows))
            return table(actions, logits > -math.inf, teacher.gather(actions) - teacher.logsumexp()[:, None])


class StudentsLogprobs(Liked):
    def choose(self, teacher: LogitView, student: LogitView) -> Subset:
        return super().choose(student, student)


class UndeclaredDraws(Drawn):
    @property
    def draws(self) -> bool:
        return False


class Uniform(Drawn):
    def drawn(self, probs: Tensor) -> Tensor:
        return torch.ones_like(probs).multinomial(self.m, replacement=True)


class UndeclaredWeights(Drawn):
    @property
    def weighted(self) -> bool:
        return False


class WeightsOfAFixedSet(Ranked):
    @property
    def weighted(self) -> bool:
        return True

    def chosen(self, teacher: LogitView) -> Subset:
        found = super().chosen(teacher)
        return Subset(found.actions, found.mask, found.logprobs, found.mass, weights=found.mask.double())


class FlatWeights(Drawn):
    def chosen(self, teacher: LogitView) -> Subset:
        found = super().chosen(teacher)
        assert found.weights is not None
        return Subset(found.actions, found.mask, found.logprobs, found.mass, weights=found.weights.sum(1))


class NoWeight(Drawn):
    def weight(self, count: Tensor, proposal: Tensor, teacher: Tensor) -> Tensor:
        return torch.zeros_like(proposal)


class HeavySure(Drawn):
    def weight_of_sure(self, sure: Subset) -> Tensor:
        return super().weight_of_sure(sure) / sure.mass[:, None]


class OneDraw(Drawn):
    def weight(self, count: Tensor, proposal: Tensor, teacher: Tensor) -> Tensor:
        return 1 / (self.m * proposal)  # a token drawn twice counts once


class ProbabilityOverTheVocabulary(Drawn):
    def weight(self, count: Tensor, proposal: Tensor, teacher: Tensor) -> Tensor:
        return count / (self.m * teacher)


BROKEN: list[Broken] = [
    ("round-trip", UntypedParameter(), "type has no YAML form"),
    ("picklable", LambdaParameter(), "a field holds a lambda"),
    ("documented", Undocumented(), "Undocumented has no docstring"),
    ("documented", NoFormula(), "NoFormula holds no formula"),
    ("documented", NoDescription(), "parameter 'k' has no description"),
    ("shapes-documented", NoShapes(), r"names no shape, such as \[N, K\]"),
    ("source-documented", NoSource(), "no 'References:'"),
    ("tables", Attached(), r"logprobs carries a gradient to the teacher: select under torch\.no_grad"),
    ("tables", WeightsForMask(), r"mask is torch\.float64 .* use torch\.bool"),
    ("tables", Transposed(), r"actions has the shape \[9, 12\] and should be \[N, K\] with N = 12"),
    ("never-empty", Threshold(), "A set is empty.* threshold that not even the likeliest token meets"),
    ("no-repeats", EndJoined(), "holds a token twice: .* joined without taking out what they share"),
    ("logprobs", RawLogits(), r"raw logit, or is normalised over the set: subtract teacher\.logsumexp"),
    ("logprobs", Renormalised(), r"raw logit, or is normalised over the set: subtract teacher\.logsumexp"),
    ("logprobs", ProbabilitiesWhereMasked(), "should be 0 where the table is masked"),
    ("mass", MassBeforeTheCut(), "cut after the mass was taken"),
    ("sorted", Argsorted(), "the lower id first among equals.* unstable sort broke a tie"),
    ("sorted", EndStruckOut(), "A masked entry stands before an action"),
    ("grows", MinP(), r"MinP\(floor=0\.0\) is no part of that of MinP\(\).* comparison points the wrong way"),
    ("limit", Nucleus(), r"At its limit Nucleus\(p=1\.0\) holds .* a sum of probabilities that rounds to 1"),
    ("row-by-row", WidthOfTheBatch(), "a width or a sum is taken over the rows of the batch"),
    ("vocabulary-rows", ShareOfTheColumns(), "ids without a token .* a column count enters the choice"),
    ("lazy-teacher", DenseOnly(), r"reads more than the view's methods give \(isinstance, \.logits\)"),
    ("level", PositiveLogits(), "raw logits are compared with a threshold"),
    ("one-hot-teacher", Typical(), "only token is 4 and the set is .* a NaN"),
    ("infinite-logits", NanToNum(), r"logit of \+inf the set misses that token.* Let NaN through"),
    ("no-rows", CutToTheWidest(), "A batch without states raises .* a maximum over no rows"),
    ("taken-action", IgnoresTheTaken(), "the taken action is missing: does the part replace with_action"),
    ("taken-action", AlwaysAddsTheTaken(), "include_action is not set and with_action changes the sets"),
    ("deterministic", NumpyDraw(), "comes from elsewhere than torch's generator"),
    ("deterministic", UndeclaredDraws(), "under another seed.* draws tokens without saying so: return True from draws"),
    ("student", IgnoresTheStudent(), "the same sets, and the part says needs_student"),
    ("student", UndeclaredStudent(), "looks at the student, and the part doesn't say so"),
    ("student", AttachedToTheStudent(), r"mass carries a gradient to the student: choose under torch\.no_grad"),
    ("sorted", StudentsOrder(), "falling teacher probability"),
    ("logprobs", StudentsLogprobs(), "the teacher's is"),
    ("vocabulary-rows", Uniform(), "is drawn and has no token.* the draws are uniform"),
    ("tables", FlatWeights(), r"weights has the shape \[12\] and should be \[12, "),
    ("weights", UndeclaredWeights(), "weighted is False and the subset has them"),
    ("weights", WeightsOfAFixedSet(), "has weights and the part doesn't draw"),
    ("weights", NoWeight(), "positive and finite, and 0 where the table is masked; one is 0"),
    ("weights", HeavySure(), "listed in every draw has the weight .* and should have 1"),
    ("weights", OneDraw(), r"on average, and over the vocabulary it is .* count / \(draws \* probability\)"),
    ("weights", ProbabilityOverTheVocabulary(), "is not the one which the tokens were drawn with"),
    ("low-precision", MassByProduct(), "The mass changes in bfloat16.* summed in bfloat16"),
    ("compiles", FixedWidthWhenCompiled(), r"Under torch\.compile the values differ"),
]


@each(BROKEN)
def test_a_broken_subset_is_caught(name, part, message):
    assert_caught(name, part, message)
