"""Checks of metrics."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, get_args

import torch
from torch import Tensor

from distillzoo.core.checks.check import CheckFailed, check
from distillzoo.core.metric import Direction, Metric, PositionBin, States, TokenValues
from distillzoo.core.trajectories import Completion, PromptRow

ROWS: Final[tuple[dict[str, Any], ...]] = tuple(
    {"instruction": f"count to {n}", "input": "", "output": [" ".join(map(str, range(1, n + 1)))]}
    for n in (2, 3, 5, 7, 11)
)

TOKENS: Final = 11
"""Tokens of the toy vocabulary."""

END: Final = 0
"""The end-of-sequence action."""


@dataclass(frozen=True)
class Toy:
    """An evaluation of a made-up model; the teacher's samples are the reference answers.

    The logits of a token depend on its answer and its place there, and not on the other answers.

    Attributes:
        rows: the examples.
        answers: the model's answers.
        right: the checker, or none.
        noise: how far the model's logits are from the teacher's; none for an evaluation without a teacher. Along the
            model's own answers they go further astray.
    """

    rows: Sequence[dict[str, Any]]
    answers: Sequence[str]
    right: Callable[[dict[str, Any], str], bool] | None
    noise: float | None

    @property
    def encoded(self) -> list[PromptRow]:
        return [PromptRow([1, 2], [completion(text) for text in row["output"]]) for row in self.rows]

    @property
    def completions(self) -> list[Completion]:
        return [completion(answer) for answer in self.answers]

    def tokens(self, fn: Callable[[Tensor, Tensor], Tensor], on: States) -> TokenValues | None:
        return None if self.noise is None else self._over(fn, on, compared=True)

    def taken(self, fn: Callable[[Tensor, Tensor], Tensor], on: States) -> TokenValues | None:
        return None if on == "teacher" and self.noise is None else self._over(fn, on, compared=False)

    def mean_over_tokens(self, fn: Callable[[Tensor, Tensor], Tensor], on: States) -> float | None:
        found = self.tokens(fn, on)
        return None if found is None else found.mean()

    def _over(self, fn: Callable[[Tensor, Tensor], Tensor], on: States, compared: bool) -> TokenValues:
        answers = self.answers if on == "samples" else [row["output"][0] for row in self.rows]
        tables = [states(answer, self.noise or 0.0, astray=on == "samples") for answer in answers]
        model, teacher, action = (torch.cat(parts) for parts in zip(*tables, strict=True))
        found, n = fn(model, teacher if compared else action), len(action)
        if found.shape != (n,):
            raise CheckFailed(f"The function a token gives the shape {list(found.shape)} and should give [n] = [{n}].")
        return TokenValues(found.double(), torch.cat([torch.arange(len(t[2])) for t in tables]))


def completion(text: str) -> Completion:
    """A token a word, and the end."""
    return Completion([*(1 + sum(map(ord, word)) % (TOKENS - 1) for word in text.split()), END], ended=True)


def states(text: str, noise: float, astray: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The model's and the teacher's logits at the tokens of an answer, and those tokens, which the teacher expects."""
    action = torch.tensor(completion(text).tokens)
    generator = torch.Generator().manual_seed(sum(map(ord, text)))
    teacher, other = (torch.randn(len(action), TOKENS, generator=generator, dtype=torch.float64) for _ in range(2))
    teacher = teacher + 6 * torch.nn.functional.one_hot(action, TOKENS)
    drift = noise * torch.arange(len(action))[:, None] if astray else 0.0
    return teacher + noise * (1 + drift) * other, teacher, action


def equal(row: dict[str, Any], answer: str) -> bool:
    """The toy checker."""
    return answer in row["output"]


