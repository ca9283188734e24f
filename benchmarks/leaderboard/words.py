"""Figures as people read them."""

import math

from distillzoo.benchmarks.statistics.bootstrap import Interval

MISSING = "–"


def figure(value: float | None, digits: int) -> str:
    """A score; a dash where there is none."""
    if value is None or math.isnan(value):
        return MISSING
    return "never" if math.isinf(value) else f"{value:,.{digits}f}"


def ends(interval: Interval | None, digits: int) -> str:
    """The ends of an interval; nothing where one seed leaves it open."""
    if interval is None or math.isnan(interval.low):
        return ""
    return " to ".join("∞" if math.isinf(end) else f"{end:,.{digits}f}" for end in (interval.low, interval.high))


def short(value: float | None) -> str:
    """A count or a cost in three or four digits: 12.3, 505 k, 1.23 M."""
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "never"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.{2 if value < 10 * size else 1 if value < 100 * size else 0}f} {unit}"
    return f"{value:.{0 if value == int(value) else 1 if value >= 10 else 2}f}"


def sentence(ratio: Interval | None, reference: str) -> str:
    """How much of the reference's cost an algorithm needed, with its interval."""
    if ratio is None or math.isnan(ratio.value):
        return "no ratio can be taken of these curves"
    if math.isinf(ratio.low):
        return "not reached within the suite's budget"
    share = "not reached by half of the seeds" if math.isinf(ratio.value) else f"{ratio.value:.2f} of {reference}'s"
    between = ends(ratio, 2)
    return f"{share}, 95% interval {between}" if between else f"{share}, one seed, so without an interval"
