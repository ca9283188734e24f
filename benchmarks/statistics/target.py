"""What it costs to reach a target score, and what that says about a claim."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from distillzoo.benchmarks.statistics.bootstrap import Interval, stratified
from distillzoo.benchmarks.statistics.scores import Values

Verdict = Literal["confirmed", "refuted", "undecided"]


def cost_to_reach(cost: Values, score: Values, target: float) -> float:
    """The cost at which a curve first reaches the target; inf if it never does.

    Between the first point at or above the target and the one before, the curve is a straight line; a curve that
    starts there has the cost of its first point. A curve with more points has more chances to reach the target by
    luck, so curves that are compared are evaluated equally often.

    Args:
        cost: ``[P]``, increasing: seconds, tokens, steps.
        score: ``[P]``, higher is better; the caller negates score and target if lower is.
        target: the score to reach.
    """
    if cost.ndim != 1 or cost.shape != score.shape or not len(cost):
        raise ValueError(f"a curve is a cost and a score a point, not {list(cost.shape)} and {list(score.shape)}")
    if not (np.isfinite(cost).all() and np.isfinite(score).all() and (np.diff(cost) > 0).all()):
        raise ValueError("the points of a curve are finite and in the order of increasing cost")
    reached = np.flatnonzero(score >= target)
    if not len(reached):
        return float("inf")
    point = reached[0]
    around = slice(max(point - 1, 0), point + 1)
    return float(np.interp(target, score[around], cost[around]))


def share_reached(costs: Values) -> float:
    """Share of the runs that reached the target, whose costs ``[runs]`` are finite; told beside every ratio."""
    return float(np.isfinite(costs).mean())


def ratio_of_costs(
    ours: Values,
    theirs: Values,
    generator: np.random.Generator,
    resamples: int = 2000,
    confidence: float = 0.95,
    paired: bool = False,
) -> Interval:
    """median(ours) / median(theirs), with its bootstrap interval over runs; below 1, ours is cheaper.

    The median, not the mean, as the cost of a run that never reaches the target is inf: the mean would be inf with
    one such run, the median is with half of them. With inf the ratio of medians is 0 where only ours is finite, inf
    where only theirs is. Where neither is, it could be anything: the value is NaN, and such a resample counts as 0 for
    the lower end and as inf for the upper. So an end is 0 or inf where the runs that failed leave it open. To be
    reported with `share_reached` of both.

    Args:
        ours: ``[runs]``, from `cost_to_reach`; positive, inf if never reached.
        theirs: ``[runs]``, as many only if paired.
        generator: as in `bootstrap.stratified`, also those below.
        resamples: number of resamples.
        confidence: share of resamples inside the interval.
        paired: runs with the same index have the same seed and are drawn together.
    """
    for costs in (ours, theirs):
        if costs.ndim != 1 or not (costs > 0).all():
            raise ValueError("costs are positive, one a run: what is reached at no cost has no ratio")
    found = stratified(
        _ratio_of_medians,
        ours[:, None],
        theirs[:, None],
        generator=generator,
        resamples=resamples,
        confidence=confidence,
        paired=paired,
    )
    return Interval(found.value, float(np.maximum(found.low, 0.0)), found.high)


def _ratio_of_medians(ours: Values, theirs: Values) -> Values:
    """``[..., runs, 1]`` -> ``[...]``."""
    with np.errstate(invalid="ignore"):  # inf / inf is NaN on purpose
        ratio: Values = np.median(ours, (-2, -1)) / np.median(theirs, (-2, -1))
    return ratio


@dataclass(frozen=True)
class Claim:
    """A published range of a quantity, ends included; a threshold is a range with one end open.

    "Three times cheaper" is ``Claim(at_most=1 / 3)`` of the ratio of costs, "two to four times dearer" is
    ``Claim(2, 4)``.
    """

    at_least: float = -np.inf
    at_most: float = np.inf

    def __post_init__(self) -> None:
        if not self.at_least <= self.at_most or (self.at_least, self.at_most) == (-np.inf, np.inf):
            raise ValueError(f"nothing is claimed by a range from {self.at_least} to {self.at_most}")

    def verdict(self, interval: Interval) -> Verdict:
        """What an interval says about the claim.

        Confirmed if the whole interval lies inside the range, refuted if all of it lies outside on one side, and
        undecided otherwise: also with a single run, whose interval is NaN, and where an interval is wider than the
        range. A wrong verdict is as rare as the interval's confidence says, no rarer.
        """
        if self.at_least <= interval.low and interval.high <= self.at_most:
            return "confirmed"
        if interval.high < self.at_least or interval.low > self.at_most:
            return "refuted"
        return "undecided"