GOOD: Final = Toy(ROWS, tuple(row["output"][0] for row in ROWS), equal, 0.1)
BAD: Final = Toy(ROWS, tuple("I have not the least idea how to do it" for _ in ROWS), equal, 5.0)
MIXED: Final = replace(GOOD, answers=(*GOOD.answers[:2], "1 2 4", "no idea", GOOD.answers[4]))
BARE: Final = (replace(GOOD, noise=None), replace(GOOD, right=None), replace(GOOD, noise=None, right=None))
"""Without a teacher, a checker, or both."""


def score(part: Metric, evaluated: Toy) -> float | None:
    """The part's score, a finite number or None."""
    found = part.score(evaluated)
    if found is not None and (not isinstance(found, (int, float)) or not math.isfinite(found)):
        raise CheckFailed(f"score() gives {found!r} and should give a finite number, or None where it isn't defined.")
    return found


@check("metric")
def declared(part: Metric) -> None:
    """Direction and column head are declared."""
    if getattr(part, "direction", None) not in get_args(Direction) or not getattr(part, "label", ""):
        raise CheckFailed(
            "A metric declares direction ('higher', 'lower', or 'none' where neither end is better) and label, the "
            "column head with the unit."
        )


@check("metric")
def value(part: Metric) -> None:
    """A good and a bad model get finite numbers, and ``direction`` tells which is the better."""
    good, bad = score(part, GOOD), score(part, BAD)
    if good is None or bad is None or part.direction == "none":
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
    for bare in BARE:
        try:
            score(part, bare)
            part.by_position(bare)
        except CheckFailed:
            raise
        except Exception as error:
            raise CheckFailed(
                f"Without a teacher, or a checker of answers, it raises {type(error).__name__}: {error}. Return None."
            ) from error


@check("metric")
def positions(part: Metric) -> None:
    """A curve by position has at least one bin, in rising order, each with a finite value and how many it is from."""
    for toy in (GOOD, BAD, MIXED, *BARE):
        curve: Any = part.by_position(toy)
        if curve is None:
            continue
        if not isinstance(curve, list) or not curve or any(wrong(bin) for bin in curve):
            raise CheckFailed(
                f"by_position() gives {curve!r} and should give None, or a list of dictionaries like "
                f"{{'first': 2, 'last': 3, 'value': 0.5, 'count': 10}} of plain, finite numbers that JSON can hold."
            )
        ends = [bin["last"] for bin in curve]
        if ends != sorted(set(ends)):
            raise CheckFailed(f"The bins of by_position() end at the positions {ends}, which should rise.")


def wrong(bin: Any) -> bool:
    """Whether something is not a bin of a curve."""
    if not isinstance(bin, dict) or set(bin) != set(PositionBin.__annotations__):
        return True
    whole = all(type(bin[name]) is int for name in ("first", "last", "count"))
    if not whole or not isinstance(bin["value"], float) or not math.isfinite(bin["value"]):
        return True
    return not (0 <= bin["first"] <= bin["last"] and bin["count"] > 0)


@check("metric")
def row_order(part: Metric) -> None:
    """The order of the examples changes nothing."""
    back = replace(MIXED, rows=MIXED.rows[::-1], answers=MIXED.answers[::-1])
    one, other = score(part, MIXED), score(part, back)
    if one is not None and other is not None and not math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-9):
        raise CheckFailed(f"The score is {one:.6g}, and {other:.6g} with the examples in another order.")
    curve, moved = (part.by_position(toy) or [] for toy in (MIXED, back))
    if [bin["count"] for bin in curve] != [bin["count"] for bin in moved] or not all(
        math.isclose(a["value"], b["value"], rel_tol=1e-9, abs_tol=1e-9) for a, b in zip(curve, moved, strict=True)
    ):
        raise CheckFailed(f"The curve is {curve}, and {moved} with the examples in another order.")


@check("metric")
def deterministic(part: Metric) -> None:
    """The same answers get the same score."""
    if score(part, MIXED) != score(part, MIXED) or part.by_position(MIXED) != part.by_position(MIXED):
        raise CheckFailed("The same answers get another score the second time. Most likely it draws without a seed.")
