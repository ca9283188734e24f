"""What it takes each algorithm to reach the final score of another, and what that says about the paper's claims."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from distillzoo.benchmarks.harness.row import CurvePoint, Row
from distillzoo.benchmarks.leaderboard.curves import curve_metrics
from distillzoo.benchmarks.leaderboard.standings import seeded
from distillzoo.benchmarks.leaderboard.table import Line, Table
from distillzoo.benchmarks.statistics.bootstrap import ENOUGH, Interval
from distillzoo.benchmarks.statistics.scores import Values
from distillzoo.benchmarks.statistics.target import Claim, Verdict, cost_to_reach, ratio_of_costs, share_reached

Measure = Callable[[Row, CurvePoint], float]
"""What a cell had cost at a point of its curve."""

MEASURES: Final[Mapping[str, Measure]] = {
    "training seconds": lambda row, point: point.seconds,
    "seconds with the teacher's samples": lambda row, point: (
        point.seconds + (row.cost.sampling_seconds if row.cost else 0.0)
    ),
    "student tokens": lambda row, point: point.student_tokens,
}
"""Costs in which races are run. Samples that the teacher draws before the training are not in a curve's seconds."""

SECONDS: Final = ("training seconds", "seconds with the teacher's samples")

CLAIMANT: Final = "bd-iql"
"""The algorithm of arXiv:2505.20335, whose claims these are."""

ALSO: Final = "bd-plus"
"""Ours, held against the same claims, which the paper does not make for it."""


@dataclass(frozen=True)
class Published:
    """A claim of the paper about reaching an algorithm's score."""

    reference: str
    words: str
    claim: Claim
    measures: tuple[str, ...]


PUBLISHED: Final = (
    Published("kd", "reaches KD's score with over 30% less training", Claim(at_most=0.7), tuple(MEASURES)),
    Published(
        "minillm",
        "is 3.7 to 13.4 times as fast as MiniLLM, so at least 3.7 times",
        Claim(at_most=1 / 3.7),
        SECONDS,
    ),
)


@dataclass(frozen=True)
class Reach:
    """An algorithm's way to the target in one measure.

    Attributes:
        median: over seeds; inf where half of them never get there.
        ratio: to the reference's median, capped as `_costs` says, over the seeds that both have; None without any.
        common: number of those seeds.
    """

    median: float
    ratio: Interval | None
    common: int


@dataclass(frozen=True)
class Runner:
    """An algorithm in a race."""

    name: str
    seeds: int
    reached: float
    reach: Mapping[str, Reach]

    @property
    def share(self) -> str:
        """How many of its seeds get there."""
        return f"{round(self.reached * self.seeds)} of {self.seeds}"


@dataclass(frozen=True)
class Judged:
    """A claim held against an algorithm's figures, in each of its measures."""

    runner: Runner
    name: str
    verdicts: Mapping[str, Verdict]

    @property
    def by_the_paper(self) -> bool:
        return self.name == CLAIMANT


@dataclass(frozen=True)
class Race:
    """All algorithms on their way to a reference's final score, about which the paper may claim something."""

    reference: str
    published: Published | None
    metric: str
    target: float
    runners: tuple[Runner, ...]
    judged: tuple[Judged, ...]


def races(table: Table, order: Sequence[str], targets: Sequence[str] = ()) -> list[Race]:
    """A race for each reference of the claims, and each further target, that has curves here.

    Args:
        table: the algorithms.
        order: of the runners.
        targets: further algorithms whose final score is raced for.
    """
    metrics, claims = curve_metrics(table), {one.reference: one for one in PUBLISHED}
    return [
        race
        for name in dict.fromkeys([*claims, *targets])
        if metrics and (reference := table.line(name)) is not None
        if (race := _race(table, reference, metrics[0], claims.get(name), order)) is not None
    ]


def _race(table: Table, reference: Line, metric: str, published: Published | None, order: Sequence[str]) -> Race | None:
    sign = -1 if any(s.metric == metric and s.direction == "lower" for row in reference.done for s in row.scores) else 1
    finals = [found[-1] for row in reference.done if len(found := _curve(row, metric, MEASURES[SECONDS[0]])[1])]
    if not finals:
        return None
    target = float(np.mean(finals))
    begun = [_curve(row, metric, MEASURES[SECONDS[0]])[1][0] for row in reference.done if row.curve]
    if sign * float(np.mean(begun)) >= sign * target:  # all are there before they begin
        return None
    theirs = {measure: _costs(reference, metric, of, sign, target, capped=True) for measure, of in MEASURES.items()}
    runners = []
    for label in order:
        line = table.line(label)
        if line is not None and any(row.curve for row in line.done):
            costs = {measure: _costs(line, metric, of, sign, target) for measure, of in MEASURES.items()}
            reached = np.array(list(costs[SECONDS[0]].values()))
            reach = _reach(theirs if line is reference else costs, theirs)
            runners.append(Runner(label, len(reached), share_reached(reached), reach))
    judged = [
        Judged(one, name, {m: _verdict(published.claim, one.reach[m]) for m in published.measures})
        for name in (CLAIMANT, ALSO)
        if published is not None and (line := table.line(name)) is not None
        for one in runners
        if one.name == line.label
    ]
    return Race(reference.label, published, metric, target, tuple(runners), tuple(judged))


def _reach(costs: Mapping[str, Mapping[int, float]], theirs: Mapping[str, Mapping[int, float]]) -> dict[str, Reach]:
    return {
        measure: Reach(
            float(np.median(list(by_seed.values()))),
            _ratio(by_seed, theirs[measure]),
            len(by_seed.keys() & theirs[measure].keys()),
        )
        for measure, by_seed in costs.items()
    }


def _verdict(claim: Claim, reach: Reach) -> Verdict:
    return "undecided" if reach.ratio is None or reach.common < ENOUGH else claim.verdict(reach.ratio)


def _costs(line: Line, metric: str, of: Measure, sign: int, target: float, capped: bool = False) -> dict[int, float]:
    """Cost to the target by seed, inf where it is never reached.

    Capped, such a seed has the cost of its whole training: about half of the reference's own seeds end below their
    mean, and what they got for that cost is the reference's final score none the less.
    """
    found = {}
    for row in line.done:
        cost, score = _curve(row, metric, of)
        if len(cost):
            reached = cost_to_reach(cost, sign * score, sign * target)
            found[row.seed] = min(reached, float(cost[-1])) if capped else reached
    return found


def _curve(row: Row, metric: str, of: Measure) -> tuple[Values, Values]:
    """Costs and scores; points that cost no more than the one before, as a teacher's first tokens may, say nothing."""
    costs: list[float] = []
    scores: list[float] = []
    for point in row.curve:
        value = point.scores.get(metric)
        if value is not None and (not costs or of(row, point) > costs[-1]):
            costs.append(of(row, point))
            scores.append(value)
    return np.array(costs), np.array(scores)


def _ratio(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Interval | None:
    """None without a common seed, or where one was there before it had cost anything."""
    common = [seed for seed in ours if seed in theirs]
    mine, other = (np.array([by_seed[seed] for seed in common]) for by_seed in (ours, theirs))
    if not common or not ((mine > 0).all() and (other > 0).all()):
        return None
    return ratio_of_costs(mine, other, seeded(), paired=True)
