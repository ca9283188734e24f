"""Every check of extractions catches an extraction that breaks its rule."""

import itertools
import math
import threading
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor

from distillzoo.core.checks import parametrize_with_checks
from distillzoo.core.extraction import Decoding, PolicyExtraction
from distillzoo.core.logits import DenseLogits
from distillzoo.core.subset import SubsetQ
from tests.core.checks.catching import Broken, assert_caught, each


class Soft(PolicyExtraction):
    """The softmax on the subset, which the broken extractions vary: V(s) = t log sum_a exp(Q(s, a) / t), [N].

    References:
        These tests.
    """

    temperature: float = Field(1.0, description="t")

    def value(self, q: SubsetQ) -> Tensor:
        return self.temperature * q.logsumexp(self.temperature)

    def log_policy(self, q: SubsetQ, actions: Tensor) -> Tensor:
        return q.view.gather(actions) / self.temperature - q.logsumexp(self.temperature)[:, None]

    def decoding(self) -> Decoding:
        return Decoding(temperature=self.temperature)


class SoftOnAll(Soft):
    """The softmax over all tokens: V(s) = t log sum_a exp(Q(s, a) / t), [N].

    References:
        These tests.
    """

    on_subset: ClassVar[bool] = False

    def value(self, q: SubsetQ) -> Tensor:
        return self.temperature * q.view.tempered_logsumexp(self.temperature)

    def log_policy(self, q: SubsetQ, actions: Tensor) -> Tensor:
        return q.view.gather(actions) / self.temperature - q.view.tempered_logsumexp(self.temperature)[:, None]


@parametrize_with_checks([Soft(temperature=0.5), SoftOnAll()])
def test_the_healthy_extractions_pass(check):
    check()


class OverTheRows(Soft):
    def value(self, q: SubsetQ) -> Tensor:
        return q.values.logsumexp(0)


class OneAction(Soft):
    def log_policy(self, q: SubsetQ, actions: Tensor) -> Tensor:
        return super().log_policy(q, actions)[:, 0]


class SinglePrecision(Soft):
    def value(self, q: SubsetQ) -> Tensor:
        return super().value(q).float()


class LogOfQ(Soft):
    def value(self, q: SubsetQ) -> Tensor:
        return q.max().log()


class NormalisedOnAll(Soft):
    def log_policy(self, q: SubsetQ, actions: Tensor) -> Tensor:
        return q.view.gather(actions) - q.view.logsumexp()[:, None]


class HalfTempered(Soft):
    temperature: float = Field(0.5, description="t")

    def value(self, q: SubsetQ) -> Tensor:
        return self.temperature * q.logsumexp()


class Sigmoid(Soft):
    def log_policy(self, q: SubsetQ, actions: Tensor) -> Tensor:
        return torch.nn.functional.logsigmoid(q.view.gather(actions))


class TwoTemperatures(Soft):
    value_is_potential: ClassVar[bool] = True

    temperature: float = Field(0.5, description="t")

    def value(self, q: SubsetQ) -> Tensor:
        return q.logsumexp()


class ValueOnAll(Soft):
    def value(self, q: SubsetQ) -> Tensor:
        return q.view.logsumexp()


class SubsetUndeclared(Soft):
    on_subset: ClassVar[bool] = False


class Unmasked(Soft):
    def value(self, q: SubsetQ) -> Tensor:
        return q.values.logsumexp(1)


class Mellowmax(SoftOnAll):
    def value(self, q: SubsetQ) -> Tensor:
        return super().value(q) - math.log(q.view.size)  # size counts columns, tokens counts tokens


class BlockOfLazy(SoftOnAll):
    def value(self, q: SubsetQ) -> Tensor:
        dense = isinstance(q.view, DenseLogits)
        z = q.view.logits if dense else q.view.block(torch.arange(q.view.rows))  # without a gradient
        top = q.view.max()
        return top + (z - top[:, None]).logsumexp(1)


class EntropyOfTheBatch(Soft):
    def value(self, q: SubsetQ) -> Tensor:
        entropy = q.logsumexp() - (self.log_policy(q, q.subset.actions).exp() * q.values * q.subset.mask).sum(1)
        return q.logsumexp() + 0.1 * entropy.mean()


class HeldPolicy(Soft):
    def value(self, q: SubsetQ) -> Tensor:
        scores = q.values.masked_fill(~q.subset.mask, -math.inf)
        return (scores.softmax(1).detach() * q.values).sum(1)


class HeldNormaliser(Soft):
    def log_policy(self, q: SubsetQ, actions: Tensor) -> Tensor:
        return q.view.gather(actions) - q.logsumexp().detach()[:, None]


