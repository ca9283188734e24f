"""Checks of metrics."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor

from distillzoo.core.checks.check import CheckFailed, check
from distillzoo.core.metric import Metric, States

ROWS: Final[tuple[dict[str, Any], ...]] = tuple(
    {"instruction": f"count to {n}", "input": "", "output": [" ".join(map(str, range(1, n + 1)))]} for n in (2, 3, 5, 7)
)

Answers = Sequence[str]


@dataclass(frozen=True)
class Toy:
    """An evaluation of a made-up model.

    Attributes:
        rows: the examples.
        answers: the model's answers.
        right: the checker, or none.
        noise: how far the model's logits are from the teacher's; none for an evaluation without a teacher.
    """

    rows: Sequence[dict[str, Any]]
    answers: Sequence[str]
    right: Callable[[dict[str, Any], str], bool] | None
    noise: float | None

    def mean_over_tokens(self, fn: Callable[[Tensor, Tensor], Tensor], on: States) -> float | None:
        if self.noise is None:
            return None
        generator = torch.Generator().manual_seed(0)
        teacher = torch.randn(20, 11, generator=generator, dtype=torch.float64)
        model = teacher + self.noise * torch.randn(20, 11, generator=generator, dtype=torch.float64)
        found = fn(model, teacher)
        if found.shape != (20,):
            raise CheckFailed(f"The function a token gives the shape {list(found.shape)} and should give [n] = [20].")
        return float(found.mean())


def equal(row: dict[str, Any], answer: str) -> bool:
    """The toy checker."""
    return answer in row["output"]


GOOD: Final = Toy(ROWS, tuple(row["output"][0] for row in ROWS), equal, 0.1)
BAD: Final = Toy(ROWS, tuple("no idea" for _ in ROWS), equal, 2.0)
MIXED: Final = replace(GOOD, answers=(GOOD.answers[0], GOOD.answers[1], "1 2 4", "no idea"))


def score(part: Metric, evaluated: Toy) -> float | None:
    """The part's score, a finite number or None."""
    found = part.score(evaluated)
    if found is not None and (not isinstance(found, (int, float)) or not math.isfinite(found)):
        raise CheckFailed(f"score() gives {found!r} and should give a finite number, or None where it isn't defined.")
    return found


@check("metric")
def declared(part: Metric) -> None:
    """Direction and column head are declared."""
    if getattr(part, "direction", None) not in ("higher", "lower") or not getattr(part, "label", ""):
        raise CheckFailed("A metric declares direction ('higher' or 'lower') and label, the column head with the unit.")


@check("metric")
def value(part: Metric) -> None:
    """A good and a bad model get finite numbers, and ``direction`` tells which is the better."""
    good, bad = score(part, GOOD), score(part, BAD)
    if good is None or bad is None:
        return
    better = good > bad if part.direction == "higher" else good < bad
    if not better and good != bad:
        raise CheckFailed(
            f"Perfect answers near the teacher score {good:.4g}, nonsense far from it {bad:.4g}, and direction is "
            f"'{part.direction}'. Most likely a sign or the direction is flipped."
        )


@check("metric")
def undefined(part: Metric) -> None:
    """Without a teacher or a checker the metric gives None instead of raising, or a number that needs neither."""
    for bare in (replace(GOOD, noise=None), replace(GOOD, right=None), replace(GOOD, noise=None, right=None)):
        try:
            score(part, bare)
        except CheckFailed:
            raise
        except Exception as error:
            raise CheckFailed(
                f"Without a teacher, or a checker of answers, it raises {type(error).__name__}: {error}. Return None."
            ) from error


@check("metric")
def row_order(part: Metric) -> None:
    """The order of the examples changes nothing."""
    back = replace(MIXED, rows=MIXED.rows[::-1], answers=MIXED.answers[::-1])
    one, other = score(part, MIXED), score(part, back)
    if one is not None and other is not None and not math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-9):
        raise CheckFailed(f"The score is {one:.6g}, and {other:.6g} with the examples in another order.")


@check("metric")
def deterministic(part: Metric) -> None:
    """The same answers get the same score."""
    if score(part, MIXED) != score(part, MIXED):
        raise CheckFailed("The same answers get another score the second time. Most likely it draws without a seed.")
