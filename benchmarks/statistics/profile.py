"""Performance profiles: how many scores lie above each threshold."""

from dataclasses import dataclass

import numpy as np

from distillzoo.benchmarks.statistics.bootstrap import bounds
from distillzoo.benchmarks.statistics.scores import Values, checked


@dataclass(frozen=True)
class Band:
    """A profile and its pointwise confidence interval, ``[T]`` each; the ends are NaN where there is but one run."""

    value: Values
    low: Values
    high: Values


def performance_profile(scores: Values, thresholds: Values) -> Values:
    """Share of the run-task values strictly above each threshold, F(tau) = 1/(nK) sum_ik 1[x_ik > tau], ``[T]``.

    Args:
        scores: ``[runs n, tasks K]``, or with leading dimensions, which the result keeps.
        thresholds: tau, ``[T]``.

    References:
        arXiv:2108.13264, section 4, "run-score distribution".
    """
    found = checked(scores)
    return np.stack([(found > threshold).mean((-2, -1)) for threshold in thresholds], -1)


def profile_band(
    scores: Values,
    thresholds: Values,
    generator: np.random.Generator,
    resamples: int = 2000,
    confidence: float = 0.95,
    paired: bool = False,
) -> Band:
    """The profile with a band of percentile intervals, one a threshold, all from the same resamples.

    At each threshold it is the interval of `bootstrap.stratified`, whose arguments it takes. It is pointwise: the
    whole curve lies inside less often than ``confidence``.
    """
    low, high = bounds(
        lambda matrix: performance_profile(matrix, thresholds),
        scores,
        generator=generator,
        resamples=resamples,
        confidence=confidence,
        paired=paired,
    )
    return Band(performance_profile(scores, thresholds), low, high)
