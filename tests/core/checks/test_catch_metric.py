"""Every check of metrics catches a metric that breaks its rule."""

import math
import random
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor

from distillzoo.core.checks import parametrize_with_checks
from distillzoo.core.divergence import kl
from distillzoo.core.metric import Direction, Evaluated, Metric, PositionBin
from tests.core.checks.catching import Broken, assert_caught, each


class Exact(Metric):
    """Share of answers that are a reference, which the broken metrics vary: 1 / N * sum_i [y_i in R_i] = hits / N."""

    direction: ClassVar[Literal["higher", "lower"]] = "higher"
    label: ClassVar[str] = "exact"

    def score(self, evaluated: Evaluated) -> float | None:
        hits = self.hits(evaluated)
        return sum(hits) / len(hits)

    def hits(self, evaluated: Evaluated) -> list[float]:
        pairs = zip(evaluated.rows, evaluated.answers, strict=True)
        return [float(answer in row["output"]) for row, answer in pairs]


class Length(Exact):
    """How far the answers' lengths are from the references': mean_i |1 - |y_i| / |R_i|| = distances / N."""

    direction: ClassVar[Literal["higher", "lower"]] = "lower"

    def score(self, evaluated: Evaluated) -> float | None:
        distances = self.distances(evaluated)
        return sum(distances) / len(distances)

    def distances(self, evaluated: Evaluated) -> list[float]:
        pairs = zip(evaluated.rows, evaluated.answers, strict=True)
        return [abs(1 - len(answer) / len(row["output"][0])) for row, answer in pairs]


class Divergence(Exact):
    """KL of a token: KL = sum_a p(a) (log p(a) - log q(a)), in nats."""

    direction: ClassVar[Literal["higher", "lower"]] = "lower"

    def score(self, evaluated: Evaluated) -> float | None:
        return evaluated.mean_over_tokens(self.distance, on="references")

    def distance(self, model: Tensor, teacher: Tensor) -> Tensor:
        return kl(teacher, model)


class Along(Divergence):
    """KL of a token: KL = sum_a p(a) (log p(a) - log q(a)), in nats, and along the answers."""

    def by_position(self, evaluated: Evaluated) -> list[PositionBin] | None:
        found = evaluated.tokens(self.distance, on="samples")
        return None if found is None else self.bins(found.by_position())

    def bins(self, found: list[PositionBin]) -> Any:
        return found


class Larger(Divergence):
    """A description, whose values have no better end: KL = sum_a p(a) (log p(a) - log q(a))."""

    direction: ClassVar[Direction] = "none"

    def distance(self, model: Tensor, teacher: Tensor) -> Tensor:
        return -super().distance(model, teacher)


@parametrize_with_checks([Exact(), Length(), Divergence(), Along(), Larger()])
def test_the_healthy_metrics_pass(check):
    check()


class NoLabel(Exact):
    label: ClassVar[str] = ""


class NoDirection(Metric):
    label: ClassVar[str] = "exact"

    def score(self, evaluated: Evaluated) -> float | None:
        return None


class WrongDirection(Divergence):
    direction: ClassVar[Literal["higher", "lower"]] = "higher"


class MeanOverTheTokens(Divergence):
    def distance(self, model: Tensor, teacher: Tensor) -> Tensor:
        return super().distance(model, teacher).mean()


class AsText(Exact):
    def score(self, evaluated: Evaluated) -> Any:
        return f"{super().score(evaluated):.0%}"


class NeedsTeacher(Divergence):
    def score(self, evaluated: Evaluated) -> float | None:
        return 100 * super().score(evaluated)


class NeedsChecker(Exact):
    def hits(self, evaluated: Evaluated) -> list[float]:
        return [evaluated.right(row, answer) for row, answer in zip(evaluated.rows, evaluated.answers, strict=True)]


