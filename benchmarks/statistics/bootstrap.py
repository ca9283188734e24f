"""Intervals by resampling runs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from distillzoo.benchmarks.statistics.scores import Values, checked

Statistic = Callable[..., Values]
"""Maps matrices ``[..., runs, tasks]`` to ``[...]``, or to ``[..., T]``, so that all resamples are one call."""

ONE_SEED: Final = "not a benchmark"
"""Said of a figure that rests on a single seed."""


ENOUGH: Final = 5
"""Seeds below which an interval is too narrow to decide anything."""

COVERAGE: Final = {2: 50, 3: 75, 4: 80}
"""In how many of 100 cases the 95% interval over so few normal runs holds their mean.

Over two and three it reaches from the lowest run to the highest, and n runs lie on both sides of the mean in
1 - 2 / 2^n of the cases; over four by simulation.
"""


@dataclass(frozen=True)
class Interval:
    """A statistic of the scores and its confidence interval; the ends are NaN where there is but one run."""

    value: float
    low: float
    high: float


def label(seeds: int) -> str:
    """How a number over that many seeds is to be called; that of a single one has no interval."""
    return f"{seeds} seeds" if seeds > 1 else f"1 seed, {ONE_SEED}"


def stratified(
    statistic: Statistic,
    *matrices: Values,
    generator: np.random.Generator,
    resamples: int = 2000,
    confidence: float = 0.95,
    paired: bool = False,
) -> Interval:
    """Percentile interval of a statistic by the stratified bootstrap.

    A resample draws, within each task and each matrix on its own, as many runs as there are, with replacement. That
    takes the scores of a row on different tasks for independent, as they are when every task has its own training.
    Where one trained model is scored on all tasks, they rise and fall together and the interval is too narrow.

    ``paired`` draws whole rows, and the same in every matrix: for ratios and differences of algorithms that share
    their seeds, row by row. With a single matrix it is the bootstrap over trainings that are scored on all tasks.

    Percentile intervals of few runs are too narrow: for the mean of n normal runs of one task they cover 95% only
    for large n, 90% with n = 10 and 84% with n = 5.

    Args:
        statistic: of the matrices, in their order.
        matrices: ``[runs, tasks]`` each; the runs may differ in number, unless they are paired.
        generator: the only source of randomness: the same seed gives the same interval.
        resamples: number of resamples.
        confidence: share of resamples inside the interval.
        paired: draw the same whole rows from every matrix.

    References:
        arXiv:2108.13264, section 4. Its library, rliable, draws from numpy's global state whatever it is passed.
    """
    low, high = bounds(
        statistic, *matrices, generator=generator, resamples=resamples, confidence=confidence, paired=paired
    )
    return Interval(float(statistic(*matrices)), float(low), float(high))


def bounds(
    statistic: Statistic,
    *matrices: Values,
    generator: np.random.Generator,
    resamples: int,
    confidence: float,
    paired: bool,
) -> tuple[Values, Values]:
    """The two ends of `stratified`, of the shape of the statistic.

    They are resampled values, never a number between two of them: half of the rest, rounded down, lies beyond each
    end. Hence a statistic may be infinite. Where it is NaN (0 / 0) it could be anything, so that such a resample
    lies beyond the lower end and beyond the upper.
    """
    scores = [checked(matrix) for matrix in matrices]
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is a share between 0 and 1, not {confidence}")
    if paired and len({len(matrix) for matrix in scores}) > 1:
        raise ValueError(f"paired runs are equal in number, not {[len(matrix) for matrix in scores]}")
    values = np.asarray(statistic(*_resampled(scores, generator, resamples, paired)))
    if values.shape[:1] != (resamples,):
        raise ValueError("the statistic has to keep leading dimensions: [..., runs, tasks] -> [...]")
    if min(len(matrix) for matrix in scores) == 1:
        return np.full(values.shape[1:], np.nan), np.full(values.shape[1:], np.nan)
    beyond = int((1 - confidence) / 2 * (resamples - 1))
    lowest = np.sort(np.where(np.isnan(values), -np.inf, values), 0)
    highest = np.sort(np.where(np.isnan(values), np.inf, values), 0)
    return lowest[beyond], highest[-1 - beyond]


def _resampled(scores: list[Values], generator: np.random.Generator, resamples: int, paired: bool) -> list[Values]:
    """``[resamples, runs, tasks]`` of each matrix."""
    if paired:
        runs = len(scores[0])
        rows = generator.integers(runs, size=(resamples, runs))
        return [matrix[rows] for matrix in scores]
    drawn = [generator.integers(len(matrix), size=(resamples, *matrix.shape)) for matrix in scores]
    return [np.take_along_axis(matrix[None], rows, 1) for matrix, rows in zip(scores, drawn, strict=True)]
