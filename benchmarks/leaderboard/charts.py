"""Charts as SVG for a page with a light and a dark theme: colours are the page's variables."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import altair as alt
import numpy as np
import vl_convert

from distillzoo.benchmarks.leaderboard.curves import Series
from distillzoo.benchmarks.leaderboard.labels import Spot, place
from distillzoo.benchmarks.leaderboard.pareto import front
from distillzoo.benchmarks.statistics.bootstrap import Interval

INK, SOFT, GRID, ACCENT = "var(--ink)", "var(--soft)", "var(--grid)", "var(--accent)"

WIDTH, HEIGHT = 460, 300
PANEL_WIDTH, PANEL_HEIGHT, PANELS = 258, 100, 4

NOISE: Final = re.compile(
    r'<path class="(?:background|foreground)"[^>]*/>| (?:aria-hidden|pointer-events|class)="[^"]*"'
)
"""Of no use on this page, and a third of its bytes."""


@dataclass(frozen=True)
class Dot:
    """A point of a scatter chart."""

    name: str
    cost: float
    score: Interval


def scatter(dots: Sequence[Dot], cost: str, score: str, sign: int, marked: str | None) -> str:
    """Score against cost with the Pareto front; the cost is logarithmic where it spans more than a decade.

    Args:
        dots: the algorithms; those named first get their names first where there is little room.
        cost: title of the horizontal axis.
        score: title of the vertical axis.
        sign: -1 where lower scores are better.
        marked: the baseline.
    """
    best = front([(dot.cost, sign * dot.score.value) for dot in dots])
    costs = [dot.cost for dot in dots]
    log = min(costs) > 0 and max(costs) > 10 * min(costs)
    across = _domain(costs, log)
    ends = [end for dot in dots for end in (dot.score.value, dot.score.low, dot.score.high) if math.isfinite(end)]
    upwards = _domain(ends, False)
    pixels = [
        (WIDTH * _share(dot.cost, across, log), HEIGHT * (1 - _share(dot.score.value, upwards, False))) for dot in dots
    ]
    first = sorted(range(len(dots)), key=lambda i: (i not in best, dots[i].name != marked))
    spots = dict(
        zip(first, place([pixels[i] for i in first], [dots[i].name for i in first], WIDTH, HEIGHT), strict=True)
    )
    points = [_point(dot, i in best, dot.name == marked, spots[i]) for i, dot in enumerate(dots)]
    base = alt.Chart(alt.Data(values=points)).encode(
        x=alt.X("cost:Q", title=cost, scale=_scale(across, log), axis=alt.Axis(tickCount=5, format=_format(costs))),
        y=alt.Y("score:Q", title=score, scale=_scale(upwards, False), axis=alt.Axis(tickCount=6)),
    )
    layers = [
        alt.Chart(alt.Data(values=[points[i] for i in best]))
        .mark_line(interpolate="step-after", stroke=ACCENT, strokeWidth=1.2, strokeDash=[3, 3])
        .encode(x="cost:Q", y="score:Q"),
        base.mark_rule(stroke=GRID, strokeWidth=2).encode(y=alt.Y("low:Q"), y2="high:Q"),
        base.mark_point(size=50, opacity=1).encode(
            shape=alt.Shape("shape:N", scale=None),
            fill=alt.Fill("fill:N", scale=None),
            stroke=alt.Stroke("stroke:N", scale=None),
        ),
        base.mark_text(
            fontSize=11.5,
            fill=INK,
            align={"expr": "datum.align"},
            baseline="middle",
            dx={"expr": "datum.dx"},
            dy={"expr": "datum.dy"},
        )
        .encode(text="label:N")
        .transform_filter(alt.datum.label != ""),
    ]
    return _svg(alt.layer(*layers).properties(width=WIDTH, height=HEIGHT))


def panels(series: Mapping[str, Series], baseline: str | None, log: bool = False) -> str:
    """A panel an algorithm: its line with its band, and the baseline's line dashed behind it.

    Args:
        series: by algorithm, in the order of the panels.
        baseline: whose line is behind the others.
        log: draw x logarithmically.
    """
    behind = series.get(baseline or "")
    values = []
    for name, one in series.items():
        values += _points(name, "own", one, log)
        if behind is not None and name != baseline:
            values += _points(name, "baseline", behind, log)
    scale = alt.Scale(type="log" if log else "linear", nice=False)
    reached = [value["x"] for value in values]
    axis = alt.Axis(tickCount=4, format=_format(reached), grid=False, labelFlush=True)
    base = alt.Chart().encode(x=alt.X("x:Q", title=None, scale=scale, axis=axis))
    up = alt.Y("y:Q", title=None, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=3))
    layers = [
        base.mark_area(fill=ACCENT, opacity=0.22)
        .encode(y=alt.Y("low:Q", title=None), y2="high:Q")
        .transform_filter((alt.datum.kind == "own") & alt.expr.isValid(alt.datum.low)),
        base.mark_line(stroke=SOFT, strokeWidth=1.1, strokeDash=[3, 2])
        .encode(y=up)
        .transform_filter(alt.datum.kind == "baseline"),
        base.mark_line(stroke=ACCENT, strokeWidth=1.8).encode(y=up).transform_filter(alt.datum.kind == "own"),
    ]
    header = alt.Header(
        title=None, labelColor=INK, labelFontSize=12, labelFontWeight=600, labelAnchor="start", labelPadding=3
    )
    chart = (
        alt.layer(*layers, data=alt.Data(values=values))
        .properties(width=PANEL_WIDTH, height=PANEL_HEIGHT)
        .facet(
            facet=alt.Facet("name:N", sort=list(series), header=header),
            columns=PANELS,
            spacing={"row": 14, "column": 22},
        )
    )
    return _svg(chart)


def _points(name: str, kind: str, series: Series, log: bool) -> list[dict[str, Any]]:
    return [
        {"name": name, "kind": kind, "x": _round(x), "y": _round(y), "low": _round(low), "high": _round(high)}
        for x, y, low, high in zip(series.x, series.y, series.low, series.high, strict=True)
        if x > 0 or not log
    ]


def _point(dot: Dot, best: bool, marked: bool, spot: Spot | None) -> dict[str, Any]:
    return {
        "cost": _round(dot.cost),
        "score": _round(dot.score.value),
        "low": _round(dot.score.low),
        "high": _round(dot.score.high),
        "shape": "square" if marked else "circle",
        "fill": ACCENT if best else "var(--page)",
        "stroke": ACCENT if best else SOFT,
        "label": dot.name if spot else "",
        **(spot or Spot("left", 0, 0))._asdict(),
    }


def _round(value: float) -> float | None:
    """Five digits are more than a pixel shows; JSON has no NaN."""
    return float(f"{value:.5g}") if np.isfinite(value) else None


def _format(values: Sequence[float]) -> str:
    """Thousands and millions in short; d3 would write 0.95 as 950m."""
    return "~s" if max(values, default=0) >= 10_000 else ".6~g"


def _domain(values: Sequence[float], log: bool) -> tuple[float, float]:
    """The values' range with a margin for marks and names."""
    low, high = (math.log10(end) if log else end for end in (min(values), max(values)))
    margin = 0.08 * (high - low) or abs(high) / 10 or 1.0
    ends = low - margin, high + margin
    return (10 ** ends[0], 10 ** ends[1]) if log else ends


def _share(value: float, domain: tuple[float, float], log: bool) -> float:
    low, here, high = (math.log10(one) if log else one for one in (domain[0], value, domain[1]))
    return (here - low) / (high - low)


def _scale(domain: tuple[float, float], log: bool) -> Any:
    return alt.Scale(domain=list(domain), type="log" if log else "linear", nice=False, zero=False)


def _svg(chart: Any) -> str:
    """The chart with the page's colours and font. Names in it are escaped by vega."""
    axis = {"gridColor": GRID, "domainColor": GRID, "tickColor": GRID, "labelColor": SOFT, "titleColor": SOFT}
    configured = (
        chart.configure(font="system-ui, sans-serif", background="transparent", aria=False)
        .configure_view(stroke=None)
        .configure_axis(**axis, titleFontWeight="normal", titleFontSize=12, labelFontSize=11)
    )
    svg: str = vl_convert.vegalite_to_svg(configured.to_dict())
    return NOISE.sub("", svg)