class FirstHalf(Length):
    def distances(self, evaluated: Evaluated) -> list[float]:
        distances = super().distances(evaluated)
        return distances[: len(distances) // 2]


class Bootstrap(Length):
    def distances(self, evaluated: Evaluated) -> list[float]:
        return random.choices(super().distances(evaluated), k=1000)


class BootstrapCurve(Along):
    def bins(self, found: list[PositionBin]) -> Any:
        return [{**bin, "value": bin["value"] * random.random()} for bin in found]


class CurveNeedsTeacher(Along):
    def by_position(self, evaluated: Evaluated) -> list[PositionBin] | None:
        return evaluated.tokens(self.distance, on="samples").by_position()


class CurveOfTheFirst(Along):
    def by_position(self, evaluated: Evaluated) -> list[PositionBin] | None:
        return [{"first": 0, "last": 0, "value": float(len(evaluated.answers[0])), "count": 1}]


class NoBins(Along):
    def bins(self, found: list[PositionBin]) -> Any:
        return []


class BareValues(Along):
    def bins(self, found: list[PositionBin]) -> Any:
        return [bin["value"] for bin in found]


class TensorValues(Along):
    def bins(self, found: list[PositionBin]) -> Any:
        return [{**bin, "value": torch.tensor(bin["value"])} for bin in found]


class OfNothing(Along):
    def bins(self, found: list[PositionBin]) -> Any:
        return [*found, {"first": 16, "last": 31, "value": 0.0, "count": 0}]


class Infinite(Along):
    def bins(self, found: list[PositionBin]) -> Any:
        return [{**bin, "value": math.inf} for bin in found]


class BackwardsBin(Along):
    def bins(self, found: list[PositionBin]) -> Any:
        return [{**bin, "first": bin["last"] + 1} for bin in found]


class FallingBins(Along):
    def bins(self, found: list[PositionBin]) -> Any:
        return found[::-1]


class UntypedParameter(Exact):
    orders: Any = Field((1, 2, 3, 4), description="of the n-grams")  # YAML gives a list back


class OwnGenerator(Exact):
    _random: random.Random = PrivateAttr(default_factory=lambda: random.Random(0))


class Undocumented(Exact):
    pass


class NoFormula(Exact):
    """Share of answers that are a reference."""


BROKEN: list[Broken] = [
    ("declared", NoLabel(), r"declares direction \('higher', 'lower', or 'none' .*\) and label"),
    ("declared", NoDirection(), r"declares direction \('higher', 'lower', or 'none' .*\) and label"),
    ("value", WrongDirection(), "direction is 'higher'. Most likely a sign or the direction is flipped"),
    ("value", MeanOverTheTokens(), r"The function a token gives the shape \[\] and should give \[n\]"),
    ("value", AsText(), r"score\(\) gives '100%' and should give a finite number"),
    ("undefined", NeedsTeacher(), r"Without a teacher, or a checker of answers, it raises TypeError.* Return None"),
    ("undefined", NeedsChecker(), r"Without a teacher, or a checker of answers, it raises TypeError.* Return None"),
    ("row-order", FirstHalf(), "with the examples in another order"),
    ("deterministic", Bootstrap(), "it draws without a seed"),
    ("undefined", CurveNeedsTeacher(), r"raises AttributeError.* Return None"),
    ("row-order", CurveOfTheFirst(), "The curve is .* with the examples in another order"),
    ("deterministic", BootstrapCurve(), "it draws without a seed"),
    ("positions", NoBins(), r"by_position\(\) gives \[\] and should give None, or a list"),
    ("positions", BareValues(), r"should give None, or a list of dictionaries"),
    ("positions", TensorValues(), "plain, finite numbers that JSON can hold"),
    ("positions", OfNothing(), "'count': 0}.* and should give"),
    ("positions", Infinite(), "inf.* plain, finite numbers"),
    ("positions", BackwardsBin(), "'first': 1, 'last': 0.* and should give"),
    ("positions", FallingBins(), r"end at the positions \[15, 7, 3, 1, 0\], which should rise"),
    ("round-trip", UntypedParameter(), "type has no YAML form"),
    ("picklable", OwnGenerator(), "it keeps something outside its fields"),
    ("documented", Undocumented(), "Undocumented has no docstring"),
    ("documented", NoFormula(), "NoFormula holds no formula"),
]


@each(BROKEN)
def test_a_broken_metric_is_caught(name, part, message):
    assert_caught(name, part, message)
