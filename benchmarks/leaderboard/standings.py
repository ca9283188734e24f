"""What the seeds of each algorithm say: means with intervals, costs, and the comparison with a baseline."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from distillzoo.benchmarks.harness.row import Cost
from distillzoo.benchmarks.leaderboard.table import Column, Line, Table
from distillzoo.benchmarks.statistics.aggregates import interquartile_mean, mean
from distillzoo.benchmarks.statistics.bootstrap import Interval, stratified
from distillzoo.benchmarks.statistics.comparison import holm, permutation_test, probability_of_improvement
from distillzoo.benchmarks.statistics.scores import Values

DEFAULT_BASELINE: Final = "kd"


class CostColumn(NamedTuple):
    """A cost of a cell: the head of its column in two lines."""

    what: str
    unit: str

    def __str__(self) -> str:
        return f"{self.what}, {self.unit}"


TRAINING, SAMPLING, MEMORY, SPEED = (
    CostColumn("training", "s"),
    CostColumn("teacher's samples", "s"),
    CostColumn("peak memory", "GiB"),
    CostColumn("speed", "tokens/s"),
)

COSTS: Final[Mapping[CostColumn, Callable[[Cost], float]]] = {
    TRAINING: lambda cost: cost.training_seconds,
    SAMPLING: lambda cost: cost.sampling_seconds,
    CostColumn("student", "tokens"): lambda cost: cost.student_tokens,
    CostColumn("teacher", "tokens"): lambda cost: cost.teacher_tokens,
    CostColumn("sampled by student", "tokens"): lambda cost: cost.sampled_tokens,
    SPEED: lambda cost: cost.tokens_per_second,
    MEMORY: lambda cost: cost.peak_memory_bytes / 2**30,
}


@dataclass(frozen=True)
class Against:
    """An algorithm against the baseline on the headline, over the seeds that both have."""

    improvement: Interval
    p: float
    adjusted: float
    seeds: int


@dataclass(frozen=True)
class Standing:
    """One line of the table. Scores are as they were measured, also where lower ones are better."""

    line: Line
    headline: Interval | None
    iqm: Interval | None
    scores: Mapping[Column, Interval | None]
    costs: Mapping[CostColumn, float | None]
    against: Against | None


def seeded() -> np.random.Generator:
    """A new generator for every interval, so that no line's figures depend on which others are there."""
    return np.random.default_rng(0)


def standings(table: Table, baseline: str | None) -> list[Standing]:
    """The lines by their headline, the best first and those without one last."""
    compared = _against(table, table.line(baseline))
    columns = (*table.headline, *table.others)
    found = [
        Standing(
            line,
            _interval(mean, line, table.headline),
            _interval(interquartile_mean, line, table.headline) if len(table.headline) > 1 else None,
            {column: _interval(mean, line, (column,)) for column in columns},
            {head: _average([of(row.cost) for row in line.done if row.cost]) for head, of in COSTS.items()},
            compared.get(line.label),
        )
        for line in table.lines
    ]
    sign = table.headline[0].sign if table.headline else 1
    return sorted(
        found, key=lambda s: (s.headline is None, -sign * s.headline.value if s.headline else 0, s.line.label)
    )


def decidable(ranked: Sequence[Standing]) -> bool:
    """Whether any p of a table can be below 1: with n seeds the least is 2 / 2^n, before Holm's adjustment."""
    compared = [standing.against.seeds for standing in ranked if standing.against]
    return bool(compared) and len(compared) * 2 / 2 ** max(compared) < 1


def _interval(statistic: Callable[..., Values], line: Line, columns: Sequence[Column]) -> Interval | None:
    """Whole trainings are drawn, as the scores of one training on several tasks rise and fall together."""
    matrix = line.matrix(columns) if columns else None
    if matrix is None:
        return None
    found = stratified(statistic, matrix, generator=seeded(), paired=True)
    if columns[0].sign > 0:
        return found
    return Interval(-found.value, -found.high, -found.low)


def _average(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _against(table: Table, baseline: Line | None) -> dict[str, Against]:
    """All lines but the baseline's, their p-values adjusted together."""
    if baseline is None or not table.headline:
        return {}
    theirs = baseline.scores(table.headline)
    pairs = {}
    for line in table.lines:
        common = [seed for seed in line.scores(table.headline) if seed in theirs]
        x, y = line.matrix(table.headline, common), baseline.matrix(table.headline, common)
        if line is not baseline and x is not None and y is not None:
            pairs[line.label] = (x, y)
    p = {label: permutation_test(x, y, seeded()) for label, (x, y) in pairs.items()}
    adjusted = holm(p)
    return {
        label: Against(
            stratified(probability_of_improvement, x, y, generator=seeded(), paired=True),
            p[label],
            adjusted[label],
            len(x),
        )
        for label, (x, y) in pairs.items()
    }
