"""What it takes each algorithm to reach the final score of another, and what that says about the paper's claims."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from distillzoo.benchmarks.harness.row import CurvePoint, Row
from distillzoo.benchmarks.leaderboard.curves import curve_metrics
from distillzoo.benchmarks.leaderboard.standings import seeded
from distillzoo.benchmarks.leaderboard.table import Line, Table
from distillzoo.benchmarks.statistics.bootstrap import Interval
from distillzoo.benchmarks.statistics.scores import Values
from distillzoo.benchmarks.statistics.target import Claim, Verdict, cost_to_reach, ratio_of_costs, share_reached

Measure = Callable[[Row, CurvePoint], float]
"""What a cell had cost at a point of its curve."""

MEASURES: Final[Mapping[str, Measure]] = {
    "training seconds": lambda row, point: point.seconds,
    "with the samples before": lambda row, point: point.seconds + (row.cost.sampling_seconds if row.cost else 0.0),
    "student tokens": lambda row, point: point.student_tokens,
}
"""Costs in which races are run. Samples that the teacher draws before the training are not in a curve's seconds."""

SECONDS: Final = ("training seconds", "with the samples before")

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
        ratio: to the reference's median, over the seeds that both have; None where there is none to take.
    """

    median: float
    ratio: Interval | None


@dataclass(frozen=True)
class Runner:
    """An algorithm in a race."""

    name: str
    seeds: int
    reached: float
    reach: Mapping[str, Reach]


@dataclass(frozen=True)
class Judged:
    """A claim held against an algorithm's figures in one measure."""

    published: Published
    algorithm: str
    measure: str
    ratio: Interval | None
    verdict: Verdict

    @property
    def by_the_paper(self) -> bool:
        return self.algorithm == CLAIMANT


@dataclass(frozen=True)
class Race:
    """All algorithms on their way to a reference's final score."""

    reference: str
    metric: str
    target: float
    runners: tuple[Runner, ...]
    judged: tuple[Judged, ...]


def races(table: Table, order: Sequence[str]) -> list[Race]:
    """A race for each reference of the claims that has curves here, its runners in the order given."""
    metrics = curve_metrics(table)
    return [
        race
        for published in PUBLISHED
        if metrics and (reference := table.line(published.reference)) is not None
        if (race := _race(table, reference, metrics[0], published, order)) is not None
    ]


def _race(table: Table, reference: Line, metric: str, published: Published, order: Sequence[str]) -> Race | None:
    sign = -1 if any(s.metric == metric and s.direction == "lower" for row in reference.done for s in row.scores) else 1
    finals = [found[-1] for row in reference.done if len(found := _curve(row, metric, MEASURES[SECONDS[0]])[1])]
    if not finals:
        return None
    target = float(np.mean(finals))
    costs = {
        (line.label, measure): _costs(line, metric, of, sign, target)
        for line in table.lines
        for measure, of in MEASURES.items()
    }
    runners = []
    for label in order:
        mine = {measure: costs[label, measure] for measure in MEASURES}
        if all(mine.values()):
            found = np.array(list(next(iter(mine.values())).values()))
            reach = {
                measure: Reach(
                    float(np.median(list(by_seed.values()))), _ratio(by_seed, costs[reference.label, measure])
                )
                for measure, by_seed in mine.items()
            }
            runners.append(Runner(label, len(found), share_reached(found), reach))
    judged = [
        Judged(published, runner.name, measure, ratio, published.claim.verdict(ratio) if ratio else "undecided")
        for name in (CLAIMANT, ALSO)
        for runner in runners
        if runner.name == name
        for measure in published.measures
        for ratio in [runner.reach[measure].ratio]
    ]
    return Race(reference.label, metric, target, tuple(runners), tuple(judged))


def _costs(line: Line, metric: str, of: Measure, sign: int, target: float) -> dict[int, float]:
    """Cost to the target by seed."""
    found = {}
    for row in line.done:
        cost, score = _curve(row, metric, of)
        if len(cost):
            found[row.seed] = cost_to_reach(cost, sign * score, sign * target)
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