class PlainExp(Soft):
    def value(self, q: SubsetQ) -> Tensor:
        return (q.values.exp() * q.subset.mask).sum(1).log()


class OneMaximumForAll(Soft):
    def value(self, q: SubsetQ) -> Tensor:
        top = q.max().max()
        return top + (q.logsumexp() - top)


class TopPInPercent(Soft):
    def decoding(self) -> Decoding:
        return Decoding(top_p=90)


class Annealed(Soft):
    _calls: Iterator[int] = PrivateAttr(default_factory=lambda: itertools.count(1))

    def value(self, q: SubsetQ) -> Tensor:
        temperature = 1 + 1 / next(self._calls)
        return temperature * q.logsumexp(temperature)


class VarianceByProduct(Soft):
    def value(self, q: SubsetQ) -> Tensor:
        """Mean plus variance / 2t; the variance is a small difference of two products."""
        weight = q.subset.mask.to(q.values.dtype) / q.subset.size[:, None]
        mean = torch.einsum("nk,nk->n", weight, q.values)
        square = torch.einsum("nk,nk->n", weight, q.values.square())
        return mean + (square - mean.square()) / (2 * self.temperature)


class HardWhenCompiled(Soft):
    def value(self, q: SubsetQ) -> Tensor:
        return q.max() if torch.compiler.is_compiling() else super().value(q)


class UntypedParameter(Soft):
    range: Any = Field((0.5, 2.0), description="of the temperature")  # YAML gives a list back


class Locked(Soft):
    _lock: Any = PrivateAttr(default_factory=threading.Lock)


class Undocumented(Soft):
    pass


class NoDescription(Soft):
    """The softmax: V(s) = t log sum_a exp(Q(s, a) / t)."""

    temperature: float = 1.0


class NoShapes(Soft):
    """The softmax: V(s) = t log sum_a exp(Q(s, a) / t)."""


class NoSource(Soft):
    """The softmax: V(s) = t log sum_a exp(Q(s, a) / t), [N]."""


BROKEN: list[Broken] = [
    ("shapes", OverTheRows(), r"value has the shape .* over the wrong axis: actions are dim=1"),
    ("shapes", OneAction(), r"log_policy has the shape \[12\] and should be \[N, M\]"),
    ("shapes", SinglePrecision(), r"The value is torch\.float32 and Q torch\.float64"),
    ("shapes", LogOfQ(), "The value is not finite on ordinary logits"),
    ("normalised", NormalisedOnAll(), "normalised over another set than on_subset says"),
    ("equivariant", HalfTempered(), "a temperature multiplies only one of Q and the logsumexp"),
    ("equivariant", Sigmoid(), "The policy changes with a constant a state on Q.* isn't normalised"),
    ("potential", TwoTemperatures(), "value and policy are at different temperatures"),
    ("support-declared", ValueOnAll(), r"on_subset is True, and logits outside .* through q\.view where q is meant"),
    ("support-declared", SubsetUndeclared(), "on_subset is False, and the subset changes"),
    ("table-padding", Unmasked(), r"The value changes .* masked entries of q\.values, which are 0, enter"),
    ("vocabulary-rows", Mellowmax(), "ids without a token are added .* a column count enters"),
    ("lazy-logits", BlockOfLazy(), "The value's gradient changes .* more is read than the view's methods give"),
    ("row-by-row", EntropyOfTheBatch(), "are others alone than in a batch"),
    ("gradcheck", HeldPolicy(), "The gradient of value is not that of its value.* is detached"),
    ("gradcheck", HeldNormaliser(), r"The gradient of log_policy .* declare has_logprobs = False"),
    ("infinite-logits", PlainExp(), r"exp\(\) without subtracting the maximum"),
    ("no-rows", OneMaximumForAll(), "A batch without states raises"),
    ("decoding", TopPInPercent(), r"top_p=90.* 0 < top_p <= 1 is needed"),
    ("deterministic", Annealed(), "the extraction keeps state"),
    ("low-precision", VarianceByProduct(temperature=0.1), "off under bfloat16 autocast: .* a sum in bfloat16"),
    ("compiles", HardWhenCompiled(), r"Under torch\.compile the values differ"),
    ("round-trip", UntypedParameter(), "type has no YAML form"),
    ("picklable", Locked(), "can't be pickled: cannot pickle '_thread.lock'"),
    ("documented", Undocumented(), "Undocumented has no docstring"),
    ("documented", NoDescription(), "parameter 'temperature' has no description"),
    ("shapes-documented", NoShapes(), r"names no shape, such as \[N, K\]"),
    ("source-documented", NoSource(), "no 'References:'"),
]


@each(BROKEN)
def test_a_broken_extraction_is_caught(name, part, message):
    assert_caught(name, part, message)
