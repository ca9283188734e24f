"""Lines over training and over positions, as means over seeds with their bands."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from distillzoo.benchmarks.harness.row import CurvePoint, PositionCurve, Row
from distillzoo.benchmarks.leaderboard.standings import seeded
from distillzoo.benchmarks.leaderboard.table import Line, Table
from distillzoo.benchmarks.statistics.bootstrap import bounds
from distillzoo.benchmarks.statistics.profile import profile_band
from distillzoo.benchmarks.statistics.scores import Values

AXES: Final[Mapping[str, Callable[[CurvePoint], float]]] = {
    "optimiser steps": lambda point: point.step,
    "student tokens": lambda point: point.student_tokens,
    "training seconds": lambda point: point.seconds,
}
"""What a curve over training can be drawn against."""

THRESHOLDS: Final = 41
"""Points of a performance profile."""


@dataclass(frozen=True)
class Series:
    """A mean over seeds and its pointwise interval, ``[P]`` each; the ends are NaN where there is one seed."""

    x: Values
    y: Values
    low: Values
    high: Values


@dataclass(frozen=True)
class Place:
    """Where a metric by position was measured."""

    task: str
    decoding: str
    metric: str


def curve_metrics(table: Table) -> list[str]:
    """Metrics that are measured during the training, the headline's first."""
    rows = [row for line in table.lines for row in line.done]
    names = dict.fromkeys(name for row in rows for point in row.curve for name in point.scores)
    first = table.headline[0].metric if table.headline else None
    return sorted(names, key=lambda name: name != first)


def training_curves(lines: Sequence[Line], metric: str, axis: str) -> dict[str, Series]:
    """A metric against an axis, by algorithm, at the steps that all of its seeds have.

    Seeds reach a step after unequal seconds and tokens: a point stands at their mean.
    """
    found = {}
    for line in lines:
        by_step = [
            {
                point.step: (AXES[axis](point), value)
                for point in row.curve
                if (value := point.scores.get(metric)) is not None
            }
            for row in line.done
        ]
        series = _over_seeds(by_step)
        if series is not None:
            found[line.label] = series
    return found


def places(table: Table) -> list[Place]:
    """What is measured by position in the answer, the headline's decoding first."""
    rows = [row for line in table.lines for row in line.done]
    found = dict.fromkeys(Place(p.task, p.decoding, p.metric) for row in rows for p in row.positions)
    first = table.headline[0].decoding if table.headline else None
    return sorted(found, key=lambda place: place.decoding != first)


def position_curves(lines: Sequence[Line], place: Place) -> dict[str, Series]:
    """A metric by position, by algorithm, over the bins that all of its seeds have.

    Positions are counted from 1 here, as they are drawn on a logarithmic axis.
    """
    found = {}
    for line in lines:
        by_bin = [
            {one.first: ((one.first + one.last) / 2 + 1, one.value) for one in curve.bins}
            for row in line.done
            if (curve := _curve_at(row, place)) is not None
        ]
        series = _over_seeds(by_bin)
        if series is not None:
            found[line.label] = series
    return found


def profiles(table: Table) -> dict[str, Series]:
    """Share of trainings and tasks whose headline is better than a threshold, by algorithm."""
    matrices = {line.label: line.matrix(table.headline) for line in table.lines}
    known = {label: matrix for label, matrix in matrices.items() if matrix is not None}
    if not known:
        return {}
    sign = table.headline[0].sign
    low, high = min(m.min() for m in known.values()), max(m.max() for m in known.values())
    thresholds = np.linspace(low, high, THRESHOLDS)
    bands = {label: profile_band(matrix, thresholds, seeded(), paired=True) for label, matrix in known.items()}
    return {label: Series(sign * thresholds, band.value, band.low, band.high) for label, band in bands.items()}


def _curve_at(row: Row, place: Place) -> PositionCurve | None:
    return next((p for p in row.positions if Place(p.task, p.decoding, p.metric) == place), None)


def _over_seeds(seeds: Sequence[Mapping[int, tuple[float, float]]]) -> Series | None:
    """Mean and band of (x, y) at the keys that all seeds have."""
    if not seeds:
        return None
    keys = sorted(set.intersection(*(set(one) for one in seeds)))
    if not keys:
        return None
    x, y = np.array([[one[key] for key in keys] for one in seeds], float).transpose(2, 0, 1)
    low, high = bounds(
        lambda matrix: matrix.mean(-2), y, generator=seeded(), resamples=2000, confidence=0.95, paired=True
    )
    return Series(x.mean(0), y.mean(0), low, high)
