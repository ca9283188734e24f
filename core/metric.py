"""Metrics: one number for a model on a set of prompts."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor

from distillzoo.core.part import Part

States = Literal["references", "samples"]
"""On which sequences a quantity a token is measured: the reference answers, or the model's own samples."""


class Evaluated(Protocol):
    """What a metric may see of an evaluation of one model."""

    @property
    def rows(self) -> Sequence[dict[str, Any]]:
        """The examples as they were read, each with at least ``instruction`` and ``output``."""

    @property
    def answers(self) -> Sequence[str]:
        """The model's sampled answer to each example."""

    @property
    def right(self) -> Callable[[dict[str, Any], str], bool] | None:
        """The suite's checker of an answer, if the data have one."""

    def mean_over_tokens(self, fn: Callable[[Tensor, Tensor], Tensor], on: States) -> float | None:
        """Mean over response tokens of ``fn(model's logits [n, V], teacher's logits [n, V]) -> [n]``.

        None where there is no teacher to compare with, or the model is the teacher.
        """


class Metric(Part):
    """Base of the metrics. A metric implements ``score``."""

    direction: ClassVar[Literal["higher", "lower"]]
    """Which values are better."""
    label: ClassVar[str]
    """Column head in tables, with the unit."""
    digits: ClassVar[int] = 2

    @abstractmethod
    def score(self, evaluated: Evaluated) -> float | None:
        """The value, or None where it is not defined for these data or this model."""
