"""Metrics: one number for a model on a set of prompts."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, Protocol, TypedDict

import torch
from jaxtyping import Float, Int
from torch import Tensor

from distillzoo.core.part import Part
from distillzoo.core.trajectories import Completion, PromptRow

States = Literal["references", "samples", "teacher"]
"""On which sequences a quantity a token is measured: the first reference answers, the model's own samples, or the
teacher's samples for the same prompts at the same decoding."""

Direction = Literal["higher", "lower", "none"]
"""Which values are better; ``none`` for a quantity that describes a model and whose ends are both bad, as a length."""

ARROWS: Final[Mapping[str, str]] = {"higher": " ↑", "lower": " ↓", "none": ""}
"""What stands behind a metric's name in a table, by its direction."""


class PositionBin(TypedDict):
    """A value of the response tokens at some positions; a plain dictionary, so that it is JSON as it stands."""

    first: int
    """First position, counted from 0."""
    last: int
    """Last position, inclusive."""
    value: float
    count: int
    """Tokens, or responses, that the value is taken from."""


@dataclass(frozen=True, eq=False)
class TokenValues:
    """A quantity at each of N response tokens, in no particular order.

    Attributes:
        value: in float64 on the CPU.
        position: the token's place in its response, from 0.
    """

    value: Float[Tensor, "N"]
    position: Int[Tensor, "N"]

    def mean(self) -> float | None:
        """Mean over the tokens; None if there are none."""
        return float(self.value.mean()) if len(self.value) else None

    def at_positions(self) -> tuple[Float[Tensor, "L"], Int[Tensor, "L"]]:
        """Sum and number of the tokens at each position, up to the longest response's last."""
        return torch.bincount(self.position, self.value), torch.bincount(self.position)

    def by_position(self) -> list[PositionBin]:
        """Means over the tokens at the positions 0, 1, 2-3, 4-7, 8-15 and so on: bins between powers of two."""
        sums, counts = self.at_positions()
        bins: list[PositionBin] = []
        first, width = 0, 1
        while first < len(counts):
            here = slice(first, first + width)
            count = int(counts[here].sum())
            value = float(sums[here].sum()) / count
            bins.append({"first": first, "last": first + width - 1, "value": value, "count": count})
            first += width
            width = first
        return bins


class Evaluated(Protocol):
    """What a metric may see of an evaluation of one model.

    What a function of the logits gives is kept for the evaluation: the same function, asked for again, costs nothing.
    """

    @property
    def rows(self) -> Sequence[dict[str, Any]]:
        """The examples as they were read, each with at least ``instruction`` and ``output``."""

    @property
    def answers(self) -> Sequence[str]:
        """The model's sampled answer to each example."""

    @property
    def right(self) -> Callable[[dict[str, Any], str], bool] | None:
        """The suite's checker of an answer, if the data have one."""

    @property
    def encoded(self) -> Sequence[PromptRow]:
        """The tokens of each example's prompt and reference answers."""

    @property
    def completions(self) -> Sequence[Completion]:
        """The tokens of each answer, the end token included where there is one."""

    def tokens(self, fn: Callable[[Tensor, Tensor], Tensor], on: States) -> TokenValues | None:
        """``fn(model's logits [n, V], teacher's logits [n, V]) -> [n]`` at each response token.

        None where there is no teacher to compare with, or the model is the teacher.
        """

    def taken(self, fn: Callable[[Tensor, Tensor], Tensor], on: States) -> TokenValues | None:
        """``fn(model's logits [n, V], tokens that follow [n]) -> [n]`` at each response token; it needs no teacher.

        None on the states ``teacher`` where there is none.
        """

    def mean_over_tokens(self, fn: Callable[[Tensor, Tensor], Tensor], on: States) -> float | None:
        """Mean of ``tokens(fn, on)``, or None."""


class Metric(Part):
    """Base of the metrics. A metric implements ``score``."""

    direction: ClassVar[Direction]
    """Which values are better."""
    label: ClassVar[str]
    """Column head in tables, with the unit."""
    digits: ClassVar[int] = 2

    @abstractmethod
    def score(self, evaluated: Evaluated) -> float | None:
        """The value, or None where it is not defined for these data or this model."""

    def by_position(self, evaluated: Evaluated) -> list[PositionBin] | None:
        """The value along the responses, in bins of rising positions; None for a metric without such a curve."""
        return None
